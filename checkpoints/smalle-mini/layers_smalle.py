"""The layers that the models are made of: a mixer of the sequence, then a gated feed-forward layer, pre-norm."""

import torch
import torch.nn.functional as F
from torch import nn
from transformers.modeling_layers import GradientCheckpointingLayer

from .mixers_smalle import ChannelMix, build_mixer


def ends_residual_branch(layer, depth):
    """Marks the last nn.Linear of one of the 2 * depth residual branches of a stack: it starts small (GPT-2).

    Marked here and scaled when the weights are made, because transformers passes over modules without parameters of
    their own there.
    """
    layer.residual_branches = 2 * max(1, depth)


def final_norm(config, stack, size):
    """The norm that ends a stack, or nothing."""
    return nn.LayerNorm(size, eps=config.norm_eps) if stack in config.final_norms else nn.Identity()


class GatedMLP(nn.Module):
    """SwiGLU (Shazeer 2020)."""

    def __init__(self, size, intermediate_size, depth):
        super().__init__()
        self.gate_proj = nn.Linear(size, intermediate_size)
        self.up_proj = nn.Linear(size, intermediate_size)
        self.down_proj = nn.Linear(intermediate_size, size)
        ends_residual_branch(self.down_proj, depth)

    def forward(self, x):
        return self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))


def rotary(positions, head_size, theta):
    """Cosines and sines of rotary positions (Su et al. 2021): positions (..., T) -> (..., T, head_size / 2) each."""
    frequencies = theta ** (-torch.arange(0, head_size, 2, device=positions.device).float() / head_size)
    angles = positions.float()[..., None] * frequencies
    return angles.cos(), angles.sin()


def rotate(x, cos, sin):
    """Turns the first 2 R channels of x (B, H, T, D), as two halves, by angles whose cosines and sines broadcast to
    (B, H, T, R)."""
    size = 2 * cos.shape[-1]
    first, second = x[..., :size].chunk(2, -1)
    return torch.cat((first * cos - second * sin, second * cos + first * sin, x[..., size:]), -1).to(x.dtype)


def attention_map(queries, keys, mask):
    """softmax(queries keys^T / sqrt(width)) over what is unmasked, fp32: (..., T, D), (..., N, D) -> (..., T, N)."""
    scores = (queries @ keys.transpose(-1, -2)).float() * queries.shape[-1] ** -0.5
    return scores.masked_fill(~mask, torch.finfo(torch.float32).min).softmax(-1)


class TransformerLayer(GradientCheckpointingLayer):
    """Self-attention with rotary positions, then a gated feed-forward layer, pre-norm."""

    def __init__(self, config, depth):
        super().__init__()
        size = config.hidden_size
        self.num_heads = config.num_attention_heads
        self.norm1 = nn.LayerNorm(size, eps=config.norm_eps)
        self.q_proj, self.k_proj, self.v_proj = (nn.Linear(size, size) for _ in range(3))
        self.o_proj = nn.Linear(size, size)
        ends_residual_branch(self.o_proj, depth)
        self.norm2 = nn.LayerNorm(size, eps=config.norm_eps)
        self.mlp = GatedMLP(size, config.intermediate_size, depth)
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, x, visible, cos, sin, keys=None, values=None, mapped=False):
        """One layer over T new steps after S old ones.

        x (B, T, D); visible, bool, broadcasts to (B, H, T, S + T): True where a step may look, or None, where each
        looks back and S = 0; cos, sin: `rotary` of the new steps; keys, values (B, H, S, D / H) of the old ones.
        Returns x, and keys and values of all S + T; if `mapped` also the attention (B, T, S + T) of the first head.
        """
        normed = self.norm1(x)
        q, k, v = (
            layer(normed).unflatten(-1, (self.num_heads, -1)).transpose(1, 2)
            for layer in (self.q_proj, self.k_proj, self.v_proj)
        )
        q, k = rotate(q, cos, sin), rotate(k, cos, sin)
        if keys is not None:
            k, v = torch.cat((keys, k), 2), torch.cat((values, v), 2)
        attended = F.scaled_dot_product_attention(q, k, v, attn_mask=visible, is_causal=visible is None)
        x = x + self.dropout(self.o_proj(attended.transpose(1, 2).flatten(-2)))
        out = x + self.dropout(self.mlp(self.norm2(x))), k, v
        return (*out, attention_map(q[:, 0], k[:, 0], visible[:, 0])) if mapped else out


class LinearAttentionBlock(GradientCheckpointingLayer):
    """A recurrent sequence mixer, then a gated feed-forward layer, pre-norm: one LCLM block of the paper.

    The state is that of the mixer; with the channel mixing of RWKV, a tuple of that and what channel mixing remembers.
    """

    def __init__(self, config, hidden_size, num_heads, intermediate_size, index=0):
        super().__init__()
        depth = config.audio_encoder_layers + config.audio_decoder_layers
        self.feed_forward = config.feed_forward
        self.norm1 = nn.LayerNorm(hidden_size, eps=config.norm_eps)
        self.mixer = build_mixer(config, hidden_size, num_heads, index)
        ends_residual_branch(self.mixer.o_proj, depth)
        if self.feed_forward != "none":
            self.norm2 = nn.LayerNorm(hidden_size, eps=config.norm_eps)
        if self.feed_forward == "swiglu":
            self.mlp = GatedMLP(hidden_size, intermediate_size, depth)
        elif self.feed_forward == "rwkv":
            self.mlp = ChannelMix(hidden_size, index, depth)
            ends_residual_branch(self.mlp.v_proj, depth)
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, x, mask=None, state=None):
        state, last = state if self.feed_forward == "rwkv" and state is not None else (state, None)
        mixed, state = self.mixer(self.norm1(x), mask, state)
        x = x + self.dropout(mixed)
        if self.feed_forward == "none":
            return x, state
        if self.feed_forward == "swiglu":
            return x + self.dropout(self.mlp(self.norm2(x))), state
        mixed, last = self.mlp(self.norm2(x), mask, last)
        return x + self.dropout(mixed), (state, last)


class BlockStack(nn.ModuleList):
    """Blocks behind the call of one; the state is a tuple of theirs."""

    def forward(self, x, mask=None, state=None):
        after = []
        for block, before in zip(self, state or [None] * len(self)):
            x, before = block(x, mask, before)
            after.append(before)
        return x, tuple(after)


# --- attention: Cross-attention from audio to text: the paper's Position-Aware Cross-Attention, and the plain one of its ablation.


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


# --- speaker: Who speaks, as a vector that stands beside every word: what a recording gives where prompts alone give too little.


class SpeakerEncoder(nn.Module):
    """Embedded frames of a recording to one vector: transformer layers as the text's, their mean, a projection."""

    def __init__(self, config):
        super().__init__()
        self.rotary_size, self.theta, depth = config.rotary_size, config.rope_theta, config.speaker_layers
        self.layers = nn.ModuleList(TransformerLayer(config, depth) for _ in range(depth))
        self.norm = nn.LayerNorm(config.hidden_size, eps=config.norm_eps)
        self.proj = nn.Linear(config.hidden_size, config.hidden_size)
        ends_residual_branch(self.proj, 1)

    def forward(self, x, mask):
        """x (B, P, D), mask (B, P), 0 on padding -> (B, D); zero where nothing is heard."""
        heard, mask = mask.any(1, keepdim=True), mask.bool()
        steps = torch.arange(x.shape[1], device=x.device)
        cos, sin = rotary(steps, self.rotary_size, self.theta)
        visible = (mask | ~heard)[:, None, None]  # softmax needs something
        for layer in self.layers:
            x, _, _ = layer(x, visible, cos, sin)
        x = (self.norm(x) * mask[..., None]).sum(1) / mask.sum(1, keepdim=True).clamp(min=1)
        return self.proj(x) * heard
