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
            "voice again with this one (python -m train.finetune)."
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
