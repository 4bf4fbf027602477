"""Losses on attention maps: where words are timed, attention outside of a token's time; else the forward-sum loss.

Timings come with synthesized speech or from a forced aligner. The forward-sum loss is the log-likelihood that speech
reads its text from left to right, after Badlani et al. 2022 (arXiv 2108.10447), with a prior around the diagonal. It
lets alignments form in the first thousand steps; PACA keeps them. Attention off the diagonal costs what it weighs:
normalising after the prior, as CTC does, would hide it (docs/training-log.md tells of a model that sat at the end of
every text).
"""

import re

import numpy as np
import torch


def token_windows(text, words, offsets, frame_rate, slack=0.04, stretch=0.15):
    """When each token may be read: (N, 2) float32, first frame and the one after the last.

    words (W, 2): start and end in seconds of each word of text.split(), NaN where unknown; offsets (N, 2): each token's
    characters in the text, empty for marks. Characters share their word's time evenly, `slack` seconds and `stretch`
    of the word's duration more on either side; a pause belongs to the word before it.
    """
    places = [match.span() for match in re.finditer(r"\S+", text)]
    windows = np.empty((len(offsets), 2), np.float32)
    for n, (begin, end) in enumerate(offsets):
        if begin == end:  # a mark: the silence before the first word, or that behind the last
            windows[n] = (-np.inf, words[0, 0] + slack) if n == 0 else (words[-1, 1] - slack, np.inf)
            continue
        last = end - 1 if not text[end - 1].isspace() else end  # a lone space belongs to what follows
        w = max(0, sum(start <= last for start, _ in places) - 1)
        start, stop = places[w]
        first_share, last_share = (min(max((place - start) / (stop - start), 0.0), 1.0) for place in (begin, end))
        duration = words[w, 1] - words[w, 0]
        until = words[w, 0] + last_share * duration
        if last_share == 1.0 and w + 1 < len(words):
            until = max(until, words[w + 1, 0])
        margin = slack + stretch * duration
        windows[n] = words[w, 0] + first_share * duration - margin, until + margin
    windows *= frame_rate
    return np.where(np.isnan(windows), np.array([-np.inf, np.inf], np.float32), windows)


def window_loss(attention, windows, audio_mask):
    """Mean over frames of -log of the attention inside the tokens' windows.

    attention (B, T, N); windows (B, N, 2) in frames, endless where nothing is known; audio_mask (B, T).
    """
    frames = torch.arange(attention.shape[1], device=attention.device)[:, None] + 0.5
    inside = (frames >= windows[:, None, :, 0]) & (frames < windows[:, None, :, 1])
    mass = (attention.float() * inside).sum(-1)
    return -((mass + 1e-6).log() * audio_mask).sum() / audio_mask.sum()


def timed_maps(windows, length):
    """Maps (B, T, N) of windows (B, N, 2): every frame reads the tokens in whose windows it lies, most where deepest.

    A text without times, and frames that no window holds, read nothing.
    """
    frames = torch.arange(length, device=windows.device)[:, None] + 0.5
    depth = torch.minimum(frames - windows[:, None, :, 0], windows[:, None, :, 1] - frames).clamp(min=0)
    known = windows.isfinite().any(-1)  # not the padding, nor a whole text, that no time is known of
    depth = depth.clamp(max=1000).masked_fill(~known[:, None], 0)
    return depth / depth.sum(-1, keepdim=True).clamp(min=1e-6)


def diagonal_prior(frames, tokens, shape, width):
    """Log of a bell around the diagonal of each row's map: (B, T, N)."""
    t = torch.arange(shape[1], device=frames.device) / frames[:, None]
    n = torch.arange(shape[2], device=frames.device) / tokens[:, None]
    return -((t[:, :, None] - n[:, None, :]) ** 2) / (2 * width**2)


def advance(x, steps=1):
    """(B, N) moved `steps` tokens to the right (left if negative), -inf behind."""
    return torch.nn.functional.pad(x, (steps, -steps) if steps > 0 else (steps, -steps), value=-torch.inf)


class MonotonicPaths(torch.autograd.Function):
    """log of the sum over all paths that start at the first token, stay or advance by one, and end at the last.

    Scores (B, T, N), frames (B,), tokens (B,) -> (B,). The gradient is each score's share of the paths.
    """

    @staticmethod
    def forward(context, scores, frames, tokens):
        batch, length, _ = scores.shape
        forward = torch.empty_like(scores)
        state = torch.full_like(scores[:, 0], -torch.inf)
        state[:, 0] = 0
        for t in range(length):
            state = (state if t == 0 else torch.logaddexp(state, advance(state))) + scores[:, t]
            forward[:, t] = state
        rows = torch.arange(batch, device=scores.device)
        total = forward[rows, frames - 1, tokens - 1]
        context.save_for_backward(scores, forward, total, frames, tokens)
        return total

    @staticmethod
    def backward(context, gradient):
        scores, forward, total, frames, tokens = context.saved_tensors
        shares = torch.zeros_like(scores)
        end = torch.full_like(scores[:, 0], -torch.inf)
        end[torch.arange(len(end), device=end.device), tokens - 1] = 0
        state = end  # log of the paths from here to the end, this frame left out
        for t in range(scores.shape[1] - 1, -1, -1):
            if t + 1 < scores.shape[1]:
                later = state + scores[:, t + 1]
                state = torch.logaddexp(later, advance(later, -1))
            state = torch.where((frames - 1 == t)[:, None], end, state)
            shares[:, t] = (forward[:, t] + state - total[:, None]).exp()
        inside = torch.arange(scores.shape[1], device=scores.device) < frames[:, None]
        shares = torch.where(inside[..., None], shares.nan_to_num(0.0), 0.0)
        return shares * gradient[:, None, None], None, None


def forward_sum_loss(attention, audio_mask, text_mask, width=0.1):
    """Mean over rows of -log p(all tokens in order) per frame. attention (B, T, N); masks (B, T), (B, N), right-padded.

    Rows with fewer frames than tokens are left out, and those whose text was dropped.
    """
    frames, tokens = audio_mask.long().sum(1), text_mask.long().sum(1)
    keep = (frames >= tokens) & (tokens > 2)  # a dropped text has only its two marks
    scores = (attention.float() + 1e-20).log() + diagonal_prior(frames, tokens, attention.shape, width)
    total = MonotonicPaths.apply(scores, frames, tokens)
    losses = torch.where(keep, -total / frames, torch.zeros_like(total))
    return losses.sum() / keep.sum().clamp(min=1)
