"""Recombination: every word keeps its frames, in another order."""

import random

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from smalle.train.data.recombine import recombine, split_runs

RATE, CODEBOOKS = 50, 2


def recording(words, seed=0):
    """A row of codes whose frames say which word they belong to."""
    rng = np.random.default_rng(seed)
    frames = rng.integers(3, 20, words)
    ends = np.cumsum(frames)
    times = np.stack((ends - frames, ends), 1) / RATE
    codes = np.repeat(np.arange(words), frames).astype(np.uint16)
    return {
        "text": " ".join(f"w{n}" for n in range(words)),
        "speaker": "anna",
        "duration": len(codes) / RATE,
        "words": times.astype(np.float32).ravel(),
        "source": "a",
        "codes": np.repeat(codes, CODEBOOKS),
    }


@given(st.integers(1, 40), st.integers(0, 99))
def test_every_word_is_in_one_run(count, seed):
    runs = split_runs(count, random.Random(seed))
    assert [n for run in runs for n in range(*run)] == list(range(count))
    assert count == 1 or all(end - begin > 1 for begin, end in runs)


@given(st.integers(1, 12), st.integers(0, 99))
def test_words_keep_their_frames(words, seed):
    row = recording(words, seed)
    for made in recombine([row], 5, RATE, CODEBOOKS, unchanged=0.0, seed=seed):
        codes, said = made["codes"].reshape(-1, CODEBOOKS), [int(word[1:]) for word in made["text"].split()]
        times = made["words"].reshape(-1, 2)
        assert len(times) == len(said) == len(set(said)) and made["duration"] == pytest.approx(len(codes) / RATE)
        for word, (begin, end) in zip(said, times):
            mine = codes[round(begin * RATE) : round(end * RATE)]
            assert len(mine) and (mine == word).all() and (codes == word).all(1).sum() == len(mine)


def test_a_share_is_unchanged_and_a_seed_fixes_the_rest():
    row = recording(12)
    made = recombine([row], 200, RATE, CODEBOOKS, unchanged=0.3)
    assert 30 < sum(one is row for one in made) < 90
    again = recombine([row], 200, RATE, CODEBOOKS, unchanged=0.3)
    assert [one["text"] for one in made] == [one["text"] for one in again] != [row["text"]] * 200
