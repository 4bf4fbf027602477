"""What generate() returns, and the state in which it stopped."""

from dataclasses import dataclass, replace

import torch
from transformers.utils import ModelOutput


@dataclass
class GenerationState:
    """Where generate() stopped; hand it back as `past_key_values=` to go on. A value, never changed in place.

    Rows are the B speeches; guided generation has as many again for each branch, behind them: G times B in all.

    model: the model's state, G·B rows; grid (G·B, W, Q): the last delayed steps, the newest not yet read by the model;
    forced (G·B, F, Q): steps to come that a prompt has fixed, UNKNOWN where it has not; remaining (B,): steps that a
    row needs to end, 0 when done, -1 while it speaks; history (B, H, Q): steps before the grid, for repetition
    penalties; maps, scores: alignments (B, N) and scores (B, Q, V) of steps whose frames are not complete;
    branches: names of the guidance scales that the other rows serve.
    """

    model: object
    grid: torch.LongTensor
    forced: torch.LongTensor
    remaining: torch.LongTensor
    history: torch.LongTensor
    maps: tuple[torch.FloatTensor, ...] = ()
    scores: tuple[torch.FloatTensor, ...] = ()
    branches: tuple[str, ...] = ()

    def select(self, rows):
        """The state of these speeches (B',): some of them, or each several times."""
        every = torch.cat([rows + n * len(self.remaining) for n in range(1 + len(self.branches))])
        return replace(
            self, model=self.model.map(lambda x: x[every]), grid=self.grid[every], forced=self.forced[every],
            remaining=self.remaining[rows], history=self.history[rows], maps=tuple(x[rows] for x in self.maps),
            scores=tuple(x[rows] for x in self.scores),
        )  # fmt: skip


@dataclass
class SmallEGenerateOutput(ModelOutput):
    """sequences (B, T, Q): new codes, undelayed, -1 after a row's end; lengths (B,): new frames of each row;
    alignments (B, T, N): where in the text each new frame was read, on request; scores (B, T, Q, V): what each code
    was drawn from, -inf where a token could not come, on request; past_key_values: to go on from."""

    sequences: torch.LongTensor = None
    lengths: torch.LongTensor = None
    alignments: torch.FloatTensor | None = None
    scores: torch.FloatTensor | None = None
    past_key_values: GenerationState | None = None

    def select(self, rows):
        """The output of these rows (B',), as long as the longest of them."""
        longest = int(self.lengths[rows].max())
        cut = {
            name: None if self[name] is None else self[name][rows, :longest]
            for name in ("sequences", "alignments", "scores") if name in self
        }  # fmt: skip
        return SmallEGenerateOutput(
            lengths=self.lengths[rows], past_key_values=self.past_key_values.select(rows), **cut
        )
