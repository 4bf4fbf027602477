"""What alignments of text and audio tell: how monotonic they are, and when each word was said."""

from collections.abc import Sequence

import numpy as np
import torch


def monotonicity(alignments: torch.Tensor, lengths: torch.Tensor, text_mask: torch.Tensor) -> torch.Tensor:
    """How monotonically speech reads its text: (B,), 0 at best, else negative (after Regotron, arXiv 2204.13437).

    alignments (B, T, N), lengths (B,) frames, text_mask (B, N). With p_t the expected position of frame t, counted in
    the n tokens of the text, and the text's last position n - 1 as one more frame at the end,

        -1 / n * sum over t of  max(0, p_t - p_t+1)  +  max(0, p_t+1 - p_t - 1):

    what is read backwards, and what is skipped: more than one token a frame, or the rest of the text at the end.
    """
    positions = (text_mask.long().cumsum(1) - 1).clamp(min=0).to(alignments.dtype)
    last = positions.max(1).values
    expected = (alignments @ positions[..., None])[..., 0]
    expected = expected / alignments.sum(-1).clamp(min=1e-6)  # a decoder-only model attends to the audio, too
    expected = torch.cat((expected, last[:, None]), 1)
    index = torch.arange(expected.shape[1], device=expected.device)
    expected = torch.where(index < lengths[:, None], expected, last[:, None])
    moves = expected.diff(dim=1)
    return -((-moves).clamp(min=0) + (moves - 1).clamp(min=0)).sum(1) / (last + 1)


def monotonic_path(alignment: np.ndarray | torch.Tensor) -> np.ndarray:
    """The most likely path that never goes back: alignment (T, N) -> token of each frame (T,).

    Maximises the sum of log alignment[t, path[t]] over non-decreasing paths, which may skip tokens.
    """
    scores = np.log(np.asarray(alignment, dtype=np.float64).clip(1e-9))
    previous = np.empty(scores.shape, dtype=np.int64)  # of each frame and token, the token of the frame before
    best = np.zeros(scores.shape[1])
    for frame, row in enumerate(scores):
        highest = np.maximum.accumulate(best)
        previous[frame] = np.maximum.accumulate(np.where(best == highest, np.arange(len(best)), 0))
        best = highest + row
    path = np.empty(len(scores), dtype=np.int64)
    token = int(best.argmax()) if len(scores) else 0
    for frame in range(len(scores) - 1, -1, -1):
        path[frame] = token
        token = previous[frame, token]
    return path


def word_times(
    path: np.ndarray, offsets: Sequence[tuple[int, int]], words: Sequence[tuple[int, int]], frame_rate: float
) -> list[tuple[float, float]]:
    """Seconds (start, end) of each word.

    path (T,): token of each frame, non-decreasing; offsets, words: characters (start, end) of each token and word. A
    word lasts from the first frame of its tokens to the last; the start of a word that was skipped is its end.
    """
    times: list[tuple[float, float]] = []
    for begin, end in words:
        tokens = [n for n, (first, last) in enumerate(offsets) if first < end and begin < last]
        if not tokens:  # a word without a token counts as skipped
            times.append((times[-1][1],) * 2 if times else (0.0, 0.0))
            continue
        first_frame, last_frame = np.searchsorted(path, tokens[0]), np.searchsorted(path, tokens[-1], "right")
        times.append((float(first_frame / frame_rate), float(last_frame / frame_rate)))
    return times
