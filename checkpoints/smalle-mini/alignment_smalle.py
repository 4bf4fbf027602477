"""What can be read from alignments of text and audio: monotonicity, word times, and whether a reading fails."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

if TYPE_CHECKING:  # smalle.lite imports this module without PyTorch
    import torch


def monotonicity(alignments: torch.Tensor, lengths: torch.Tensor, text_mask: torch.Tensor) -> torch.Tensor:
    """How monotonically speech reads its text: (B,), 0 at best, else negative (after Regotron, arXiv 2204.13437).

    alignments (B, T, N), lengths (B,) frames, text_mask (B, N). With p_t the expected position of frame t, counted in
    the n tokens of the text, and the text's last position n - 1 as one more frame at the end,

        -1 / n * sum over t of  max(0, p_t - p_t+1)  +  max(0, p_t+1 - p_t - 1):

    The first term counts tokens that are read backwards, the second those that are skipped: more than one token per
    frame, or the rest of the text at the end.
    """
    import torch

    last = (text_mask.long().sum(1) - 1).to(alignments.dtype)
    expected = torch.cat((expected_positions(alignments, text_mask), last[:, None]), 1)
    index = torch.arange(expected.shape[1], device=expected.device)
    expected = torch.where(index < lengths[:, None], expected, last[:, None])
    moves = expected.diff(dim=1)
    return -((-moves).clamp(min=0) + (moves - 1).clamp(min=0)).sum(1) / (last + 1)


def token_positions(text_mask: torch.Tensor) -> torch.Tensor:
    """The position of each token in its text, 0 on padding: text_mask (B, N) -> (B, N)."""
    return (text_mask.long().cumsum(1) - 1).clamp(min=0).float()


def expected_positions(alignments: torch.Tensor, text_mask: torch.Tensor) -> torch.Tensor:
    """The mean text position of each frame, in tokens: alignments (B, T, N), text_mask (B, N) -> (B, T)."""
    positions = token_positions(text_mask).to(alignments.dtype)
    expected = (alignments @ positions[..., None])[..., 0]
    return expected / alignments.sum(-1).clamp(min=1e-6)  # a decoder-only model also attends to the audio


def monotonic_path(alignment: np.ndarray | torch.Tensor) -> np.ndarray:
    """The most likely non-decreasing path: alignment (T, N) -> token of each frame (T,).

    Maximises the sum of log alignment[t, path[t]] over non-decreasing paths, which may skip tokens.
    """
    scores = np.log(np.asarray(alignment, dtype=np.float64).clip(1e-9))
    previous = np.empty(scores.shape, dtype=np.int64)  # for each frame and token, the token of the previous frame
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


def piecewise_path(alignment: np.ndarray, starts: Sequence[int]) -> np.ndarray:
    """`monotonic_path` of a text that is read piece by piece: alignment (T, N), the first token of each piece -> (T,).

    A frame belongs to the piece that gets most of its attention; the last token, [EOS], follows every piece.
    """
    if len(starts) == 1:
        return monotonic_path(alignment)
    read = np.maximum.accumulate(np.add.reduceat(alignment[:, :-1], starts, axis=1).argmax(1))
    bounds = [*starts, alignment.shape[1]]
    parts = [monotonic_path(alignment[read == n, bounds[n] : bounds[n + 1]]) + bounds[n] for n in range(len(starts))]
    return np.concatenate(parts)


def word_times(
    path: np.ndarray, offsets: Sequence[tuple[int, int]], words: Sequence[tuple[int, int]], frame_rate: float
) -> list[tuple[float, float]]:
    """Seconds (start, end) of each word.

    path (T,): token of each frame, non-decreasing; offsets, words: characters (start, end) of each token and word. A
    word lasts from the first frame of its tokens to the last. A skipped word has equal start and end.
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


# --- following a reading during generation: how far it got, and why it ended

TOKENS_PER_SECOND = 60  # maximum speed of a reading; read English has about 7 on average, 57 for short moments
MAX_SKIPPED = 3.0  # tokens that a reading may pass faster than that, or leave unread at its end
MAX_BACK = 4.0  # tokens that a reading may move back
BACK_SECONDS = 0.1  # time for which it may stay further back
SHARP = 0.4  # an alignment locates a frame if one token has at least this weight
MAX_UNREAD = 5.0  # tokens of a prompt's transcript that may be unread when its recording ends
STILL_SECONDS = 2.0  # time that may pass without a new token
END_SECONDS = 1.0  # time that may pass after the last token
SECONDS_PER_TOKEN, MORE_SECONDS = 0.5, 2.0  # limit for a text: per token, plus a constant; over three times the usual
FAILURES = {  # reasons that end a failed reading -> what happened
    "looped": "went back to words that it had read before, and was stopped",
    "stalled": "made no progress, and was stopped",
    "too_long": "took longer than its text can need, and was stopped",
    "skipped": "skipped words",
    "incomplete": "ended before its text",
}
STOPPED = {**FAILURES, "text_end": "was stopped after its last word"}


class Reading(NamedTuple):
    """The progress of one row through its text, updated with every frame. Positions are in tokens.

    first, last: positions of the first and last token to speak; first is None if it is unknown.
    limit: maximum number of frames.
    frames: number of frames so far.
    furthest: the furthest position so far.
    skipped: tokens that were passed too fast.
    back: number of consecutive frames far behind the furthest position.
    mark: the furthest position when the last token was passed; still: frames since then.
    moved_back: tokens that were read again, as `monotonicity` counts them.
    finish: why the reading ended. "stop": the model ended it; "length": max_new_tokens was reached; "criteria": a
        stopping criterion was met; "text_end": it was stopped after its last token; or a key of FAILURES. "" while it
        has not ended.
    """

    first: int | None = 0
    last: int = 0
    limit: int = sys.maxsize
    frames: int = 0
    position: float | None = None
    furthest: float = 0.0
    skipped: float = 0.0
    moved_back: float = 0.0
    back: int = 0
    mark: float = 0.0
    still: int = 0
    finish: str = ""

    @property
    def failed(self) -> bool:
        """Whether the text was not read correctly."""
        return self.finish in FAILURES

    @property
    def score(self) -> tuple[bool, float]:
        """A score to compare readings by; the best one has the highest."""
        return not self.failed, -(self.moved_back + self.skipped + self.last - self.furthest)

    def follow(self, position: float | None, frame_rate: float, may_stop: bool) -> Reading:
        """The reading after one more frame at `position`, which is None if the model has no alignment."""
        if position is None:
            reading = self._replace(frames=self.frames + 1)
        else:
            reading = self._move(position, TOKENS_PER_SECOND / frame_rate)
        if reading.frames >= self.limit:
            return reading._replace(finish="length")
        return reading._replace(finish=reading._stopped(frame_rate)) if may_stop else reading

    def _move(self, position: float, step: float) -> Reading:
        if self.position is None:
            begin = position if self.first is None else self.first
            start = self._replace(position=min(begin, position), furthest=begin, mark=min(begin, position))
            return start._move(position, step)
        furthest = max(position, self.furthest)
        passed = position > self.mark + 1
        return Reading(  # once per frame; _replace is three times slower
            *self[:3],
            self.frames + 1,
            position,
            furthest,
            skipped=self.skipped + max(0.0, furthest - self.furthest - step),
            moved_back=self.moved_back + max(0.0, self.position - position),
            back=self.back + 1 if position < furthest - MAX_BACK else 0,
            mark=position if passed else self.mark,
            still=0 if passed else self.still + 1,
            finish=self.finish,
        )

    def _stopped(self, frame_rate: float) -> str:
        """The reason to stop the reading, or ""."""
        if self.back >= BACK_SECONDS * frame_rate:
            return "looped"
        if self.position is not None and self.last - self.furthest < 2 and self.still >= END_SECONDS * frame_rate:
            return "text_end"
        if self.position is not None and self.still >= STILL_SECONDS * frame_rate:
            return "stalled"
        tokens = self.last - (self.first or 0) + 1
        return "too_long" if self.frames >= (SECONDS_PER_TOKEN * tokens + MORE_SECONDS) * frame_rate else ""

    def end(self) -> Reading:
        """The reading after the model ended it."""
        if self.position is not None and self.last - self.furthest > MAX_SKIPPED:
            return self._replace(finish="incomplete")
        return self._replace(finish="skipped" if self.skipped > MAX_SKIPPED else "stop")
