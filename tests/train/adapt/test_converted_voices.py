"""Voices by the converter of the embedded checkpoint: `smalle clone` and presets."""

import json
import pathlib
import shutil

import pytest
import torch
from smalle.train.adapt import clone
from smalle.train.conversion import preset

import smalle
from smalle.voices_smalle import VoiceConverter

CHECKPOINT = pathlib.Path(__file__).parents[3] / "checkpoints" / "smalle-mini"


@pytest.fixture(scope="module")
def recording(tmp_path_factory):
    """A sound file of somebody else than the default voice."""
    processor = smalle.SmallEProcessor.from_pretrained(CHECKPOINT)
    path = tmp_path_factory.mktemp("recording") / "emma.wav"
    processor.save_audio(processor.decode(processor.get_voice("emma").codes)[0], path)
    return path


def speech(checkpoint, voice=None):
    """Of a checkpoint, as a pipeline would speak: the voice is named once where it is the default."""
    processor = smalle.SmallEProcessor.from_pretrained(checkpoint)
    model = smalle.SmallEForTextToSpeech.from_pretrained(checkpoint).eval()
    return processor.decode(model.generate(**processor("Good morning.", voice=voice), seed=0), voice=voice)[0]


def test_clone_tunes_the_converter_without_a_transcript(recording, tmp_path, monkeypatch):
    monkeypatch.setattr(clone, "STEPS", 2)
    clone.main([str(recording), "", str(CHECKPOINT), str(tmp_path / "emma")])
    assert json.loads((tmp_path / "emma" / "processor_config.json").read_text())["default_voice"] == "emma"
    cloned, before = speech(tmp_path / "emma"), speech(CHECKPOINT)
    assert abs(len(cloned) - len(before)) <= 480 and not torch.allclose(cloned, before[: len(cloned)], atol=0.05)
    with pytest.raises(ValueError, match="exists: name"):
        clone.main([str(recording), "", str(CHECKPOINT), str(tmp_path / "emma")])


def refuse(*_):
    raise ValueError("no speech")


def test_a_preset_takes_little_space(recording, tmp_path, monkeypatch):
    checkpoint = tmp_path / "checkpoint"
    shutil.copytree(CHECKPOINT, checkpoint)
    preset.main([str(checkpoint), "me", str(recording), str(recording), "--steps", "3"])
    assert (checkpoint / "voices" / "me.safetensors").stat().st_size < 60_000
    assert "me" in json.loads((checkpoint / "processor_config.json").read_text())["voices"]
    untuned = tmp_path / "untuned"
    shutil.copytree(CHECKPOINT, untuned)
    monkeypatch.setattr(VoiceConverter, "check_recording", refuse)
    with pytest.raises(ValueError, match="no speech"):
        preset.main([str(untuned), "me", str(recording), "--steps", "0"])
    preset.main([str(untuned), "me", str(recording), "--steps", "0", "--unchecked"])
    waves = [speech(checkpoint, "me"), speech(untuned, "me"), speech(checkpoint)]
    size = min(map(len, waves))
    assert not any(torch.allclose(a[:size], waves[0][:size], atol=0.02) for a in waves[1:])


def test_a_preset_takes_the_recordings_of_a_speaker_of_a_corpus(recording, tmp_path):
    rows = [{"file_name": str(recording), "text": "Yes.", "speaker": name} for name in ("emma", "ben", "emma")]
    (tmp_path / "metadata.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert preset.recordings_of("emma", tmp_path) == [str(recording)] * 2
    with pytest.raises(ValueError, match="no recordings of 'anna'"):
        preset.main([str(CHECKPOINT), "anna", "--corpus", str(tmp_path)])
    for recordings in [], [str(recording), "--corpus", str(tmp_path)]:
        with pytest.raises(SystemExit):
            preset.main([str(CHECKPOINT), "emma", *recordings])
