"""Recordings cut into phrases at pauses."""

import json

import numpy as np
import pytest
from smalle.train.data.phrases import find_phrases
from smalle.train.data.prepare import write_codes

from smalle.audio_smalle import write_wav

RATE = 24000
SAID = "we went home early and then we all slept until the sun was up"  # a pause after "early" and one after "slept"
SPANS = [(0.3, 1.5, 4), (2.0, 3.6, 5), (4.1, 6.0, 5)]  # seconds of speech, and the words in it


@pytest.fixture
def corpus(tmp_path):
    """One recording of six seconds, and its words' times as an alignment finds them: a pause is the word's before."""
    random, samples = np.random.default_rng(0), np.zeros(round(6.3 * RATE), np.float32)
    words = []
    for begin, end, count in SPANS:
        inside = slice(round(begin * RATE), round(end * RATE))
        samples[inside] = 0.1 * random.standard_normal(inside.stop - inside.start)
        starts = np.linspace(begin, end, count, endpoint=False)
        words += starts.tolist()
    write_wav(tmp_path / "1.wav", samples, RATE)
    times = np.stack((words, [*words[1:], 6.0]), 1)
    row = {"file_name": "1.wav", "text": SAID, "speaker": "a", "words": times.tolist()}
    (tmp_path / "metadata.jsonl").write_text(json.dumps(row) + "\n", encoding="utf-8")
    return tmp_path


def test_phrases_end_at_pauses_and_say_them(corpus):
    first, second, third = find_phrases(corpus, longest=2.5)
    assert [row["text"] for row in (first, second, third)] == [
        "we went home early,",
        "and then we all slept,",
        "until the sun was up.",
    ]
    for row, (begin, end, _) in zip((first, second, third), SPANS):
        words = np.add(row["words"], row["start"])
        assert words[0, 0] == pytest.approx(begin, abs=0.06) and words[-1, 1] == pytest.approx(end, abs=0.06)
        assert row["start"] < begin and row["start"] + row["duration"] > end
        assert (np.array(row["words"]) <= row["duration"]).all()


def test_short_recordings_stay_whole(corpus):
    (row,) = find_phrases(corpus, longest=7.0)
    assert row["text"] == "we went home early, and then we all slept, until the sun was up."
    assert len(row["words"]) == 14


def change(corpus, **values):
    path = corpus / "metadata.jsonl"
    row = {**json.loads(path.read_text(encoding="utf-8")), **values}
    path.write_text(json.dumps(row) + "\n", encoding="utf-8")
    return row


def test_a_transcript_with_digits_is_left_out(corpus):
    change(corpus, text=SAID.replace("we", "2"))
    assert not list(find_phrases(corpus, 7.0))


def test_times_may_come_with_codes(corpus, tmp_path):
    wanted = list(find_phrases(corpus, 2.5))
    words = change(corpus)["words"]
    change(corpus, words=None)
    (whole,) = find_phrases(corpus, 2.5)
    assert whole["text"] == f"{SAID}." and "words" not in whole and "start" not in whole
    path = str((corpus / "1.wav").resolve())
    row = {"id": f"{corpus.name}/{path}", "text": SAID, "speaker": "a", "words": np.ravel(words), "codes": []}
    codes = write_codes([{**row, "duration": 6.3}], tmp_path / "aligned.parquet")
    for phrase, same in zip(find_phrases(corpus, 2.5, codes), wanted, strict=True):
        assert phrase["text"] == same["text"] and np.allclose(phrase["words"], same["words"], atol=2e-3)
