"""What mixers have in common: masked rows, token shift, short convolution, widths of heads."""

import torch
import torch.nn.functional as F
from torch import nn
from transformers import initialization as init

from .recurrence_smalle import wide


def head_width(name, width, num_heads):
    """Width of one head; ValueError where the heads do not fit."""
    if width < num_heads or width % num_heads:
        raise ValueError(f"{name}={width} must be a multiple of the mixer's heads ({num_heads}): change mixer_heads.")
    return width // num_heads


def take(x, order):
    """Steps of x (B, T, D) in the order (B, T) given for each row."""
    return x.gather(1, order[..., None].expand(-1, -1, x.shape[-1]))


def newest(seen, mask, count):
    """The last `count` steps that a row has seen, (B, count, D), in fp32: what a mixer has to remember of them.

    seen (B, count + T, D): `count` remembered steps, then the new ones, masked ones last.
    """
    if mask is None:
        return wide(seen[:, seen.shape[1] - count :])
    return wide(take(seen, mask.sum(1, keepdim=True) + torch.arange(count, device=seen.device)))


class CausalMixer(nn.Module):
    """A mixer that looks at the last few steps. `mix` gets rows whose masked steps stand last, wherever they stood."""

    def mix(self, x, mask, state):
        raise NotImplementedError

    def forward(self, x, mask=None, state=None):
        mask = None if mask is None else mask.bool()
        if mask is None or x.shape[1] == 1:
            return self.mix(x, mask, state)
        order = (~mask).long().argsort(dim=1, stable=True)
        y, state = self.mix(take(x, order), mask.gather(1, order), state)
        return take(y, order.argsort(dim=1)), state


def token_shift(x, mask, last):
    """The step before each step of x (B, T, D), and the last step (B, D) to remember; `last` is that of the past."""
    last = x.new_zeros(x.shape[0], x.shape[2]) if last is None else last.to(x.dtype)
    seen = torch.cat((last[:, None], x), 1)
    return seen[:, :-1], newest(seen, mask, 1)[:, 0]


class ShortConvolution(nn.Conv1d):
    """Causal convolution of each channel by itself, then SiLU: x (B, T, D), remembered inputs (B, width - 1, D)."""

    def __init__(self, size, width, bias):
        if width < 2:
            raise ValueError(f"conv_size={width}: expected at least 2 steps.")
        super().__init__(size, size, width, groups=size, bias=bias)

    @torch.no_grad()
    def init_parameters(self):
        bound = self.kernel_size[0] ** -0.5
        init.uniform_(self.weight, -bound, bound)
        if self.bias is not None:
            init.uniform_(self.bias, -bound, bound)

    def forward(self, x, mask, state):
        past = self.kernel_size[0] - 1
        state = x.new_zeros(x.shape[0], past, x.shape[2]) if state is None else state.to(x.dtype)
        seen = torch.cat((state, x), 1)
        return F.silu(super().forward(seen.transpose(1, 2)).transpose(1, 2)), newest(seen, mask, past)


def init_time_step(bias, shortest=1e-3, longest=0.1):
    """Sets a bias so that softplus(bias) is spread log-uniformly between two time steps (Gu & Dao 2023)."""
    step = shortest * (longest / shortest) ** torch.rand_like(bias)
    init.copy_(bias, step + torch.log(-torch.expm1(-step)))  # inverse of softplus
