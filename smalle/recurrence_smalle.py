"""Decayed linear recurrences: S_t = diag(exp(g_t)) S_{t-1} + k_t v_t^T,  o_t = S_t^T q_t.

Layout: q, k, log_decay (B, T, H, K); v (B, T, H, V); state (B, H, K, V) in fp32. `naive` is the specification,
`chunked` the same in parallel over chunks (Yang et al. 2023, arXiv 2312.06635), `step` one time step.
"""

import importlib

import torch

CHUNK, BLOCK, SEGMENT = 64, 16, 64


def wide(x):
    """At least fp32: the precision of states and decays."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


def zero_state(k, v):
    return wide(k.new_zeros(k.shape[0], k.shape[2], k.shape[3], v.shape[3]))


def naive(q, k, v, log_decay, state=None):
    """Step by step. Returns outputs (B, T, H, V) and the final state."""
    state = zero_state(k, v) if state is None else wide(state)
    outputs = []
    for t in range(q.shape[1]):
        output, state = step(q[:, t : t + 1], k[:, t : t + 1], v[:, t : t + 1], log_decay[:, t : t + 1], state)
        outputs.append(output)
    return torch.cat(outputs, 1).to(v.dtype), state


def step(q, k, v, log_decay, state):
    """One step: inputs with T = 1."""
    q, k, v, decay = wide(q[:, 0]), wide(k[:, 0]), wide(v[:, 0]), wide(log_decay[:, 0]).exp()
    state = state * decay[..., None] + k[..., None] * v[..., None, :]
    return (q[..., None, :] @ state).transpose(1, 2), state


def chunked(q, k, v, log_decay, state=None):
    """All steps in parallel: chunks of 64 steps, segments of 64 chunks. Stable for log decays down to -8 a step.

    Every exponent is taken relative to a point between query and key, so that no factor can overflow: the boundary
    between the two halves that they stand in, or the middle of the block of 16 that they share.
    """
    outputs = []
    for parts in zip(*(x.split(CHUNK * SEGMENT, 1) for x in (q, k, v, log_decay))):
        output, state = _segment(*parts, state)
        outputs.append(output)
    return torch.cat(outputs, 1) if len(outputs) > 1 else outputs[0], state


def _segment(q, k, v, g, state):
    """Up to 64 chunks. Names as in the paper on GLA: b is the running sum of log decays inside a chunk."""
    dtype, length, pad = v.dtype, q.shape[1], -q.shape[1] % CHUNK
    q, k, v, g = (torch.nn.functional.pad(x, (0, 0, 0, 0, 0, pad)) if pad else x for x in (q, k, v, g))
    q, k, v, g = (x.unflatten(1, (-1, CHUNK)).permute(0, 3, 1, 2, 4) for x in (q, k, v, g))  # (B, H, N, C, D)
    q, k, b = wide(q), wide(k), wide(g).cumsum(3)
    if not torch.is_autocast_enabled(q.device.type):
        v = v.to(q.dtype)
    last = b[:, :, :, -1:]
    updates = (k * (last - b).exp()).transpose(-1, -2) @ v
    states = _scan(last.squeeze(3), updates, state)
    output = (q * b.exp()) @ states[:, :, :-1] + _within_chunks(q, k, v, b)
    return output.permute(0, 2, 3, 1, 4).flatten(1, 2)[:, :length].to(dtype), wide(states[:, :, -1])


def _scan(decay, updates, state):
    """States before each chunk and after the last: log decays (B, H, N, K), updates (B, H, N, K, V) -> (B, H, N + 1, K, V).

    All at once: state n is the sum over earlier chunks m of exp(decay of chunks m + 1 .. n - 1) times update m.
    """
    total = torch.nn.functional.pad(decay.cumsum(2), (0, 0, 1, 0)).transpose(2, 3)  # (B, H, K, N + 1)
    exponent = total[..., :, None] - total[..., None, 1:]
    past = torch.ones(exponent.shape[-2:], dtype=torch.bool, device=decay.device).tril(-1)
    weights = exponent.masked_fill(~past, -torch.inf).exp()
    states = (weights @ updates.transpose(2, 3).to(weights.dtype)).transpose(2, 3)
    return states if state is None else states + total.exp().transpose(2, 3)[..., None] * wide(state)[:, :, None]


def _within_chunks(q, k, v, b):
    """Contribution of the keys of the same chunk: blocks of 16 directly, then halves of 32, then of 64."""
    qs, ks, vs, bs = (x.unflatten(3, (-1, BLOCK)) for x in (q, k, v, b))
    middle = bs[..., BLOCK // 2 - 1 : BLOCK // 2, :]
    scores = (qs * (bs - middle).exp()) @ (ks * (middle - bs).exp()).transpose(-1, -2)
    causal = torch.ones(BLOCK, BLOCK, dtype=torch.bool, device=q.device).tril()
    output = (scores.masked_fill(~causal, 0) @ vs).flatten(3, 4)
    size = BLOCK
    while size < CHUNK:
        (_, q2), (k1, _), (v1, _), (b1, b2), (o1, o2) = (
            x.unflatten(3, (-1, 2, size)).unbind(4) for x in (q, k, v, b, output)
        )
        boundary = b1[..., -1:, :]
        scores = (q2 * (b2 - boundary).exp()) @ (k1 * (boundary - b1).exp()).transpose(-1, -2)
        output = torch.stack((o1, o2 + scores @ v1), 4).flatten(3, 5)
        size *= 2
    return output


def _fla_chunk_gla():
    """The Triton kernel of flash-linear-attention, or None where it cannot be had."""
    try:
        return importlib.import_module("fla.ops.gla").chunk_gla
    except Exception:  # without triton the submodules of fla raise all kinds of errors
        return None


_kernels = {}


def recurrence(q, k, v, log_decay, state=None, kernel="auto"):
    """Outputs (B, T, H, V) and the final state (B, H, K, V), by the fastest way at hand.

    kernel: "naive", "torch", "fla", or "auto" (fla on a GPU where it is installed, else torch).
    """
    if kernel not in ("auto", "naive", "torch", "fla"):
        raise ValueError(f"kernel={kernel!r}: expected 'auto', 'naive', 'torch' or 'fla'.")
    if q.shape[1] == 1 and kernel != "fla":
        return step(q, k, v, log_decay, zero_state(k, v) if state is None else state)
    if kernel == "naive":
        return naive(q, k, v, log_decay, state)
    if kernel == "fla" or (kernel == "auto" and q.is_cuda):
        if "gla" not in _kernels:
            _kernels["gla"] = _fla_chunk_gla()
        if _kernels["gla"] is not None:
            q, k = q.to(v.dtype), k.to(v.dtype)
            return _kernels["gla"](q, k, v, log_decay, scale=1.0, initial_state=state, output_final_state=True)
        if kernel == "fla":
            raise ValueError("kernel='fla' needs flash-linear-attention and triton: install smalle[fla].")
    return chunked(q, k, v, log_decay, state)
