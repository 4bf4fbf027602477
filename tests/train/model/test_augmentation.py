"""The audio that a model hears in training, with parts of it hidden or span_replacement."""

import types

import pytest
import torch
from smalle.train.model.augmentation import (
    corrupt,
    drop_spans,
    foreign_spans,
    misplace_spans,
    scheduled,
    scheduled_sampling,
)

from smalle.configuration_smalle import AUDIO_BOS, AUDIO_PAD, NUM_AUDIO_SPECIALS


@pytest.fixture
def codes():
    torch.manual_seed(0)
    codes = torch.randint(NUM_AUDIO_SPECIALS, 1000, (8, 500, 3))
    codes[:, :2], codes[:4, 400:] = AUDIO_BOS, AUDIO_PAD
    return codes


def changed(codes, made):
    """Steps (B, T) that differ; a step changes in all codebooks or in none."""
    different = codes != made
    assert (different.float().mean(-1) > 0.9).eq(different.any(-1)).float().mean() > 0.98
    return different.any(-1)


def test_hidden_spans_are_padding_of_about_the_share(codes):
    torch.manual_seed(1)
    made = drop_spans(codes, 0.3)
    hidden = changed(codes, made)
    assert (made[hidden] == AUDIO_PAD).all() and 0.2 < hidden[4:].float().mean() < 0.35


def test_misplaced_spans_are_the_rows_own_codes_from_elsewhere(codes):
    torch.manual_seed(1)
    made = misplace_spans(codes, 0.3)
    moved = changed(codes, made)
    assert 0.15 < moved[4:].float().mean() < 0.35
    assert (made[moved] >= NUM_AUDIO_SPECIALS).all()  # neither marks nor padding are moved
    assert not moved[:, :2].any() and not moved[:4, 400:].any()
    for row, steps, said in zip(codes, moved, made):
        assert torch.isin(said[steps][:, 0], row[:, 0]).all()


def test_foreign_spans_are_what_another_row_says_at_that_step(codes):
    torch.manual_seed(1)
    made = foreign_spans(codes, 0.3)
    moved = changed(codes, made)
    assert 0.15 < moved[4:].float().mean() < 0.35
    assert not moved[:, :2].any() and not moved[:4, 400:].any()  # neither marks nor padding, on either side
    for row, step in moved.nonzero().tolist():
        assert (codes[:, step] == made[row, step]).all(-1).any()
    assert torch.equal(foreign_spans(codes[:1], 0.3), codes[:1])  # there is nobody else


@pytest.mark.parametrize("name", ["span_replacement_other", "span_replacement", "audio_dropout"])
def test_nothing_is_done_that_was_not_asked_for(codes, name):
    assert corrupt(codes, {}) is codes
    torch.manual_seed(1)
    assert (corrupt(codes, {name: 0.2}) != codes).any()


def test_own_steps_are_what_the_model_says_after_the_step_before(codes):
    torch.manual_seed(1)

    def model(decoder_input_ids, use_cache):
        """Sure that each code is followed by the next number."""
        logits = torch.nn.functional.one_hot((decoder_input_ids + 1).clamp(max=1002), 1003) * 1e3
        return types.SimpleNamespace(logits=logits)

    made = scheduled_sampling(model, {"decoder_input_ids": codes}, 0.4)
    own = (made != codes).any(-1)
    assert 0.2 < own.float().mean() < 0.45 and not own[:, 0].any()
    before = codes.roll(1, 1)
    real = (before >= NUM_AUDIO_SPECIALS) & (codes >= NUM_AUDIO_SPECIALS) & own[..., None]
    assert real.any() and torch.equal(made[real], before[real] + 1)
    special = codes < NUM_AUDIO_SPECIALS
    assert torch.equal(made[special], codes[special])


def test_a_schedule_holds_each_number_from_its_share_of_the_training_on():
    plan = [[0.25, 0.5], [0.75, 0.2]]
    assert [scheduled(plan, share) for share in (0.0, 0.25, 0.5, 0.75, 1.0)] == [0, 0.5, 0.5, 0.2, 0.2]
    assert scheduled(0.3, 0.9) == 0.3 and scheduled(None, 0.5) is None
