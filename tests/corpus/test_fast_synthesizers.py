"""Fast synthesizers: speakers made of one voice, and the times of their words."""

import json

import numpy as np
import pytest
import soundfile
from smalle.corpus.fast_synthesizers import main, variants, warp, word_spans


def test_words_are_runs_of_phonemes_between_spaces():
    starts = np.array([0.0, 0.1, 0.2, 0.3, 0.4, 0.5])
    assert word_spans(["h", "i", " ", "j", "u"], starts) == [(0.0, 0.2), (0.3, 0.5)]
    assert word_spans([" ", "a", " ", " "], starts) == [(0.1, 0.2)]


def test_variants_are_fixed_by_their_number():
    assert list(variants("heart", 0)) == ["heart"] and variants("heart", 5) == dict(
        list(variants("heart", 9).items())[:5]
    )


def test_warp_moves_a_peak_by_its_factor():
    envelope = np.exp(-((np.arange(100) - 40) ** 2) / 50)[:, None]
    assert warp(envelope, 1.1)[:, 0].argmax() == 44 and warp(envelope, 1.0) is envelope


def test_hibari_speaks_a_corpus_with_the_times_of_its_words(tmp_path):
    pytest.importorskip("hibari")
    texts = ["The door is open.", "Go on! We will see it tomorrow."]
    plan = "".join(json.dumps({"id": f"t{n}", "text": text}) + "\n" for n, text in enumerate(texts))
    (tmp_path / "plan.jsonl").write_text(plan)
    main([str(tmp_path / "plan.jsonl"), str(tmp_path / "out"), "--engine", "hibari", "--variants", "3"])
    rows = [json.loads(line) for line in (tmp_path / "out" / "metadata.jsonl").read_text().splitlines()]
    assert [row["text"] for row in rows] == texts
    for row in rows:
        audio, rate = soundfile.read(tmp_path / "out" / row["file_name"])
        assert rate == 24000 and len(audio) / rate == pytest.approx(row["duration"], abs=1e-3)
        times = np.array(row["words"])
        assert times.shape == (len(row["text"].split()), 2) and (np.diff(times.ravel()) >= 0).all()
        assert 0 <= times[0, 0] < 0.3 and row["duration"] - 0.4 < times[-1, 1] <= row["duration"]
