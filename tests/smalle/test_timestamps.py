"""Alignments: the monotonic path, how steadily a text is read, times of words, and wav files."""

import itertools

import numpy as np
import pytest
import soundfile
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from smalle.alignment_smalle import monotonic_path, monotonicity, piecewise_path, word_times
from smalle.generation_smalle import SmallEGenerateOutput


def one_hot(path, tokens):
    """Alignment (T, N) that reads these tokens, one a frame."""
    return torch.nn.functional.one_hot(torch.tensor(path), tokens).float()


@given(st.lists(st.integers(0, 9), min_size=1, max_size=30).map(sorted))
def test_path_of_a_clean_alignment_is_the_alignment(path):
    assert monotonic_path(one_hot(path, 10)).tolist() == path


@given(arrays(float, st.tuples(st.integers(1, 5), st.integers(1, 4)), elements=st.floats(0.01, 1)))
def test_path_is_the_best_of_all_monotonic_paths(alignment):
    frames, tokens = alignment.shape
    every = itertools.combinations_with_replacement(range(tokens), frames)
    best = max(sum(np.log(alignment[t, n]) for t, n in enumerate(path)) for path in every)
    path = monotonic_path(alignment)
    assert (np.diff(path) >= 0).all()
    assert np.log(alignment[np.arange(frames), path]).sum() == pytest.approx(best)


@given(st.lists(st.lists(st.integers(0, 3), min_size=1, max_size=9).map(sorted), min_size=1, max_size=4))
def test_path_of_pieces_is_that_of_each_piece(pieces):
    path = [4 * n + token for n, piece in enumerate(pieces) for token in piece]
    alignment = one_hot(path, 4 * len(pieces) + 1).numpy()
    assert piecewise_path(alignment, range(0, 4 * len(pieces), 4)).tolist() == path


def test_path_passes_over_a_glance_back():
    assert monotonic_path(one_hot([0, 1, 2, 3, 3, 0, 3, 4], 5)).tolist() == [0, 1, 2, 3, 3, 3, 3, 4]
    assert monotonic_path(np.zeros((0, 3))).tolist() == []


def steadiness(path, tokens=6, padding=0):
    alignment = torch.nn.functional.pad(one_hot(path, tokens), (padding, 0))[None]
    mask = torch.tensor([[0] * padding + [1] * tokens])
    return monotonicity(alignment, torch.tensor([len(path)]), mask).item()


def test_steady_reading_is_best_and_jumps_cost_what_they_are_long():
    assert steadiness([0, 0, 1, 2, 3, 3, 4, 5, 5]) == 0
    assert steadiness([0, 1, 2, 1, 2, 3, 4, 5]) == pytest.approx(-1 / 6)  # one back
    assert steadiness([0, 1, 4, 5]) == pytest.approx(-2 / 6)  # two passed over
    assert steadiness([0, 1, 2]) == pytest.approx(-2 / 6)  # two left unread, one step allowed
    assert steadiness([0, 1, 4, 5], padding=3) == pytest.approx(-2 / 6)


def test_what_a_frame_gives_to_the_audio_does_not_count():
    alignment, shares = one_hot([0, 1, 2, 3], 4)[None], torch.tensor([1.0, 0.5, 0.9, 0.2])[:, None]
    assert monotonicity(alignment * shares, torch.tensor([4]), torch.ones(1, 4)).item() == pytest.approx(0, abs=1e-6)


def test_frames_after_the_end_do_not_count():
    alignments = one_hot([0, 1, 2, 3, 0, 2], 4)[None]
    mask = torch.ones(1, 4)
    assert monotonicity(alignments, torch.tensor([4]), mask).item() == 0
    assert monotonicity(alignments, torch.tensor([6]), mask).item() < 0


def test_words_last_from_their_first_frame_to_their_last():
    offsets, words = [(0, 2), (2, 4), (4, 5), (5, 8), (8, 9)], [(0, 4), (5, 8), (8, 9)]
    path = np.array([0, 0, 1, 2, 2, 3, 3, 3])
    assert word_times(path, offsets, words, 2.0) == [(0.0, 1.5), (2.5, 4.0), (4.0, 4.0)]


def test_a_word_without_a_token_counts_as_skipped():
    offsets, words = [(0, 2), (6, 8)], [(2, 5), (0, 2), (3, 5), (6, 8)]
    expected = [(0.0, 0.0), (0.0, 1.0), (1.0, 1.0), (1.0, 2.0)]
    assert word_times(np.array([0, 0, 1, 1]), offsets, words, 2.0) == expected


@given(st.lists(st.integers(0, 6), max_size=20).map(sorted))
def test_words_are_in_order_and_inside_the_audio(path):
    offsets, words = [(0, 2), (2, 4), (4, 5), (5, 8), (8, 9), (9, 12), (12, 13)], [(0, 4), (5, 8), (9, 12)]
    times = sum(word_times(np.array(path), offsets, words, 50.0), ())
    assert list(times) == sorted(times) and all(0 <= time <= len(path) / 50 for time in times)


def alignment_for(processor, text, voice, frames_per_token=2):
    """Alignment that reads the text's tokens one after the other, and for each token its text."""
    ids = processor(text, voice=voice)["input_ids"][0].tolist()
    own = len(processor.tokenizer(processor.normalize(text))["input_ids"]) - 1  # without [BOS], with [EOS]
    path = [n for n in range(len(ids) - own, len(ids)) for _ in range(frames_per_token)]
    return one_hot(path, len(ids)), processor.tokenizer.convert_ids_to_tokens(ids[-own:])


@pytest.mark.parametrize("voice", ["anna", "ben"])
def test_timestamps_of_a_steady_reading(processor, voice):
    text = "The fox, it's 2 dogs!"
    alignment, tokens = alignment_for(processor, text, voice)
    (words,) = processor.timestamps(alignment[None], text, voice=voice)
    assert [word["word"] for word in words] == ["The", "fox", "it's", "two", "dogs"]
    spelled, times = "", {}
    for n, token in enumerate(tokens[:-1]):  # where each token of a word stands, two frames of 20 ms each
        spelled = token if token.startswith("\u2581") else spelled + token
        times[spelled.strip("\u2581")] = 0.04 * (n + 1)
    assert words[0]["start"] <= 0.04
    for word in words:
        assert word["end"] == pytest.approx(times[word["word"].lower()])
    assert words[1]["end"] < words[2]["start"] + 1e-9  # the comma is a pause


def test_rows_of_different_lengths_and_several_speeches_of_a_text(processor):
    texts = ["The fox.", "Over the lazy dog, please!"]
    maps = [alignment_for(processor, text, "ben")[0] for text in texts]
    longest, widest = (max(m.shape[dim] for m in maps) for dim in (0, 1))
    padded = torch.zeros(2, longest, widest)
    for row, m in enumerate(maps):
        padded[row, : len(m), widest - m.shape[1] :] = m
    lengths = torch.tensor([len(m) for m in maps])
    output = SmallEGenerateOutput(lengths=lengths, alignments=padded)
    both = processor.timestamps(output, texts, voice="ben")
    for text, m, words in zip(texts, maps, both):
        assert processor.timestamps(m[None], text, voice="ben") == [words]
        assert words[-1]["end"] <= len(m) / 50
    twice = SmallEGenerateOutput(lengths=lengths.repeat_interleave(2), alignments=padded.repeat_interleave(2, 0))
    assert processor.timestamps(twice, texts, voice="ben") == [both[0], both[0], both[1], both[1]]


def test_timestamps_of_what_the_model_says(processor, tiny_model):
    texts = ["The fox.", "Over the lazy dog, please!"]
    inputs = processor(texts, voice=["anna", "ben"])
    settings = {"seed": 1, "max_new_tokens": 30, "num_return_sequences": 2}
    output = tiny_model.generate(**inputs, **settings, output_alignments=True, return_dict_in_generate=True)
    rows = processor.timestamps(output, texts, voice=["anna", "ben"])
    assert [[w["word"] for w in row] for row in rows[::2]] == [["The", "fox"], ["Over", "the", "lazy", "dog", "please"]]
    for row, wave in zip(rows, processor.decode(output.sequences)):
        times = [time for word in row for time in (word["start"], word["end"])]
        assert times == sorted(times) and times[0] >= 0 and times[-1] <= len(wave) / processor.sampling_rate


def test_timestamps_with_a_transcript_for_each_text(processor, record, tmp_path):
    waves = [record(tmp_path / f"{n}.wav", 0.2 + 0.1 * n, 100 + 50 * n)[0] for n in range(2)]
    texts, said = ["The fox.", "Mr dog"], ["I said so.", "So did I, nobody knew."]
    for asked in ({}, {"normalize_text": False}):
        inputs = processor(texts, audio=waves, audio_text=said, sampling_rate=24000, **asked)
        maps = torch.rand(2, 9, inputs["input_ids"].shape[1], generator=torch.Generator().manual_seed(0))
        with pytest.raises(ValueError, match="same text and voice"):  # padding is never read
            processor.timestamps(maps, texts, audio_text=said, **asked)
        maps *= inputs["attention_mask"][:, None]
        both = processor.timestamps(maps, texts, audio_text=said, **asked)
        for row in range(2):
            kept = maps[row][:, inputs["attention_mask"][row].bool()]
            assert processor.timestamps(kept[None], texts[row], audio_text=said[row], **asked) == [both[row]]
        assert [word["word"] for word in both[1]] == ["Mr" if asked else "Mister", "dog"]


def test_timestamps_of_who_was_heard_without_a_transcript(processor, record, tmp_path):
    wave = record(tmp_path / "me.wav", 0.3)[0]
    tokens = processor("The fox.", audio=wave, sampling_rate=24000)["input_ids"]  # and no prompt of the default voice
    maps = torch.rand(2, 9, tokens.shape[1], generator=torch.Generator().manual_seed(0))
    both = processor.timestamps(maps, ["The fox."] * 2, audio_text="")
    assert both == processor.timestamps(maps, ["The fox."] * 2, audio_text=[None, None])
    assert [word["word"] for word in both[1]] == ["The", "fox"]


def test_wrong_alignments_are_refused(processor):
    with pytest.raises(ValueError, match="3 transcripts .audio_text. for 2 texts"):
        processor.timestamps(torch.zeros(2, 5, 60), ["One.", "Two."], audio_text=["So."] * 3)
    for wrong in (None, torch.zeros(5, 5), torch.zeros(2, 9, 3).long(), "alignments"):
        with pytest.raises(ValueError, match="alignments"):
            processor.timestamps(wrong, "Hi.")
    with pytest.raises(ValueError, match="output_alignments=True"):
        processor.timestamps(SmallEGenerateOutput(lengths=torch.tensor([3])), "Hi.")
    with pytest.raises(ValueError, match="same text and voice"):
        processor.timestamps(torch.zeros(1, 5, 3), "The quick brown fox.", voice="anna")
    with pytest.raises(ValueError, match="3 rows.* 2 texts"):
        processor.timestamps(torch.zeros(3, 5, 30), ["One.", "Two."])


def test_waves_are_saved_as_files_and_into_folders(processor, tmp_path):
    waves = [torch.linspace(-1, 1, 480), torch.zeros(960)]
    assert processor.save_audio(waves[0], tmp_path / "a.wav") == [tmp_path / "a.wav"]
    samples, rate = soundfile.read(tmp_path / "a.wav")
    assert rate == processor.sampling_rate and np.allclose(samples, waves[0], atol=1e-4)
    paths = processor.save_audio(waves, tmp_path / "new" / "folder")
    assert [path.name for path in paths] == ["0.wav", "1.wav"] and len(soundfile.read(paths[1])[0]) == 960
    assert processor.save_audio(waves, [tmp_path / "b.wav", tmp_path / "c.wav"])[1].exists()
    with pytest.raises(ValueError, match="1 files for 2 waveforms"):
        processor.save_audio(waves, tmp_path / "d.wav")
    with pytest.raises(ValueError, match=r"a\.mp3.*expected \.wav"):
        processor.save_audio(waves[0], tmp_path / "a.mp3")
    for wrong in (5, None, "abc", [], torch.zeros(2, 2, 5), torch.zeros(9, dtype=torch.int16), [torch.zeros(3), "b"]):
        with pytest.raises(ValueError, match="audio .*expected"):
            processor.save_audio(wrong, tmp_path / "d.wav")
    assert not list(tmp_path.rglob("*.partial")) and not (tmp_path / "d.wav").exists()
