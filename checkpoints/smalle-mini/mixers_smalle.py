"""Sequence mixers of the linear-attention blocks, all with the same call:

    outputs (B, T, D), state = mixer(x (B, T, D), mask (B, T) or None, state or None)

A mixer stores nothing between calls: its state, a tensor or a tuple of tensors of B rows, is passed in and returned.
Masked steps do not change it. Every mixer ends in `o_proj`; `init_parameters` initialises parameters that need it.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from transformers import initialization as init

from .configuration_smalle import SmallEConfig
from .linear_attention_smalle import (
    MIN_LOG_DECAY,
    chunk_size,
    decay_sums,
    fla_kernel,
    recurrence,
    split_chunks,
    upcast,
    zero_state,
)

MixerState = Tensor | tuple[Tensor, Tensor]

# --- Common parts


def head_width(name: str, width: int, num_heads: int) -> int:
    """Width of one head. Raises ValueError if `width` is not a multiple of the number of heads."""
    if width < num_heads or width % num_heads:
        raise ValueError(f"{name}={width} must be a multiple of the mixer's heads ({num_heads}): change mixer_heads.")
    return width // num_heads


def gather_steps(x: Tensor, order: Tensor) -> Tensor:
    """The steps of x (B, T, D) in the order (B, T) of each row."""
    return x.gather(1, order[..., None].expand(-1, -1, x.shape[-1]))


def last_steps(seen: Tensor, mask: Tensor | None, count: int) -> Tensor:
    """The last `count` unmasked steps of each row, (B, count, D), in fp32, for the part of a state that holds inputs.

    seen (B, count + T, D): `count` steps from the state, then the new ones, masked ones last.
    """
    if mask is None:
        return upcast(seen[:, seen.shape[1] - count :])
    return upcast(gather_steps(seen, mask.sum(1, keepdim=True) + torch.arange(count, device=seen.device)))


def zero_masked(mask: Tensor | None, *tensors: Tensor) -> tuple[Tensor, ...]:
    """The tensors (B, T, ...), zero in masked steps."""
    return tensors if mask is None else tuple(x * mask[(...,) + (None,) * (x.ndim - 2)] for x in tensors)


class CausalMixer(nn.Module):
    """A mixer that also uses the last few inputs. `mix` is called with masked steps moved to the end of each row."""

    def mix(self, x: Tensor, mask: Tensor | None, state) -> tuple[Tensor, MixerState]:
        raise NotImplementedError

    def forward(self, x: Tensor, mask: Tensor | None = None, state=None) -> tuple[Tensor, MixerState]:
        mask = None if mask is None else mask.bool()
        if mask is None or x.shape[1] == 1:
            return self.mix(x, mask, state)
        order = (~mask).long().argsort(dim=1, stable=True)
        y, state = self.mix(gather_steps(x, order), mask.gather(1, order), state)
        return gather_steps(y, order.argsort(dim=1)), state


class GatedHeads(nn.Module):
    """Shared by GLA, RetNet and Gated DeltaNet: projections, and an output that is normalised per head and gated."""

    def __init__(self, config: SmallEConfig, hidden_size: int, num_heads: int, index: int = 0):
        super().__init__()
        self.config, self.num_heads = config, num_heads
        self.key_size, self.value_size = int(hidden_size * config.expand_k), int(hidden_size * config.expand_v)
        self.head_keys = head_width("hidden_size * expand_k", self.key_size, num_heads)
        head_values = head_width("hidden_size * expand_v", self.value_size, num_heads)
        self.q_proj, self.k_proj = (nn.Linear(hidden_size, self.key_size, bias=False) for _ in range(2))
        self.v_proj, self.g_proj = (nn.Linear(hidden_size, self.value_size, bias=False) for _ in range(2))
        self.norm = nn.RMSNorm(head_values, eps=config.norm_eps)
        self.o_proj = nn.Linear(self.value_size, hidden_size, bias=False)

    def heads(self, x: Tensor) -> Tensor:
        return x.unflatten(-1, (self.num_heads, -1))

    def output(self, out: Tensor, gate: Tensor) -> Tensor:
        """Outputs (B, T, H, V) of the heads, and their gate (B, T, H V) -> (B, T, D)."""
        return self.o_proj(self.norm(out.to(self.norm.weight.dtype)).flatten(-2) * F.silu(gate))


def token_shift(x: Tensor, mask: Tensor | None, last: Tensor | None) -> tuple[Tensor, Tensor]:
    """The previous step of each step of x (B, T, D), and the last step (B, D) for the state; `last`: of the state."""
    last = x.new_zeros(x.shape[0], x.shape[2]) if last is None else last.to(x.dtype)
    seen = torch.cat((last[:, None], x), 1)
    return seen[:, :-1], last_steps(seen, mask, 1)[:, 0]


class ShortConvolution(nn.Conv1d):
    """Depthwise causal convolution, then SiLU: x (B, T, D), state: the last inputs (B, width - 1, D)."""

    def __init__(self, size: int, width: int, bias: bool):
        if width < 2:
            raise ValueError(f"conv_size={width}: expected at least 2 steps.")
        super().__init__(size, size, width, groups=size, bias=bias)

    @torch.no_grad()
    def init_parameters(self):
        bound = self.kernel_size[0] ** -0.5
        for parameter in self.parameters():
            init.uniform_(parameter, -bound, bound)

    def forward(self, x: Tensor, mask: Tensor | None, state: Tensor | None) -> tuple[Tensor, Tensor]:
        past = self.kernel_size[0] - 1
        state = x.new_zeros(x.shape[0], past, x.shape[2]) if state is None else state.to(x.dtype)
        seen = torch.cat((state, x), 1)
        return F.silu(super().forward(seen.transpose(1, 2)).transpose(1, 2)), last_steps(seen, mask, past)


def init_time_step(bias: Tensor, shortest: float = 1e-3, longest: float = 0.1):
    """Sets a bias so that softplus(bias) is spread log-uniformly between two time steps (Gu & Dao 2023)."""
    step = shortest * (longest / shortest) ** torch.rand_like(bias)
    init.copy_(bias, step + torch.log(-torch.expm1(-step)))  # inverse of softplus


# --- GLA


class GatedLinearAttention(GatedHeads):
    """GLA (Yang et al. 2023, arXiv 2312.06635): one decay per channel, from a low-rank gate. state: (B, H, K, V)."""

    def __init__(self, config: SmallEConfig, hidden_size: int, num_heads: int, index: int = 0):
        super().__init__(config, hidden_size, num_heads)
        self.scale = self.head_keys**-0.5
        self.decay_down_proj = nn.Linear(hidden_size, config.gate_low_rank, bias=False)
        self.decay_up_proj = nn.Linear(config.gate_low_rank, self.key_size)

    def forward(self, x: Tensor, mask: Tensor | None = None, state=None) -> tuple[Tensor, Tensor]:
        q, k, v, gate = self.q_proj(x) * self.scale, self.k_proj(x), self.v_proj(x), self.g_proj(x)
        decay = F.logsigmoid(upcast(self.decay_up_proj(self.decay_down_proj(x))))
        decay = (decay / self.config.gate_logit_normalizer).clamp(min=MIN_LOG_DECAY)  # a factor of 3e-4
        k, decay = zero_masked(mask, k, decay)
        q, k, v, decay = map(self.heads, (q, k, v, decay))
        out, state = recurrence(q, k, v, decay, state, self.config.mixer_kernel)
        return self.output(out, gate), state


# --- RetNet


def rotate_halves(x: Tensor, angles: Tensor, dim: int) -> Tensor:
    """Rotates pairs of channels of x, half of dimension `dim` apart; angles have half the size of x in `dim`."""
    first, second = x.chunk(2, dim)
    cos, sin = (part.to(upcast(x).dtype) for part in (angles.cos(), angles.sin()))
    return torch.cat((first * cos - second * sin, second * cos + first * sin), dim)


class Retention(GatedHeads):
    """RetNet's multi-scale retention (Sun et al. 2023, arXiv 2307.08621): a fixed decay per head, rotated q and k.

    The state (B, H, K, V) is rotated back by the number of steps, so that every call counts positions from 0.
    """

    def __init__(self, config: SmallEConfig, hidden_size: int, num_heads: int, index: int = 0):
        super().__init__(config, hidden_size, num_heads)
        if self.head_keys % 2:
            raise ValueError(f"hidden_size * expand_k / heads = {self.head_keys}: must be even to rotate pairs.")

    def _frequencies(self, device: torch.device) -> Tensor:
        """(K / 2,), in double precision if available: with positions in the thousands, single precision is inexact."""
        dtype = torch.float32 if device.type == "mps" else torch.float64
        return 10000.0 ** -torch.linspace(0, 1, self.head_keys // 2, dtype=dtype, device=device)

    def forward(self, x: Tensor, mask: Tensor | None = None, state=None) -> tuple[Tensor, Tensor]:
        q, k, v = (self.heads(layer(x)) for layer in (self.q_proj, self.k_proj, self.v_proj))
        mask = torch.ones(1, x.shape[1], dtype=torch.bool, device=x.device) if mask is None else mask.bool()
        frequencies = self._frequencies(x.device)
        angles = (mask.long().cumsum(1) - 1).clamp(min=0)[..., None, None] * frequencies
        q, k = rotate_halves(q * q.shape[-1] ** -0.5, angles, -1), rotate_halves(k, angles, -1)
        keep = mask[..., None, None]
        decay = torch.log1p(-torch.exp2(-5.0 - torch.arange(self.num_heads, device=x.device)))
        decay = (upcast(decay)[:, None] * keep).expand(*x.shape[:2], -1, -1)
        out, state = recurrence(q, k * keep, v, decay.to(upcast(k).dtype), state, self.config.mixer_kernel)
        state = rotate_halves(state, -mask.sum(1)[:, None, None, None] * frequencies[:, None], 2)
        return self.output(out, self.g_proj(x)), state


# --- RWKV: keys and values have the width of the hidden size


MIX_RANK, DECAY_RANK = 32, 64  # ranks of the low-rank maps of v6


class RWKV(CausalMixer):
    """Shared by all versions: projections, an output norm per head, initial values that depend on the depth.

    state: (the heads' states (B, H, K, V), the last input (B, D)).
    """

    def __init__(self, config: SmallEConfig, hidden_size: int, num_heads: int, index: int):
        super().__init__()
        head_width("hidden_size", hidden_size, num_heads)
        self.config, self.hidden_size, self.num_heads = config, hidden_size, num_heads
        layers = config.audio_encoder_layers + config.audio_decoder_layers
        self.depth, self.rest = index / max(1, layers - 1), 1 - index / max(1, layers)  # 0 .. 1, and 1 .. almost 0
        self.norm_scale = ((index + 1) / max(1, layers)) ** 0.7
        self.r_proj, self.k_proj, self.v_proj = (nn.Linear(hidden_size, hidden_size, bias=False) for _ in range(3))
        self.norm = nn.GroupNorm(num_heads, hidden_size, eps=64e-5)
        self.o_proj = nn.Linear(hidden_size, hidden_size, bias=False)

    def _init_time_mix(self, parameter: nn.Parameter, powers, subtract=()):
        """The share of the previous step in each input: 1 - (i / D)^(power * rest), minus a constant for some rows."""
        place = torch.arange(self.hidden_size, device=parameter.device) / self.hidden_size
        rows = [1 - place ** (power * self.rest) for power in powers]
        for row, amount in subtract:
            rows[row] = rows[row] - amount
        init.copy_(parameter, torch.stack(rows))

    def heads(self, x: Tensor) -> Tensor:
        return x.unflatten(-1, (self.num_heads, -1))

    def _norm(self, x: Tensor) -> Tensor:
        """(B, T, H, V) -> (B, T, D), normalised per head."""
        return self.norm(x.flatten(0, 1).flatten(1).to(self.norm.weight.dtype)).reshape(x.shape[0], x.shape[1], -1)


class RWKV5(RWKV):
    """RWKV v5.2 (Peng et al. 2024, arXiv 2404.05892): a constant decay per channel, a bonus for the current step."""

    inputs = "rkvg"  # order of the rows of time_mix

    def __init__(self, config: SmallEConfig, hidden_size: int, num_heads: int, index: int = 0):
        super().__init__(config, hidden_size, num_heads, index)
        self.g_proj = nn.Linear(hidden_size, hidden_size, bias=False)
        self.time_mix = nn.Parameter(torch.empty(len(self.inputs), hidden_size))
        self.decay, self.bonus = (nn.Parameter(torch.empty(hidden_size)) for _ in range(2))

    @torch.no_grad()
    def init_parameters(self):
        powers = [0.5 if name in "rg" else 1.0 for name in self.inputs]
        self._init_time_mix(self.time_mix, powers, [(self.inputs.index("v"), 0.3 * self.depth)])
        ramp = torch.linspace(0, 1, self.hidden_size, device=self.decay.device)
        init.copy_(self.decay, -6 + 5 * ramp ** (0.7 + 1.3 * self.depth))
        zigzag = (torch.arange(1, self.hidden_size + 1, device=ramp.device) % 3 - 1) * 0.1
        init.copy_(self.bonus, self.depth * (1 - ramp) + zigzag)
        for layer, gain in ((self.r_proj, 1.0), (self.k_proj, 0.1), (self.v_proj, 1.0), (self.g_proj, 0.1)):
            init.orthogonal_(layer.weight, gain=gain)
        init.constant_(self.norm.weight, self.norm_scale)

    def _mix_inputs(self, x: Tensor, change: Tensor) -> tuple[Tensor, ...]:
        """Inputs of the projections r, k, v, g, and the decay before its two exponentials; broadcast to (B, T, D)."""
        r, k, v, g = (x + change * row for row in self.time_mix)
        return r, k, v, g, self.decay

    def mix(self, x, mask, state):
        state, last = state or (None, None)
        previous, last = token_shift(x, mask, last)
        r, k, v, g, decay = self._mix_inputs(x, previous - x)
        r, k, v = self.heads(self.r_proj(r)), self.heads(self.k_proj(k)), self.heads(self.v_proj(v))
        k, decay = zero_masked(mask, k, self.heads(-upcast(decay).exp()).expand_as(k))
        bonus = self.bonus.unflatten(0, (self.num_heads, -1))
        out, state = recurrence(r, k, v, decay, state, self.config.mixer_kernel, bonus)
        return self.o_proj(self._norm(out) * F.silu(self.g_proj(g))), (state, last)


class RWKV6(RWKV5):
    """RWKV v6 (Peng et al. 2024, arXiv 2404.05892): as v5.2, with time mix and decay that depend on the input."""

    inputs = "wkvrg"

    def __init__(self, config: SmallEConfig, hidden_size: int, num_heads: int, index: int = 0):
        super().__init__(config, hidden_size, num_heads, index)
        self.time_mix_x = nn.Parameter(torch.empty(1, hidden_size))
        self.time_mix_down = nn.Parameter(torch.empty(hidden_size, 5 * MIX_RANK))
        self.time_mix_up = nn.Parameter(torch.empty(5, MIX_RANK, hidden_size))
        self.decay_down = nn.Parameter(torch.empty(hidden_size, DECAY_RANK))
        self.decay_up = nn.Parameter(torch.empty(DECAY_RANK, hidden_size))

    @torch.no_grad()
    def init_parameters(self):
        super().init_parameters()
        self._init_time_mix(self.time_mix_x, [1.0])
        for down, up in ((self.time_mix_down, self.time_mix_up), (self.decay_down, self.decay_up)):
            init.zeros_(down)
            init.uniform_(up, -0.01, 0.01)

    def _mix_inputs(self, x, change):
        low = torch.tanh((x + change * self.time_mix_x) @ self.time_mix_down).unflatten(-1, (5, MIX_RANK))
        time_mix = self.time_mix + torch.einsum("btnr,nrd->btnd", low, self.time_mix_up)
        w, k, v, r, g = (x[..., None, :] + change[..., None, :] * time_mix).unbind(-2)
        return r, k, v, g, self.decay + torch.tanh(w @ self.decay_down) @ self.decay_up


class RWKV7(RWKV):
    """RWKV v7 (Peng et al. 2025, arXiv 2503.14456): a delta rule with a decay per channel.

    It does not mix the first layer's values into later layers, since a mixer only sees its own block.
    """

    def __init__(self, config: SmallEConfig, hidden_size: int, num_heads: int, index: int = 0):
        super().__init__(config, hidden_size, num_heads, index)

        def low_rank(factor):
            rank = max(32, 32 * round(factor * hidden_size**0.5 / 32))
            return nn.Parameter(torch.empty(hidden_size, rank)), nn.Parameter(torch.empty(rank, hidden_size))

        self.time_mix = nn.Parameter(torch.empty(6, hidden_size))
        self.decay_down, self.decay_up = low_rank(2.5)
        self.rate_down, self.rate_up = low_rank(2.5)
        self.gate_down, self.gate_up = low_rank(5)
        self.decay, self.rate, self.key_scale, self.key_rate, self.bonus = (
            nn.Parameter(torch.empty(hidden_size)) for _ in range(5)
        )

    @torch.no_grad()
    def init_parameters(self):
        self._init_time_mix(self.time_mix, (0.2, 0.9, 0.7, 0.7, 0.9, 0.2))  # r, w, k, v, a, g
        ramp = torch.linspace(0, 1, self.hidden_size, device=self.decay.device)
        width = self.hidden_size // self.num_heads
        in_head = torch.linspace(-1, 1, width, device=ramp.device).repeat(self.num_heads)
        zigzag, centred = in_head * in_head.abs(), ramp - 0.5
        init.copy_(self.decay, -5.5 + 6 * ramp ** (1 + self.depth**0.3) + 2.5 * zigzag)
        init.copy_(self.rate, -0.19 + 0.3 * zigzag + 0.4 * centred)
        init.copy_(self.key_scale, 0.71 - 0.1 * centred)
        init.constant_(self.key_rate, 1.02)
        init.constant_(self.bonus, -0.04)
        for name in ("decay", "rate", "gate"):
            up = getattr(self, f"{name}_up")
            init.zeros_(getattr(self, f"{name}_down"))
            init.orthogonal_(up, gain=0.1 * max(1, up.shape[0] / up.shape[1]) ** 0.5)
        for layer, scale in ((self.r_proj, 0.5), (self.k_proj, 0.05), (self.v_proj, 0.5)):
            bound = scale * self.hidden_size**-0.5
            init.uniform_(layer.weight, -bound, bound)
        init.constant_(self.norm.weight, self.norm_scale)

    def mix(self, x, mask, state):
        state, last = state or (None, None)
        previous, last = token_shift(x, mask, last)
        r, w, k, v, a, g = (x + (previous - x) * row for row in self.time_mix)
        r, k, v = self.r_proj(r), self.k_proj(k), self.heads(self.v_proj(v))
        w = upcast(self.decay + torch.tanh(w @ self.decay_down) @ self.decay_up)
        decay = self.heads(-math.exp(-0.5) * w.sigmoid())  # between -0.607 and 0
        a = (self.rate + a @ self.rate_down @ self.rate_up).sigmoid()
        removed = F.normalize(self.heads(upcast(k * self.key_scale)), dim=-1)
        k = self.heads(k * (1 + (a - 1) * self.key_rate))
        r, written = self.heads(r), removed * self.heads(a)
        k, decay, written = zero_masked(mask, k, decay, written)
        out, state = delta_rule(r, k, v, -removed, written, decay, state, self.config.mixer_kernel)
        present = (r * k * self.heads(self.bonus)).sum(-1, keepdim=True) * v
        out = self._norm(out) + present.flatten(-2)
        return self.o_proj(out * (torch.sigmoid(g @ self.gate_down) @ self.gate_up)), (state, last)


class ChannelMix(CausalMixer):
    """Channel mixing of RWKV v6, a feed-forward layer that also sees the previous step. state: last input (B, D)."""

    def __init__(self, hidden_size: int, index: int, depth: int):
        super().__init__()
        size = max(1, int(3.5 * hidden_size) // 32) * 32
        self.rest = 1 - index / max(1, depth)
        self.time_mix = nn.Parameter(torch.empty(2, hidden_size))
        self.k_proj = nn.Linear(hidden_size, size, bias=False)
        self.r_proj = nn.Linear(hidden_size, hidden_size, bias=False)
        self.v_proj = nn.Linear(size, hidden_size, bias=False)

    @torch.no_grad()
    def init_parameters(self):
        size = self.time_mix.shape[1]
        place = torch.arange(size, device=self.time_mix.device) / size
        init.copy_(self.time_mix, (1 - place**self.rest).expand(2, -1))

    def mix(self, x, mask, state):
        previous, last = token_shift(x, mask, state)
        k, r = (x + (previous - x) * row for row in self.time_mix)
        return torch.sigmoid(self.r_proj(r)) * self.v_proj(F.relu(self.k_proj(k)) ** 2), last


# --- The delta rule of RWKV v7 and Gated DeltaNet


def delta_rule(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    a: Tensor,
    b: Tensor,
    log_decay: Tensor,
    state: Tensor | None = None,
    kernel: str = "auto",
) -> tuple[Tensor, Tensor]:
    """S_t = (diag(exp(g_t)) + b_t a_t^T) S_{t-1} + k_t v_t^T,  o_t = S_t^T q_t.

    q, k, a, b (B, T, H, K); v (B, T, H, V); log_decay (B, T, H, K), at least -1 per step, or (B, T, H, 1) of any
    strength. Returns outputs (B, T, H, V) and the final state (B, H, K, V). Parallel over chunks: what the rows a_t
    read is the solution of a triangular system (the WY form of Yang et al. 2024, arXiv 2406.06484). kernel: see
    `fla_kernel`.
    """
    fla = fla_kernel("delta" if log_decay.shape[-1] > 1 else None, kernel, k)
    if fla is not None:
        return fla(q, k, v, a, b, log_decay, state=state)
    state = zero_state(k, v) if state is None else upcast(state)
    with torch.autocast(q.device.type, enabled=False):
        if q.shape[1] == 1:
            return _delta_step(state, q, k, v, a, b, log_decay)
        size, length = chunk_size(q.shape[1]), q.shape[1]
        output, state = _delta_chunks(state, *(upcast(split_chunks(x, size)) for x in (q, k, v, a, b, log_decay)))
    return output.permute(0, 2, 3, 1, 4).flatten(1, 2)[:, :length].to(v.dtype), state


def delta_naive(q, k, v, a, b, log_decay, state=None) -> tuple[Tensor, Tensor]:
    """`delta_rule` step by step: its specification."""
    state = zero_state(k, v) if state is None else upcast(state)
    outputs = []
    for step in zip(*(x.split(1, 1) for x in (q, k, v, a, b, log_decay))):
        output, state = _delta_step(state, *step)
        outputs.append(output)
    return torch.cat(outputs, 1), state


def _delta_step(state, q, k, v, a, b, log_decay):
    q, k, v, a, b, g = (upcast(x[:, 0]) for x in (q, k, v, a, b, log_decay))
    read = a[..., None, :] @ state
    state = state * g.exp()[..., None] + b[..., None] * read + k[..., None] * v[..., None, :]
    return (q[..., None, :] @ state).transpose(1, 2).to(v.dtype), state


def _delta_chunks(state, q, k, v, a, b, g):
    """`delta_rule` of chunks (B, H, N, C, D). `read`: what the rows a_t read from the state, including the updates of
    the chunk itself."""
    upto = g.cumsum(3)
    before = F.pad(upto[..., :-1, :], (0, 0, 1, 0))
    pairs, after = (_head_pairs if g.shape[-1] == 1 else _channel_pairs)(upto, before, g)
    system = torch.eye(g.shape[3], dtype=g.dtype, device=g.device) - pairs(a, b, True)
    sources = torch.cat((a * before.exp(), pairs(a, k, True) @ v), -1)
    from_state, own = torch.linalg.solve_triangular(system, sources, upper=False, unitriangular=True).split(
        (a.shape[-1], v.shape[-1]), -1
    )
    to_state = (b * after.exp()).transpose(-1, -2)
    updates = (k * after.exp()).transpose(-1, -2) @ v + to_state @ own
    decay, states = upto[..., -1, :, None].exp(), []
    for n in range(g.shape[2]):
        states.append(state)
        state = decay[:, :, n] * state + to_state[:, :, n] @ (from_state[:, :, n] @ state) + updates[:, :, n]
    states = torch.stack(states, 2)
    read = own + from_state @ states
    return (q * upto.exp()) @ states + pairs(q, b, False) @ read + pairs(q, k, False) @ v, state


def _head_pairs(upto, before, g):
    """Decayed products of rows with earlier columns, for one decay per head; log decays from each step to the end."""
    sums = decay_sums(g.squeeze(-1))
    inclusive = sums.exp()
    earlier = F.pad(inclusive[..., :-1, :], (0, 0, 1, 0))

    def pairs(rows, columns, strict):
        return (rows @ columns.transpose(-1, -2)) * (earlier if strict else inclusive)

    return pairs, sums[..., -1, :, None]


def _channel_pairs(upto, before, g):
    """As `_head_pairs` for one decay per channel, relative to the chunk's middle."""
    middle = upto[..., (g.shape[3] - 1) // 2, None, :]

    def pairs(rows, columns, strict):
        rows = rows * ((before if strict else upto) - middle).exp()
        return (rows @ (columns * (middle - upto).exp()).transpose(-1, -2)).tril(-1 if strict else 0)

    return pairs, upto[..., -1:, :] - upto


def gated_delta_rule(
    q: Tensor, k: Tensor, v: Tensor, log_decay: Tensor, beta: Tensor, state: Tensor | None = None, kernel: str = "auto"
) -> tuple[Tensor, Tensor]:
    """S_t = exp(g_t) (S_{t-1} - beta_t k_t k_t^T S_{t-1}) + beta_t k_t v_t^T,  o_t = S_t^T q_t.

    q, k (B, T, H, K); v (B, T, H, V); log_decay, beta (B, T, H, 1). Returns as `delta_rule` does. kernel: see
    `fla_kernel`.
    """
    fla = fla_kernel("gated_delta", kernel, k)
    if fla is not None:
        return fla(q, k, v, log_decay, beta, state=state)
    return delta_rule(q, beta * k, v, k, -beta * log_decay.exp() * k, log_decay, state, "torch")


def l2_normalize(x: Tensor, eps: float = 1e-6) -> Tensor:
    """Vectors of length one."""
    return x * torch.rsqrt((x * x).sum(-1, keepdim=True) + eps)


class GatedDeltaNet(GatedHeads, CausalMixer):
    """Gated DeltaNet (Yang et al. 2024, arXiv 2412.06464): a decay and a delta rule per head, short convolutions.

    state: ((B, H, K, V), the last inputs of the convolution (B, W - 1, 2 H K + H V)).
    """

    def __init__(self, config: SmallEConfig, hidden_size: int, num_heads: int, index: int = 0):
        super().__init__(config, hidden_size, num_heads)
        self.decay_proj, self.beta_proj = (nn.Linear(hidden_size, num_heads, bias=False) for _ in range(2))
        self.conv = ShortConvolution(2 * self.key_size + self.value_size, config.conv_size, bias=False)
        self.A_log, self.dt_bias = (nn.Parameter(torch.empty(num_heads)) for _ in range(2))

    @torch.no_grad()
    def init_parameters(self):
        init.copy_(self.A_log, torch.empty_like(self.A_log).uniform_(0.01, 16).log())
        init_time_step(self.dt_bias)

    def mix(self, x, mask, state):
        state, remembered = state or (None, None)
        qkv = torch.cat((self.q_proj(x), self.k_proj(x), self.v_proj(x)), -1)
        qkv, remembered = self.conv(qkv, mask, remembered)
        q, k, v = map(self.heads, qkv.split((self.key_size, self.key_size, self.value_size), -1))
        time_step = -F.logsigmoid(
            -(upcast(self.decay_proj(x)) + self.dt_bias)
        )  # softplus in a form that torch.compile supports
        decay = -upcast(self.A_log).exp() * time_step
        decay, beta = zero_masked(mask, decay[..., None], upcast(self.beta_proj(x)).sigmoid()[..., None])
        q, k = l2_normalize(upcast(q)) * self.head_keys**-0.5, l2_normalize(upcast(k))
        out, state = gated_delta_rule(q, k, v, decay, beta, state, self.config.mixer_kernel)
        return self.output(out, self.g_proj(x)), (state, remembered)


# --- Mamba and Mamba-2: selective state spaces. The inner width is `expand_v` times the hidden size.


CHUNK, SEGMENT = 16, 256  # steps


def selective_scan(
    x: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor, state: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """h_t = exp(dt_t A) h_{t-1} + dt_t x_t B_t^T,  y_t = h_t C_t for every channel.

    x, dt (B, T, D), A (D, N), B and C (B, T, N). Returns y (B, T, D) and the final state (B, D, N). For long sequences,
    the backward pass recomputes segments of 256 steps to save memory.
    """
    x, dt, A, B, C = (upcast(part) for part in (x, dt, A, B, C))
    state = x.new_zeros(x.shape[0], *A.shape) if state is None else upcast(state)
    save_memory = torch.is_grad_enabled() and x.shape[1] > SEGMENT
    outputs = []
    with torch.autocast(x.device.type, enabled=False):
        if x.shape[1] == 1:
            state = (dt[:, 0, :, None] * A).exp() * state + (dt * x)[:, 0, :, None] * B
            return (state @ C.transpose(1, 2)).transpose(1, 2), state
        for parts in zip(*(part.split(SEGMENT, 1) for part in (x, dt, B, C)), strict=True):
            if save_memory:
                y, state = checkpoint(_scan_segment, A, state, *parts, use_reentrant=False, preserve_rng_state=False)
            else:
                y, state = _scan_segment(A, state, *parts)
            outputs.append(y)
    return torch.cat(outputs, 1), state


def _scan_segment(A, state, x, dt, B, C):
    """Computes chunks of 16 steps in parallel from a zero state, then adds the contribution of the initial states."""
    length = x.shape[1]
    size = min(CHUNK, length)
    pad = -length % size
    x, dt, B, C = (F.pad(part, (0, 0, 0, pad)).unflatten(1, (-1, size)) for part in (x, dt, B, C))  # (B, M, S, ·)
    local, own = torch.zeros_like(x[:, :, 0, :, None] * A), []
    for t in range(size):
        update = (dt[:, :, t] * x[:, :, t])[..., None] * B[:, :, t, None]
        local = (dt[:, :, t, :, None] * A).exp() * local + update
        own.append((local @ C[:, :, t, :, None]).squeeze(-1))
    passed = dt.cumsum(2)
    decay, starts = (passed[:, :, -1, :, None] * A).exp(), []
    for m in range(x.shape[1]):
        starts.append(state)
        state = decay[:, m] * state + local[:, m]
    starts = torch.stack(starts, 1)[:, :, None]
    carried = ((passed[..., None] * A).exp() * starts @ C[..., None]).squeeze(-1)
    return (torch.stack(own, 2) + carried).flatten(1, 2)[:, :length], state


class Mamba(CausalMixer):
    """Mamba (Gu & Dao 2023, arXiv 2312.00752). It has no heads.

    state: (those of the channels (B, D, N), the last inputs of the convolution (B, W - 1, D)).
    """

    def __init__(self, config: SmallEConfig, hidden_size: int, num_heads: int, index: int = 0):
        super().__init__()
        self.config = config
        size, self.rank = int(hidden_size * config.expand_v), math.ceil(hidden_size / 16)
        self.state_size = config.state_size or 16
        self.in_proj = nn.Linear(hidden_size, 2 * size, bias=False)
        self.conv = ShortConvolution(size, config.conv_size, bias=True)
        self.x_proj = nn.Linear(size, self.rank + 2 * self.state_size, bias=False)
        self.dt_proj = nn.Linear(self.rank, size)
        self.A_log = nn.Parameter(torch.empty(size, self.state_size))
        self.D = nn.Parameter(torch.empty(size))
        self.o_proj = nn.Linear(size, hidden_size, bias=False)

    @torch.no_grad()
    def init_parameters(self):
        rates = torch.arange(1, self.state_size + 1, device=self.A_log.device).float()  # S4D-real
        init.copy_(self.A_log, rates.log().expand_as(self.A_log))
        init.ones_(self.D)
        init.uniform_(self.dt_proj.weight, -(self.rank**-0.5), self.rank**-0.5)
        init_time_step(self.dt_proj.bias)

    def mix(self, x, mask, state):
        fla_kernel(None, self.config.mixer_kernel, x)  # raises ValueError for "fla", which has no kernel for it
        state, remembered = state or (None, None)
        x, gate = self.in_proj(x).chunk(2, -1)
        x, remembered = self.conv(x, mask, remembered)
        dt, B, C = self.x_proj(x).split((self.rank, self.state_size, self.state_size), -1)
        dt = F.softplus(upcast(F.linear(dt, self.dt_proj.weight)) + self.dt_proj.bias)
        (dt,) = zero_masked(mask, dt)
        y, state = selective_scan(x, dt, -upcast(self.A_log).exp(), B, C, state)
        y = (y + self.D * x) * F.silu(gate)
        return self.o_proj(y.to(x.dtype)), (state, remembered)


class Mamba2(CausalMixer):
    """Mamba-2 (Dao & Gu 2024, arXiv 2405.21060): one decay per head; all heads share B and C.

    state: (those of the heads (B, H, N, D / H), the last inputs of the convolution (B, W - 1, D + 2 N)).
    """

    def __init__(self, config: SmallEConfig, hidden_size: int, num_heads: int, index: int = 0):
        super().__init__()
        self.config, self.num_heads, self.size = config, num_heads, int(hidden_size * config.expand_v)
        self.state_size = config.state_size or 128
        head_width("hidden_size * expand_v", self.size, num_heads)
        self.in_proj = nn.Linear(hidden_size, 2 * self.size + 2 * self.state_size + num_heads, bias=False)
        self.conv = ShortConvolution(self.size + 2 * self.state_size, config.conv_size, bias=True)
        self.A_log, self.dt_bias, self.D = (nn.Parameter(torch.empty(num_heads)) for _ in range(3))
        self.norm = nn.RMSNorm(self.size, eps=config.norm_eps)
        self.o_proj = nn.Linear(self.size, hidden_size, bias=False)

    @torch.no_grad()
    def init_parameters(self):
        init.copy_(self.A_log, torch.empty_like(self.A_log).uniform_(1, 16).log())
        init_time_step(self.dt_bias)
        init.ones_(self.D)

    def mix(self, x, mask, state):
        state, remembered = state or (None, None)
        gate, x, dt = self.in_proj(x).split((self.size, self.size + 2 * self.state_size, self.num_heads), -1)
        x, remembered = self.conv(x, mask, remembered)
        x, B, C = x.split((self.size, self.state_size, self.state_size), -1)
        x, dt = x.unflatten(-1, (self.num_heads, -1)), F.softplus(upcast(dt) + self.dt_bias)
        (dt,) = zero_masked(mask, dt)
        decay = (-upcast(self.A_log).exp() * dt)[..., None]
        y, state = recurrence(C[:, :, None], B[:, :, None], x * dt[..., None], decay, state, self.config.mixer_kernel)
        y = (y + self.D[:, None] * x).flatten(-2) * F.silu(upcast(gate))
        return self.o_proj(self.norm(y.to(self.norm.weight.dtype)).to(gate.dtype)), (state, remembered)


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


def build_mixer(config: SmallEConfig, hidden_size: int, num_heads: int, index: int = 0) -> nn.Module:
    """Creates the mixer that `config.mixer` names. index: of the block in the stack, for RWKV's initial values."""
    if config.mixer not in MIXERS:
        raise ValueError(f"mixer={config.mixer!r}: expected one of {sorted(MIXERS)}.")
    return MIXERS[config.mixer](config, hidden_size, num_heads, index)
