"""Gated DeltaNet, and the delta rule that it shares with RWKV-7."""

import torch
import torch.nn.functional as F
from torch import nn
from transformers import initialization as init

from .kernels_smalle import fla_kernel
from .mixer_base_smalle import CausalMixer, ShortConvolution, head_width, init_time_step
from .recurrence_smalle import chunk_size, decay_sums, into_chunks, wide, zero_state


def delta_rule(q, k, v, a, b, log_decay, state=None, kernel="auto"):
    """S_t = (diag(exp(g_t)) + b_t a_t^T) S_{t-1} + k_t v_t^T,  o_t = S_t^T q_t.

    q, k, a, b (B, T, H, K); v (B, T, H, V); log_decay (B, T, H, K), down to -1 a step, or (B, T, H, 1) of any
    strength. Returns outputs (B, T, H, V) and the final state (B, H, K, V). In parallel over chunks: what the rows
    a_t read solves a triangular system (the WY form of Yang et al. 2024, arXiv 2406.06484). kernel: see `fla_kernel`.
    """
    fla = fla_kernel("delta" if log_decay.shape[-1] > 1 else None, kernel, k)
    if fla is not None:
        return fla(q, k, v, a, b, log_decay, state=state)
    state = zero_state(k, v) if state is None else wide(state)
    with torch.autocast(q.device.type, enabled=False):
        if q.shape[1] == 1:
            return _delta_step(q, k, v, a, b, log_decay, state)
        size, length = chunk_size(q.shape[1]), q.shape[1]
        output, state = _delta_chunks(*(wide(into_chunks(x, size)) for x in (q, k, v, a, b, log_decay)), state)
    return output.permute(0, 2, 3, 1, 4).flatten(1, 2)[:, :length].to(v.dtype), state


def delta_naive(q, k, v, a, b, log_decay, state=None):
    """`delta_rule` step by step: its specification."""
    state = zero_state(k, v) if state is None else wide(state)
    outputs = []
    for t in range(q.shape[1]):
        output, state = _delta_step(*(x[:, t : t + 1] for x in (q, k, v, a, b, log_decay)), state)
        outputs.append(output)
    return torch.cat(outputs, 1), state


def _delta_step(q, k, v, a, b, log_decay, state):
    q, k, v, a, b, g = (wide(x[:, 0]) for x in (q, k, v, a, b, log_decay))
    read = a[..., None, :] @ state
    state = state * g.exp()[..., None] + b[..., None] * read + k[..., None] * v[..., None, :]
    return (q[..., None, :] @ state).transpose(1, 2).to(v.dtype), state


def _delta_chunks(q, k, v, a, b, g, state):
    """All inputs (B, H, N, C, D). `read` is what the rows a_t find, in part from the chunk itself, in part from its
    first state."""
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
    """How rows see earlier columns with one decay a head; and the log decays from each step to the chunk's end."""
    sums = decay_sums(g.squeeze(-1))
    inclusive = sums.exp()
    earlier = F.pad(inclusive[..., :-1, :], (0, 0, 1, 0))

    def pairs(rows, columns, strict):
        return (rows @ columns.transpose(-1, -2)) * (earlier if strict else inclusive)

    return pairs, sums[..., -1, :, None]


def _channel_pairs(upto, before, g):
    """As `_head_pairs` for decays of each channel, taken relative to the chunk's middle."""
    middle = upto[..., (g.shape[3] - 1) // 2, None, :]

    def pairs(rows, columns, strict):
        rows = rows * ((before if strict else upto) - middle).exp()
        return (rows @ (columns * (middle - upto).exp()).transpose(-1, -2)).tril(-1 if strict else 0)

    return pairs, upto[..., -1:, :] - upto


def gated_delta_rule(q, k, v, log_decay, beta, state=None, kernel="auto"):
    """S_t = exp(g_t) (S_{t-1} - beta_t k_t k_t^T S_{t-1}) + beta_t k_t v_t^T,  o_t = S_t^T q_t.

    q, k (B, T, H, K); v (B, T, H, V); log_decay, beta (B, T, H, 1). Returns as `delta_rule` does. kernel: see
    `fla_kernel`.
    """
    fla = fla_kernel("gated_delta", kernel, k)
    if fla is not None:
        return fla(q, k, v, log_decay, beta, state=state)
    return delta_rule(q, beta * k, v, k, -beta * log_decay.exp() * k, log_decay, state, "torch")


def unit(x, eps=1e-6):
    """Vectors of length one."""
    return x * torch.rsqrt((x * x).sum(-1, keepdim=True) + eps)


class GatedDeltaNet(CausalMixer):
    """Gated DeltaNet (Yang et al. 2024, arXiv 2412.06464): a decay and a delta rule a head, short convolutions.

    state: ((B, H, K, V), the last inputs of the convolution (B, W - 1, 2 H K + H V)).
    """

    def __init__(self, config, hidden_size, num_heads, index=0):
        super().__init__()
        self.config, self.num_heads = config, num_heads
        self.key_size, self.value_size = int(hidden_size * config.expand_k), int(hidden_size * config.expand_v)
        head_width("hidden_size * expand_k", self.key_size, num_heads)
        head_value_size = head_width("hidden_size * expand_v", self.value_size, num_heads)
        self.q_proj = nn.Linear(hidden_size, self.key_size, bias=False)
        self.k_proj = nn.Linear(hidden_size, self.key_size, bias=False)
        self.v_proj = nn.Linear(hidden_size, self.value_size, bias=False)
        self.g_proj = nn.Linear(hidden_size, self.value_size, bias=False)
        self.decay_proj = nn.Linear(hidden_size, num_heads, bias=False)
        self.beta_proj = nn.Linear(hidden_size, num_heads, bias=False)
        self.conv = ShortConvolution(2 * self.key_size + self.value_size, config.conv_size, bias=False)
        self.A_log = nn.Parameter(torch.empty(num_heads))
        self.dt_bias = nn.Parameter(torch.empty(num_heads))
        self.norm = nn.RMSNorm(head_value_size, eps=config.norm_eps)
        self.o_proj = nn.Linear(self.value_size, hidden_size, bias=False)

    @torch.no_grad()
    def init_parameters(self):
        init.copy_(self.A_log, torch.empty_like(self.A_log).uniform_(0.01, 16).log())
        init_time_step(self.dt_bias)

    def mix(self, x, mask, state):
        state, remembered = (None, None) if state is None else state
        qkv = torch.cat((self.q_proj(x), self.k_proj(x), self.v_proj(x)), -1)
        qkv, remembered = self.conv(qkv, mask, remembered)
        q, k, v = (
            part.unflatten(-1, (self.num_heads, -1))
            for part in qkv.split((self.key_size, self.key_size, self.value_size), -1)
        )
        time_step = -F.logsigmoid(-(wide(self.decay_proj(x)) + self.dt_bias))  # softplus, but torch.compile knows it
        decay = -wide(self.A_log).exp() * time_step
        beta = wide(self.beta_proj(x)).sigmoid()
        if mask is not None:
            decay, beta = decay * mask[..., None], beta * mask[..., None]
        decay, beta = decay[..., None], beta[..., None]
        q, k = unit(wide(q)) * q.shape[-1] ** -0.5, unit(wide(k))
        out, state = gated_delta_rule(q, k, v, decay, beta, state, self.config.mixer_kernel)
        gate = self.g_proj(x).unflatten(-1, (self.num_heads, -1))
        out = self.norm(out.to(self.norm.weight.dtype)) * F.silu(gate)
        return self.o_proj(out.flatten(-2)), (state, remembered)
