"""Samples of prepared codes: joined utterances, speaker codes, and pasts in another voice."""

import numpy as np
import pytest
import torch
from smalle.train.data.dataset import CodesDataset, parallel_utterances, speaker_frames
from smalle.train.data.prepare import write_codes

from smalle import SmallEConfig

UTTERANCES = [("Five frames, a longer text.", 5, 5), ("Nine.", 9, 1), ("One", 1, 0)]  # text, frames, words with times


@pytest.fixture
def codes():
    random = torch.Generator().manual_seed(0)
    return [torch.randint(0, 20, (length, 3), generator=random) for _, length, _ in UTTERANCES]


def row(text, speaker, codes, words=()):
    codes = np.asarray(codes, np.uint16)
    return {"text": text, "speaker": speaker, "duration": len(codes) / 50, "words": words, "codes": codes.ravel()}


def test_joined_utterances_follow_each_other(tmp_path, codes):
    times = [[[0.02 * n, 0.02 * n + 0.01] for n in range(words)] for _, _, words in UTTERANCES]
    rows = [row(text, "a", one, np.ravel(time)) for (text, *_), one, time in zip(UTTERANCES, codes, times)]
    dataset = CodesDataset(write_codes(rows, tmp_path / "codes.parquet"), 3, 50.0)
    assert len(dataset) == 3 and dataset.lengths.tolist() == [5, 9, 1] and dataset.speakers == ["a"] * 3
    sample = dataset[(2, 0)]
    assert sample.text == "One Five frames, a longer text."
    assert torch.equal(sample.codes, torch.cat((codes[2], codes[0])))
    assert np.isnan(sample.words[0]).all() and sample.words[1:] == pytest.approx(np.add(times[0], 1 / 50))
    assert sample.speaker_codes is None and sample.past is None


@pytest.fixture
def speakers(tmp_path):
    """12 utterances of anna and one of ben; their codes are their indices. Speaker codes have up to 4 frames."""
    rows = [row("text", "ben" if n == 12 else "anna", np.full((8, 3), n)) for n in range(13)]
    return CodesDataset(write_codes(rows, tmp_path / "codes.parquet"), 3, 50.0, speaker_frames=4)


def test_speaker_codes_come_from_other_utterances_of_the_speaker(speakers):
    parts = {n: speakers[(n, (n + 1) % 12)].speaker_codes for n in range(12)}
    assert all(2 <= len(part) <= 4 and part.shape[1] == 3 for part in parts.values())
    assert all(not {n, (n + 1) % 12, 12} & set(part.flatten().tolist()) for n, part in parts.items())
    assert len({int(part[0, 0]) for part in parts.values()}) > 3
    assert not len(speakers[(12,)].speaker_codes)  # ben has no other utterance
    assert all(torch.equal(speakers[(n, (n + 1) % 12)].speaker_codes, part) for n, part in parts.items())


def test_parallel_utterances_share_words_and_times():
    speakers = ["anna", "anna x0.8", "ben", "anna", "c~a", "c~b x1.1", "c~b"]
    texts = ["hello you", "hello you", "hello you", "who", "go on", "go on", "stop"]
    assert parallel_utterances(texts, speakers) == {0: [0, 1], 1: [0, 1], 4: [4, 5], 5: [4, 5]}


def test_a_swapped_past_is_another_voice_in_the_same_words_and_times(tmp_path):
    spoken = [
        ("hello you", "anna", 8),
        ("hello you", "anna x0.8", 10),
        ("hello you", "ben", 8),
        ("who", "anna", 6),
        ("go on", "c~a", 4),
        ("go on", "c~b x1.1", 4),
    ]
    rows = [
        row(text, speaker, np.repeat(np.arange(frames), 3).reshape(-1, 3) + 100 * n)
        for n, (text, speaker, frames) in enumerate(spoken)
    ]
    path = write_codes(rows, tmp_path / "codes.parquet")
    own, swapped, some = (
        CodesDataset(path, 3, 50.0, speaker_frames=4, voice_swap_probability=share) for share in (0.0, 1.0, 0.5)
    )
    for item in ((0,), (1,), (2,), (3,), (4,), (0, 3)):
        assert torch.equal(own[item].past, own[item].codes) and torch.equal(swapped[item].codes, own[item].codes)
    past = [swapped[(n,)].past[:, 0].tolist() for n in range(6)]
    assert past[0] == [100, 101, 102, 103, 105, 106, 107, 108] and past[1] == [0, 0, 1, 2, 3, 4, 4, 5, 6, 7]
    assert past[2] == list(range(200, 208)) and past[3] == list(range(300, 306))  # without parallel utterances
    assert past[4] == list(range(500, 504)) and past[5] == list(range(400, 404))
    assert swapped[(0, 3)].past[:, 0].tolist() == past[0] + past[3]
    items = ((0,), (1,), (4,), (5,), (0, 3), (3, 0))
    assert 0 < sum(torch.equal(some[item].past, some[item].codes) for item in items) < 6


@pytest.mark.parametrize("seconds", [0, 0.01, -3, 1e9, "4", None])
def test_seconds_that_make_no_recording_are_refused(seconds):
    with pytest.raises(ValueError, match="data.speaker_seconds"):
        speaker_frames(SmallEConfig(), seconds)
