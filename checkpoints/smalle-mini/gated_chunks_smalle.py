"""Chunks of a recurrence with decays by channel, forward and backward: what training spends its time on.

Names as in the paper on GLA (Yang et al. 2023, arXiv 2312.06635): b is the running sum of log decays inside a chunk,
here to the base 2, whose powers are the quicker ones. Every exponent is taken relative to a point between query and
key, so that no factor can overflow: the boundary between the two halves that they stand in, or the middle of the block
of 16 that they share. Products of matrices run in the precision of autocast, all else in fp32 at least.

The backward pass is written out. Autograd would pass through each factor exp2(b) by itself; the gradient of b is
q dq - k dk, and what a chunk passes on to the next.
"""

import math

import torch
import torch.nn.functional as F

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
            *gradients, d_state = backward(*context.saved_tensors, d_output=d_output, d_final=d_final,
                                           dtype=context.dtype)  # fmt: skip
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
