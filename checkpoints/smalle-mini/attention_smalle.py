"""Cross-attention from audio to text: the paper's Position-Aware Cross-Attention, and the plain one of its ablation.

Both behind two calls: `encode_text` once a text, then forward(x, state, mask, recurrent, given) -> attended text
(B, T, D), maps, state of the recurrent block inside or None. `given` (B, T, N), in training: maps to read by in place
of the model's own; steps of zeros are read by its own.
"""

import torch
from torch import nn

from .layers_smalle import (
    BlockStack,
    LinearAttentionBlock,
    attention_map,
    ends_residual_branch,
    final_norm,
    rotary,
    rotate,
)


def index(mask):
    """Unmasked steps before each step, (B, T)."""
    return (mask.long().cumsum(1) - 1).clamp(min=0)


def sinusoids(mask, size, theta=10000.0):
    """Position table P (B, N, size) of the text: sines, then cosines; positions count the unmasked tokens from 0."""
    cos, sin = rotary(index(mask), size, theta)
    return torch.cat((sin, cos), -1)


def read_by(own, given):
    """The map that the text is read by: `given` where it has any weight, else the model's own."""
    return own if given is None else torch.where(given.sum(-1, keepdim=True) > 0, given, own)


class CrossAttention(nn.Module):
    """Projections of audio to queries, of text to keys and values, each normed."""

    def __init__(self, config):
        super().__init__()
        size = config.hidden_size
        self.num_heads, self.rotary_size, self.rope_theta = 1, config.cross_rotary_size, config.rope_theta
        self.q_proj, self.k_proj, self.v_proj = (nn.Linear(size, size) for _ in range(3))
        self.q_norm, self.k_norm, self.v_norm = (nn.LayerNorm(size, eps=config.norm_eps) for _ in range(3))

    def turn(self, x, steps):
        """x (B, T, D), each head turned by its rotary position (B, T), where there are such positions."""
        if not self.rotary_size:
            return x
        cos, sin = rotary(steps[:, None], self.rotary_size, self.rope_theta)
        return rotate(x.unflatten(-1, (self.num_heads, -1)).transpose(1, 2), cos, sin).transpose(1, 2).flatten(-2)

    def queries(self, x, mask, state):
        """Queries (B, T, D) of the audio x (B, T, D); positions count its unmasked steps, `state.steps` came before."""
        queries = self.q_norm(self.q_proj(x))
        if not self.rotary_size:
            return queries
        mask = x.new_ones(x.shape[:2]) if mask is None else mask
        return self.turn(queries, state.steps[:, None] + index(mask))

    def keys_and_values(self, text, mask):
        """Keys and values (B, N, D) of the encoded text (B, N, D)."""
        return self.turn(self.k_norm(self.k_proj(text)), index(mask)), self.v_norm(self.v_proj(text))


class PositionAwareCrossAttention(CrossAttention):
    """PACA: audio attends to text positions, a recurrent block follows them, positions fetch the text.

    Beyond the paper, `position_gain` normalises what comes out of the block before it looks up positions: left free, it
    grew to norms of 40,000, whose gradients drowned all others.
    """

    def __init__(self, config):
        super().__init__(config)
        self.position_size, self.theta, self.gain = config.position_size, config.position_theta, config.position_gain
        size, layers = self.position_size, config.position_layers
        self.position_norm = (
            nn.RMSNorm(size, eps=config.norm_eps) if self.gain else final_norm(config, "position", size)
        )
        sizes = size, config.position_heads, config.position_intermediate_size or 2 * size
        blocks = [LinearAttentionBlock(config, *sizes, n) for n in range(layers)]
        self.position_block = blocks[0] if layers == 1 else BlockStack(blocks)

    def encode_text(self, text, mask):
        """Keys, values (B, N, D) and positions (B, N, d_b) of the encoded text."""
        return *self.keys_and_values(text, mask), sinusoids(mask, self.position_size, self.theta)

    def forward(self, x, state, mask=None, recurrent=None, given=None):
        """x (B, T, D) -> attended text (B, T, D), the two maps (B, T, N), the state of the position block."""
        keys, values, positions = state.text_keys, state.text_values, state.positions
        visible = state.text_mask[:, None]
        first = attention_map(self.queries(x, mask, state), keys, visible)
        attended = (first @ positions).to(x.dtype)  # eq. 5
        located, recurrent = self.position_block(attended, mask, recurrent)  # eq. 7
        located = self.position_norm(located).float() * (self.gain or 1.0)
        with torch.autocast(x.device.type, enabled=False):  # neighbouring positions differ by little
            last = attention_map(located, positions, visible)
        return read_by(last, given).to(values.dtype) @ values, (first, last), recurrent  # eq. 8


class PlainCrossAttention(CrossAttention):
    """Multi-head attention to the text, whose keys carry sinusoidal or rotary positions; no recurrent block."""

    def __init__(self, config):
        super().__init__(config)
        self.num_heads = config.cross_attention_heads or config.num_attention_heads
        self.o_proj = nn.Linear(config.hidden_size, config.hidden_size)
        ends_residual_branch(self.o_proj, config.audio_encoder_layers + config.audio_decoder_layers)

    def encode_text(self, text, mask):
        """Keys and values (B, N, D) of the encoded text; no positions beside them."""
        keys, values = self.keys_and_values(text, mask)
        if not self.rotary_size:
            keys = keys + sinusoids(mask, text.shape[-1]).to(text.dtype)
        return keys, values, None

    def forward(self, x, state, mask=None, recurrent=None, given=None):
        """x (B, T, D) -> attended text (B, T, D), one map (B, T, N), the mean over heads, None."""
        queries, keys, values = (
            part.unflatten(-1, (self.num_heads, -1)).transpose(1, 2)
            for part in (self.queries(x, mask, state), state.text_keys, state.text_values)
        )
        maps = attention_map(queries, keys, state.text_mask[:, None, None])
        given = None if given is None else given[:, None]
        attended = (read_by(maps, given).to(values.dtype) @ values).transpose(1, 2).flatten(-2)
        return self.o_proj(attended), (maps.mean(1),), None


CROSS_ATTENTIONS = {"paca": PositionAwareCrossAttention, "plain": PlainCrossAttention}
