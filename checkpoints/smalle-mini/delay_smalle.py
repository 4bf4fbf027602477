"""The delay pattern of codebooks (MusicGen's, Copet et al. 2023): codebook q is written q + 1 steps late."""

import torch

from .configuration_smalle import AUDIO_HEAD, AUDIO_TAIL, NUM_AUDIO_SPECIALS


def delay(codes, end=AUDIO_TAIL):
    """Delayed grid of codes (T, Q): (T + Q, Q), codebook q delayed by q + 1 steps.

    Codes are shifted by the number of special tokens; AUDIO_HEAD stands before a codebook's first code, `end` after
    its last.
    """
    length, num_codebooks = codes.shape
    grid = codes.new_full((length + num_codebooks, num_codebooks), end)
    for q in range(num_codebooks):
        grid[: q + 1, q] = AUDIO_HEAD
        grid[q + 1 : q + 1 + length, q] = codes[:, q] + NUM_AUDIO_SPECIALS
    return grid


def undelay(grid):
    """Inverse of `delay`: grid (B, T + Q, Q) -> codes (B, T, Q). Special tokens come out negative."""
    num_codebooks = grid.shape[-1]
    length = max(0, grid.shape[1] - num_codebooks)
    return torch.stack([grid[:, q + 1 : q + 1 + length, q] for q in range(num_codebooks)], -1) - NUM_AUDIO_SPECIALS


def undelay_steps(steps):
    """What belongs to each frame, of what belongs to each step: (B, S, Q, ...) -> (B, S - Q + 1, Q, ...).

    steps[:, s, q] led to codebook q of frame s - q.
    """
    num_codebooks = steps.shape[2]
    length = max(0, steps.shape[1] - num_codebooks + 1)
    return torch.stack([steps[:, q : q + length, q] for q in range(num_codebooks)], 2)
