"""Decayed linear recurrences: S_t = diag(exp(g_t)) S_{t-1} + k_t v_t^T,  o_t = S_t^T q_t.

Layout: q, k, log_decay (B, T, H, K); v (B, T, H, V); state (B, H, K, V) in fp32. `naive` is the specification,
`chunked` the same in parallel over chunks (Yang et al. 2023, arXiv 2312.06635), `step` one time step.
"""

import importlib

import torch

CHUNK, BLOCK = 64, 16


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
    """All steps in parallel within chunks of 64. Stable for log decays down to -8 a step.

    Every exponent is taken relative to a point between query and key, so that no factor can overflow: the end of
    the preceding block for pairs in different blocks of 16, the middle of the block for pairs in one block.
    """
    dtype, (batch, length, heads, _) = v.dtype, q.shape
    pad = -length % CHUNK
    q, k, v, g = (torch.nn.functional.pad(x, (0, 0, 0, 0, 0, pad)) for x in (q, k, v, log_decay))
    q, k, v, g = (x.unflatten(1, (-1, CHUNK)).permute(0, 3, 1, 2, 4) for x in (q, k, v, g))  # (B, H, N, C, D)
    q, k, b = wide(q), wide(k), wide(g).cumsum(3)
    last = b[:, :, :, -1:]
    updates = (k * (last - b).exp()).transpose(-1, -2) @ v.to(k.dtype)
    decays = last.exp().transpose(-1, -2)
    state = q.new_zeros(batch, heads, q.shape[-1], v.shape[-1]) if state is None else wide(state)
    before = []
    for n in range(q.shape[2]):
        before.append(state)
        state = state * decays[:, :, n] + updates[:, :, n].to(state.dtype)
    across = (q * b.exp()) @ torch.stack(before, 2)
    output = across + _within_chunks(q, k, v.to(k.dtype), b)
    return output.permute(0, 2, 3, 1, 4).flatten(1, 2)[:, :length].to(dtype), state


def _within_chunks(q, k, v, b):
    """Contribution of the keys of the same chunk. Inputs (B, H, N, C, D); b is the running sum of the log decay."""
    qs, ks, vs, bs = (x.unflatten(3, (-1, BLOCK)) for x in (q, k, v, b))
    middle = bs[..., BLOCK // 2 - 1 : BLOCK // 2, :]
    scores = (qs * (bs - middle).exp()) @ (ks * (middle - bs).exp()).transpose(-1, -2)
    causal = torch.ones(BLOCK, BLOCK, dtype=torch.bool, device=q.device).tril()
    within = scores.masked_fill(~causal, 0) @ vs  # (B, H, N, C/16, 16, V)
    outputs = [within[:, :, :, 0]]
    for i in range(1, CHUNK // BLOCK):
        start = i * BLOCK
        reference = b[:, :, :, start - 1 : start]
        queries = qs[:, :, :, i] * (bs[:, :, :, i] - reference).exp()
        keys = k[:, :, :, :start] * (reference - b[:, :, :, :start]).exp()
        outputs.append(within[:, :, :, i] + queries @ keys.transpose(-1, -2) @ v[:, :, :, :start])
    return torch.cat(outputs, 3)


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
