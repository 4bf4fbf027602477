"""What a model says by itself at the times of a recording."""

import numpy as np
import pyarrow.parquet
import pytest
import torch

from smalle import SmallEConfig, SmallEForTextToSpeech
from smalle.configuration_smalle import NUM_AUDIO_SPECIALS
from train import free_run
from train.alignment import timed_maps
from train.data import CodesDataset, Collator
from train.prepare import write

TEXTS = ["A few words.", "Then some more of them.", "No times here.", "And an end."]


@pytest.fixture
def model(tiny_tokenizer):
    torch.manual_seed(0)
    config = SmallEConfig(
        vocab_size=len(tiny_tokenizer), hidden_size=32, intermediate_size=48, text_layers=1, num_attention_heads=2,
        audio_encoder_layers=1, audio_decoder_layers=1, mixer_heads=2, num_codebooks=3, codebook_size=24,
        frame_rate=50.0,
    )  # fmt: skip
    model = SmallEForTextToSpeech(config).eval()
    model.head.weight.data *= 100  # sure of itself: no ties
    return model


@pytest.fixture
def prepared(tmp_path):
    random = np.random.default_rng(0)
    rows = []
    for text, length in zip(TEXTS, (20, 31, 18, 25)):
        ends = np.linspace(0, length / 50, len(text.split()) + 1)
        words = np.stack((ends[:-1], ends[1:]), 1).ravel().tolist()
        rows.append({"text": text, "speaker": "b" if text == TEXTS[2] else "a", "duration": length / 50,
                     "codes": random.integers(0, 24, length * 3, dtype=np.uint16),
                     "words": [] if text == TEXTS[2] else words})  # fmt: skip
    return write(rows, tmp_path / "codes.parquet")


def test_each_own_code_is_what_the_model_says_after_its_own_past(model, prepared, tiny_tokenizer):
    data = CodesDataset(prepared, 3, 50.0)
    batch = Collator(tiny_tokenizer, 3, 50.0)([data[(0, 1)], data[(3, 0)]])
    given, truth = 21, batch["audio_codes"]
    said = free_run.free_run(model, batch, given, temperature=1e-3)
    own = (torch.arange(truth.shape[1]) >= given)[:, None] & (truth >= NUM_AUDIO_SPECIALS)
    assert torch.equal(said[~own], truth[~own]) and (said[own] != truth[own]).any()
    with torch.no_grad():  # one pass over all of it, in place of step after step
        maps = timed_maps(batch["token_windows"], truth.shape[1])
        logits = model(batch["input_ids"], batch["attention_mask"], said, batch["audio_attention_mask"],
                       text_maps=maps).logits  # fmt: skip
    expected = logits[:, :-1, :, NUM_AUDIO_SPECIALS:].argmax(-1) + NUM_AUDIO_SPECIALS
    assert torch.equal(said[:, 1:][own[:, 1:]], expected[own[:, 1:]])


def test_what_was_said_lies_beside_the_codes(model, prepared, tiny_tokenizer, tmp_path, monkeypatch):
    model.save_pretrained(tmp_path / "model")
    tiny_tokenizer.save_pretrained(tmp_path / "model")
    out = tmp_path / "said.parquet"
    monkeypatch.setattr("sys.argv", ["free_run", str(tmp_path / "model"), str(prepared), str(out), "--given", "0.2"])
    free_run.main()
    before, after = pyarrow.parquet.read_table(prepared), pyarrow.parquet.read_table(out)
    assert after.drop_columns("free_run").equals(before)
    data, said = CodesDataset(out, 3, 50.0), after["free_run"].to_pylist()
    assert said[2] is None and any(said)
    sample = data[(0, 2)]
    assert sample.free_run.shape == sample.codes.shape
    assert torch.equal(sample.free_run[20:], sample.codes[20:])  # not said: the recording
    assert torch.equal(sample.free_run[:7], sample.codes[:7])  # given
    batch = Collator(tiny_tokenizer, 3, 50.0)([data[(n,)] for n in range(4)])
    assert batch["free_run"].shape == batch["audio_codes"].shape
    different = batch["free_run"] != batch["audio_codes"]
    assert different.any() and (batch["audio_codes"][different] >= NUM_AUDIO_SPECIALS).all()
