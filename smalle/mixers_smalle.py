"""Sequence mixers of the linear-attention blocks, all behind one call:

    outputs (B, T, D), state = mixer(x (B, T, D), mask (B, T) or None, state or None)

A mixer remembers nothing: the state, a tensor or a tuple of tensors with B rows each, is a value that goes in and
comes out. Masked steps leave it untouched. A mixer ends in `o_proj`; parameters of its own get their values in
`init_parameters`.
"""

import torch
import torch.nn.functional as F
from torch import nn

from .deltanet_smalle import GatedDeltaNet
from .mamba_smalle import Mamba, Mamba2
from .mixer_base_smalle import head_width
from .recurrence_smalle import STRONGEST, recurrence, wide
from .rwkv_smalle import RWKV5, RWKV6, RWKV7


class GatedLinearAttention(nn.Module):
    """GLA (Yang et al. 2023, arXiv 2312.06635): per-channel decay from a low-rank gate, normalised and gated output."""

    def __init__(self, config, hidden_size, num_heads, index=0):
        super().__init__()
        key_size, value_size = int(hidden_size * config.expand_k), int(hidden_size * config.expand_v)
        head_width("hidden_size * expand_k", key_size, num_heads)
        head_width("hidden_size * expand_v", value_size, num_heads)
        self.config, self.num_heads, self.scale = config, num_heads, (key_size // num_heads) ** -0.5
        self.normalizer, self.eps = config.gate_logit_normalizer, config.norm_eps
        self.q_proj = nn.Linear(hidden_size, key_size, bias=False)
        self.k_proj = nn.Linear(hidden_size, key_size, bias=False)
        self.v_proj = nn.Linear(hidden_size, value_size, bias=False)
        self.g_proj = nn.Linear(hidden_size, value_size, bias=False)
        self.decay_down_proj = nn.Linear(hidden_size, config.gate_low_rank, bias=False)
        self.decay_up_proj = nn.Linear(config.gate_low_rank, key_size)
        self.norm = nn.RMSNorm(value_size // num_heads, eps=config.norm_eps)
        self.o_proj = nn.Linear(value_size, hidden_size, bias=False)

    def forward(self, x, mask=None, state=None):
        q, k, v, gate = self.q_proj(x) * self.scale, self.k_proj(x), self.v_proj(x), self.g_proj(x)
        decay = self.decay_up_proj(self.decay_down_proj(x))
        decay = (F.logsigmoid(wide(decay)) / self.normalizer).clamp(min=STRONGEST)  # forgets all but 3e-4
        if mask is not None:
            keep = mask[:, :, None]
            k, decay = k * keep, decay * keep
        heads = (part.unflatten(-1, (self.num_heads, -1)) for part in (q, k, v, decay))
        out, state = recurrence(*heads, state, self.config.mixer_kernel)
        out = self.norm(out.to(self.norm.weight.dtype)).flatten(-2) * F.silu(gate)
        return self.o_proj(out), state


def turn(x, angles, dim):
    """Rotates pairs of channels of x, which lie half of dimension `dim` apart, by angles of half its width there."""
    first, second = x.chunk(2, dim)
    cos, sin = (part.to(wide(x).dtype) for part in (angles.cos(), angles.sin()))
    return torch.cat((first * cos - second * sin, second * cos + first * sin), dim)


class Retention(nn.Module):
    """RetNet's multi-scale retention (Sun et al. 2023, arXiv 2307.08621): fixed decays a head, rotated q and k.

    The state (B, H, K, V) is turned back by the steps taken, so that every call counts positions from 0.
    """

    def __init__(self, config, hidden_size, num_heads, index=0):
        super().__init__()
        key_size, value_size = int(hidden_size * config.expand_k), int(hidden_size * config.expand_v)
        self.config, self.num_heads = config, num_heads
        if head_width("hidden_size * expand_k", key_size, num_heads) % 2:
            raise ValueError(f"hidden_size * expand_k / heads = {key_size // num_heads}: must be even to rotate pairs.")
        self.q_proj = nn.Linear(hidden_size, key_size, bias=False)
        self.k_proj = nn.Linear(hidden_size, key_size, bias=False)
        self.v_proj = nn.Linear(hidden_size, value_size, bias=False)
        self.g_proj = nn.Linear(hidden_size, value_size, bias=False)
        self.norm = nn.RMSNorm(head_width("hidden_size * expand_v", value_size, num_heads), eps=config.norm_eps)
        self.o_proj = nn.Linear(value_size, hidden_size, bias=False)

    def _frequencies(self, key_size, device):
        """(K / 2,), in double precision where there is one: positions in the thousands cost single its last digits."""
        dtype = torch.float32 if device.type == "mps" else torch.float64
        return 10000.0 ** -torch.linspace(0, 1, key_size // 2, dtype=dtype, device=device)

    def forward(self, x, mask=None, state=None):
        layers = self.q_proj, self.k_proj, self.v_proj, self.g_proj
        q, k, v, gate = (layer(x).unflatten(-1, (self.num_heads, -1)) for layer in layers)
        mask = torch.ones(1, x.shape[1], dtype=torch.bool, device=x.device) if mask is None else mask.bool()
        frequencies = self._frequencies(q.shape[-1], x.device)
        angles = (mask.long().cumsum(1) - 1).clamp(min=0)[..., None, None] * frequencies
        q, k = turn(q * q.shape[-1] ** -0.5, angles, -1), turn(k, angles, -1)
        keep = mask[..., None, None]
        decay = torch.log1p(-torch.exp2(-5.0 - torch.arange(self.num_heads, device=x.device)))
        decay = (wide(decay)[:, None] * keep).expand(*x.shape[:2], -1, -1)
        out, state = recurrence(q, k * keep, v, decay.to(wide(k).dtype), state, self.config.mixer_kernel)
        state = turn(state, -mask.sum(1)[:, None, None, None] * frequencies[:, None], 2)
        out = self.norm(out.to(self.norm.weight.dtype)) * F.silu(gate)
        return self.o_proj(out.flatten(-2)), state


MIXERS = {
    "gla": GatedLinearAttention,
    "retnet": Retention,
    "rwkv5": RWKV5,
    "rwkv6": RWKV6,
    "rwkv7": RWKV7,
    "mamba": Mamba,
    "mamba2": Mamba2,
    "gated_deltanet": GatedDeltaNet,
}


def build_mixer(config, hidden_size, num_heads, index=0):
    """The mixer that `config.mixer` names. index: the block's place in the stack, for RWKV's initial values."""
    if config.mixer not in MIXERS:
        raise ValueError(f"mixer={config.mixer!r} is not known; expected one of {sorted(MIXERS)}.")
    return MIXERS[config.mixer](config, hidden_size, num_heads, index)
