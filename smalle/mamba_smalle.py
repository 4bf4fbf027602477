"""Mamba and Mamba-2: selective state spaces. The inner width is `expand_v` times the hidden size."""

import math

import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.checkpoint import checkpoint
from transformers import initialization as init

from .kernels_smalle import fla_kernel
from .mixer_base_smalle import CausalMixer, ShortConvolution, head_width, init_time_step
from .recurrence_smalle import recurrence, wide

CHUNK, SEGMENT = 16, 256  # steps


def selective_scan(x, dt, A, B, C, state=None):
    """h_t = exp(dt_t A) h_{t-1} + dt_t x_t B_t^T,  y_t = h_t C_t for every channel.

    x, dt (B, T, D), A (D, N), B and C (B, T, N). Returns y (B, T, D) and the final state (B, D, N). Memory is that of
    256 steps: longer sequences compute theirs again in the backward pass.
    """
    x, dt, A, B, C = (wide(part) for part in (x, dt, A, B, C))
    state = x.new_zeros(x.shape[0], *A.shape) if state is None else wide(state)
    save_memory = torch.is_grad_enabled() and x.shape[1] > SEGMENT
    outputs = []
    with torch.autocast(x.device.type, enabled=False):
        if x.shape[1] == 1:
            state = (dt[:, 0, :, None] * A).exp() * state + (dt * x)[:, 0, :, None] * B
            return (state @ C.transpose(1, 2)).transpose(1, 2), state
        for parts in zip(*(part.split(SEGMENT, 1) for part in (x, dt, B, C)), strict=True):
            if save_memory:
                y, state = checkpoint(_scan_segment, *parts, A, state, use_reentrant=False, preserve_rng_state=False)
            else:
                y, state = _scan_segment(*parts, A, state)
            outputs.append(y)
    return torch.cat(outputs, 1), state


def _scan_segment(x, dt, B, C, A, state):
    """Chunks of 16 steps side by side, each from a state of zero; then what its first state adds to each."""
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

    state: (the channels' states (B, D, N), the last inputs of the convolution (B, W - 1, D)).
    """

    def __init__(self, config, hidden_size, num_heads, index=0):
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
        fla_kernel(None, self.config.mixer_kernel, x)  # there is none: refuses to be told so
        state, remembered = (None, None) if state is None else state
        x, gate = self.in_proj(x).chunk(2, -1)
        x, remembered = self.conv(x, mask, remembered)
        dt, B, C = self.x_proj(x).split((self.rank, self.state_size, self.state_size), -1)
        dt = F.softplus(wide(F.linear(dt, self.dt_proj.weight)) + self.dt_proj.bias)
        if mask is not None:
            dt = dt * mask[..., None]
        y, state = selective_scan(x, dt, -wide(self.A_log).exp(), B, C, state)
        y = (y + self.D * x) * F.silu(gate)
        return self.o_proj(y.to(x.dtype)), (state, remembered)


class Mamba2(CausalMixer):
    """Mamba-2 (Dao & Gu 2024, arXiv 2405.21060): one decay a head; all heads share B and C.

    state: (the heads' states (B, H, N, D / H), the last inputs of the convolution (B, W - 1, D + 2 N)).
    """

    def __init__(self, config, hidden_size, num_heads, index=0):
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
        state, remembered = (None, None) if state is None else state
        gate, x, dt = self.in_proj(x).split((self.size, self.size + 2 * self.state_size, self.num_heads), -1)
        x, remembered = self.conv(x, mask, remembered)
        x, B, C = x.split((self.size, self.state_size, self.state_size), -1)
        x, dt = x.unflatten(-1, (self.num_heads, -1)), F.softplus(wide(dt) + self.dt_bias)
        if mask is not None:
            dt = dt * mask[..., None]
        decay = (-wide(self.A_log).exp() * dt)[..., None]
        y, state = recurrence(C[:, :, None], B[:, :, None], x * dt[..., None], decay, state, self.config.mixer_kernel)
        y = (y + self.D[:, None] * x).flatten(-2) * F.silu(wide(gate))
        return self.o_proj(self.norm(y.to(self.norm.weight.dtype)).to(gate.dtype)), (state, remembered)
