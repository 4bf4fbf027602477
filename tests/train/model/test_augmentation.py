"""Changes to the audio context in training: hidden and replaced spans, the model's own predictions."""

import types

import pytest
import torch
from smalle.train.model.augmentation import (
    augment,
    drop_spans,
    replace_from_other_row,
    replace_from_same_row,
    scheduled_sampling,
    scheduled_value,
)
from smalle.train.model.recipe import Objective

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


def test_dropped_spans_are_padding_in_about_the_fraction_asked_for(codes):
    torch.manual_seed(1)
    made = drop_spans(codes, 0.3)
    hidden = changed(codes, made)
    assert (made[hidden] == AUDIO_PAD).all() and 0.2 < hidden[4:].float().mean() < 0.35


def test_spans_from_the_same_row_are_its_own_codes(codes):
    torch.manual_seed(1)
    made = replace_from_same_row(codes, 0.3)
    moved = changed(codes, made)
    assert 0.15 < moved[4:].float().mean() < 0.35
    assert (made[moved] >= NUM_AUDIO_SPECIALS).all()  # neither BOS nor padding
    assert not moved[:, :2].any() and not moved[:4, 400:].any()
    for row, steps, said in zip(codes, moved, made):
        assert torch.isin(said[steps][:, 0], row[:, 0]).all()


def test_spans_from_another_row_are_its_codes_at_the_same_frames(codes):
    torch.manual_seed(1)
    made = replace_from_other_row(codes, 0.3)
    moved = changed(codes, made)
    assert 0.15 < moved[4:].float().mean() < 0.35
    assert not moved[:, :2].any() and not moved[:4, 400:].any()  # neither BOS nor padding, on either side
    for row, step in moved.nonzero().tolist():
        assert (codes[:, step] == made[row, step]).all(-1).any()
    assert torch.equal(replace_from_other_row(codes[:1], 0.3), codes[:1])  # there is no other row


@pytest.mark.parametrize("name", ["span_replacement_other", "span_replacement", "audio_dropout"])
def test_nothing_changes_that_was_not_asked_for(codes, name):
    assert augment(codes, Objective()) is codes
    torch.manual_seed(1)
    assert (augment(codes, Objective(**{name: 0.2})) != codes).any()


def test_scheduled_sampling_takes_what_the_model_predicts_after_the_frame_before(codes):
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


def test_a_schedule_holds_each_value_from_its_progress_on():
    plan = [[0.25, 0.5], [0.75, 0.2]]
    assert [scheduled_value(plan, progress) for progress in (0.0, 0.25, 0.5, 0.75, 1.0)] == [0, 0.5, 0.5, 0.2, 0.2]
    assert scheduled_value(0.3, 0.9) == 0.3 and scheduled_value(0.0, 0.5) == 0
