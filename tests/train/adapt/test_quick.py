"""A voice from one recording in seconds, without its transcript."""

import copy
import random
import re

import numpy as np
import pytest
import torch
from smalle.train.adapt.quick import draw_parts, prepare_voice, tune_model, tune_refiner

from smalle import SmallEForTextToSpeech, SmallEProcessor
from smalle.audio_smalle import write_wav
from tests.smalle.test_recordings import CHECKPOINT


@pytest.fixture(scope="module")
def base():
    """The embedded checkpoint, and six seconds of one of its presets: codes (T, Q) and waveform (L,)."""
    processor = SmallEProcessor.from_pretrained(CHECKPOINT)
    codes = processor.get_voice("fenrir").codes[:300]
    return processor, SmallEForTextToSpeech.from_pretrained(CHECKPOINT), codes, processor.decode(codes)[0]


def test_the_audio_side_learns_the_recording_and_all_else_stays(base):
    processor, model, codes, _ = base
    tuned = copy.deepcopy(model)
    losses = tune_model(tuned, processor.tokenizer, codes, steps=8, frames=300)
    assert np.mean(losses[-2:]) < np.mean(losses[:2]) - 0.05
    before = model.state_dict()
    changed = {name for name, weight in tuned.state_dict().items() if not torch.equal(weight, before[name])}
    assert changed and all(re.search(r"audio_encoder|audio_decoder|head", name) for name in changed)


def test_the_refiner_learns_the_recording(base):
    processor, _, _, waveform = base
    codec = copy.deepcopy(processor.codec)
    losses = tune_refiner(codec, waveform, steps=12)
    assert np.mean(losses[-3:]) < np.mean(losses[:3])
    assert codec.identity == processor.codec.identity


def test_parts_lie_within_the_recording():
    codes = torch.arange(400)[:, None].expand(-1, 3)
    parts = draw_parts(codes, 600, random.Random(0))
    assert sum(map(len, parts)) >= 600 and all(60 <= len(part) <= 250 for part in parts)
    assert all((part[1:, 0] - part[:-1, 0] == 1).all() for part in parts)


def test_the_checkpoint_speaks_in_the_new_voice(base, tmp_path, monkeypatch):
    monkeypatch.setattr("smalle.train.adapt.quick.tune_model", lambda *_: [])
    monkeypatch.setattr("smalle.train.adapt.quick.tune_refiner", lambda *_: [])
    write_wav(tmp_path / "me.wav", base[3], 24000)
    prepare_voice(tmp_path / "me.wav", str(CHECKPOINT), str(tmp_path / "mine"), "me")
    processor = SmallEProcessor.from_pretrained(tmp_path / "mine")
    assert processor.default_voice == "me" and "heart" in processor.voices
    inputs = processor("Hello.")
    assert "speaker_codes" in inputs and "audio_codes" not in inputs
    model = SmallEForTextToSpeech.from_pretrained(tmp_path / "mine")
    assert model.generate(**inputs, max_new_tokens=3).shape[0] == 1
    with pytest.raises(ValueError, match="exists"):
        prepare_voice(tmp_path / "me.wav", str(CHECKPOINT), str(tmp_path / "mine"), "me")
