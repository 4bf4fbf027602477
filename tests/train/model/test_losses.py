"""Losses on alignments, and averaged weights."""

import types

import numpy as np
import pytest
import torch
from smalle.train.data.batching import Collator
from smalle.train.data.dataset import Sample
from smalle.train.model.ema import EMACallback
from smalle.train.model.losses import forced_alignments, forward_sum_loss, token_windows, window_loss

TEXTS = ["Five frames, a longer text.", "Nine.", "One"]
WORDS = [
    np.array([[0.0, 0.02], [0.02, 0.04], [0.05, 0.06], [0.06, 0.08], [0.08, 0.1]]),
    np.array([[0.02, 0.15]]),
    np.full((1, 2), np.nan),  # unknown times
]


@pytest.fixture
def batch(tiny_tokenizer):
    samples = [
        Sample(text, torch.zeros(length, 3).long(), words) for text, length, words in zip(TEXTS, (5, 9, 1), WORDS)
    ]
    return Collator(tiny_tokenizer, 3, 50.0)(samples)


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


def test_forced_alignments_follow_known_times_and_are_zero_elsewhere(batch):
    maps = forced_alignments(batch["token_windows"], batch["labels"].shape[1])
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
        averages.append(float(callback.average.average["weight"]))
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
