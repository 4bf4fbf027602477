"""Sequence mixers of the linear-attention blocks, all behind one call:

    outputs (B, T, D), state = mixer(x (B, T, D), mask (B, T) or None, state or None)

A mixer remembers nothing: the state is a value that goes in and comes out. Masked steps leave it untouched.
"""

import torch.nn.functional as F
from torch import nn

from .recurrence_smalle import recurrence


class GatedLinearAttention(nn.Module):
    """GLA (Yang et al. 2023, arXiv 2312.06635): per-channel decay from a low-rank gate, normalised and gated output."""

    def __init__(self, config, hidden_size, num_heads):
        super().__init__()
        key_size, value_size = int(hidden_size * config.expand_k), int(hidden_size * config.expand_v)
        self.num_heads, self.kernel = num_heads, "auto"
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
        q, k, v, gate = (
            layer(x).unflatten(-1, (self.num_heads, -1)) for layer in (self.q_proj, self.k_proj, self.v_proj, self.g_proj)
        )
        decay = self.decay_up_proj(self.decay_down_proj(x)).unflatten(-1, (self.num_heads, -1))
        decay = F.logsigmoid(decay.float()) / self.normalizer
        if mask is not None:
            keep = mask[:, :, None, None]
            k, decay = k * keep, decay * keep
        out, state = recurrence(q * q.shape[-1] ** -0.5, k, v, decay, state, self.kernel)
        out = self.norm(out.to(self.norm.weight.dtype)) * F.silu(gate)
        return self.o_proj(out.flatten(-2)), state


MIXERS = {"gla": GatedLinearAttention}


def build_mixer(config, hidden_size, num_heads):
    """The mixer that `config.mixer` names."""
    if config.mixer not in MIXERS:
        raise ValueError(f"mixer={config.mixer!r} is not known; expected one of {sorted(MIXERS)}.")
    return MIXERS[config.mixer](config, hidden_size, num_heads)
