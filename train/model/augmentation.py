"""Augmentation of the audio context in training, so that the model relies on the text.

With recorded frames as context, the next frame is easy to predict without the text; in generation, the context is the
model's own imperfect output. All functions take delayed codes (B, T, Q) with special ids below NUM_AUDIO_SPECIALS and
return codes of the same shape; `fraction` is the expected fraction of changed frames.
"""

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from smalle.configuration_smalle import AUDIO_PAD, NUM_AUDIO_SPECIALS

from .recipe import Objective


def scheduled_value(schedule: float | Sequence[Sequence[float]], progress: float) -> float:
    """The value of a constant, or of a schedule [[from progress, value], ...] at a training progress of 0 to 1."""
    if not isinstance(schedule, Sequence):
        return schedule
    return next((value for begin, value in reversed(schedule) if progress >= begin), 0.0)


def random_spans(codes: Tensor, fraction: float, span: int) -> Tensor:
    """A mask (B, T) of random spans of `span` frames."""
    starts = torch.rand(codes.shape[0], 1, codes.shape[1] + span - 1, device=codes.device) < fraction / span
    return F.max_pool1d(starts.float(), span, stride=1)[:, 0] > 0


def drop_spans(codes: Tensor, fraction: float, span: int = 8) -> Tensor:
    """Replaces spans by padding."""
    return codes.masked_fill(random_spans(codes, fraction, span)[..., None], AUDIO_PAD)


def replace_spans(codes: Tensor, others: Tensor, fraction: float, span: int = 10) -> Tensor:
    """Replaces spans by the same frames of `others`, except frames where either has a special id."""
    audio = ((codes >= NUM_AUDIO_SPECIALS) & (others >= NUM_AUDIO_SPECIALS)).all(-1)
    return torch.where((random_spans(codes, fraction, span) & audio)[..., None], others, codes)


def replace_from_same_row(codes: Tensor, fraction: float, span: int = 10) -> Tensor:
    """Replaces spans by frames from 2 to 10 spans earlier in the same row."""
    return replace_spans(codes, codes.roll(int(torch.randint(2 * span, 10 * span, ())), 1), fraction, span)


def replace_from_other_row(codes: Tensor, fraction: float, span: int = 10) -> Tensor:
    """Replaces spans by the same frames of another row of the batch."""
    return replace_spans(codes, codes.roll(int(torch.randint(1, max(2, len(codes)), ())), 0), fraction, span)


@torch.no_grad()
def scheduled_sampling(
    model: Callable, inputs: dict[str, Tensor], fraction: float, temperature: float = 0.8, span: int = 8
) -> Tensor:
    """Replaces spans of inputs["decoder_input_ids"] by predictions of the model, computed in parallel from the inputs.

    Two-pass scheduled sampling (Mihaylova and Martins 2019, arXiv 1906.07651). The first codebook is sampled. The
    others use the most likely tokens.
    """
    codes = inputs["decoder_input_ids"]
    logits = model(**inputs, use_cache=False).logits[:, :-1, :, NUM_AUDIO_SPECIALS:].float()
    logits[:, :, 0] -= temperature * torch.empty_like(logits[:, :, 0]).exponential_().log()  # Gumbel noise: a sample
    predicted = F.pad(logits.argmax(-1) + NUM_AUDIO_SPECIALS, (0, 0, 1, 0))
    replaced = random_spans(codes, fraction, span)[..., None] & (codes >= NUM_AUDIO_SPECIALS) & (predicted > 0)
    return torch.where(replaced, predicted, codes)


def augment(codes: Tensor, objective: Objective) -> Tensor:
    """Applies a recipe's `span_replacement_other`, `span_replacement` and `audio_dropout`, in this order."""
    if objective.span_replacement_other:
        codes = replace_from_other_row(codes, objective.span_replacement_other)
    if objective.span_replacement:
        codes = replace_from_same_row(codes, objective.span_replacement)
    if objective.audio_dropout:
        codes = drop_spans(codes, objective.audio_dropout)
    return codes
