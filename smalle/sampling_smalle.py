"""Sampling: which of the scored tokens comes next, with settings for each codebook."""

from dataclasses import dataclass

import torch

from .checks_smalle import check_seed
from .configuration_smalle import NUM_AUDIO_SPECIALS

REPETITION_WINDOW = 50  # frames that a repetition penalty looks back


@dataclass(frozen=True)
class SamplingSettings:
    """How one codebook is sampled.

    top_k: the most likely tokens that stay, 0: all, 1: greedy; temperature; top_p: tokens stay until their
    probabilities add up to it; min_p: a token needs this share of the most likely one's probability;
    repetition_penalty: positive scores of the last 50 frames' tokens are divided by it, negative ones multiplied.
    """

    top_k: int = 1
    temperature: float = 1.0
    top_p: float = 1.0
    min_p: float = 0.0
    repetition_penalty: float = 1.0

    def __post_init__(self):
        right = self.top_k >= 0 and 1e-3 <= self.temperature <= 1e3 and 0 < self.top_p <= 1 and 0 <= self.min_p <= 1
        if not right or not 1e-2 <= self.repetition_penalty <= 1e2:
            raise ValueError(
                f"{self}: expected top_k >= 0 (0: no limit), temperature of 0.001..1000 (do_sample=False is greedy), "
                "0 < top_p <= 1, 0 <= min_p <= 1 and repetition_penalty of 0.01..100 (1: none)."
            )


GREEDY = SamplingSettings()


def seeded(seed, device):
    """A torch.Generator of a seed; one that is given, or None for the global one, stays as it is."""
    check_seed(seed)
    given = seed is None or isinstance(seed, torch.Generator)
    return seed if given else torch.Generator(device).manual_seed(seed)


def only_choose(settings):
    """Whether tokens are drawn from their scores by top-k and temperature alone."""
    return all((s.top_p, s.min_p, s.repetition_penalty) == (1, 0, 1) for s in settings)


def per_codebook(name, value, num_codebooks, default):
    """A setting for every codebook: a number sets the first and leaves `default` for the rest; a list sets each."""
    if not isinstance(value, (list, tuple)):
        return [value] + [default] * (num_codebooks - 1)
    if len(value) != num_codebooks:
        raise ValueError(f"{name}={value!r}: expected one number or a list of {num_codebooks}, one for each codebook.")
    return list(value)


def sampling_settings(config, num_codebooks):
    """`SamplingSettings` of each codebook, of a generation configuration; do_sample=False is greedy on all of them."""
    first = {"top_k": 100, "temperature": 1.0, "top_p": 1.0, "min_p": 0.0, "repetition_penalty": 1.0}
    names = ["repetition_penalty"] if config.do_sample is False else list(first)
    values = {name: first[name] if getattr(config, name, None) is None else getattr(config, name) for name in names}
    if any(isinstance(values.get(name), (list, tuple)) for name in ("temperature", "top_p", "min_p")):
        top_k = values["top_k"]  # a list of these samples every codebook, also where top_k is a number
        values["top_k"] = top_k if isinstance(top_k, (list, tuple)) else [top_k] * num_codebooks
    columns = [per_codebook(name, value, num_codebooks, getattr(GREEDY, name)) for name, value in values.items()]
    return [SamplingSettings(**dict(zip(names, row))) for row in zip(*columns)]


def penalise_repetition(logits, recent, penalty):
    """Makes recent tokens (B, W) less likely (Keskar et al. 2019), special ones excepted: logits (B, V)."""
    codes = recent.clamp(min=0)
    said = torch.zeros_like(logits, dtype=torch.bool).scatter(1, codes, True)
    said[:, :NUM_AUDIO_SPECIALS] = False
    return torch.where(said, torch.where(logits > 0, logits / penalty, logits * penalty), logits)


def warp(logits, settings):
    """Scores of one codebook (B, V) after temperature and limits: -inf where a token cannot come."""
    if settings.top_k == 1:
        return logits
    logits = logits if settings.temperature == 1 else logits / settings.temperature
    if 0 < settings.top_k < logits.shape[-1]:
        logits = logits.masked_fill(logits < logits.topk(settings.top_k, -1).values[:, -1:], -torch.inf)
    if settings.top_p < 1:
        ordered, order = logits.sort(-1, descending=True)
        beyond = ordered.softmax(-1).cumsum(-1) - ordered.softmax(-1) >= settings.top_p
        beyond[:, 0] = False  # however small top_p is
        logits = logits.masked_fill(beyond.gather(-1, order.argsort(-1)), -torch.inf)
    if settings.min_p > 0:
        probs = logits.softmax(-1)
        logits = logits.masked_fill(probs < settings.min_p * probs.max(-1, keepdim=True).values, -torch.inf)
    return logits


def sample(scores, settings, generator=None):
    """One token of each row of warped scores (B, V) -> (B,)."""
    if settings.top_k == 1:
        return scores.argmax(-1)
    probs = scores.softmax(-1)
    waits = torch.empty_like(probs).exponential_(generator=generator)
    return (probs / waits).argmax(-1)  # what torch.multinomial draws, which checks more than it draws


def draw(logits, settings, generator=None):
    """A token of each codebook (B, Q) and the warped scores, (B, V) each, that it was drawn from: logits (B, Q, V)."""
    tokens, scores = logits.argmax(-1), list(logits.unbind(1))
    for q, setting in enumerate(settings):
        if setting.top_k != 1:
            scores[q] = warp(scores[q], setting)
            tokens[:, q] = sample(scores[q], setting, generator)
    return tokens, scores
