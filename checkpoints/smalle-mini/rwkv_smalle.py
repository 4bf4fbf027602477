"""Time mixing of RWKV v5.2, v6 and v7, and channel mixing of v6. Keys and values are as wide as the hidden size; heads
of 64 are usual.

state of time mixing: ((B, H, K, V), the last step's input (B, D)).
"""

import math

import torch
import torch.nn.functional as F
from torch import nn
from transformers import initialization as init

from .deltanet_smalle import delta_rule
from .mixer_base_smalle import CausalMixer, head_width, token_shift
from .recurrence_smalle import recurrence, wide

MIX_RANK, DECAY_RANK = 32, 64  # of v6's low-rank maps


class RWKV(CausalMixer):
    """What the versions share: projections, an output norm per head, initial values that depend on depth."""

    def __init__(self, config, hidden_size, num_heads, index):
        super().__init__()
        head_width("hidden_size", hidden_size, num_heads)
        self.config, self.hidden_size, self.num_heads = config, hidden_size, num_heads
        layers = config.audio_encoder_layers + config.audio_decoder_layers
        self.depth, self.rest = index / max(1, layers - 1), 1 - index / max(1, layers)  # 0 .. 1, and 1 .. almost 0
        self.norm_scale = ((index + 1) / max(1, layers)) ** 0.7
        self.r_proj, self.k_proj, self.v_proj = (nn.Linear(hidden_size, hidden_size, bias=False) for _ in range(3))
        self.norm = nn.GroupNorm(num_heads, hidden_size, eps=64e-5)
        self.o_proj = nn.Linear(hidden_size, hidden_size, bias=False)

    def _ramp(self, parameter):
        """0 .. 1 over the channels."""
        return torch.linspace(0, 1, self.hidden_size, device=parameter.device)

    def _shares(self, parameter, powers, extra=()):
        """Shares of the step before in each row of `parameter` (R, D): 1 - (i / D)^(power * rest) - extra."""
        place = torch.arange(self.hidden_size, device=parameter.device) / self.hidden_size
        rows = [1 - place ** (power * self.rest) for power in powers]
        for row, amount in extra:
            rows[row] = rows[row] - amount
        init.copy_(parameter, torch.stack(rows))

    def _heads(self, x):
        return x.unflatten(-1, (self.num_heads, -1))

    def _norm(self, x):
        """(B, T, H, V) -> (B, T, D), normalised in each head."""
        return self.norm(x.flatten(0, 1).flatten(1).to(self.norm.weight.dtype)).reshape(x.shape[0], x.shape[1], -1)


def keep(mask, *tensors):
    """The tensors (B, T, H, K), zero in masked steps."""
    return tensors if mask is None else tuple(x * mask[..., None, None] for x in tensors)


class RWKV5(RWKV):
    """RWKV v5.2 (Peng et al. 2024, arXiv 2404.05892): a constant decay a channel and a bonus for the present step."""

    names = "rkvg"

    def __init__(self, config, hidden_size, num_heads, index=0):
        super().__init__(config, hidden_size, num_heads, index)
        self.g_proj = nn.Linear(hidden_size, hidden_size, bias=False)
        self.shares = nn.Parameter(torch.empty(len(self.names), hidden_size))
        self.decay = nn.Parameter(torch.empty(hidden_size))
        self.bonus = nn.Parameter(torch.empty(hidden_size))

    @torch.no_grad()
    def init_parameters(self):
        power = {"r": 0.5, "g": 0.5}
        extra = [(self.names.index("v"), 0.3 * self.depth)]
        self._shares(self.shares, [power.get(name, 1.0) for name in self.names], extra)
        ramp = self._ramp(self.decay)
        init.copy_(self.decay, -6 + 5 * ramp ** (0.7 + 1.3 * self.depth))
        zigzag = (torch.arange(1, self.hidden_size + 1, device=ramp.device) % 3 - 1) * 0.1
        init.copy_(self.bonus, self.depth * (1 - ramp) + zigzag)
        for layer, gain in ((self.r_proj, 1.0), (self.k_proj, 0.1), (self.v_proj, 1.0), (self.g_proj, 0.1)):
            init.orthogonal_(layer.weight, gain=gain)
        init.constant_(self.norm.weight, self.norm_scale)

    def _inputs(self, x, change):
        """Inputs of the projections r, k, v, g, and the decay before its two exponentials: broadcasts to (B, T, D)."""
        r, k, v, g = (x + change * share for share in self.shares)
        return r, k, v, g, self.decay

    def mix(self, x, mask, state):
        state, last = (None, None) if state is None else state
        previous, last = token_shift(x, mask, last)
        r, k, v, g, decay = self._inputs(x, previous - x)
        r, k, v = (self._heads(layer(part)) for layer, part in ((self.r_proj, r), (self.k_proj, k), (self.v_proj, v)))
        decay = self._heads(-wide(decay).exp()).expand_as(k)
        k, decay = keep(mask, k, decay)
        bonus = self.bonus.unflatten(0, (self.num_heads, -1))
        out, state = recurrence(r, k, v, decay, state, self.config.mixer_kernel, bonus)
        return self.o_proj(self._norm(out) * F.silu(self.g_proj(g))), (state, last)


class RWKV6(RWKV5):
    """RWKV v6 (Peng et al. 2024, arXiv 2404.05892): as v5.2, with shares and decay that depend on the input."""

    names = "wkvrg"

    def __init__(self, config, hidden_size, num_heads, index=0):
        super().__init__(config, hidden_size, num_heads, index)
        self.share = nn.Parameter(torch.empty(1, hidden_size))
        self.share_down = nn.Parameter(torch.empty(hidden_size, 5 * MIX_RANK))
        self.share_up = nn.Parameter(torch.empty(5, MIX_RANK, hidden_size))
        self.decay_down = nn.Parameter(torch.empty(hidden_size, DECAY_RANK))
        self.decay_up = nn.Parameter(torch.empty(DECAY_RANK, hidden_size))

    @torch.no_grad()
    def init_parameters(self):
        super().init_parameters()
        self._shares(self.share, [1.0])
        for down, up in ((self.share_down, self.share_up), (self.decay_down, self.decay_up)):
            init.zeros_(down)
            init.uniform_(up, -0.01, 0.01)

    def _inputs(self, x, change):
        low = torch.tanh((x + change * self.share) @ self.share_down).unflatten(-1, (5, MIX_RANK))
        shares = self.shares + torch.einsum("btnr,nrd->btnd", low, self.share_up)
        w, k, v, r, g = (x[..., None, :] + change[..., None, :] * shares).unbind(-2)
        return r, k, v, g, self.decay + torch.tanh(w @ self.decay_down) @ self.decay_up


class RWKV7(RWKV):
    """RWKV v7 (Peng et al. 2025, arXiv 2503.14456): a delta rule with decays a channel.

    Without the mixing of the first layer's values into later layers: a mixer sees its own block only.
    """

    def __init__(self, config, hidden_size, num_heads, index=0):
        super().__init__(config, hidden_size, num_heads, index)

        def low_rank(factor):
            rank = max(32, 32 * round(factor * hidden_size**0.5 / 32))
            return nn.Parameter(torch.empty(hidden_size, rank)), nn.Parameter(torch.empty(rank, hidden_size))

        self.shares = nn.Parameter(torch.empty(6, hidden_size))
        self.decay_down, self.decay_up = low_rank(2.5)
        self.rate_down, self.rate_up = low_rank(2.5)
        self.gate_down, self.gate_up = low_rank(5)
        self.decay, self.rate, self.key_scale, self.key_rate = (
            nn.Parameter(torch.empty(hidden_size)) for _ in range(4)
        )
        self.bonus = nn.Parameter(torch.empty(hidden_size))

    @torch.no_grad()
    def init_parameters(self):
        self._shares(self.shares, (0.2, 0.9, 0.7, 0.7, 0.9, 0.2))  # r, w, k, v, a, g
        ramp, width = self._ramp(self.decay), self.hidden_size // self.num_heads
        in_head = torch.linspace(-1, 1, width, device=ramp.device).repeat(self.num_heads)
        zigzag, centred = in_head * in_head.abs(), ramp - 0.5
        init.copy_(self.decay, -5.5 + 6 * ramp ** (1 + self.depth**0.3) + 2.5 * zigzag)
        init.copy_(self.rate, -0.19 + 0.3 * zigzag + 0.4 * centred)
        init.copy_(self.key_scale, 0.71 - 0.1 * centred)
        init.constant_(self.key_rate, 1.02)
        init.constant_(self.bonus, -0.04)
        for down, up in (
            (self.decay_down, self.decay_up), (self.rate_down, self.rate_up), (self.gate_down, self.gate_up),
        ):  # fmt: skip
            init.zeros_(down)
            init.orthogonal_(up, gain=0.1 * max(1, up.shape[0] / up.shape[1]) ** 0.5)
        for layer, scale in ((self.r_proj, 0.5), (self.k_proj, 0.05), (self.v_proj, 0.5)):
            bound = scale * self.hidden_size**-0.5
            init.uniform_(layer.weight, -bound, bound)
        init.constant_(self.norm.weight, self.norm_scale)

    def mix(self, x, mask, state):
        state, last = (None, None) if state is None else state
        previous, last = token_shift(x, mask, last)
        change = previous - x
        r, w, k, v, a, g = (x + change * share for share in self.shares)
        r, k, v = self.r_proj(r), self.k_proj(k), self._heads(self.v_proj(v))
        w = wide(self.decay + torch.tanh(w @ self.decay_down) @ self.decay_up)
        decay = self._heads(-math.exp(-0.5) * w.sigmoid())  # between -0.607 and 0
        a = (self.rate + a @ self.rate_down @ self.rate_up).sigmoid()
        removed = F.normalize(self._heads(wide(k * self.key_scale)), dim=-1)
        k = self._heads(k * (1 + (a - 1) * self.key_rate))
        r, written = self._heads(r), removed * self._heads(a)
        k, decay, written = keep(mask, k, decay, written)
        out, state = delta_rule(r, k, v, -removed, written, decay, state, self.config.mixer_kernel)
        present = (r * k * self._heads(self.bonus)).sum(-1, keepdim=True) * v
        out = self._norm(out) + present.flatten(-2)
        return self.o_proj(out * (torch.sigmoid(g @ self.gate_down) @ self.gate_up)), (state, last)


class ChannelMix(CausalMixer):
    """Channel mixing of RWKV v6, a feed-forward layer that sees the step before. state: the last input (B, D)."""

    def __init__(self, hidden_size, index, depth):
        super().__init__()
        size = max(1, int(3.5 * hidden_size) // 32) * 32
        self.rest = 1 - index / max(1, depth)
        self.shares = nn.Parameter(torch.empty(2, hidden_size))
        self.k_proj = nn.Linear(hidden_size, size, bias=False)
        self.r_proj = nn.Linear(hidden_size, hidden_size, bias=False)
        self.v_proj = nn.Linear(size, hidden_size, bias=False)

    @torch.no_grad()
    def init_parameters(self):
        size = self.shares.shape[1]
        place = torch.arange(size, device=self.shares.device) / size
        init.copy_(self.shares, (1 - place**self.rest).expand(2, -1))

    def mix(self, x, mask, state):
        previous, last = token_shift(x, mask, state)
        k, r = (x + (previous - x) * share for share in self.shares)
        return torch.sigmoid(self.r_proj(r)) * self.v_proj(F.relu(self.k_proj(k)) ** 2), last
