"""GLA's recurrence as functions of ONNX: one step in as few operations as can be, or several at once.

They run what `linear_attention_smalle.recurrent_step`, `chunk` and `PendingUpdates.step` compute, of q, k, log decays (B, T, H K), v
(B, T, H V) and what these have of a state; `row`, `column` and `many` are shapes that part heads: of one step
(B, H, 1, K) or (B, H, K, 1), of several (B, T, H, K). `single` says whether T is 1: an `If` keeps the operations of one
way out of the other. Several steps, at most 16 (`CHUNK` of `decoding_smalle`), are read as the chunks of
`linear_attention_smalle` are: exponents are taken relative to the middle step, so that no factor that is needed overflows;
what overflows lies above the diagonal, and is dropped.
"""

import torch

from ..cache_smalle import MAX_PENDING, PendingUpdates
from ..linear_attention_smalle import recurrent_step

DOMAIN = "smalle"
NAMES = dict(q="queries", k="keys", v="values", g="log_decays")
BY_HEAD = "    heads = Constant <value_ints: ints = @many> ()" + "".join(
    f"""
    {name}_heads = Reshape ({source}, heads)
    {name} = Transpose <perm = [0, 2, 1, 3]> ({name}_heads)"""
    for name, source in NAMES.items()
)
CHUNK = f"""{BY_HEAD}
    two = Constant <value_ints = [2]> ()
    end = Constant <value_ints = [-1]> ()
    axis = Constant <value_int = 2> ()
    b = CumSum (g, axis)
    steps = Shape <start = 2, end = 3> (g)
    half = Div (steps, two)
    middle = Gather <axis = 2> (b, half)
    last = Gather <axis = 2> (b, end)
    later = Sub (b, middle)
    earlier = Neg (later)
    rest = Sub (last, b)
    grown = Exp (later)
    shrunk = Exp (earlier)
    left = Exp (rest)
    now = Exp (b)
    whole = Exp (last)
    q_scaled = Mul (q, grown)
    k_scaled = Mul (k, shrunk)
    k_turned = Transpose <perm = [0, 1, 3, 2]> (k_scaled)
    pairs = MatMul (q_scaled, k_turned)
    scores = Trilu <upper = 0> (pairs)
    inside = MatMul (scores, v)
    written = Mul (k, left)
"""
PLAIN = f"""
Recurrence <row, column, many> (single, queries, keys, values, log_decays, state) => (out, state_after) {{
  by_head, state_after = If (single) <
    then_branch = one () => (float[B, H, T, V] out_one, float[B, H, K, V] state_one) {{
    row = Constant <value_ints: ints = @row> ()
    column = Constant <value_ints: ints = @column> ()
    q = Reshape (queries, row)
    k = Reshape (keys, column)
    v = Reshape (values, row)
    g = Reshape (log_decays, column)
    decay = Exp (g)
    kept = Mul (state, decay)
    new = Mul (k, v)
    state_one = Add (kept, new)
    out_one = MatMul (q, state_one)
    }}, else_branch = chunk () => (float[B, H, T, V] out_chunk, float[B, H, K, V] state_chunk) {{{CHUNK}
    q_now = Mul (q, now)
    before = MatMul (q_now, state)
    out_chunk = Add (before, inside)
    decay = Transpose <perm = [0, 1, 3, 2]> (whole)
    kept = Mul (state, decay)
    written_turned = Transpose <perm = [0, 1, 3, 2]> (written)
    new = MatMul (written_turned, v)
    state_chunk = Add (kept, new)
    }}
  >
  out = Transpose <perm = [0, 2, 1, 3]> (by_head)
}}
"""
BESIDE = f"""
RecentRecurrence <row, column, many> (
  single, queries, keys, values, log_decays, state, decay, recent_keys, recent_values
) => (out, decay_after, keys_after, values_after) {{
  by_head, decay_after, keys_after, values_after = If (single) <
    then_branch = one () => (
      float[B, H, T, V] out_one, float[B, H, T, K] decay_one, float[B, H, R, K] keys_one, float[B, H, R, V] values_one
    ) {{
    row = Constant <value_ints: ints = @row> ()
    q = Reshape (queries, row)
    k = Reshape (keys, row)
    v = Reshape (values, row)
    g = Reshape (log_decays, row)
    second = Constant <value_ints = [1]> ()
    end = Constant <value_ints = [{MAX_PENDING}]> ()
    axis = Constant <value_ints = [2]> ()
    now = Exp (g)
    decay_one = Mul (decay, now)
    older_keys = Slice (recent_keys, second, end, axis)
    decayed_keys = Mul (older_keys, now)
    keys_one = Concat <axis = 2> (decayed_keys, k)
    older_values = Slice (recent_values, second, end, axis)
    values_one = Concat <axis = 2> (older_values, v)
    q_now = Mul (q, decay_one)
    before = MatMul (q_now, state)
    keys_turned = Transpose <perm = [0, 1, 3, 2]> (keys_one)
    scores = MatMul (q, keys_turned)
    beside = MatMul (scores, values_one)
    out_one = Add (before, beside)
    }}, else_branch = chunk () => (
      float[B, H, T, V] out_chunk, float[B, H, U, K] decay_chunk, float[B, H, R, K] keys_chunk,
      float[B, H, R, V] values_chunk
    ) {{{CHUNK}
    decays = Mul (decay, now)
    decay_chunk = Gather <axis = 2> (decays, end)
    q_decayed = Mul (q, decays)
    before = MatMul (q_decayed, state)
    q_now = Mul (q, now)
    keys_turned = Transpose <perm = [0, 1, 3, 2]> (recent_keys)
    recent_scores = MatMul (q_now, keys_turned)
    beside = MatMul (recent_scores, recent_values)
    both = Add (before, beside)
    out_chunk = Add (both, inside)
    far = Constant <value_ints = [{2 * MAX_PENDING}]> ()
    axes = Constant <value_ints = [2]> ()
    decayed_keys = Mul (recent_keys, whole)
    all_keys = Concat <axis = 2> (decayed_keys, written)
    keys_chunk = Slice (all_keys, steps, far, axes)
    all_values = Concat <axis = 2> (recent_values, v)
    values_chunk = Slice (all_values, steps, far, axes)
    }}
  >
  out = Transpose <perm = [0, 2, 1, 3]> (by_head)
}}
"""


def functions(opset):
    """The functions as a model's file holds them."""
    import onnx.parser

    header = f'<opset_import: ["": {opset}], domain: "{DOMAIN}">'
    return [onnx.parser.parse_function(header + text) for text in (PLAIN, BESIDE)]


class Recurrence(torch.autograd.Function):
    """For the exporter: one step, which it writes down as one of these functions."""

    @staticmethod
    def forward(context, single, q, k, v, log_decay, state, *beside):
        if not beside:
            return recurrent_step(q, k, v, log_decay, state)
        out, after = PendingUpdates(state, *beside).step(q, k, v, log_decay)
        return out, *after[1:]

    @staticmethod
    def symbolic(graph, single, q, k, v, log_decay, state, *beside):
        flat = (x.node().inputsAt(0) for x in (q, k, v, log_decay))  # before heads were parted
        inputs, name = (single, *flat, state, *beside), "RecentRecurrence" if beside else "Recurrence"
        heads = q.type().varyingSizes()[2]
        shapes = dict(row_i=[0, heads, 1, -1], column_i=[0, heads, -1, 1], many_i=[0, 0, heads, -1])
        outputs = graph.op(f"{DOMAIN}::{name}", *inputs, **shapes, outputs=4 if beside else 2)
        for x, like in zip(outputs, (v, *(beside or (state,)))):
            x.setType(like.type())
        return outputs


def recurrence(single, q, k, v, log_decay, state, kernel):
    """That of `linear_attention_smalle` for the exporter; single (): whether there is one step."""
    if isinstance(state, PendingUpdates):
        out, *after = Recurrence.apply(single, q, k, v, log_decay, *state)
        return out, PendingUpdates(state.state, *after)
    return Recurrence.apply(single, q, k, v, log_decay, state)
