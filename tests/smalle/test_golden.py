"""The shipped checkpoint speaks the codes that were stored when it was published, by processors of the same kind."""

import hashlib
import json
import pathlib

import pytest
import torch

from smalle import SmallEForTextToSpeech, SmallEProcessor

ROOT = pathlib.Path(__file__).parents[2]
STORED = json.loads((ROOT / "tests" / "golden" / "smalle-mini.json").read_text())
TEXT = "Good morning. The train leaves at noon."


@pytest.fixture(scope="module")
def checkpoint():
    path = ROOT / "checkpoints" / "smalle-mini"
    model = SmallEForTextToSpeech.from_pretrained(path).eval()
    model.step_runtime = "torch"
    return SmallEProcessor.from_pretrained(path), model


@pytest.mark.parametrize("voice", STORED)
def test_a_seed_gives_the_stored_codes_and_samples(checkpoint, voice):
    processor, model = checkpoint
    stored = torch.tensor(STORED[voice]["codes"])
    codes = model.generate(**processor(TEXT, voice=voice), seed=1)[0]
    same = codes.shape == stored.shape and torch.equal(codes, stored)
    if not same:  # another processor rounds differently; sampling then differs from some frame on
        frames = min(len(codes), len(stored))
        differs = (codes[:frames] != stored[:frames]).any(1).long()
        assert int(differs.cumsum(0).eq(0).sum()) >= 10, "the codes differ from the start: not a matter of rounding"
        pytest.skip("this processor rounds differently from the one that the codes were stored by")
    (wave,) = processor.decode(codes[None])
    samples = (wave * 32767).round().short().numpy()
    digest = hashlib.sha256(samples.tobytes()).hexdigest()
    assert digest == STORED[voice]["sha256"] or abs(float(wave.abs().mean()) - STORED[voice]["mean"]) < 1e-3
