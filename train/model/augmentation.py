"""What is done to the audio that a model hears in training, so that it reads its text instead of going on by ear.

With the right past, what comes next is easy to guess without the text; in generation the past is the model's own, with
its mistakes in it.
"""

import torch
import torch.nn.functional as F

from smalle.configuration_smalle import AUDIO_PAD, NUM_AUDIO_SPECIALS


def scheduled(value, share):
    """A number of a recipe at a share of its training: `value` itself, or the last of [[from share, number], ...]."""
    if not isinstance(value, list):
        return value
    return next((number for begin, number in reversed(value) if share >= begin), 0)


def spans(codes, share, span):
    """Mask (B, T) over about a `share` of the steps of codes (B, T, Q), in spans."""
    starts = torch.rand(codes.shape[0], 1, codes.shape[1] + span - 1, device=codes.device) < share / span
    return F.max_pool1d(starts.float(), span, stride=1)[:, 0] > 0


def drop_spans(codes, share, span=8):
    """Hides about a `share` of the steps of delayed codes (B, T, Q)."""
    return codes.masked_fill(spans(codes, share, span)[..., None], AUDIO_PAD)


def misplace_spans(codes, share, span=10):
    """Puts what a row says elsewhere in the place of about a `share` of the steps of delayed codes (B, T, Q)."""
    elsewhere = codes.roll(int(torch.randint(2 * span, 10 * span, ())), 1)
    return replace_spans(codes, elsewhere, share, span)


def foreign_spans(codes, share, span=10):
    """Puts what another row says in the place of about a `share` of the steps of delayed codes (B, T, Q)."""
    others = codes.roll(int(torch.randint(1, max(2, len(codes)), ())), 0)
    return replace_spans(codes, others, share, span)


def replace_spans(codes, others, share, span):
    """About a `share` of the steps of codes (B, T, Q) as `others` has them, in spans, where both say something."""
    said = ((codes >= NUM_AUDIO_SPECIALS) & (others >= NUM_AUDIO_SPECIALS)).all(-1)
    return torch.where((spans(codes, share, span) & said)[..., None], others, codes)


@torch.no_grad()
def scheduled_sampling(model, inputs, share, temperature=0.8, span=8):
    """Puts what the model would say in the place of about a `share` of the steps of inputs["decoder_input_ids"] (B, T, Q).

    Scheduled sampling in two passes (Mihaylova and Martins 2019, arXiv 1906.07651): the first codebook is drawn, the
    others are the most likely ones, each after the past as the inputs have it.
    """
    codes = inputs["decoder_input_ids"]
    logits = model(**inputs, use_cache=False).logits[:, :-1, :, NUM_AUDIO_SPECIALS:].float()
    logits[:, :, 0] -= temperature * torch.empty_like(logits[:, :, 0]).exponential_().log()  # Gumbel noise: a sample
    said = F.pad(logits.argmax(-1) + NUM_AUDIO_SPECIALS, (0, 0, 1, 0))
    place = spans(codes, share, span)[..., None] & (codes >= NUM_AUDIO_SPECIALS) & (said > 0)
    return torch.where(place, said, codes)


def corrupt(codes, objective):
    """What a recipe's `objective` asks for: `span_replacement_other`, `span_replacement` and `audio_dropout`, shares of the steps."""
    if objective.get("span_replacement_other"):
        codes = foreign_spans(codes, objective["span_replacement_other"])
    if objective.get("span_replacement"):
        codes = misplace_spans(codes, objective["span_replacement"])
    if objective.get("audio_dropout"):
        codes = drop_spans(codes, objective["audio_dropout"])
    return codes
