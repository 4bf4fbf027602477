"""The paper's baseline: a decoder-only transformer, text and then delayed audio frames in one causal sequence."""

import torch
from torch import Tensor, nn

from .attention_smalle import TransformerLayer, rotary
from .cache_smalle import TransformerState
from .configuration_smalle import SmallEConfig


def causal_mask(mask: Tensor, new: int) -> Tensor:
    """What the last `new` of S steps attend to: mask (B, S) bool -> (B, 1, new, S).

    A step attends to itself and to earlier steps, but not to padding; a padded step attends to itself, since a softmax
    needs at least one entry.
    """
    steps = torch.arange(mask.shape[1], device=mask.device)
    now = steps[mask.shape[1] - new :, None]
    return (mask[:, None] & (steps <= now) | (steps == now))[:, None]


class CausalTransformer(nn.Module):
    """Layers with rotary positions, which count unmasked steps; keys and values of earlier steps come in a state."""

    def __init__(self, config: SmallEConfig):
        super().__init__()
        self.config, depth = config, config.decoder_layers
        self.layers = nn.ModuleList(TransformerLayer(config, depth) for _ in range(depth))
        self.norm = nn.LayerNorm(config.hidden_size, eps=config.norm_eps)

    def _rotary(self, positions: Tensor) -> tuple[Tensor, Tensor]:
        return rotary(positions, self.config.rotary_size, self.config.rope_theta)

    def forward(
        self, x: Tensor, mask: Tensor, state: TransformerState, output_attentions: bool = False
    ) -> tuple[list[Tensor], TransformerState, tuple[Tensor] | None]:
        """x (B, T, D), mask (B, T) bool -> hidden states (B, T, D), from the embeddings to the normed output; the new
        state; the alignment (B, T, N) by the first head of `alignment_layer`."""
        whole = torch.cat((state.mask, mask), 1)
        positions = (whole.long().cumsum(1) - 1)[:, state.mask.shape[1] :]
        cos, sin = self._rotary(positions[:, None])
        visible, hidden, keys, values, attentions = causal_mask(whole, x.shape[1]), [x], [], [], None
        for n, (layer, old_keys, old_values) in enumerate(zip(self.layers, state.keys, state.values)):
            aligns = output_attentions and n == self.config.alignment_layer
            x, k, v, *attention = layer(x, visible, cos, sin, old_keys, old_values, aligns)
            if aligns:
                attentions = (attention[0][..., : state.text_mask.shape[1]],)
            hidden.append(x)
            keys.append(k)
            values.append(v)
        hidden[-1] = self.norm(x)
        return hidden, TransformerState(tuple(keys), tuple(values), whole, state.text_mask), attentions

    def forward_without_state(self, x: Tensor, mask: Tensor) -> list[Tensor]:
        """As `forward` from the beginning, without a state before or after it: twice as fast.

        Padding moves behind everything else, where causality hides it, so attention needs no mask and its kernels skip
        half of the work. Hidden states of padded steps are meaningless.
        """

        def gather(x, order):
            return x.gather(1, order[..., None].expand_as(x))

        order = (~mask).long().argsort(dim=1, stable=True)
        cos, sin = self._rotary(torch.arange(x.shape[1], device=x.device))
        hidden = [gather(x, order)]
        for layer in self.layers:
            hidden.append(layer(hidden[-1], None, cos, sin)[0])
        hidden[-1] = self.norm(hidden[-1])
        back = order.argsort(dim=1)
        return [gather(x, back) for x in hidden]


class DecoderOnlyMixin:
    """The layers and passes of the baseline, in place of those of `SmallEModel`, which documents them."""

    config: SmallEConfig
    text_embedding: nn.Embedding

    def _make_layers(self, config: SmallEConfig):
        self.transformer = CausalTransformer(config)

    def encode_text(
        self, input_ids: Tensor, attention_mask: Tensor | None = None, initial_state: Tensor | None = None
    ) -> TransformerState:
        if initial_state is not None:
            raise ValueError(
                "initial_state: a decoder-only transformer has no recurrent state. Use a recording with its transcript."
            )
        mask = torch.ones_like(input_ids) if attention_mask is None else attention_mask
        mask, nothing = mask.bool(), (None,) * self.config.decoder_layers
        return TransformerState(nothing, nothing, mask[:, :0], mask, self.text_embedding(input_ids))

    def _read(self, audio, mask, state, forced_alignments=None, output_attentions=False, needs_state=True):
        mask = audio.new_ones(audio.shape[:2], dtype=torch.bool) if mask is None else mask.bool()
        if not needs_state:
            text, whole = state.text_mask, torch.cat((state.text_mask, mask), 1)
            hidden = self.transformer.forward_without_state(torch.cat((state.unread_text, audio), 1), whole)
            return [x[:, text.shape[1] :] for x in hidden], None, None
        if state.unread_text is not None:
            state = self.transformer(state.unread_text, state.text_mask, state)[1]
        return self.transformer(audio, mask, state, output_attentions)
