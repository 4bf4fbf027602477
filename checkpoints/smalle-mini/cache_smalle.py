"""The states of a model between calls. They are values, never changed in place; every tensor has B rows."""

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
    """Applies `function` to every tensor in nested (named) tuples; None stays None."""
    if isinstance(x, tuple):
        parts = [map_tensors(function, part) for part in x]
        return x._make(parts) if hasattr(x, "_make") else tuple(parts)
    return None if x is None else function(x)


class State:
    """Base class of dataclasses of tensors and tuples of tensors."""

    def map(self, function: Callable[[Tensor], Tensor]):
        """The same state with `function` applied to every tensor (select rows, move to a device)."""
        return type(self)(*(map_tensors(function, getattr(self, field.name)) for field in fields(self)))  # type: ignore[call-arg, arg-type]


@dataclass
class SmallEState(State):
    """The state of Small-E.

    text_keys, text_values (B, N, D); positions (B, N, d_b), None without PACA; text_mask (B, N) bool, False on padding;
    recurrent: the state of each block: of the audio encoder, the position block (None without PACA) and the decoder,
    each (B, H, K, V), or a tuple of tensors if the mixer has several; steps (B,): number of audio steps so far, if the
    cross-attention has rotary positions.
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

    keys, values: (B, H, S, D / H) of each layer, with rotated keys; mask (B, S) bool, False on padding; text_mask
    (B, N) bool, the mask of the text, which is the first N steps; unread_text: embeddings (B, N, D) of the text, until
    the first step reads them.
    """

    keys: tuple[Tensor | None, ...]
    values: tuple[Tensor | None, ...]
    mask: Tensor
    text_mask: Tensor
    unread_text: Tensor | None = None


for _state in (SmallEState, TransformerState):  # for torch.export, DDP and FSDP
    register_dataclass(_state)


# --- Pending updates: the native runtime adds steps to a large recurrent state in groups, to write to it less often


MAX_PENDING = 16  # steps


class PendingUpdates(NamedTuple):
    """A recurrent state and the updates of the last steps, which have not been added to it yet.

    state (B, H, K, V); decay (B, H, 1, K): the decay of the state since the last update; keys, values
    (B, H, MAX_PENDING, K or V): the pending updates, the newest last; keys include the decay of later steps, and unused
    places are zero.
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
        """The number of updates that can still be added. A key of zeros marks an unused place."""
        empty = (self.keys == 0).transpose(0, 2).flatten(1).all(1)
        return int(empty.long().cumprod(0).sum())


# --- The state of generate()


@dataclass
class GenerationState:
    """The state in which generate() stopped; `generate(cache=)` continues from it.

    There are B rows of speech. With guidance, B unconditional rows follow them: G·B rows in all.

    model: the model's state, G·B rows.
    grid (G·B, W, Q): the last delayed steps; the model has not read the newest one yet.
    forced (G·B, F, Q): future steps that a prompt determines, else UNKNOWN.
    remaining (B,): steps until a row is complete: 0 when finished, -1 before its end is known.
    history (B, H, Q): steps before the grid, for repetition penalties.
    readings: the progress of each of B rows through its text.
    alignments, scores: (B, N) and (B, Q, V) of the steps whose frames are incomplete.
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
        """The state of the given rows (B',), indices 0..B-1 in any order, with repetitions."""
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
        """The state of one row. Pipelines of transformers before 5.24 index every output."""
        return self.select(torch.tensor([row]))


# --- A voice as the initial recurrent state, instead of a prompt (initial-state tuning, as in Lina-Speech)


STATE_NAME = re.compile(r"state_\d+(_left|_right)?")  # names of its tensors


def join_state(tensors: dict[str, Tensor]) -> Tensor:
    """The tensors of an initial state, by name, as a row (S,)."""
    factors: dict[int, list[Tensor]] = {}
    for name in sorted(tensors):  # left before right
        factors.setdefault(int(name.split("_")[1]), []).append(tensors[name])
    return torch.cat([functools.reduce(torch.matmul, factors[index]).flatten() for index in sorted(factors)])


def tensors_of(state: Any) -> list[Tensor]:
    """The tensors of a recurrent state, in the order of a row of an initial state."""
    tensors: list[Tensor] = []
    map_tensors(tensors.append, state)
    return tensors


def split_state(rows: Tensor, like: Any) -> Any:
    """Rows (B, S) as the recurrent state of a model, with the shapes, types and device of `like`, a state of B rows.

    Raises ValueError for rows of another model.
    """
    sizes = [x[0].numel() for x in tensors_of(like)]
    if rows.ndim != 2 or rows.shape[1] != sum(sizes):
        raise ValueError(
            f"initial_state has shape {tuple(rows.shape)}: expected (batch, {sum(sizes)}), the states of this model's "
            "blocks. A tuned state only works with the model it was tuned for: load that model, or tune the voice "
            "again with this one (smalle finetune)."
        )
    parts = iter(rows.split(sizes, 1))
    return map_tensors(lambda x: next(parts).reshape(x.shape).to(x), like)


class InitialState(nn.Module):
    """A trainable initial state; forward() returns it as a row (S,). It starts at zero, like the state of the model.

    Args:
        like: a recurrent state of the model after some speech. The magnitudes of states differ between blocks by
            factors of hundreds, so the parameters are relative to them.
        rank: rank of the matrices (..., K, V), which are stored as products of two if that is smaller; None: full.

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
