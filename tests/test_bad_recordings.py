"""The benchmark of bad recordings: they are what their names say, and each is refused by name or read and scored."""

from pathlib import Path

import numpy as np
import pytest

from benchmarks import bad_recordings, timing
from benchmarks.bad_recordings import KINDS, RATE, Material
from smalle import SmallEProcessor
from smalle.audio_smalle import speech_level, write_wav
from smalle.saving_smalle import write_jsonl

CHECKPOINT = Path(__file__).parents[1] / "checkpoints/smalle-mini"
SCORER = """import json, sys
rows = [json.loads(line) for line in open(sys.argv[1])]
scored = [{**row, "words": len(row["text"].split()), "errors": 1} for row in rows]
json.dump({"summary": {}, "rows": scored}, open(sys.argv[3], "w"))
"""


@pytest.fixture(scope="module")
def speech():
    """Five seconds of a woman's and of a man's speech (L,)."""
    processor = SmallEProcessor.from_pretrained(CHECKPOINT)
    return [processor.decode(processor.get_voice(name).codes[:250])[0].numpy() for name in ("emma", "daniel")]


def spectrum(samples):
    """Power (N,) of samples (L,), and its frequencies in Hz."""
    return np.abs(np.fft.rfft(samples)) ** 2, np.fft.rfftfreq(len(samples), 1 / RATE)


def test_recordings_are_what_their_names_say(speech):
    own, other = speech
    material = Material(own, np.concatenate((own, own)), other, np.random.default_rng(0))
    made = {kind: make(material) for kind, make in KINDS.items()}
    assert all(np.isfinite(x).all() and x.ndim == 1 for x in made.values())
    seconds = {kind: len(x) / RATE for kind, x in made.items()}
    assert seconds["0.4 s"] == 0.4 and seconds["two minutes"] == 120
    assert seconds["two people"] == pytest.approx(10, abs=0.1)
    power, hertz = spectrum(made["8 kHz"])
    assert power[hertz > 4100].sum() < 1e-6 * power.sum() < spectrum(own)[0][hertz > 4100].sum()
    shares = [float((np.abs(made[kind]) == 1).mean()) for kind in ("good", "clipped a little", "clipped")]
    assert shares[0] < 1e-3 < shares[1] < 0.05 < shares[2]
    assert np.abs(made["silence"]).max() == 0 and made["DC offset"].mean() == pytest.approx(0.2, abs=0.01)
    depth = {kind: speech_level(made[kind])[1] for kind in ("good", "fan in a room")}
    assert depth["fan in a room"] < 24 < depth["good"]  # the fan fills the pauses


def test_each_is_refused_by_name_or_read_and_scored(speech, tmp_path, monkeypatch):
    monkeypatch.setattr(timing, "RESULTS", tmp_path / "results.jsonl")
    rows = []
    for name, own in zip(("anna", "ben"), speech):
        for number, samples in enumerate((own[: 2 * RATE], own[: 3 * RATE])):
            write_wav(tmp_path / f"{name}{number}.wav", samples, RATE)
            row = {"file_name": f"{name}{number}.wav", "text": "So.", "speaker": name, "duration": len(samples) / RATE}
            rows.append({**row, "group": "dev"})
    write_jsonl(tmp_path / "metadata.jsonl", rows)
    (tmp_path / "score.py").write_text(SCORER)
    (tmp_path / "sentences.txt").write_text("Good morning.\n")
    options = {"--corpus": tmp_path, "--sentences": tmp_path / "sentences.txt", "--scorer": tmp_path / "score.py"}
    words = [str(word) for option in options.items() for word in option]
    out = tmp_path / "out"
    kinds = bad_recordings.main([str(CHECKPOINT), str(out), *words, "--group", "dev", "--kinds", "0.4 s", "good"])
    assert kinds["0.4 s"]["refused"] == 2 and "0.4 s of sound" in kinds["0.4 s"]["why"]
    assert kinds["0.4 s"]["right"] and kinds["0.4 s"]["words"] == 0
    assert kinds[bad_recordings.DEFAULT]["words"] == kinds["good"]["words"] == 2
    assert kinds["good"]["refused"] == 0 and kinds["good"]["wer"] == 50 and not kinds["good"]["right"]
    assert (out / "good/000.wav").stat().st_size > RATE and "| good | 0 | 2 | 50.0 | 2 |" in (
        out / "table.md"
    ).read_text(encoding="utf-8")
