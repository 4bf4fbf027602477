"""Forward-sum loss on attention maps: the log-likelihood that speech reads its text from left to right.

Badlani et al. 2022 (arXiv 2108.10447), with a prior around the diagonal. It lets alignments form in the first
thousand steps; PACA keeps them.
"""

import torch
import torch.nn.functional as F


def diagonal_prior(frames, tokens, shape, width):
    """Log of a bell around the diagonal of each row's map: (B, T, N)."""
    t = torch.arange(shape[1], device=frames.device) / frames[:, None]
    n = torch.arange(shape[2], device=frames.device) / tokens[:, None]
    return -((t[:, :, None] - n[:, None, :]) ** 2) / (2 * width**2)


def forward_sum_loss(attention, audio_mask, text_mask, width=0.1, blank=1e-2):
    """Mean over rows of -log p(all tokens in order) per frame. attention (B, T, N); masks (B, T), (B, N), right-padded.

    A monotonic path through the map is a CTC alignment of 1..N in which a blank (a frame that reads nothing) has
    probability `blank`. Rows with fewer frames than tokens are left out, and those whose text was dropped.
    """
    frames, tokens = audio_mask.sum(1), text_mask.sum(1)
    keep = (frames >= tokens) & (tokens > 2)  # a dropped text has only its two marks
    log_probs = attention.float().clamp(min=1e-6).log() + diagonal_prior(frames, tokens, attention.shape, width)
    log_probs = F.pad(log_probs, (1, 0), value=torch.tensor(blank).log().item()).log_softmax(-1).transpose(0, 1)
    targets = torch.arange(1, attention.shape[2] + 1, device=attention.device).expand(len(frames), -1)
    losses = F.ctc_loss(log_probs, targets, frames, tokens, reduction="none", zero_infinity=True)
    return (losses / frames.clamp(min=1) * keep).sum() / keep.sum().clamp(min=1)
