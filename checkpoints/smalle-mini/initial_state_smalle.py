"""A voice as the recurrent state in which speech begins: it needs no prompt (initial-state tuning of Lina-Speech,
arXiv 2410.23320).

In a file and as parameters it is a tensor "state_N" for each of the model's state tensors, or, at low rank, the two
whose product it is, "state_N_left" (..., K, R) and "state_N_right" (..., R, V). Between the processor and the model it
is a row of S numbers: the states of all blocks, flattened, one behind the other.
"""

import functools
import re

import torch
from torch import nn

from .state_smalle import apply

STATE_NAME = re.compile(r"state_\d+(_left|_right)?")  # of its tensors


def join_state(tensors):
    """The row (S,) of a starting state's tensors by name."""
    factors = {}
    for name in sorted(tensors):  # left before right
        factors.setdefault(int(name.split("_")[1]), []).append(tensors[name])
    return torch.cat([functools.reduce(torch.matmul, factors[index]).flatten() for index in sorted(factors)])


def split_state(rows, like):
    """Rows (B, S) as the recurrent state of a model: shapes, types, device of `like`, one of B rows."""
    sizes = [shape.numel() for shape in state_shapes(like)]
    if rows.ndim != 2 or rows.shape[1] != sum(sizes):
        raise ValueError(
            f"initial_state has shape {tuple(rows.shape)}: expected (batch, {sum(sizes)}), the states of this model's "
            "blocks. A voice that is a state speaks through the model it was tuned for: load that one, or tune the "
            "voice again with this one (python -m train.finetune)."
        )
    parts = iter(rows.split(sizes, 1))
    return apply(lambda x: next(parts).reshape(x.shape).to(x), like)


def state_shapes(state):
    """Shapes of a state's tensors without their rows, in the order in which they stand in a row of numbers."""
    shapes = []
    apply(lambda x: shapes.append(x.shape[1:]), state)
    return shapes


class InitialState(nn.Module):
    """A starting state to be tuned; forward() gives it as a row (S,). It begins at zero: the model as it is.

    Args:
        shapes: of its tensors, `model.initial_state_shapes()`.
        rank: of the matrices (..., K, V), as products of two where that takes fewer numbers; None: full.
    """

    def __init__(self, shapes, rank=None):
        super().__init__()
        if rank is not None and rank < 1:
            raise ValueError(f"rank={rank}: expected at least 1, or None for full states.")
        self.tensors = nn.ParameterDict()
        for index, shape in enumerate(shapes):
            *heads, k, v = shape if len(shape) > 1 else (1, *shape)
            if rank and rank * (k + v) < k * v:
                self.tensors[f"state_{index}_left"] = torch.randn(*heads, k, rank) * rank**-0.5
                self.tensors[f"state_{index}_right"] = torch.zeros(*heads, rank, v)
            else:
                self.tensors[f"state_{index}"] = torch.zeros(shape)

    def forward(self):
        return join_state(self.tensors)
