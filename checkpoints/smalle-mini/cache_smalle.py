"""The states of a model between calls, as values that are never changed in place. Every tensor has B rows."""

import functools
import re
from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.export import register_dataclass

from .alignment_smalle import Reading

# --- States of the models


def map_tensors(function: Callable[[Tensor], Any], x: Any) -> Any:
    """`function` of every tensor in nested tuples, named ones too; None stays None."""
    if isinstance(x, tuple):
        parts = [map_tensors(function, part) for part in x]
        return x._make(parts) if hasattr(x, "_make") else tuple(parts)
    return None if x is None else function(x)


class State:
    """Base of a dataclass of tensors and tuples of them."""

    def map(self, function: Callable[[Tensor], Tensor]):
        """The same state with `function` applied to every tensor (select rows, move to a device)."""
        return type(self)(*(map_tensors(function, getattr(self, field.name)) for field in fields(self)))  # type: ignore[call-arg, arg-type]


@dataclass
class SmallEState(State):
    """The state of Small-E.

    text_keys, text_values (B, N, D); positions (B, N, d_b), None without PACA; text_mask (B, N) bool, True where there
    is text; recurrent: the state of each block, audio encoder first, then the position block (None without PACA), then
    the decoder: (B, H, K, V), or a tuple of tensors if the mixer has more than one; steps (B,): number of audio steps
    so far, if the cross-attention has rotary positions.
    """

    text_keys: Tensor
    text_values: Tensor
    positions: Tensor | None
    text_mask: Tensor
    recurrent: tuple[Any, ...] | None = None
    steps: Tensor | None = None


@dataclass
class TransformerState(State):
    """The state of the decoder-only transformer, text and audio in one sequence of S steps.

    keys, values: (B, H, S, D / H) of each layer, keys rotated; mask (B, S) bool, False on padding; text_mask (B, N)
    bool, that of the text, the first N steps; unread_text: embeddings (B, N, D) of the text until a step reads them.
    """

    keys: tuple[Tensor | None, ...]
    values: tuple[Tensor | None, ...]
    mask: Tensor
    text_mask: Tensor
    unread_text: Tensor | None = None


for _state in (SmallEState, TransformerState):  # torch.export takes and returns them, DDP and FSDP look inside
    register_dataclass(_state)


# --- Pending updates: the native runtime adds steps to a large recurrent state in groups, to write it less often


MAX_PENDING = 16  # steps


class PendingUpdates(NamedTuple):
    """A recurrent state and the updates of the last steps, which have not been added to it.

    state (B, H, K, V); decay of it since, (B, H, 1, K); keys and values of the pending updates,
    (B, H, MAX_PENDING, K or V), the newest last, keys decayed like what they wrote, zeros where there is none.
    """

    state: Tensor
    decay: Tensor
    keys: Tensor
    values: Tensor

    @classmethod
    def begin(cls, state: Tensor) -> "PendingUpdates":
        """A state without pending updates."""
        zeros = (state.new_zeros(*state.shape[:2], MAX_PENDING, size) for size in state.shape[2:])
        return cls(state, torch.ones_like(state[:, :, None, :, 0]), *zeros)

    def fold(self) -> Tensor:
        """The state (B, H, K, V) with all updates added."""
        updates = self.keys.flatten(0, 1).transpose(-1, -2), self.values.flatten(0, 1)
        state = self.state * self.decay.transpose(-1, -2)
        return state.flatten(0, 1).baddbmm_(*updates).view_as(state)

    def room(self) -> int:
        """How many updates can still be added: a key of zeros wrote nothing and may be dropped."""
        empty = (self.keys == 0).transpose(0, 2).flatten(1).all(1)
        return int(empty.long().cumprod(0).sum())


# --- The state of generate()


@dataclass
class GenerationState:
    """Where generate() stopped; `generate(cache=)` goes on from it. A value, never changed in place.

    B rows of speech; with guidance B unconditional rows stand behind them, G·B in all.

    model: the model's state, G·B rows.
    grid (G·B, W, Q): the last delayed steps; the model has not read the newest yet.
    forced (G·B, F, Q): coming steps as far as a prompt determines them, else UNKNOWN.
    remaining (B,): steps until a row is complete: 0 when finished, -1 before its end is known.
    history (B, H, Q): steps before the grid, for repetition penalties.
    readings: how far each of B rows has read its text.
    alignments, scores: (B, N) and (B, Q, V) of the steps whose frames are not complete.
    """

    model: Any
    grid: Tensor
    forced: Tensor
    remaining: Tensor
    history: Tensor
    readings: tuple[Reading, ...]
    alignments: tuple[Tensor, ...] = ()
    scores: tuple[Tensor, ...] = ()

    @property
    def guided(self) -> bool:
        """Whether there are unconditional rows."""
        return len(self.grid) > len(self.remaining)

    def select(self, rows: Tensor) -> "GenerationState":
        """The state of these rows (B',), each of 0..B-1 any number of times."""
        every = torch.cat((rows, rows + len(self.remaining))) if self.guided else rows
        return GenerationState(
            self.model.map(lambda x: x[every]),
            self.grid[every],
            self.forced[every],
            self.remaining[rows],
            self.history[rows],
            tuple(self.readings[row] for row in rows.tolist()),
            tuple(x[rows] for x in self.alignments),
            tuple(x[rows] for x in self.scores),
        )

    def __getitem__(self, row: int) -> "GenerationState":
        """The state of one row; pipelines of transformers before 5.24 index every output."""
        return self.select(torch.tensor([row]))


# --- A voice as the recurrent state in which speech begins, without a prompt (initial-state tuning, as in Lina-Speech)


STATE_NAME = re.compile(r"state_\d+(_left|_right)?")  # of its tensors


def join_state(tensors: dict[str, Tensor]) -> Tensor:
    """The row (S,) of an initial state's tensors by name."""
    factors: dict[int, list[Tensor]] = {}
    for name in sorted(tensors):  # left before right
        factors.setdefault(int(name.split("_")[1]), []).append(tensors[name])
    return torch.cat([functools.reduce(torch.matmul, factors[index]).flatten() for index in sorted(factors)])


def tensors_of(state: Any) -> list[Tensor]:
    """The tensors of a recurrent state in the order in which a row of an initial state has them."""
    tensors: list[Tensor] = []
    map_tensors(tensors.append, state)
    return tensors


def split_state(rows: Tensor, like: Any) -> Any:
    """Rows (B, S) as the recurrent state of a model: shapes, types, device of `like`, one of B rows.

    Raises ValueError for rows of another model.
    """
    sizes = [x[0].numel() for x in tensors_of(like)]
    if rows.ndim != 2 or rows.shape[1] != sum(sizes):
        raise ValueError(
            f"initial_state has shape {tuple(rows.shape)}: expected (batch, {sum(sizes)}), the states of this model's "
            "blocks. A tuned state works with the model it was tuned for: load that one, or tune it again with this "
            "one (smalle finetune)."
        )
    parts = iter(rows.split(sizes, 1))
    return map_tensors(lambda x: next(parts).reshape(x.shape).to(x), like)


class InitialState(nn.Module):
    """An initial state to be tuned; forward() returns it as a row (S,). It starts at zero, as the model itself does.

    Args:
        like: a recurrent state of the model after some speech. States differ in magnitude between blocks, up to the
            hundreds; the parameters are relative to the magnitude of each.
        rank: of the matrices (..., K, V), as products of two where that takes fewer numbers; None: full.

    Raises:
        ValueError for a rank below 1.
    """

    def __init__(self, like: Any, rank: int | None = None):
        super().__init__()
        if rank is not None and rank < 1:
            raise ValueError(f"rank={rank}: expected at least 1, or None for full states.")
        self.relative = nn.ParameterDict()
        self.scales: dict[str, float] = {}
        for index, tensor in enumerate(tensors_of(like)):
            *heads, k, v = tensor.shape[1:] if tensor.ndim > 2 else (1, *tensor.shape[1:])
            scale = float(tensor.float().pow(2).mean().sqrt()) or 1.0
            if rank and rank * (k + v) < k * v:
                self._add(f"state_{index}_left", torch.randn(*heads, k, rank), rank**-0.5)
                self._add(f"state_{index}_right", torch.zeros(*heads, rank, v), scale)
            else:
                self._add(f"state_{index}", torch.zeros(tensor.shape[1:]), scale)

    def _add(self, name: str, tensor: Tensor, scale: float):
        self.relative[name], self.scales[name] = tensor, scale

    @property
    def tensors(self) -> dict[str, Tensor]:
        """The state's tensors by name, for `save_voice`."""
        return {name: tensor * self.scales[name] for name, tensor in self.relative.items()}

    def forward(self) -> Tensor:
        return join_state(self.tensors)
