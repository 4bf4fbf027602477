"""The paper's baseline: a decoder-only transformer, text and then delayed audio frames in one causal sequence."""

import torch
from torch import nn

from .cache_smalle import TransformerState
from .layers_smalle import TransformerLayer, rotary
from .mixers_smalle import take


def causal(mask, new):
    """What the last `new` of S steps may see: mask (B, S) bool -> (B, 1, new, S).

    A step sees itself, earlier steps and no padding; a padded step sees itself too, for softmax needs something.
    """
    steps = torch.arange(mask.shape[1], device=mask.device)
    now = steps[mask.shape[1] - new :, None]
    return (mask[:, None] & (steps <= now) | (steps == now))[:, None]


class CausalTransformer(nn.Module):
    """Layers with rotary positions, which count unmasked steps; keys and values of former steps come in a state."""

    def __init__(self, config):
        super().__init__()
        self.rotary_size, self.theta, self.alignment_layer = (
            config.rotary_size,
            config.rope_theta,
            config.alignment_layer,
        )
        depth = config.decoder_layers
        self.layers = nn.ModuleList(TransformerLayer(config, depth) for _ in range(depth))
        self.norm = nn.LayerNorm(config.hidden_size, eps=config.norm_eps)

    def forward(self, x, mask=None, state=None, maps=False):
        """x (B, T, D), mask (B, T), 0 on padding -> hidden states (B, T, D), embeddings to normed output; the state,
        whose text is what began it; with `maps` the map (B, T, N) of that text in a tuple, else None."""
        mask = x.new_ones(x.shape[:2], dtype=torch.bool) if mask is None else mask.bool()
        if state is None:
            nothing = (None,) * len(self.layers)
            state = TransformerState(nothing, nothing, mask[:, :0], mask)
        whole = torch.cat((state.mask, mask), 1)
        positions = (whole.long().cumsum(1) - 1)[:, state.mask.shape[1] :]
        cos, sin = rotary(positions[:, None], self.rotary_size, self.theta)
        visible = causal(whole, x.shape[1])
        hidden, keys, values, attentions = [x], [], [], None
        for n, (layer, old_keys, old_values) in enumerate(zip(self.layers, state.keys, state.values)):
            mapped = maps and n == self.alignment_layer
            x, k, v, *looks = layer(x, visible, cos, sin, old_keys, old_values, mapped)
            if mapped:
                attentions = (looks[0][..., : state.text_mask.shape[1]],)
            hidden.append(x)
            keys.append(k)
            values.append(v)
        hidden[-1] = self.norm(x)
        return hidden, TransformerState(tuple(keys), tuple(values), whole, state.text_mask), attentions

    def read_whole(self, x, mask):
        """All at once, nothing kept to go on from: x (B, T, D), mask (B, T) -> hidden states as `forward` gives them.

        Padding moves behind everything else, where causality hides it: attention needs no mask, and its kernels skip
        what no step may see, half of the work. Hidden states of padded steps mean nothing.
        """
        order = (~mask).long().argsort(dim=1, stable=True)
        back, steps = order.argsort(dim=1), torch.arange(x.shape[1], device=x.device)
        cos, sin = rotary(steps, self.rotary_size, self.theta)
        hidden = [take(x, order)]
        for layer in self.layers:
            hidden.append(layer(hidden[-1], None, cos, sin)[0])
        hidden[-1] = self.norm(hidden[-1])
        return [take(x, back) for x in hidden]
