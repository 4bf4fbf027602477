"""Losses on alignments (attention from frames to tokens), and alignments made from word times.

If word times are known, `window_loss` penalizes attention outside of them. Otherwise the forward-sum loss maximizes the
likelihood of monotonic readings, after Badlani et al. 2022 (arXiv 2108.10447), with a prior around the diagonal. Unlike
in CTC, the product of attention and prior is not normalized, since that would hide attention off the diagonal.
"""

import re

import numpy as np
import torch
from torch import Tensor


def token_windows(
    text: str, words: np.ndarray, offsets, frame_rate: float, slack: float = 0.04, stretch: float = 0.15
) -> np.ndarray:
    """The window of frames in which each token may be read, (N, 2) float32: first frame, and the one after the last.

    The time of a word is divided evenly among its characters; a pause belongs to the word before it.

    Args:
        words: (W, 2), start and end in seconds of each word of text.split(); NaN if unknown.
        offsets: (N, 2), the characters of each token in the text; empty for special tokens.
        slack, stretch: Extensions of a window on both sides: in seconds, and as a fraction of the word's duration.
    """
    places = [match.span() for match in re.finditer(r"\S+", text)]
    windows = np.empty((len(offsets), 2), np.float32)
    for n, (begin, end) in enumerate(offsets):
        if begin == end:  # a special token: the silence before the first word, or after the last one
            windows[n] = (-np.inf, words[0, 0] + slack) if n == 0 else (words[-1, 1] - slack, np.inf)
            continue
        last = end - 1 if not text[end - 1].isspace() else end  # a lone space belongs to the word after it
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


def window_loss(attention: Tensor, windows: Tensor, audio_mask: Tensor) -> Tensor:
    """Mean over frames of -log of the total attention inside the windows of the tokens.

    attention (B, T, N); windows (B, N, 2) in frames, infinite if unknown; audio_mask (B, T).
    """
    frames = torch.arange(attention.shape[1], device=attention.device)[:, None] + 0.5
    inside = (frames >= windows[:, None, :, 0]) & (frames < windows[:, None, :, 1])
    mass = (attention.float() * inside).sum(-1)
    return -((mass + 1e-6).log() * audio_mask).sum() / audio_mask.sum()


def forced_alignments(windows: Tensor, length: int) -> Tensor:
    """Alignments (B, T, N) from windows (B, N, 2) in frames: each frame reads the tokens whose windows contain it.

    Weights increase towards the middle of a window. Rows without times, and frames outside all windows, are zero.
    """
    frames = torch.arange(length, device=windows.device)[:, None] + 0.5
    depth = torch.minimum(frames - windows[:, None, :, 0], windows[:, None, :, 1] - frames).clamp(min=0)
    known = windows.isfinite().any(-1)  # neither padding nor a token whose time is unknown
    depth = depth.clamp(max=1000).masked_fill(~known[:, None], 0)
    return depth / depth.sum(-1, keepdim=True).clamp(min=1e-6)


def diagonal_prior(frames: Tensor, tokens: Tensor, shape: torch.Size, width: float) -> Tensor:
    """Log of a Gaussian around the diagonal of each row's alignment, (B, T, N) = shape; frames, tokens (B,)."""
    t = torch.arange(shape[1], device=frames.device) / frames[:, None]
    n = torch.arange(shape[2], device=frames.device) / tokens[:, None]
    return -((t[:, :, None] - n[:, None, :]) ** 2) / (2 * width**2)


def shift(x: Tensor, steps: int = 1) -> Tensor:
    """(B, N) moved `steps` tokens to the right, or to the left if negative, filled with -inf."""
    return torch.nn.functional.pad(x, (steps, -steps), value=-torch.inf)


class MonotonicPaths(torch.autograd.Function):
    """The log of the total probability of all paths from the first token to the last that stay or advance by one.

    Scores (B, T, N), frames (B,), tokens (B,) -> (B,). The gradient of a score is the posterior of its frame and token.
    """

    @staticmethod
    def forward(context, scores, frames, tokens):
        batch, length, _ = scores.shape
        forward = torch.empty_like(scores)
        state = torch.full_like(scores[:, 0], -torch.inf)
        state[:, 0] = 0
        for t in range(length):
            state = (state if t == 0 else torch.logaddexp(state, shift(state))) + scores[:, t]
            forward[:, t] = state
        rows = torch.arange(batch, device=scores.device)
        total = forward[rows, frames - 1, tokens - 1]
        context.save_for_backward(scores, forward, total, frames, tokens)
        return total

    @staticmethod
    def backward(context, gradient):
        scores, forward, total, frames, tokens = context.saved_tensors
        posterior = torch.zeros_like(scores)
        end = torch.full_like(scores[:, 0], -torch.inf)
        end[torch.arange(len(end), device=end.device), tokens - 1] = 0
        state = end  # log of the paths from here to the end, without this frame
        for t in range(scores.shape[1] - 1, -1, -1):
            if t + 1 < scores.shape[1]:
                later = state + scores[:, t + 1]
                state = torch.logaddexp(later, shift(later, -1))
            state = torch.where((frames - 1 == t)[:, None], end, state)
            posterior[:, t] = (forward[:, t] + state - total[:, None]).exp()
        inside = torch.arange(scores.shape[1], device=scores.device) < frames[:, None]
        posterior = torch.where(inside[..., None], posterior.nan_to_num(0.0), 0.0)
        return posterior * gradient[:, None, None], None, None


def forward_sum_loss(attention: Tensor, audio_mask: Tensor, text_mask: Tensor, width: float = 0.1) -> Tensor:
    """Mean over rows of -log p(all tokens in order) per frame. attention (B, T, N); masks (B, T), (B, N), right-padded.

    Rows with fewer frames than tokens, and rows without text, are ignored. width: of the diagonal prior.
    """
    frames, tokens = audio_mask.long().sum(1), text_mask.long().sum(1)
    keep = (frames >= tokens) & (tokens > 2)  # a dropped text has only BOS and EOS
    scores = (attention.float() + 1e-20).log() + diagonal_prior(frames, tokens, attention.shape, width)
    total = MonotonicPaths.apply(scores, frames, tokens)
    losses = torch.where(keep, -total / frames, torch.zeros_like(total))
    return losses.sum() / keep.sum().clamp(min=1)
