"""Batches, alignment loss and averaged weights: what training is fed and what it is judged by."""

import types

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from smalle.train.data.dataset import CodesDataset, Collator, SpeakerBatchSampler, heard_frames
from smalle.train.data.prepare import write_codes
from smalle.train.model.ema import EMACallback
from smalle.train.model.losses import forward_sum_loss, timed_maps, token_windows, window_loss

from smalle import SmallEConfig
from smalle.configuration_smalle import AUDIO_BOS, AUDIO_EOS, AUDIO_PAD, NUM_AUDIO_SPECIALS
from smalle.generation_smalle import delay

LENGTHS = [5, 9, 1]
TEXTS = ["Five frames, a longer text.", "Nine.", "One"]
WORDS = [
    np.array([[0.0, 0.02], [0.02, 0.04], [0.05, 0.06], [0.06, 0.08], [0.08, 0.1]]),
    np.array([[0.02, 0.15]]),
    np.full((1, 2), np.nan),
]  # of the last nobody knows


@pytest.fixture
def codes():
    random = torch.Generator().manual_seed(0)
    return [torch.randint(0, 20, (length, 3), generator=random) for length in LENGTHS]


@pytest.fixture
def batch(tiny_tokenizer, codes):
    return Collator(tiny_tokenizer, 3, 50.0)(list(zip(TEXTS, codes, WORDS)))


def test_labels_are_the_inputs_shifted_by_one(batch):
    ahead, labels = batch["decoder_input_ids"][:, 1:], batch["labels"][:, :-1]
    known = labels != -100
    assert known.sum() > 0 and torch.equal(ahead[known], labels[known])


def test_inputs_are_the_delayed_codes_and_labels_go_on_to_the_tail(batch, codes):
    for row, (length, utterance) in enumerate(zip(LENGTHS, codes)):
        steps = length + 3
        assert torch.equal(batch["decoder_input_ids"][row, :steps], delay(utterance))
        assert torch.equal(batch["labels"][row, :length, 0], utterance[:, 0] + NUM_AUDIO_SPECIALS)
        assert (batch["labels"][row, length, 0] == AUDIO_EOS).all()
        assert (batch["labels"][row, steps - 1] == AUDIO_EOS).all()


def test_heads_and_padding_teach_nothing(batch):
    labels = batch["labels"]
    assert not (labels == AUDIO_BOS).any() and not (labels == AUDIO_PAD).any()
    for q in range(3):
        assert (labels[:, :q, q] == -100).all()
    for row, length in enumerate(LENGTHS):
        for q in range(3):
            assert (labels[row, q : length + 3, q] != -100).all()
        assert (labels[row, length + 3 :] == -100).all()
        assert (batch["decoder_input_ids"][row, length + 4 :] == AUDIO_PAD).all()
        assert batch["decoder_attention_mask"][row].tolist() == [1] * (length + 3) + [0] * (max(LENGTHS) - length)


def test_a_row_of_a_batch_equals_the_row_alone(tiny_tokenizer, batch, codes):
    for row, sample in enumerate(zip(TEXTS, codes, WORDS)):
        alone = Collator(tiny_tokenizer, 3, 50.0)([sample])
        for name, value in alone.items():
            assert torch.equal(batch[name][row, : value.shape[1]], value[0]), name
        assert batch["attention_mask"][row].sum() == alone["input_ids"].shape[1]  # text is padded on the right


def test_dropped_text_leaves_its_two_marks(tiny_tokenizer, codes):
    dropped = Collator(tiny_tokenizer, 3, 50.0, text_dropout=1.0)(list(zip(TEXTS, codes, WORDS)))
    marks = [tiny_tokenizer.bos_token_id, tiny_tokenizer.eos_token_id]
    assert dropped["input_ids"].tolist() == [marks] * 3


def test_text_dropout_leaves_out_its_share_and_the_same_of_the_same_batch(tiny_tokenizer, codes):
    collate = Collator(tiny_tokenizer, 3, 50.0, text_dropout=0.3)
    texts = [f"{'a' * (index % 7 + 2)} {'b' * (index // 7 + 2)}" for index in range(140)]
    batches = [[(text, codes[0], np.full((2, 2), np.nan))] * 4 for text in texts]
    kept = [collate(batch)["attention_mask"].sum(1) > 2 for batch in batches]
    assert 0.6 < torch.cat(kept).float().mean() < 0.8
    for batch, first in zip(batches, kept):
        assert torch.equal(collate(batch)["attention_mask"].sum(1) > 2, first)


def test_joined_utterances_are_read_one_after_the_other(tmp_path, codes):
    rows = [
        {
            "text": text,
            "speaker": "a",
            "duration": length / 50,
            "codes": utterance.numpy().astype("uint16").ravel(),
            "words": [] if np.isnan(words).any() else words.ravel().tolist(),
        }
        for text, length, utterance, words in zip(TEXTS, LENGTHS, codes, WORDS)
    ]
    dataset = CodesDataset(write_codes(rows, tmp_path / "codes.parquet"), 3, 50.0)
    assert len(dataset) == 3 and dataset.lengths.tolist() == LENGTHS and dataset.speakers == ["a"] * 3
    text, joined, words = dataset[(2, 0)]
    assert text == f"{TEXTS[2]} {TEXTS[0]}" and torch.equal(joined, torch.cat((codes[2], codes[0])))
    assert np.isnan(words[0]).all() and words[1:] == pytest.approx(WORDS[0] + LENGTHS[2] / 50)


@pytest.fixture
def speakers(tmp_path, codes):
    """Codes that name their utterance, 12 of anna's, one of ben's; pieces of up to 4 frames tell who speaks."""
    rows = [
        {
            "text": f"{'a' * (n % 5 + 1)} {'b' * n}",
            "speaker": "ben" if n == 12 else "anna",
            "duration": 0.16,
            "words": [],
            "codes": np.full(24, n, "uint16"),
        }
        for n in range(13)
    ]
    return CodesDataset(write_codes(rows, tmp_path / "codes.parquet"), 3, 50.0, heard=4)


def test_who_speaks_is_heard_in_other_utterances_where_there_are_some(speakers):
    heard = {n: speakers[(n, (n + 1) % 12)][3] for n in range(12)}
    assert all(2 <= len(piece) <= 4 and piece.shape[1] == 3 for piece in heard.values())
    assert all(not {n, (n + 1) % 12, 12} & set(piece.flatten().tolist()) for n, piece in heard.items())
    assert len({int(piece[0, 0]) for piece in heard.values()}) > 3
    assert not len(speakers[(12,)][3])  # ben has no other
    assert all(torch.equal(speakers[(n, (n + 1) % 12)][3], piece) for n, piece in heard.items())


def test_the_past_is_said_by_another_voice_in_the_same_words_and_times(tmp_path):
    said = [
        ("hello you", "anna", 8),
        ("hello you", "anna x0.8", 10),
        ("hello you", "ben", 8),
        ("who", "anna", 6),
        ("go on", "c~a", 4),
        ("go on", "c~b x1.1", 4),
    ]
    rows = [
        {
            "text": text,
            "speaker": speaker,
            "duration": frames / 50,
            "words": [],
            "codes": (np.repeat(np.arange(frames), 3) + 100 * n).astype("uint16"),
        }
        for n, (text, speaker, frames) in enumerate(said)
    ]
    path = write_codes(rows, tmp_path / "codes.parquet")
    mine, others = (CodesDataset(path, 3, 50.0, heard=4, voice_swap_probability=share) for share in (0.0, 1.0))
    for item in ((0,), (1,), (2,), (3,), (4,), (0, 3)):
        assert torch.equal(mine[item][4], mine[item][1]) and torch.equal(others[item][1], mine[item][1])
    past = [others[(n,)][4][:, 0].tolist() for n in range(6)]
    assert past[0] == [100, 101, 102, 103, 105, 106, 107, 108] and past[1] == [0, 0, 1, 2, 3, 4, 4, 5, 6, 7]
    assert past[2] == list(range(200, 208)) and past[3] == list(range(300, 306))  # nobody else says these
    assert past[4] == list(range(500, 504)) and past[5] == list(range(400, 404))
    assert others[(0, 3)][4][:, 0].tolist() == past[0] + past[3]
    some = CodesDataset(path, 3, 50.0, heard=4, voice_swap_probability=0.5)
    assert 0 < sum(torch.equal(some[item][4], some[item][1]) for item in ((0,), (1,), (4,), (5,), (0, 3), (3, 0))) < 6


def test_what_is_heard_goes_in_and_what_was_said_comes_out(tiny_tokenizer, codes):
    past = [torch.zeros_like(one) for one in codes]
    samples = [(*item, codes[0][:2], was) for item, was in zip(zip(TEXTS, codes, WORDS), past)]
    batch, plain = (Collator(tiny_tokenizer, 3, 50.0)(some) for some in (samples, [one[:4] for one in samples]))
    assert torch.equal(batch["labels"], plain["labels"])
    zeros = Collator(tiny_tokenizer, 3, 50.0)([(text, was, words) for text, was, words in zip(TEXTS, past, WORDS)])
    assert torch.equal(batch["decoder_input_ids"], zeros["decoder_input_ids"])
    assert not torch.equal(batch["decoder_input_ids"], plain["decoder_input_ids"])


@pytest.mark.parametrize("seconds", [0, 0.01, -3, 1e9, "4", None])
def test_seconds_that_are_no_recording_are_refused(seconds):
    with pytest.raises(ValueError, match="data.speaker_seconds"):
        heard_frames(SmallEConfig(), seconds)


def test_a_batch_holds_what_is_heard_but_for_the_share_that_is_dropped(speakers, tiny_tokenizer):
    samples = [speakers[(n,)] for n in range(13)]
    batch = Collator(tiny_tokenizer, 3, 50.0)(samples)
    for row, sample in enumerate(samples):
        mask = batch["speaker_attention_mask"][row].bool()
        assert torch.equal(batch["speaker_codes"][row][mask], sample[3])
    collate, kept = Collator(tiny_tokenizer, 3, 50.0, speaker_dropout=0.3), []
    for first in range(60):
        some = [samples[(first * step + step) % 12] for step in range(4)]  # but ben
        kept.append(collate(some)["speaker_attention_mask"].any(1))
        assert torch.equal(collate(some)["speaker_attention_mask"].any(1), kept[-1])
    assert 0.55 < torch.cat(kept).float().mean() < 0.85
    dropped = Collator(tiny_tokenizer, 3, 50.0, speaker_dropout=1.0)(samples)
    assert not dropped["speaker_attention_mask"].any()
    some = Collator(tiny_tokenizer, 3, 50.0, text_dropout=0.5)(samples[:12])
    heard, read = some["speaker_attention_mask"].any(1), some["attention_mask"].sum(1) > 2
    assert torch.equal(heard, read) and 0 < heard.sum() < 12  # guidance leads away from both at once


def test_windows_follow_the_words_and_meet_between_them(tiny_tokenizer):
    text, words = "Stay  here, friend.", np.array([[0.1, 0.4], [0.5, 0.9], [1.5, 2.0]])
    encoded = tiny_tokenizer(text, return_offsets_mapping=True)
    windows = token_windows(text, words, encoded["offset_mapping"], 100.0, slack=0.0, stretch=0.0)
    first, last = windows.T
    assert first[0] == -np.inf and last[-1] == np.inf
    assert last[:-1] == pytest.approx(first[1:], abs=11)  # one ends where the next begins, or a gap of 0.1 s later
    assert (np.diff(last[:-1]) >= 0).all() and (last >= first).all()
    comma = text.index(",")
    row = next(n for n, (begin, end) in enumerate(encoded["offset_mapping"]) if begin <= comma < end)
    assert last[row] == pytest.approx(150)  # the pause behind a word is the word's
    wide = token_windows(text, words, encoded["offset_mapping"], 100.0)
    assert (wide[1:-1, 0] < first[1:-1]).all() and (wide[1:-1, 1] > last[1:-1]).all()


def test_unknown_times_and_left_out_texts_bind_nothing(tiny_tokenizer, codes):
    batch = Collator(tiny_tokenizer, 3, 50.0)(list(zip(TEXTS, codes, WORDS)))
    unknown = torch.tensor([-torch.inf, torch.inf])
    assert (batch["token_windows"][2, :2] == unknown).all() and batch["token_windows"][0, 1].isfinite().all()
    dropped = Collator(tiny_tokenizer, 3, 50.0, text_dropout=1.0)(list(zip(TEXTS, codes, WORDS)))
    assert (dropped["token_windows"] == unknown).all()


def test_timed_maps_read_what_is_said_and_leave_the_rest_to_the_model(tiny_tokenizer, codes):
    batch = Collator(tiny_tokenizer, 3, 50.0)(list(zip(TEXTS, codes, WORDS)))
    maps = timed_maps(batch["token_windows"], batch["labels"].shape[1])
    assert maps.shape == (*batch["labels"].shape[:2], batch["input_ids"].shape[1])
    assert maps[0].sum(-1) == pytest.approx(torch.ones(len(maps[0]))) and (maps[2] == 0).all()
    assert (maps * (1 - batch["attention_mask"])[:, None] == 0).all()
    assert window_loss(maps[:2], batch["token_windows"][:2], batch["decoder_attention_mask"][:2]) < 1e-3
    places = (maps[0] * torch.arange(maps.shape[2])).sum(-1)
    assert (places.diff() >= 0).all() and places[0] < 6 and places[-1] > batch["attention_mask"][0].sum() - 2


def test_window_loss_counts_only_attention_outside_of_windows():
    attention, mask = torch.full((1, 4, 2), 0.5), torch.tensor([[1, 1, 1, 0]])
    windows = torch.tensor([[[0.0, 2.0], [1.0, torch.inf]]])  # one token alone in frames 0 and 2, both in frame 1
    assert window_loss(attention, windows, mask) == pytest.approx(2 / 3 * np.log(2), abs=1e-4)
    everything = torch.tensor([-torch.inf, torch.inf]).expand(1, 2, 2)
    assert window_loss(attention, everything, mask) == pytest.approx(0, abs=1e-4)


corpora = st.lists(st.tuples(st.integers(1, 300), st.sampled_from("abc")), min_size=1, max_size=60)


@settings(max_examples=60, deadline=None)
@given(corpora, st.integers(0, 9), st.integers(50, 900), st.sampled_from([0.0, 0.35, 1.0]), st.integers(0, 2))
def test_an_epoch_takes_every_utterance_once_within_its_budgets(corpus, seed, budget, single, apart):
    lengths, speakers = zip(*corpus)
    max_frames = max(lengths)
    sampler = SpeakerBatchSampler(lengths, speakers, budget, max_frames, seed, single, apart=apart)
    batches = sampler.epoch(0)
    samples = [sample for batch in batches for sample in batch]
    assert sorted(index for sample in samples for index in sample) == list(range(len(lengths)))
    frames = {sample: sum(lengths[index] for index in sample) for sample in samples}
    for sample in samples:
        assert len({speakers[index] for index in sample}) == 1
        assert frames[sample] <= max_frames and (single < 1 or len(sample) == 1)
        assert len(sample) <= max(1, speakers.count(speakers[sample[0]]) - apart)
    for batch in batches:
        assert len(batch) == 1 or len(batch) * max(frames[sample] for sample in batch) <= budget


def test_utterances_beyond_the_longest_sample_are_left_out():
    sampler = SpeakerBatchSampler([10, 99, 20], "aba", 100, max_frames=50)
    assert sorted(index for batch in sampler.epoch(0) for sample in batch for index in sample) == [0, 2]


def test_a_longest_sample_that_no_utterance_fits_is_refused():
    with pytest.raises(ValueError, match="max_seconds is 50 frames.*shortest of 2 utterances has 60"):
        SpeakerBatchSampler([60, 99], "ab", 100, max_frames=50)


def test_a_seed_fixes_the_batches_and_epochs_differ():
    lengths, speakers = [10 + index % 7 for index in range(60)], [index % 3 for index in range(60)]
    first, again, other = (SpeakerBatchSampler(lengths, speakers, 100, 40, seed) for seed in (1, 1, 2))
    assert first.epoch(0) == again.epoch(0) != other.epoch(0)
    assert first.epoch(0) != first.epoch(1)
    endless = iter(again)
    drawn = [next(endless) for _ in range(len(first.epoch(0)) + len(first.epoch(1)))]
    assert drawn == first.epoch(0) + first.epoch(1)


def diagonal(frames, tokens):
    """A map (1, T, N) that reads every token for the same time, one after the other."""
    read = torch.arange(frames) * tokens // frames
    return torch.nn.functional.one_hot(read, tokens)[None].float()


def masks(shapes, frames, tokens):
    """Right-padded masks (B, T), (B, N) of rows with so many frames and tokens."""
    lengths = torch.tensor(shapes)
    return (torch.arange(frames) < lengths[:, :1]).long(), (torch.arange(tokens) < lengths[:, 1:]).long()


@pytest.mark.parametrize("frames, tokens", [(40, 10), (100, 20), (90, 30)])
def test_alignment_loss_is_least_on_the_diagonal(frames, tokens):
    perfect, mask = diagonal(frames, tokens), masks([(frames, tokens)], frames, tokens)
    loss = forward_sum_loss(perfect, *mask)
    uniform = forward_sum_loss(torch.full_like(perfect, 1 / tokens), *mask)
    backwards = forward_sum_loss(perfect.flip(2), *mask)
    timer = torch.zeros_like(perfect)  # runs to the end of the text and stays there
    timer[0, torch.arange(frames), torch.arange(frames).clamp(max=tokens - 1)] = 1
    assert 0 <= loss < 0.15
    assert loss + 0.3 < uniform < min(backwards, forward_sum_loss(timer, *mask))


def test_padding_does_not_change_the_alignment_loss():
    shapes = [(40, 10), (60, 7), (25, 12)]
    maps = [0.7 * diagonal(*shape) + 0.3 / shape[1] for shape in shapes]
    alone = [forward_sum_loss(one, *masks([shape], *shape)) for one, shape in zip(maps, shapes)]
    padded = torch.full((3, 80, 15), 0.5)  # what lies beyond a row's last frame is anything,
    for row, (one, (frames, tokens)) in enumerate(zip(maps, shapes)):
        padded[row, :frames] = 0  # but no frame reads padded text
        padded[row, :frames, :tokens] = one
    together = forward_sum_loss(padded, *masks(shapes, 80, 15))
    torch.testing.assert_close(together, torch.stack(alone).mean(), atol=1e-4, rtol=1e-4)


def test_rows_that_cannot_align_are_left_out_of_the_alignment_loss():
    shapes = [(40, 10), (5, 10), (40, 2)]  # fewer frames than tokens; a dropped text
    maps = torch.full((3, 40, 10), 0.1)
    alone = forward_sum_loss(maps[:1], *masks(shapes[:1], 40, 10))
    torch.testing.assert_close(forward_sum_loss(maps, *masks(shapes, 40, 10)), alone)
    nothing = forward_sum_loss(maps[1:].requires_grad_(), *masks(shapes[1:], 40, 10))
    nothing.backward()
    assert nothing == 0


def test_alignment_loss_draws_a_map_to_the_diagonal():
    torch.manual_seed(0)
    scores, mask = (0.1 * torch.randn(1, 40, 8)).requires_grad_(), masks([(40, 8)], 40, 8)
    optimizer = torch.optim.Adam([scores], lr=0.3)
    for _ in range(60):
        optimizer.zero_grad()
        forward_sum_loss(scores.softmax(-1), *mask).backward()
        optimizer.step()
    read = scores.argmax(-1)[0, 2:-2]  # the ends may be silent
    assert (read.diff() >= 0).all() and set(read.tolist()) == set(range(8))


def follow(decay, values):
    """The averages after each step of a weight that takes these values, and the model at the end."""
    model, averages = torch.nn.Linear(1, 1, bias=False), []
    torch.nn.init.constant_(model.weight, values[0])
    callback = EMACallback(model, decay)
    arguments, state = types.SimpleNamespace(output_dir="nowhere"), types.SimpleNamespace(global_step=0)
    callback.on_train_begin(arguments, state, None)
    for state.global_step, value in enumerate(values[1:], 1):
        torch.nn.init.constant_(model.weight, value)
        callback.on_step_end(arguments, state, None)
        averages.append(float(callback.average["weight"]))
    callback.on_train_end(arguments, state, None)
    return averages, model.weight.item()


def test_without_decay_the_average_is_the_weights():
    assert follow(0.0, [1.0, 2.0, -3.0]) == ([2.0, -3.0], -3.0)


def test_average_follows_slowly_and_ends_up_in_the_model():
    averages, final = follow(0.999, [0.0] + [1.0] * 200)
    assert averages == sorted(averages) and final == averages[-1]
    assert averages[0] == pytest.approx(1 - 2 / 11) and averages[-1] > 0.99  # the first steps are soon forgotten
    slow, _ = follow(0.5, [0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 1.0, 1.0])
    assert slow[-2:] == pytest.approx([0.5, 0.75])
