"""What a model remembers between calls: values, never changed in place. Every tensor has B rows."""

from dataclasses import dataclass, fields

import torch
from torch.export import register_dataclass


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
