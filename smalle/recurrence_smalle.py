"""Decayed linear recurrences: S_t = diag(exp(g_t)) S_{t-1} + k_t v_t^T,  o_t = S_t^T q_t.

Layout: q, k, log_decay (B, T, H, K); v (B, T, H, V); state (B, H, K, V) in fp32. `naive` is the specification,
`chunked` the same in parallel over chunks (Yang et al. 2023, arXiv 2312.06635), `exact` the same for decays of any
strength, `step` one time step. Two variants, which `chunked` does not know:
- log_decay (B, T, H, 1) is one decay for all channels of a head; q and k may then have one head that all share.
- bonus (H, K) as in RWKV: o_t = (S_{t-1} + diag(bonus) k_t v_t^T)^T q_t, read before the decay.
"""

import torch

from .gated_chunks_smalle import CHUNK, gated_chunks, into_chunks, wide
from .kernels_smalle import fla_kernel

SEGMENT = 64
STRONGEST = -8.0  # log decay a step that `chunked` bears


def zero_state(k, v):
    return wide(k.new_zeros(k.shape[0], v.shape[2], k.shape[3], v.shape[3]))


def naive(q, k, v, log_decay, state=None, bonus=None):
    """Step by step. Returns outputs (B, T, H, V) and the final state."""
    state = zero_state(k, v) if state is None else wide(state)
    outputs = []
    for t in range(q.shape[1]):
        output, state = step(q[:, t : t + 1], k[:, t : t + 1], v[:, t : t + 1], log_decay[:, t : t + 1], state, bonus)
        outputs.append(output)
    return torch.cat(outputs, 1).to(v.dtype), state


def step(q, k, v, log_decay, state, bonus=None):
    """One step: inputs with T = 1."""
    q, k, v, decay = wide(q[:, 0]), wide(k[:, 0]), wide(v[:, 0]), wide(log_decay[:, 0]).exp()
    update = k.unsqueeze(-1) * v.unsqueeze(-2)
    before, state = state, state * decay.unsqueeze(-1) + update
    read = state if bonus is None else before + wide(bonus).unsqueeze(-1) * update
    return (q.unsqueeze(-2) @ read).transpose(1, 2), state


def chunked(q, k, v, log_decay, state=None):
    """All steps in parallel: chunks of 64 steps, segments of 64 chunks. Stable for log decays down to -8 a step."""
    return _by_segments(gated_chunks, (q, k, v, log_decay), state)


def _by_segments(function, inputs, state):
    """Calls `function(*inputs, state)` on one 64 chunks after the other and joins the outputs."""
    outputs = []
    for parts in zip(*(x.split(CHUNK * SEGMENT, 1) for x in inputs), strict=True):
        output, state = function(*parts, state)
        outputs.append(output)
    return torch.cat(outputs, 1) if len(outputs) > 1 else outputs[0], state


def chunk_size(length):
    """64, less for a shorter sequence; a power of two."""
    return min(CHUNK, 1 << (length - 1).bit_length())


def exact(q, k, v, log_decay, state=None, bonus=None):
    """All steps in parallel for decays of any strength, also strong and weak ones mixed.

    No exponent is positive and none is the difference of two long sums, so nothing overflows or cancels.
    """

    def segment(q, k, v, g, state):
        dtype, length = v.dtype, q.shape[1]
        q, k, v, g = (wide(into_chunks(x, chunk_size(length))) for x in (q, k, v, g))
        by_head = g.shape[-1] == 1 and bonus is None
        scores, before, after, total = _head_scores(q, k, g) if by_head else _channel_scores(q, k, g, bonus)
        states = _exact_scan(total, (k * after.exp()).transpose(-1, -2) @ v, state)
        output = (q * before.exp()) @ states[:, :, :-1] + scores @ v
        return output.permute(0, 2, 3, 1, 4).flatten(1, 2)[:, :length].to(dtype), wide(states[:, :, -1])

    return _by_segments(segment, (q, k, v, log_decay), state)


def decay_sums(g):
    """Sums of log decays between two steps: (..., C) -> (..., C, C) with g_{j+1} + ... + g_i, -inf for j > i."""
    later = torch.ones(g.shape[-1], g.shape[-1], dtype=torch.bool, device=g.device).tril(-1)
    sums = torch.where(later, g[..., None], 0).cumsum(-2)
    return sums.masked_fill(later.T, -torch.inf)


def _head_scores(q, k, g):
    """As `_channel_scores` for one decay a head, (B, H, N, C, 1)."""
    sums = decay_sums(g.squeeze(-1))
    before = g.cumsum(-2)
    return (q @ k.transpose(-1, -2)) * sums.exp(), before, sums[..., -1, :, None], before[..., -1:, :]


def _channel_scores(q, k, g, bonus):
    """Weights (B, H, N, C, C) of the values of a chunk in its outputs, by joining halves of 1, 2, 4 ... steps.

    With them, per channel, the log decays from a chunk's start to the reading of each step, from the writing of each
    step to the chunk's end, and of the whole chunk.
    """
    own = k if bonus is None else k * bonus[:, None, None].to(k.dtype)
    scores = (q * own).sum(-1)[..., None, None]
    before, after, total = g if bonus is None else torch.zeros_like(g), torch.zeros_like(g), g
    size = 1
    while size < q.shape[3]:
        (_, q2), (k1, _), (before1, before2), (after1, after2), (total1, total2) = (
            x.unflatten(3, (-1, 2, x.shape[3] * size // q.shape[3])).unbind(4) for x in (q, k, before, after, total)
        )
        first, second = scores.unflatten(3, (-1, 2)).unbind(4)
        across = (q2 * before2.exp()) @ (k1 * after1.exp()).transpose(-1, -2)
        upper = torch.cat((first, torch.zeros_like(first)), -1)
        scores = torch.cat((upper, torch.cat((across, second), -1)), -2)
        before = torch.stack((before1, before2 + total1), 4).flatten(3, 5)
        after = torch.stack((after1 + total2, after2), 4).flatten(3, 5)
        total = (total1 + total2).flatten(3, 4)
        size *= 2
    return scores.squeeze(3), before, after, total


def _exact_scan(total, updates, state):
    """States before each chunk and after the last (B, H, N + 1, K, V).

    Of log decays (B, H, N, 1, K or 1) of chunks and updates (B, H, N, K, V), all at once: state n is the sum over
    earlier chunks m of exp(decay of chunks m + 1 .. n - 1) times update m.
    """
    total = total.squeeze(3).transpose(2, 3)  # (B, H, K, N)
    weights = decay_sums(total).exp()
    states = (weights @ updates.transpose(2, 3).to(weights.dtype)).transpose(2, 3)
    if state is None:
        return torch.nn.functional.pad(states, (0, 0, 0, 0, 1, 0))
    state = wide(state)[:, :, None]
    return torch.cat((state, states + total.cumsum(-1).exp().transpose(2, 3)[..., None] * state), 2)


def recurrence(q, k, v, log_decay, state=None, kernel="auto", bonus=None):
    """Outputs (B, T, H, V) and the final state (B, H, K, V), by the fastest way at hand.

    kernel: "auto", "torch" or "fla", see `fla_kernel`.
    """
    kind = "bonus" if bonus is not None else "head" if log_decay.shape[-1] == 1 else "channel"
    fla = fla_kernel(kind, kernel, k)
    if fla is not None:
        return fla(q, k, v, log_decay, *(() if bonus is None else (bonus,)), state=state)
    if q.shape[1] == 1:
        return step(q, k, v, log_decay, zero_state(k, v) if state is None else state, bonus)
    if kind == "channel":
        return chunked(q, k, v, log_decay, state)
    return exact(q, k, v, log_decay, state, bonus)
