"""What a model remembers between calls: values, never changed in place. Every tensor has B rows."""

import functools
import re
from dataclasses import dataclass, fields
from typing import NamedTuple

import torch
from torch import nn
from torch.export import register_dataclass

# --- state: What a model remembers between calls: values, never changed in place. Every tensor has B rows.


def apply(function, x):
    """`function` of every tensor in nested tuples, named ones too; None stays None."""
    if isinstance(x, tuple):
        parts = [apply(function, part) for part in x]
        return x._make(parts) if hasattr(x, "_make") else tuple(parts)
    return None if x is None else function(x)


class State:
    """Base of a dataclass of tensors and tuples of them."""

    def map(self, function):
        """The same state with `function` applied to every tensor (select rows, move to a device)."""
        return type(self)(*(apply(function, getattr(self, field.name)) for field in fields(self)))


@dataclass
class SmallEState(State):
    """All that Small-E needs to go on.

    text_keys, text_values (B, N, D); positions (B, N, d_b), None without PACA; text_mask (B, N) bool, True where there
    is text; recurrent: the state of each block, audio encoder first, then the position block (None without PACA), then
    the decoder: (B, H, K, V), or a tuple of tensors where the mixer remembers more than one; steps (B,): audio steps
    read so far, where the cross-attention has rotary positions.
    """

    text_keys: torch.FloatTensor
    text_values: torch.FloatTensor
    positions: torch.FloatTensor | None
    text_mask: torch.BoolTensor
    recurrent: tuple[torch.FloatTensor | tuple[torch.FloatTensor, ...] | None, ...] | None = None
    steps: torch.LongTensor | None = None


@dataclass
class TransformerState(State):
    """All that the decoder-only transformer needs to go on, text and audio in one sequence of S steps.

    keys, values: (B, H, S, D / H) of each layer, keys rotated; mask (B, S) bool, False on padding; text_mask (B, N)
    bool, that of the text, the first N steps.
    """

    keys: tuple[torch.FloatTensor, ...]
    values: tuple[torch.FloatTensor, ...]
    mask: torch.BoolTensor
    text_mask: torch.BoolTensor


for _state in (SmallEState, TransformerState):  # torch.export takes and returns them, DDP and FSDP look inside
    register_dataclass(_state)


# --- recent: A recurrent state with the last steps beside it: what an exported step reads in place of a state.


MAX_PENDING = 16  # steps that may stand beside a state


class PendingUpdates(NamedTuple):
    """state (B, H, K, V); decay of it since, (B, H, 1, K); keys and values of the steps since, (B, H, MAX_PENDING, K or V),
    the newest last, keys decayed like what they wrote, zeros where there was no step yet."""

    state: torch.FloatTensor
    decay: torch.FloatTensor
    keys: torch.FloatTensor
    values: torch.FloatTensor

    @classmethod
    def begin(cls, state):
        """No steps beside a state."""
        zeros = (state.new_zeros(*state.shape[:2], MAX_PENDING, size) for size in state.shape[2:])
        return cls(state, torch.ones_like(state[:, :, None, :, 0]), *zeros)

    def step(self, q, k, v, log_decay):
        """As `linear_attention_smalle.recurrent_step`, one decay for each channel: output (B, 1, H, V) and what stands here then.

        Nothing is lost while there is `room`.
        """
        q, k, v, log_decay = (x.transpose(1, 2) for x in (q, k, v, log_decay))
        now = log_decay.exp()
        decay = self.decay * now
        keys, values = torch.cat((self.keys[:, :, 1:] * now, k), 2), torch.cat((self.values[:, :, 1:], v), 2)
        out = (q * decay) @ self.state + (q @ keys.transpose(-1, -2)) @ values
        return out.transpose(1, 2), PendingUpdates(self.state, decay, keys, values)

    def fold(self, own=False):
        """The state (B, H, K, V) after all steps; own: nobody else holds it, so that it may be written over."""
        written = self.keys.flatten(0, 1).transpose(-1, -2), self.values.flatten(0, 1)
        state = torch.mul(self.state, self.decay.transpose(-1, -2), out=self.state if own else None)
        return state.flatten(0, 1).baddbmm_(*written).view_as(state)

    def room(self):
        """Steps that may follow before `fold`: a key that is zero wrote nothing and may be dropped."""
        empty = (self.keys == 0).transpose(0, 2).flatten(1).all(1)
        return int(empty.long().cumprod(0).sum())


# --- initial state: A voice as the recurrent state in which speech begins: it needs no prompt (initial-state tuning of Lina-Speech,


STATE_NAME = re.compile(r"state_\d+(_left|_right)?")  # of its tensors


def join_state(tensors):
    """The row (S,) of a starting state's tensors by name."""
    factors = {}
    for name in sorted(tensors):  # left before right
        factors.setdefault(int(name.split("_")[1]), []).append(tensors[name])
    return torch.cat([functools.reduce(torch.matmul, factors[index]).flatten() for index in sorted(factors)])


def tensors_of(state):
    """The tensors of a recurrent state in the order in which they stand in a row of numbers."""
    tensors = []
    apply(tensors.append, state)
    return tensors


def split_state(rows, like):
    """Rows (B, S) as the recurrent state of a model: shapes, types, device of `like`, one of B rows."""
    sizes = [x[0].numel() for x in tensors_of(like)]
    if rows.ndim != 2 or rows.shape[1] != sum(sizes):
        raise ValueError(
            f"initial_state has shape {tuple(rows.shape)}: expected (batch, {sum(sizes)}), the states of this model's "
            "blocks. A voice that is a state speaks through the model it was tuned for: load that one, or tune the "
            "voice again with this one (python -m smalle.train.adapt.finetune)."
        )
    parts = iter(rows.split(sizes, 1))
    return apply(lambda x: next(parts).reshape(x.shape).to(x), like)


class InitialState(nn.Module):
    """A starting state to be tuned; forward() gives it as a row (S,). It begins at zero: the model as it is.

    Args:
        like: a recurrent state of the model after it has read some speech. States are as large as hundreds and differ
            between blocks: what is tuned is relative to the magnitude of each.
        rank: of the matrices (..., K, V), as products of two where that takes fewer numbers; None: full.
    """

    def __init__(self, like, rank=None):
        super().__init__()
        if rank is not None and rank < 1:
            raise ValueError(f"rank={rank}: expected at least 1, or None for full states.")
        self.relative, self.scales = nn.ParameterDict(), {}
        for index, tensor in enumerate(tensors_of(like)):
            *heads, k, v = tensor.shape[1:] if tensor.ndim > 2 else (1, *tensor.shape[1:])
            scale = float(tensor.float().pow(2).mean().sqrt()) or 1.0
            if rank and rank * (k + v) < k * v:
                self._add(f"state_{index}_left", torch.randn(*heads, k, rank), rank**-0.5)
                self._add(f"state_{index}_right", torch.zeros(*heads, rank, v), scale)
            else:
                self._add(f"state_{index}", torch.zeros(tensor.shape[1:]), scale)

    def _add(self, name, tensor, scale):
        self.relative[name], self.scales[name] = tensor, scale

    @property
    def tensors(self):
        """The state's tensors by name, for `save_voice`."""
        return {name: tensor * self.scales[name] for name, tensor in self.relative.items()}

    def forward(self):
        return join_state(self.tensors)
