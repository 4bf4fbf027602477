"""Decode steps from a state, behind one call: here by the model itself, in `onnx_runtime_smalle` and `native_runtime_smalle` by what
was exported of it. And what these make of a model's state."""

import math
from dataclasses import replace

import torch

from .cache_smalle import MAX_PENDING, PendingUpdates

LARGE = 2**16  # values of a block's state from which on steps stand beside it: smaller ones stay in a cache
CHUNK = MAX_PENDING  # steps of a prompt that are read at once: what stands beside a state, and what exponents bear
TEXT = "text_keys", "text_values", "positions", "text_mask"  # what steps leave as it is


def text_tensors(state):
    """Tensors of a `SmallEState` that steps leave as they are, by name."""
    return {name: getattr(state, name) for name in TEXT if getattr(state, name) is not None}


def moving_tensors(state):
    """Tensors of a `SmallEState` that steps change."""
    tensors = []
    replace(state, **dict.fromkeys(TEXT)).map(tensors.append)
    return tensors


def moved(state, tensors):
    """The state with these in place of its `moving_tensors`."""
    tensors = iter(tensors)
    after = replace(state, **dict.fromkeys(TEXT)).map(lambda _: next(tensors))
    return replace(after, **text_tensors(state))


def keeps_pending(config):
    """Whether the exported step of a model has steps stand beside its recurrent states, as `PendingUpdates`."""
    sizes = config.hidden_size * config.expand_k, config.hidden_size * config.expand_v
    return config.mixer == "gla" and math.prod(sizes) / config.mixer_heads >= LARGE


def begins_at_zero(config):
    """Whether the states of a model that has read nothing are known: zeros, one tensor for each block."""
    position_layers = config.position_layers if config.cross_attention == "paca" else 1
    return config.mixer == "gla" and config.feed_forward != "rwkv" and position_layers == 1


def zero_states(config, rows):
    """Recurrent states of rows that have read nothing, where a model `begins_at_zero`: views of one zero."""

    def zeros(size, heads):
        widths = int(size * config.expand_k) // heads, int(size * config.expand_v) // heads
        return torch.zeros(()).expand(rows, heads, *widths)

    before, after = (
        [zeros(config.hidden_size, config.mixer_heads) for _ in range(layers)]
        for layers in (config.audio_encoder_layers, config.audio_decoder_layers)
    )
    inside = zeros(config.position_size, config.position_heads) if config.cross_attention == "paca" else None
    return (*before, inside, *after)


def each_matrix(function, x):
    """`function` of every matrix state, `PendingUpdates` or (B, H, K, V), in nested tuples; the rest stays as it is."""
    if isinstance(x, tuple) and not isinstance(x, PendingUpdates):
        return tuple(each_matrix(function, part) for part in x)
    return function(x) if isinstance(x, PendingUpdates) or (x is not None and x.ndim == 4) else x


def with_pending(state):
    """A `SmallEState` whose recurrent states are `PendingUpdates`."""
    begun = each_matrix(lambda x: x if isinstance(x, PendingUpdates) else PendingUpdates.begin(x), state.recurrent)
    return replace(state, recurrent=begun)


def folded(state, own=False):
    """A `SmallEState` with `PendingUpdates` states after its steps have been added to these; own: see `PendingUpdates.fold`."""
    return with_pending(replace(state, recurrent=each_matrix(lambda x: x.fold(own), state.recurrent)))


def room(state):
    """Steps that may stand beside the states of a `SmallEState` before `folded`; -1 where none do."""
    rooms = []
    each_matrix(lambda x: rooms.append(x.room()) if isinstance(x, PendingUpdates) else None, state.recurrent)
    return min(rooms, default=-1)


def begun(state, config):
    """The state as exported steps read it, with recurrent states also before the first step and large ones as `PendingUpdates`;
    None where it is not known what those of a beginning are."""
    if state.recurrent is None:
        if not begins_at_zero(config):
            return None
        state = replace(state, recurrent=zero_states(config, len(state.text_mask)))
    text = {name: x.contiguous() for name, x in text_tensors(state).items()}
    return replace(with_pending(state) if keeps_pending(config) else state, **text)


class TorchSteps:
    """Steps by the model itself; `state` is where they stand. Or a prompt, many steps of which only the state is
    wanted."""

    draws = False  # whether there is `draw`

    def __init__(self, model, state, maps):
        self.model, self.state, self.maps = model, state, maps

    def __call__(self, codes, mask):
        """codes (B, 1, Q), mask (B, 1), False in rows that have ended -> logits (B, 1, Q, V), map (B, 1, N) or None."""
        out = self.model(
            decoder_input_ids=codes,
            decoder_attention_mask=mask,
            cache=self.state,
            use_cache=True,
            output_attentions=self.maps,
            output_hidden_states=False,
            return_dict=True,
        )
        self.state = out.cache
        return out.logits, out.attentions[-1] if self.maps else None

    def read(self, codes, mask):
        """Reads codes (B, T, Q), mask (B, T), False on padding."""
        out = self.model.model(
            decoder_input_ids=codes,
            decoder_attention_mask=mask,
            cache=self.state,
            use_cache=True,
            output_attentions=False,
            output_hidden_states=False,
            return_dict=True,
        )
        self.state = out.cache
