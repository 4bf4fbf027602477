"""Cross-attention from audio to text: the paper's Position-Aware Cross-Attention, and the plain one of its ablation.

Both behind two calls: `encode_text` once a text, then forward(x, state, mask, recurrent, given) -> attended text
(B, T, D), maps, state of the recurrent block inside or None. `given` (B, T, N), in training: maps to read by in place
of the model's own; steps of zeros are read by its own.
"""

import torch
from torch import nn

from .layers_smalle import LinearAttentionBlock, ends_residual_branch


def sinusoids(mask, size, theta=10000.0):
    """Position table P (B, N, size) of the text: sines, then cosines; positions count the unmasked tokens from 0."""
    index = (mask.long().cumsum(1) - 1).clamp(min=0)
    frequencies = theta ** (-torch.arange(0, size, 2, device=mask.device).float() / size)
    angles = index[..., None].float() * frequencies
    return torch.cat((angles.sin(), angles.cos()), -1)


def attention_map(queries, keys, mask):
    """softmax(queries keys^T / sqrt(width)) over the unmasked text, fp32: (..., T, D), (..., N, D) -> (..., T, N)."""
    scores = (queries @ keys.transpose(-1, -2)).float() * queries.shape[-1] ** -0.5
    return scores.masked_fill(~mask, torch.finfo(torch.float32).min).softmax(-1)


def read_by(own, given):
    """The map that the text is read by: `given` where it has any weight, else the model's own."""
    return own if given is None else torch.where(given.sum(-1, keepdim=True) > 0, given, own)


class CrossAttention(nn.Module):
    """Projections of audio to queries, of text to keys and values, each normed."""

    def __init__(self, config):
        super().__init__()
        size = config.hidden_size
        self.q_proj, self.k_proj, self.v_proj = (nn.Linear(size, size) for _ in range(3))
        self.q_norm, self.k_norm, self.v_norm = (nn.LayerNorm(size, eps=config.norm_eps) for _ in range(3))


class PositionAwareCrossAttention(CrossAttention):
    """PACA: audio attends to text positions, a recurrent block follows them, positions fetch the text.

    Beyond the paper, `position_gain` normalises what comes out of the block before it looks up positions: left free, it
    grew to norms of 40,000, whose gradients drowned all others.
    """

    def __init__(self, config):
        super().__init__(config)
        self.position_size, self.theta, self.gain = config.position_size, config.position_theta, config.position_gain
        self.position_norm = nn.RMSNorm(self.position_size, eps=config.norm_eps) if self.gain else nn.Identity()
        self.position_block = LinearAttentionBlock(config, self.position_size, 1, 2 * self.position_size)

    def encode_text(self, text, mask):
        """Keys, values (B, N, D) and positions (B, N, d_b) of the encoded text."""
        positions = sinusoids(mask, self.position_size, self.theta)
        return self.k_norm(self.k_proj(text)), self.v_norm(self.v_proj(text)), positions

    def forward(self, x, state, mask=None, recurrent=None, given=None):
        """x (B, T, D) -> attended text (B, T, D), the two maps (B, T, N), the state of the position block."""
        keys, values, positions = state.text_keys, state.text_values, state.positions
        visible = state.text_mask[:, None]
        first = attention_map(self.q_norm(self.q_proj(x)), keys, visible)
        attended = (first @ positions).to(x.dtype)  # eq. 5
        located, recurrent = self.position_block(attended, mask, recurrent)  # eq. 7
        located = self.position_norm(located).float() * (self.gain or 1.0)
        with torch.autocast(x.device.type, enabled=False):  # neighbouring positions differ by little
            last = attention_map(located, positions, visible)
        return read_by(last, given).to(values.dtype) @ values, (first, last), recurrent  # eq. 8


class PlainCrossAttention(CrossAttention):
    """Multi-head attention to the text, whose keys carry sinusoidal positions; no recurrent block."""

    def __init__(self, config):
        super().__init__(config)
        self.num_heads = config.num_attention_heads
        self.o_proj = nn.Linear(config.hidden_size, config.hidden_size)
        ends_residual_branch(self.o_proj, config.audio_encoder_layers + config.audio_decoder_layers)

    def encode_text(self, text, mask):
        """Keys and values (B, N, D) of the encoded text; no positions beside them."""
        positions = sinusoids(mask, text.shape[-1]).to(text.dtype)
        return self.k_norm(self.k_proj(text)) + positions, self.v_norm(self.v_proj(text)), None

    def forward(self, x, state, mask=None, recurrent=None, given=None):
        """x (B, T, D) -> attended text (B, T, D), one map (B, T, N), the mean over heads, None."""
        queries, keys, values = (
            part.unflatten(-1, (self.num_heads, -1)).transpose(1, 2)
            for part in (self.q_norm(self.q_proj(x)), state.text_keys, state.text_values)
        )
        maps = attention_map(queries, keys, state.text_mask[:, None, None])
        given = None if given is None else given[:, None]
        attended = (read_by(maps, given).to(values.dtype) @ values).transpose(1, 2).flatten(-2)
        return self.o_proj(attended), (maps.mean(1),), None


CROSS_ATTENTIONS = {"paca": PositionAwareCrossAttention, "plain": PlainCrossAttention}
