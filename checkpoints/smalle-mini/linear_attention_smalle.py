"""Gated linear attention as a recurrence over steps t, for each row and head (Yang et al. 2023, arXiv 2312.06635):

    S_t = diag(exp(g_t)) S_{t-1} + k_t v_t^T,    o_t = S_t^T q_t;   with a bonus u (RWKV 5 and 6)
    o_t = (S_{t-1} + diag(u) k_t v_t^T)^T q_t

Shapes in all functions: q, k (B, T, H, K); v (B, T, H, V); log decays g (B, T, H, K), or (B, T, H, 1) for one per head;
bonus (H, K); state S (B, H, K, V), None for zeros. All functions return outputs (B, T, H, V) and the final state, in at
least single precision. `naive` is the specification, `recurrent_step` is one step of it, `chunk` and `chunk_exact`
compute all steps in parallel, `fla_kernel` finds a Triton kernel, and `recurrence` chooses among them.
"""

import functools
import importlib
import math
import os
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from .cache_smalle import PendingUpdates

CHUNK, SEGMENT = 64, 64  # steps of a chunk, chunks that are computed side by side
BLOCK, HALVES = 16, (16, 32)  # `chunk` divides a chunk into blocks, then into halves of every 32 and 64 steps
MIN_LOG_DECAY = -8.0  # per step, the strongest decay for which `chunk` is accurate
KERNEL_CHOICES = ("auto", "torch", "fla")


def upcast(x: Tensor) -> Tensor:
    """x in at least single precision."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


def zero_state(k: Tensor, v: Tensor) -> Tensor:
    return upcast(k.new_zeros(k.shape[0], v.shape[2], k.shape[3], v.shape[3]))


def recurrence(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    log_decay: Tensor,
    state: Tensor | PendingUpdates | None = None,
    kernel: str = "auto",
    bonus: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """The recurrence, with the fastest available method. kernel: see `fla_kernel`."""
    state = state.fold() if isinstance(state, PendingUpdates) else state
    kind = "bonus" if bonus is not None else "head" if log_decay.shape[-1] == 1 else "channel"
    fla = fla_kernel(kind, kernel, k)
    if fla is not None:
        return fla(q, k, v, log_decay, *(() if bonus is None else (bonus,)), state=state)
    if not q.shape[1]:
        return v, zero_state(k, v) if state is None else upcast(state)
    if q.shape[1] == 1:
        return recurrent_step(q, k, v, log_decay, zero_state(k, v) if state is None else state, bonus)
    if kind == "channel":
        return chunk(q, k, v, log_decay, state)
    return chunk_exact(q, k, v, log_decay, state, bonus)


# --- Step by step


def naive(
    q: Tensor, k: Tensor, v: Tensor, log_decay: Tensor, state: Tensor | None = None, bonus: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """The recurrence step by step: the specification of the other methods."""
    state, outputs = zero_state(k, v) if state is None else upcast(state), []
    for now in zip(q.split(1, 1), k.split(1, 1), v.split(1, 1), log_decay.split(1, 1)):
        output, state = recurrent_step(now[0], now[1], now[2], now[3], state, bonus)
        outputs.append(output)
    return torch.cat(outputs, 1).to(v.dtype), state


def recurrent_step(
    q: Tensor, k: Tensor, v: Tensor, log_decay: Tensor, state: Tensor, bonus: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """One step, T = 1."""
    q, k, v, decay = upcast(q[:, 0]), upcast(k[:, 0]), upcast(v[:, 0]), upcast(log_decay[:, 0]).exp()
    update = k.unsqueeze(-1) * v.unsqueeze(-2)
    before, state = state, state * decay.unsqueeze(-1) + update
    read = state if bonus is None else before + upcast(bonus).unsqueeze(-1) * update
    return (q.unsqueeze(-2) @ read).transpose(1, 2), state


# --- In chunks: one decay per channel, at least MIN_LOG_DECAY per step. Training spends most of its time here.


def chunk(q: Tensor, k: Tensor, v: Tensor, log_decay: Tensor, state: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """All steps in parallel, in chunks of 64. Accurate for log decays of 0 to -8 per step."""
    return _by_segments(_chunk_segment, (q, k, v, log_decay), state)


def _by_segments(function: Callable, inputs: tuple[Tensor, ...], state: Any) -> tuple[Tensor, Tensor]:
    """Calls `function(*inputs, state)` on up to 64 chunks at a time and joins the outputs."""
    outputs = []
    for parts in zip(*(x.split(CHUNK * SEGMENT, 1) for x in inputs), strict=True):
        output, state = function(*parts, state)
        outputs.append(output)
    return torch.cat(outputs, 1) if len(outputs) > 1 else outputs[0], state


def _chunk_segment(q, k, v, g, state):
    """`chunk` of one segment. Matrix products use the precision of autocast if it is enabled."""
    kind, dtype = q.device.type, torch.promote_types(q.dtype, torch.float32)
    if torch.is_autocast_enabled(kind) and dtype == torch.float32:
        dtype = torch.get_autocast_dtype(kind)
    if torch.is_grad_enabled() and not torch.compiler.is_compiling():
        return ChunkFunction.apply(q, k, v, g, state, dtype)
    return _run_forward(q, k, v, g, state, dtype)[:2]


class ChunkFunction(torch.autograd.Function):
    """`chunk` of a segment, with a backward pass that needs less memory and time than autograd's."""

    @staticmethod
    def forward(context, q, k, v, g, state, dtype):
        context.like = [(x.shape[1], x.dtype) for x in (q, k, v, g)]
        context.dtype, context.state = dtype, None if state is None else state.dtype
        output, final, saved = _run_forward(q, k, v, g, state, dtype)
        context.save_for_backward(*saved)
        return output, final

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(context, d_output, d_final):
        with torch.autocast(d_output.device.type, enabled=False):
            d_output = split_chunks(d_output, CHUNK).to(context.dtype)
            *gradients, d_state = _chunk_backward(*context.saved_tensors, d_output=d_output, d_final=d_final)
        gradients = [_join_chunks(x, *like) for x, like in zip(gradients, context.like)]
        return *gradients, None if context.state is None else d_state.to(context.state), None


def _run_forward(q, k, v, g, state, dtype):
    """Outputs, final state, and all tensors that the backward pass needs."""
    length, result = q.shape[1], v.dtype
    with torch.autocast(q.device.type, enabled=False):
        q, k, v, g = (split_chunks(x, CHUNK) for x in (q, k, v, g))
        v, b = v.to(dtype), running_sum(upcast(g) * math.log2(math.e))
        output, final, saved = _chunk_forward(q, k, v, b, state, dtype)
    return _join_chunks(output, length, result), final, (q, k, v, b, *saved)


def _chunk_forward(q, k, v, b, state, dtype):
    """Outputs and final state of chunks (B, H, N, C, D), and what the backward pass needs besides q, k, v and b.

    b: running sums of the decays in a chunk, as base-2 logarithms.
    """
    last = b[:, :, :, -1:]
    k_end, q_begin = (k * (last - b).exp2()).to(dtype), (q * b.exp2()).to(dtype)
    states, final = scan(last.squeeze(3), k_end.transpose(-1, -2) @ v, state)
    scaled = [
        ((queries * e.exp2()).to(dtype), (keys * f.exp2()).to(dtype))
        for (queries, keys), (e, f) in zip(_pairs(q, k), _exponents(b))
    ]
    scores = _join_pairs([queries @ keys.transpose(-1, -2) for queries, keys in scaled])
    output = torch.baddbmm((scores @ v).flatten(0, 2), q_begin.flatten(0, 2), states.flatten(0, 2))
    return output.view(v.shape), final, (states, scores, q_begin, k_end, *(x for pair in scaled for x in pair))


def _chunk_backward(q, k, v, b, states, scores, q_begin, k_end, *scaled, d_output, d_final):
    """Gradients of q, k, v, log decays and state, from those of the chunked outputs and of the final state."""
    last = b[:, :, :, -1:]
    decay = last.squeeze(3)
    d_updates, d_state = scan(decay, q_begin.transpose(-1, -2) @ d_output, d_final, backwards=True)
    written, read = (k_end @ d_updates).flatten(0, 2), scores.transpose(-1, -2).flatten(0, 2)
    d_v = torch.baddbmm(written, read, d_output.flatten(0, 2))
    d_q = b.exp2() * (d_output @ states.transpose(-1, -2))
    d_k = (last - b).exp2() * (v @ d_updates.transpose(-1, -2))
    d_decay = [(x * y).sum(-1, dtype=b.dtype) for x, y in zip(d_updates.split(8, 2), states.split(8, 2))]
    d_last = (k * d_k).sum(3) + decay.exp2() * torch.cat(d_decay, 2)
    parts = zip(_split_pairs(d_output @ v.transpose(-1, -2)), scaled[::2], scaled[1::2])
    for (part, queries, keys), (e, f), (to_q, to_k) in zip(parts, _exponents(b), _pairs(d_q, d_k)):
        to_q.addcmul_(e.exp2(), part @ keys)
        to_k.addcmul_(f.exp2(), part.transpose(-1, -2) @ queries)
    d_b = q * d_q - k * d_k
    d_b[..., -1, :] += d_last
    return d_q, d_k, d_v.view(v.shape), running_sum(d_b, backwards=True), d_state


def split_chunks(x: Tensor, size: int) -> Tensor:
    """(B, T, H, D) -> (B, H, N, size, D), contiguous, padded with zeros at the end."""
    return F.pad(x.transpose(1, 2), (0, 0, 0, -x.shape[1] % size)).unflatten(2, (-1, size)).contiguous()


def _join_chunks(x: Tensor, length: int, dtype: torch.dtype) -> Tensor:
    """(B, H, N, C, D) -> (B, T, H, D)."""
    return x.flatten(2, 3)[:, :, :length].transpose(1, 2).to(dtype)


def _in_place(x: Tensor) -> bool:
    """Whether to compute sums over steps sequentially and in place, which is fastest on a CPU without autograd."""
    return x.device.type == "cpu" and not torch.is_grad_enabled() and not torch.compiler.is_compiling()


def running_sum(x: Tensor, backwards: bool = False) -> Tensor:
    """Running sums over the steps of chunks (B, H, N, C, D), from the first or from the last; may overwrite x."""
    if not _in_place(x):
        return x.flip(3).cumsum(3).flip(3) if backwards else x.cumsum(3)
    rows, sign = x.unflatten(3, (-1, 8)), -1 if backwards else 1
    for step in range(1, 8):
        rows[..., sign * step + (sign - 1) // 2, :] += rows[..., sign * (step - 1) + (sign - 1) // 2, :]
    edge = 0 if backwards else -1
    for row in range(1, rows.shape[3]):
        here, before = (sign * n + (sign - 1) // 2 for n in (row, row - 1))
        rows[..., here, :, :] += rows[..., before, edge, None, :]
    return x


def scan(decay: Tensor, updates: Tensor, state: Tensor | None, backwards: bool = False) -> tuple[Tensor, Tensor]:
    """The states before each chunk (B, H, N, K, V), in the precision of the updates, and the last state in fp32.

    decay (B, H, N, K): base-2 logarithms; updates (B, H, N, K, V). `backwards`: from the last chunk to the first. The
    parallel form uses that state n is the sum over earlier chunks m of exp2(decay of chunks m + 1 .. n - 1) times
    update m.
    """
    if _in_place(decay):
        now = torch.zeros_like(updates[:, :, 0], dtype=decay.dtype) if state is None else upcast(state).clone()
        states, decay = torch.empty_like(updates), decay.exp2()[..., None]
        order = range(updates.shape[2])
        for n in reversed(order) if backwards else order:
            states[:, :, n] = now
            now.mul_(decay[:, :, n]).add_(updates[:, :, n])
        return states, now
    if backwards:
        states, final = scan(decay.flip(2), updates.flip(2), state)
        return states.flip(2), final
    total = F.pad(decay.cumsum(2), (0, 0, 1, 0)).transpose(2, 3)  # (B, H, K, N + 1)
    exponent = total[..., :, None] - total[..., None, 1:]
    past = torch.ones(exponent.shape[-2:], dtype=torch.bool, device=decay.device).tril(-1)
    weights = exponent.masked_fill(~past, -torch.inf).exp2().to(updates.dtype)
    states = (weights @ updates.transpose(2, 3)).transpose(2, 3)
    if state is not None:
        states = states + total.exp2().transpose(2, 3)[..., None] * upcast(state)[:, :, None]
    return states[:, :, :-1].to(updates.dtype), upcast(states[:, :, -1])


def _pairs(q: Tensor, k: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    """Views that cover all pairs of steps in a chunk (B, H, N, C, D): blocks, then second halves with first halves."""
    yield q.unflatten(3, (-1, BLOCK)), k.unflatten(3, (-1, BLOCK))
    for size in HALVES:
        yield q.unflatten(3, (-1, 2, size))[..., 1, :, :], k.unflatten(3, (-1, 2, size))[..., 0, :, :]


def _exponents(b: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    """Exponents of 2 that scale the queries and keys of `_pairs`, relative to a step between them."""
    for n, (later, earlier) in enumerate(_pairs(b, b)):
        point = later[..., BLOCK // 2 - 1 : BLOCK // 2, :] if n == 0 else earlier[..., -1:, :]
        yield later - point, point - earlier


def _join_halves(first: Tensor, across: Tensor, second: Tensor) -> Tensor:
    """A lower triangular matrix of two triangular ones and the square between them."""
    upper = torch.cat((first, torch.zeros_like(first)), -1)
    return torch.cat((upper, torch.cat((across, second), -1)), -2)


def _join_pairs(scores: list[Tensor]) -> Tensor:
    """The scores of `_pairs` -> (B, H, N, C, C), zero above the diagonal."""
    joined, *others = scores
    joined = joined.tril()
    for across in others:
        first, second = joined.unflatten(3, (-1, 2)).unbind(4)
        joined = _join_halves(first, across, second)
    return joined.squeeze(3)


def _split_pairs(joined: Tensor) -> list[Tensor]:
    """The inverse of `_join_pairs`."""
    parts, joined = [], joined.unsqueeze(3)
    for size in reversed(HALVES):
        parts.append(joined[..., size:, :size])
        joined = torch.stack((joined[..., :size, :size], joined[..., size:, size:]), 4).flatten(3, 4)
    return [joined.tril(), *reversed(parts)]


# --- In chunks: decays of any strength, a bonus, one decay per head


def chunk_exact(
    q: Tensor, k: Tensor, v: Tensor, log_decay: Tensor, state: Tensor | None = None, bonus: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """All steps in parallel, for decays of any strength, including mixtures of strong and weak ones.

    No exponent is positive or the difference of two long sums, so nothing overflows or cancels.
    """

    def segment(q, k, v, g, state):
        dtype, length = v.dtype, q.shape[1]
        q, k, v, g = (upcast(split_chunks(x, chunk_size(length))) for x in (q, k, v, g))
        by_head = g.shape[-1] == 1 and bonus is None
        scores, before, after, total = _head_scores(q, k, g) if by_head else _channel_scores(q, k, g, bonus)
        states = _exact_scan(total, (k * after.exp()).transpose(-1, -2) @ v, state)
        output = (q * before.exp()) @ states[:, :, :-1] + scores @ v
        return _join_chunks(output, length, dtype), upcast(states[:, :, -1])

    return _by_segments(segment, (q, k, v, log_decay), state)


def chunk_size(length: int) -> int:
    """The number of steps in a chunk, a power of 2: 64, or less for a shorter sequence."""
    return min(CHUNK, 1 << (length - 1).bit_length())


def decay_sums(g: Tensor) -> Tensor:
    """Sums of log decays between two steps: (..., C) -> (..., C, C) with g_{j+1} + ... + g_i, -inf for j > i."""
    later = torch.ones(g.shape[-1], g.shape[-1], dtype=torch.bool, device=g.device).tril(-1)
    sums = torch.where(later, g[..., None], 0).cumsum(-2)
    return sums.masked_fill(later.T, -torch.inf)


def _head_scores(q, k, g):
    """As `_channel_scores` for one decay per head, (B, H, N, C, 1)."""
    sums = decay_sums(g.squeeze(-1))
    before = g.cumsum(-2)
    return (q @ k.transpose(-1, -2)) * sums.exp(), before, sums[..., -1, :, None], before[..., -1:, :]


def _channel_scores(q, k, g, bonus):
    """Weights (B, H, N, C, C) of the values of a chunk in its outputs, by joining halves of 1, 2, 4 ... steps.

    Also returns log decays per channel: from the start of the chunk to the read of each step, from the write of each
    step to the end of the chunk, and of the whole chunk.
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
        scores = _join_halves(first, (q2 * before2.exp()) @ (k1 * after1.exp()).transpose(-1, -2), second)
        before = torch.stack((before1, before2 + total1), 4).flatten(3, 5)
        after = torch.stack((after1 + total2, after2), 4).flatten(3, 5)
        total = (total1 + total2).flatten(3, 4)
        size *= 2
    return scores.squeeze(3), before, after, total


def _exact_scan(total, updates, state):
    """States before each chunk and after the last (B, H, N + 1, K, V).

    total: log decays (B, H, N, 1, K or 1) of chunks; updates (B, H, N, K, V): see `scan`.
    """
    total = total.squeeze(3).transpose(2, 3)  # (B, H, K, N)
    weights = decay_sums(total).exp()
    states = (weights @ updates.transpose(2, 3).to(weights.dtype)).transpose(2, 3)
    if state is None:
        return F.pad(states, (0, 0, 0, 0, 1, 0))
    state = upcast(state)[:, :, None]
    return torch.cat((state, states + total.cumsum(-1).exp().transpose(2, 3)[..., None] * state), 2)


# --- flash-linear-attention's Triton kernels


class Kernel(NamedTuple):
    """path: module and function in fla.ops. names: its names for our arguments, in our order."""

    path: str
    names: str
    by_head: bool = False  # decays (B, T, H) instead of (B, T, H, K); miscompiled on Hopper by some versions of triton
    max_keys: int | None = None  # channels of a head
    half: dict[str, Any] = {}  # settings for half precision


# By kind of recurrence: `recurrence` uses the first three, `delta_rule` and `gated_delta_rule` the others.
KERNELS = {
    "channel": Kernel("gla.chunk_gla", "q k v g"),
    "bonus": Kernel("rwkv6.chunk_rwkv6", "r k v w u"),
    "head": Kernel("simple_gla.chunk_simple_gla", "q k v g", by_head=True),
    "delta": Kernel(  # its fast method always solves in half precision
        "rwkv7.chunk_rwkv7", "r k v a b w", max_keys=256, half={"safe_gate": True, "chunk_size": 64}
    ),
    "gated_delta": Kernel("gated_delta_rule.chunk_gated_delta_rule", "q k v g beta", by_head=True, max_keys=256),
}


@functools.cache
def _load(path: str) -> Any:
    """The function of fla.ops, or None where it cannot be imported."""
    module, name = path.rsplit(".", 1)
    try:
        return getattr(importlib.import_module(f"fla.ops.{module}"), name)
    except Exception:  # without triton, the submodules of fla raise various errors
        return None


@functools.cache
@torch.compiler.assume_constant_result
def installed(path: str) -> bool:
    return _load(path) is not None


@functools.cache
@torch.compiler.assume_constant_result
def miscompiled() -> bool:
    """Whether triton miscompiles the backward pass of kernels with one decay per head; fla then refuses to run them."""
    utils = importlib.import_module("fla.utils")
    return utils.IS_NVIDIA_HOPPER and utils.TRITON_ABOVE_3_4_0 and not utils.TRITON_ABOVE_3_7_1


def fla_kernel(kind: str | None, choice: str, k: Tensor) -> Callable | None:
    """The function that computes a kind of recurrence with flash-linear-attention; None: use plain PyTorch.

    Args:
        kind: a key of KERNELS; None: a recurrence without a kernel.
        choice: "torch"; "fla"; or "auto": fla for several steps on a GPU, where it is installed and correct, and not
            while the model is exported.
        k: the keys.

    Returns:
        A function that takes the recurrence's tensors in their order, and `state`, and returns outputs and final state.

    Raises:
        ValueError for an unknown choice, and for "fla" if that is impossible.
    """
    if choice not in KERNEL_CHOICES:
        raise ValueError(f"mixer_kernel={choice!r}: expected one of {', '.join(map(repr, KERNEL_CHOICES))}.")
    suits = k.is_cuda and k.shape[1] > 1 and k.dtype != torch.float64 and not torch.compiler.is_exporting()
    if choice == "torch" or (choice == "auto" and not suits):
        return None
    kernel = KERNELS.get(kind) if kind else None
    if kernel is None:
        problem = "flash-linear-attention has no kernel for this mixer"
    elif kernel.max_keys and k.shape[-1] > kernel.max_keys:
        problem = f"its heads have {k.shape[-1]} channels, the kernel takes {kernel.max_keys} (see mixer_heads)"
    elif not installed(kernel.path):
        problem = "it needs flash-linear-attention and triton (the extra fla of this package)"
    elif k.device.type == "cpu" and os.environ.get("TRITON_INTERPRET") != "1":
        problem = "its kernels run on a GPU, and the input is on the CPU"
    else:
        return None if choice == "auto" and kernel.by_head and miscompiled() else functools.partial(_run_fla, kernel)
    if choice == "fla":
        raise ValueError(f"mixer_kernel='fla' cannot be used: {problem}. Choose 'auto' or 'torch'.")
    return None


@torch.compiler.disable  # the kernels are disabled as well
def _run_fla(kernel: Kernel, q: Tensor, k: Tensor, v: Tensor, *others: Tensor, state: Tensor | None = None):
    """Calls the kernel with tensors in one precision, the lowest of q, k and v; decays and bonus keep their own."""
    dtype = min(q.dtype, k.dtype, v.dtype, key=lambda dtype: dtype.itemsize)
    heads = v.shape[:3]
    arguments = dict(zip(kernel.names.split(), (q.expand(*heads, -1), k.expand(*heads, -1), v, *others), strict=True))
    for name, x in arguments.items():
        if name in ("g", "w"):
            arguments[name] = x.squeeze(-1) if kernel.by_head else x.expand(*heads, k.shape[-1])
        elif name == "beta":
            arguments[name] = x.squeeze(-1)
        elif name != "u":
            arguments[name] = x.to(dtype)
    settings = kernel.half if dtype.itemsize < 4 else {}
    out, state = _load(kernel.path)(**arguments, scale=1.0, initial_state=state, output_final_state=True, **settings)
    return out.to(v.dtype), state
