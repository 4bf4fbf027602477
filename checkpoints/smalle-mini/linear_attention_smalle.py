"""flash-linear-attention's Triton kernels: which recurrence has one, and when it runs.

Same parameters, other kernels: every kernel takes and returns what the recurrence's plain PyTorch does. Mamba's scan,
with a decay for each state of each channel, has no kernel there.
"""

import functools
import importlib
import math
import os
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F

from .cache_smalle import PendingUpdates

# --- kernels: flash-linear-attention's Triton kernels: which recurrence has one, and when it runs.


CHOICES = ("auto", "torch", "fla")


class Kernel(NamedTuple):
    """path: module and function below fla.ops. names: what it calls our arguments, in our order."""

    path: str
    names: str
    by_head: bool = False  # decays (B, T, H) instead of (B, T, H, K); wrong on Hopper with some versions of triton
    widest: int | None = None  # keys that it can hold
    half: dict[str, Any] = {}  # settings for half precision


# By what the recurrence is: `recurrence` has the first three, `delta_rule` and `gated_delta_rule` the others.
KERNELS = {
    "channel": Kernel("gla.chunk_gla", "q k v g"),
    "bonus": Kernel("rwkv6.chunk_rwkv6", "r k v w u"),
    "head": Kernel("simple_gla.chunk_simple_gla", "q k v g", by_head=True),
    "delta": Kernel(  # its fast way solves in half precision, whatever the input
        "rwkv7.chunk_rwkv7", "r k v a b w", widest=256, half={"safe_gate": True, "chunk_size": 64}
    ),
    "gated_delta": Kernel("gated_delta_rule.chunk_gated_delta_rule", "q k v g beta", by_head=True, widest=256),
}


@functools.cache
def load(path):
    """The function of fla.ops, or None where it cannot be had."""
    module, name = path.rsplit(".", 1)
    try:
        return getattr(importlib.import_module(f"fla.ops.{module}"), name)
    except Exception:  # without triton the submodules of fla raise all kinds of errors
        return None


@functools.cache
@torch.compiler.assume_constant_result
def installed(path):
    return load(path) is not None


@functools.cache
@torch.compiler.assume_constant_result
def miscompiled():
    """Whether triton makes a wrong backward pass of the kernels with decays by head, which fla then refuses."""
    utils = importlib.import_module("fla.utils")
    return utils.IS_NVIDIA_HOPPER and utils.TRITON_ABOVE_3_4_0 and not utils.TRITON_ABOVE_3_7_1


def fla_kernel(kind, choice, k):
    """The function that computes a kind of recurrence by flash-linear-attention, or None for plain PyTorch.

    kind: a key of KERNELS, or None for one without a kernel. choice: "torch"; "auto", fla where it is installed and
    sound, for several steps on a GPU, unless they are being exported; or "fla", and a ValueError where that cannot be.
    k (B, T, H, K): the keys.
    The function takes the recurrence's tensors in their order and `state`; it returns outputs and the final state.
    """
    if choice not in CHOICES:
        raise ValueError(f"mixer_kernel={choice!r}: expected one of {', '.join(map(repr, CHOICES))}.")
    suits = k.is_cuda and k.shape[1] > 1 and k.dtype != torch.float64 and not torch.compiler.is_exporting()
    if choice == "torch" or (choice == "auto" and not suits):
        return None
    kernel = KERNELS.get(kind)
    problem = None
    if kernel is None:
        problem = "flash-linear-attention has no kernel of this mixer"
    elif kernel.widest and k.shape[-1] > kernel.widest:
        problem = f"its keys of {k.shape[-1]} channels a head are too wide (at most {kernel.widest}; see mixer_heads)"
    elif not installed(kernel.path):
        problem = "it needs flash-linear-attention and triton (the extra fla of this package)"
    elif k.device.type == "cpu" and os.environ.get("TRITON_INTERPRET") != "1":
        problem = "its kernels run on a GPU, and the input is on the CPU"
    if choice == "fla" and problem:
        raise ValueError(f"mixer_kernel='fla' cannot be: {problem}. Choose 'auto' or 'torch'.")
    if problem or (choice == "auto" and kernel.by_head and miscompiled()):
        return None
    return functools.partial(_run, kernel)


@torch.compiler.disable  # as the kernels are
def _run(kernel, q, k, v, *others, state=None):
    """Calls the kernel on tensors of one precision, the lowest of q, k and v; decays and bonus keep theirs."""
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
    out, state = load(kernel.path)(**arguments, scale=1.0, initial_state=state, output_final_state=True, **settings)
    return out.to(v.dtype), state


# --- gated chunks: Chunks of a recurrence with decays by channel, forward and backward: what training spends its time on.


CHUNK, BLOCK, HALVES = 64, 16, (16, 32)


def wide(x):
    """At least fp32: the precision of states and decays."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


def product_dtype(x):
    """The precision of matrix products with x."""
    kind, dtype = x.device.type, torch.promote_types(x.dtype, torch.float32)
    return torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) and dtype == torch.float32 else dtype


def into_chunks(x, size):
    """(B, T, H, D) -> (B, H, N, size, D), contiguous, filled up with zeros at the end."""
    return F.pad(x.transpose(1, 2), (0, 0, 0, -x.shape[1] % size)).unflatten(2, (-1, size)).contiguous()


def out_of_chunks(x, length, dtype):
    """(B, H, N, C, D) -> (B, T, H, D)."""
    return x.flatten(2, 3)[:, :, :length].transpose(1, 2).to(dtype)


def in_place(x):
    """Whether sums over steps may run one after the other, in place: fastest on a CPU, where no graph is recorded."""
    return x.device.type == "cpu" and not torch.is_grad_enabled() and not torch.compiler.is_compiling()


def running_sum(x, backwards=False):
    """Sums along the steps of chunks (B, H, N, C, D), from the first or from the last; x may be overwritten."""
    if not in_place(x):
        return x.flip(3).cumsum(3).flip(3) if backwards else x.cumsum(3)
    rows, sign = x.unflatten(3, (-1, 8)), -1 if backwards else 1
    for step in range(1, 8):
        rows[..., sign * step + (sign - 1) // 2, :] += rows[..., sign * (step - 1) + (sign - 1) // 2, :]
    edge = 0 if backwards else -1
    for row in range(1, rows.shape[3]):
        here, before = (sign * n + (sign - 1) // 2 for n in (row, row - 1))
        rows[..., here, :, :] += rows[..., before, edge, None, :]
    return x


def scan(decay, updates, state, backwards=False):
    """States before each chunk (B, H, N, K, V), as precise as the updates, and the state after the last, in fp32.

    Of log decays (B, H, N, K) and updates (B, H, N, K, V), from the first chunk to the last or backwards. One after the
    other, or all at once: state n is the sum over earlier chunks m of exp2(decay of chunks m + 1 .. n - 1) times
    update m.
    """
    if in_place(decay):
        now = torch.zeros_like(updates[:, :, 0], dtype=decay.dtype) if state is None else wide(state).clone()
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
        states = states + total.exp2().transpose(2, 3)[..., None] * wide(state)[:, :, None]
    return states[:, :, :-1].to(updates.dtype), wide(states[:, :, -1])


def pairs(q, k):
    """Views of all pairs of steps in a chunk, (queries, keys) of (B, H, N, C, D): blocks of 16, then halves of each
    32, then of 64."""
    yield q.unflatten(3, (-1, BLOCK)), k.unflatten(3, (-1, BLOCK))
    for size in HALVES:
        yield q.unflatten(3, (-1, 2, size))[..., 1, :, :], k.unflatten(3, (-1, 2, size))[..., 0, :, :]


def exponents(b):
    """What queries and keys of those pairs are multiplied with: powers of 2 relative to a point between them."""
    for n, (later, earlier) in enumerate(pairs(b, b)):
        point = later[..., BLOCK // 2 - 1 : BLOCK // 2, :] if n == 0 else earlier[..., -1:, :]
        yield later - point, point - earlier


def join(scores):
    """Scores of those pairs -> (B, H, N, C, C), zero above the diagonal."""
    joined, *others = scores
    joined = joined.tril()
    for across in others:
        first, second = joined.unflatten(3, (-1, 2)).unbind(4)
        upper = torch.cat((first, torch.zeros_like(first)), -1)
        joined = torch.cat((upper, torch.cat((across, second), -1)), -2)
    return joined.squeeze(3)


def split(joined):
    """The inverse of `join`."""
    parts, joined = [], joined.unsqueeze(3)
    for size in reversed(HALVES):
        parts.append(joined[..., size:, :size])
        joined = torch.stack((joined[..., :size, :size], joined[..., size:, size:]), 4).flatten(3, 4)
    return [joined.tril(), *reversed(parts)]


def forward(q, k, v, b, state, dtype):
    """Of chunks (B, H, N, C, D): outputs, final state, and what the backward pass needs beside q, k, v and b."""
    last = b[:, :, :, -1:]
    k_end, q_begin = (k * (last - b).exp2()).to(dtype), (q * b.exp2()).to(dtype)
    states, final = scan(last.squeeze(3), k_end.transpose(-1, -2) @ v, state)
    scaled = [
        ((queries * e).to(dtype), (keys * f).to(dtype))
        for (queries, keys), (e, f) in zip(pairs(q, k), ((e.exp2(), f.exp2()) for e, f in exponents(b)))
    ]
    scores = join([queries @ keys.transpose(-1, -2) for queries, keys in scaled])
    output = torch.baddbmm((scores @ v).flatten(0, 2), q_begin.flatten(0, 2), states.flatten(0, 2))
    return output.view(v.shape), final, (states, scores, q_begin, k_end, *(x for pair in scaled for x in pair))


def backward(q, k, v, b, states, scores, q_begin, k_end, *scaled, d_output, d_final, dtype):
    """Gradients of q, k, v, log decays and state, from those of the outputs (in chunks) and of the final state."""
    last = b[:, :, :, -1:]
    decay = last.squeeze(3)
    d_updates, d_state = scan(decay, q_begin.transpose(-1, -2) @ d_output, d_final, backwards=True)
    d_v = torch.baddbmm(
        (k_end @ d_updates).flatten(0, 2), scores.transpose(-1, -2).flatten(0, 2), d_output.flatten(0, 2)
    )
    d_q = b.exp2() * (d_output @ states.transpose(-1, -2))
    d_k = (last - b).exp2() * (v @ d_updates.transpose(-1, -2))
    d_decay = [(x * y).sum(-1, dtype=b.dtype) for x, y in zip(d_updates.split(8, 2), states.split(8, 2))]
    d_last = (k * d_k).sum(3) + decay.exp2() * torch.cat(d_decay, 2)
    d_scores = split(d_output @ v.transpose(-1, -2))
    for part, queries, keys, (e, f), (to_q, to_k) in zip(
        d_scores, scaled[::2], scaled[1::2], exponents(b), pairs(d_q, d_k)
    ):
        to_q.addcmul_(e.exp2(), part @ keys)
        to_k.addcmul_(f.exp2(), part.transpose(-1, -2) @ queries)
    d_b = q * d_q - k * d_k
    d_b[..., -1, :] += d_last
    return d_q, d_k, d_v.view(v.shape), running_sum(d_b, backwards=True), d_state


class GatedChunks(torch.autograd.Function):
    """`gated_chunks` with that backward pass."""

    @staticmethod
    def forward(context, q, k, v, g, state, dtype):
        context.like = [(x.shape[1], x.dtype) for x in (q, k, v, g)]
        context.dtype, context.state = dtype, None if state is None else state.dtype
        output, final, saved = chunks_forward(q, k, v, g, state, dtype)
        context.save_for_backward(*saved)
        return output, final

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(context, d_output, d_final):
        with torch.autocast(d_output.device.type, enabled=False):
            d_output = into_chunks(d_output, CHUNK).to(context.dtype)
            *gradients, d_state = backward(
                *context.saved_tensors, d_output=d_output, d_final=d_final, dtype=context.dtype
            )
        gradients = [out_of_chunks(x, *like) for x, like in zip(gradients, context.like)]
        return *gradients, None if context.state is None else d_state.to(context.state), None


def chunks_forward(q, k, v, g, state, dtype):
    """Outputs (B, T, H, V), final state, and all that the backward pass needs."""
    length, result = q.shape[1], v.dtype
    with torch.autocast(q.device.type, enabled=False):
        q, k, v, g = (into_chunks(x, CHUNK) for x in (q, k, v, g))
        v, b = v.to(dtype), running_sum(wide(g) * math.log2(math.e))
        output, final, saved = forward(q, k, v, b, state, dtype)
    return out_of_chunks(output, length, result), final, (q, k, v, b, *saved)


def gated_chunks(q, k, v, g, state):
    """q, k, g (B, T, H, K), v (B, T, H, V), state (B, H, K, V) or None -> outputs (B, T, H, V), state in fp32."""
    dtype = product_dtype(q)
    if torch.is_grad_enabled() and not torch.compiler.is_compiling():
        return GatedChunks.apply(q, k, v, g, state, dtype)
    return chunks_forward(q, k, v, g, state, dtype)[:2]


# --- recurrence: Decayed linear recurrences: S_t = diag(exp(g_t)) S_{t-1} + k_t v_t^T,  o_t = S_t^T q_t.


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

    state: may be a `PendingUpdates`, too; kernel: "auto", "torch" or "fla", see `fla_kernel`.
    """
    state = state.fold() if isinstance(state, PendingUpdates) else state
    kind = "bonus" if bonus is not None else "head" if log_decay.shape[-1] == 1 else "channel"
    fla = fla_kernel(kind, kernel, k)
    if fla is not None:
        return fla(q, k, v, log_decay, *(() if bonus is None else (bonus,)), state=state)
    if q.shape[1] == 1:
        return step(q, k, v, log_decay, zero_state(k, v) if state is None else state, bonus)
    if kind == "channel":
        return chunked(q, k, v, log_decay, state)
    return exact(q, k, v, log_decay, state, bonus)
