"""Layers of the models: transformer layer, linear-attention block, cross-attention to the text, speaker encoder."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers.modeling_layers import GradientCheckpointingLayer

from .cache_smalle import SmallEState
from .configuration_smalle import SmallEConfig
from .mixers_smalle import ChannelMix, build_mixer

# --- Common parts


def ends_residual_branch(layer: Any, depth: int):
    """Marks the last nn.Linear of one of the 2 * depth residual branches of a stack: its weights start small (GPT-2).

    `_init_weights` of the model scales them, because transformers initialises module by module.
    """
    layer.residual_branches = 2 * max(1, depth)


def final_norm(config: SmallEConfig, stack: str, size: int) -> nn.Module:
    """The norm at the end of a stack, or an identity if `final_norms` does not name the stack."""
    return nn.LayerNorm(size, eps=config.norm_eps) if stack in config.final_norms else nn.Identity()


def rotary(positions: Tensor, head_size: int, theta: float) -> tuple[Tensor, Tensor]:
    """Cosines and sines of rotary positions (Su et al. 2021): positions (..., T) -> (..., T, head_size / 2) each."""
    frequencies = theta ** (-torch.arange(0, head_size, 2, device=positions.device).float() / head_size)
    angles = positions.float()[..., None] * frequencies
    return angles.cos(), angles.sin()


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotates the first 2 R channels of x (B, H, T, D), as two halves; cos and sin broadcast to (B, H, T, R)."""
    size = 2 * cos.shape[-1]
    first, second = x[..., :size].chunk(2, -1)
    return torch.cat((first * cos - second * sin, second * cos + first * sin, x[..., size:]), -1).to(x.dtype)


def attention_weights(queries: Tensor, keys: Tensor, mask: Tensor) -> Tensor:
    """softmax(queries keys^T / sqrt(width)) over unmasked keys, fp32: (..., T, D), (..., N, D) -> (..., T, N)."""
    scores = (queries @ keys.transpose(-1, -2)).float() * queries.shape[-1] ** -0.5
    return scores.masked_fill(~mask, torch.finfo(torch.float32).min).softmax(-1)


def split_heads(x: Tensor, num_heads: int) -> Tensor:
    """(B, T, H D) -> (B, H, T, D)."""
    return x.unflatten(-1, (num_heads, -1)).transpose(1, 2)


def join_heads(x: Tensor) -> Tensor:
    """(B, H, T, D) -> (B, T, H D)."""
    return x.transpose(1, 2).flatten(-2)


class GatedMLP(nn.Module):
    """SwiGLU (Shazeer 2020)."""

    def __init__(self, size: int, intermediate_size: int, depth: int):
        super().__init__()
        self.gate_proj = nn.Linear(size, intermediate_size)
        self.up_proj = nn.Linear(size, intermediate_size)
        self.down_proj = nn.Linear(intermediate_size, size)
        ends_residual_branch(self.down_proj, depth)

    def forward(self, x: Tensor) -> Tensor:
        return self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))


# --- Layers and blocks


class TransformerLayer(GradientCheckpointingLayer):
    """Self-attention with rotary positions, then a gated feed-forward layer, pre-norm."""

    def __init__(self, config: SmallEConfig, depth: int):
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

    def forward(
        self,
        x: Tensor,
        visible: Tensor | None,
        cos: Tensor,
        sin: Tensor,
        keys: Tensor | None = None,
        values: Tensor | None = None,
        output_attention: bool = False,
    ) -> tuple[Tensor, ...]:
        """One layer over T new steps after S old ones.

        x (B, T, D); visible, bool, broadcasts to (B, H, T, S + T): where a step may attend, None: causal with S = 0;
        cos, sin: `rotary` of the new steps; keys, values (B, H, S, D / H) of the old steps.

        Returns x, and the keys and values of all S + T steps; on request also the attention (B, T, S + T) of the first
        head.
        """
        normed = self.norm1(x)
        q, k, v = (split_heads(layer(normed), self.num_heads) for layer in (self.q_proj, self.k_proj, self.v_proj))
        q, k = rotate(q, cos, sin), rotate(k, cos, sin)
        if keys is not None and values is not None:
            k, v = torch.cat((keys, k), 2), torch.cat((values, v), 2)
        attended = F.scaled_dot_product_attention(q, k, v, attn_mask=visible, is_causal=visible is None)
        x = x + self.dropout(self.o_proj(join_heads(attended)))
        out = x + self.dropout(self.mlp(self.norm2(x))), k, v
        if output_attention and visible is not None:
            return *out, attention_weights(q[:, 0], k[:, 0], visible[:, 0])
        return out


class LinearAttentionBlock(GradientCheckpointingLayer):
    """A recurrent sequence mixer, then a gated feed-forward layer, pre-norm: one LCLM block of the paper.

    The state is the mixer's; with RWKV's channel mixing, a tuple of the mixer's and that of the channel mixing.
    """

    def __init__(self, config: SmallEConfig, hidden_size: int, num_heads: int, intermediate_size: int, index: int = 0):
        super().__init__()
        depth = config.audio_encoder_layers + config.audio_decoder_layers
        self.feed_forward = config.feed_forward
        self.norm1 = nn.LayerNorm(hidden_size, eps=config.norm_eps)
        self.mixer: Any = build_mixer(config, hidden_size, num_heads, index)
        ends_residual_branch(self.mixer.o_proj, depth)
        if self.feed_forward != "none":
            self.norm2 = nn.LayerNorm(hidden_size, eps=config.norm_eps)
        if self.feed_forward == "swiglu":
            self.mlp: Any = GatedMLP(hidden_size, intermediate_size, depth)
        elif self.feed_forward == "rwkv":
            self.mlp = ChannelMix(hidden_size, index, depth)
            ends_residual_branch(self.mlp.v_proj, depth)
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, x: Tensor, mask: Tensor | None = None, state: Any = None) -> tuple[Tensor, Any]:
        """x (B, T, D), mask (B, T), 0 on padding -> (B, T, D) and the new state."""
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
    """Blocks in sequence, called like a single one; the state is a tuple of their states."""

    def forward(self, x: Tensor, mask: Tensor | None = None, state: Any = None) -> tuple[Tensor, Any]:
        after = []
        for block, before in zip(self, state or [None] * len(self)):
            x, before = block(x, mask, before)
            after.append(before)
        return x, tuple(after)


# --- Cross-attention from audio to text


def step_index(mask: Tensor) -> Tensor:
    """The number of unmasked steps before each step, (B, T)."""
    return (mask.long().cumsum(1) - 1).clamp(min=0)


def sinusoids(mask: Tensor, size: int, theta: float = 10000.0) -> Tensor:
    """Position table P (B, N, size) of the text: sines, then cosines; positions count the unmasked tokens from 0."""
    cos, sin = rotary(step_index(mask), size, theta)
    return torch.cat((sin, cos), -1)


def apply_forced(alignment: Tensor, forced: Tensor | None) -> Tensor:
    """The alignment, replaced by the forced one except in steps where that is all zeros."""
    return alignment if forced is None else torch.where(forced.sum(-1, keepdim=True) > 0, forced, alignment)


class CrossAttention(nn.Module):
    """Projections of audio to queries and of text to keys and values, each followed by a norm."""

    def __init__(self, config: SmallEConfig):
        super().__init__()
        size = config.hidden_size
        self.num_heads, self.rotary_size, self.rope_theta = 1, config.cross_rotary_size, config.rope_theta
        self.q_proj, self.k_proj, self.v_proj = (nn.Linear(size, size) for _ in range(3))
        self.q_norm, self.k_norm, self.v_norm = (nn.LayerNorm(size, eps=config.norm_eps) for _ in range(3))

    def _rotate(self, x: Tensor, positions: Tensor) -> Tensor:
        """x (B, T, D), each head rotated by its position (B, T)."""
        cos, sin = rotary(positions[:, None], self.rotary_size, self.rope_theta)
        return join_heads(rotate(split_heads(x, self.num_heads), cos, sin))

    def queries(self, x: Tensor, mask: Tensor | None, state: SmallEState) -> Tensor:
        """Queries (B, T, D) of the audio x (B, T, D). Positions count unmasked steps, starting from `state.steps`."""
        queries = self.q_norm(self.q_proj(x))
        if state.steps is None:  # no rotary positions
            return queries
        mask = x.new_ones(x.shape[:2]) if mask is None else mask
        return self._rotate(queries, state.steps[:, None] + step_index(mask))

    def keys_and_values(self, text: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        """Keys and values (B, N, D) of the encoded text (B, N, D)."""
        keys, values = self.k_norm(self.k_proj(text)), self.v_norm(self.v_proj(text))
        return self._rotate(keys, step_index(mask)) if self.rotary_size else keys, values


class PositionAwareCrossAttention(CrossAttention):
    """PACA (section 3 of the paper): audio attends to text positions, a recurrent block processes these positions, and
    its output attends to the text positions again, which selects the text values.

    Not in the paper: `position_gain` normalises the output of that block. Without it, the output grew to norms of
    40,000, whose gradients dominated all others.
    """

    def __init__(self, config: SmallEConfig):
        super().__init__(config)
        self.position_size, self.theta, self.gain = config.position_size, config.position_theta, config.position_gain
        size, layers = self.position_size, config.position_layers
        self.position_norm = (
            nn.RMSNorm(size, eps=config.norm_eps) if self.gain else final_norm(config, "position", size)
        )
        sizes = size, config.position_heads, config.position_intermediate_size or 2 * size
        blocks = [LinearAttentionBlock(config, *sizes, n) for n in range(layers)]
        self.position_block = blocks[0] if layers == 1 else BlockStack(blocks)

    def encode_text(self, text: Tensor, mask: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Keys, values (B, N, D) and positions (B, N, d_b) of the encoded text (B, N, D)."""
        return *self.keys_and_values(text, mask), sinusoids(mask, self.position_size, self.theta)

    def forward(
        self,
        x: Tensor,
        state: SmallEState,
        mask: Tensor | None = None,
        recurrent: Any = None,
        forced: Tensor | None = None,
    ) -> tuple[Tensor, tuple[Tensor, ...], Any]:
        """x (B, T, D) -> attended text (B, T, D), both alignments (B, T, N), the state of the position block."""
        keys, values, positions = state.text_keys, state.text_values, state.positions
        assert positions is not None  # encode_text sets them
        visible = state.text_mask[:, None]
        first = attention_weights(self.queries(x, mask, state), keys, visible)
        attended = (first @ positions).to(x.dtype)  # eq. 5
        located, recurrent = self.position_block(attended, mask, recurrent)  # eq. 7
        located = self.position_norm(located).float() * (self.gain or 1.0)
        with torch.autocast(x.device.type, enabled=False):  # neighbouring positions differ only slightly
            last = attention_weights(located, positions, visible)
        return apply_forced(last, forced).to(values.dtype) @ values, (first, last), recurrent  # eq. 8


class PlainCrossAttention(CrossAttention):
    """Multi-head attention to the text, with sinusoidal or rotary positions in its keys: the paper's ablation."""

    def __init__(self, config: SmallEConfig):
        super().__init__(config)
        self.num_heads = config.cross_attention_heads or config.num_attention_heads
        self.o_proj = nn.Linear(config.hidden_size, config.hidden_size)
        ends_residual_branch(self.o_proj, config.audio_encoder_layers + config.audio_decoder_layers)

    def encode_text(self, text: Tensor, mask: Tensor) -> tuple[Tensor, Tensor, None]:
        """Keys and values (B, N, D) of the encoded text, and no positions."""
        keys, values = self.keys_and_values(text, mask)
        if not self.rotary_size:
            keys = keys + sinusoids(mask, text.shape[-1]).to(text.dtype)
        return keys, values, None

    def forward(
        self,
        x: Tensor,
        state: SmallEState,
        mask: Tensor | None = None,
        recurrent: Any = None,
        forced: Tensor | None = None,
    ) -> tuple[Tensor, tuple[Tensor, ...], None]:
        """x (B, T, D) -> attended text (B, T, D), the alignment (B, T, N) averaged over heads, and no state."""
        parts = self.queries(x, mask, state), state.text_keys, state.text_values
        queries, keys, values = (split_heads(part, self.num_heads) for part in parts)
        alignments = attention_weights(queries, keys, state.text_mask[:, None, None])
        used = apply_forced(alignments, None if forced is None else forced[:, None])
        return self.o_proj(join_heads(used.to(values.dtype) @ values)), (alignments.mean(1),), None


CROSS_ATTENTIONS: dict[str, Any] = {"paca": PositionAwareCrossAttention, "plain": PlainCrossAttention}


# --- Speaker encoder


class SpeakerEncoder(nn.Module):
    """Computes a speaker embedding from a reference recording: transformer layers, mean over time, projection."""

    def __init__(self, config: SmallEConfig):
        super().__init__()
        self.rotary_size, self.theta, depth = config.rotary_size, config.rope_theta, config.speaker_layers
        self.layers = nn.ModuleList(TransformerLayer(config, depth) for _ in range(depth))
        self.norm = nn.LayerNorm(config.hidden_size, eps=config.norm_eps)
        self.proj = nn.Linear(config.hidden_size, config.hidden_size)
        ends_residual_branch(self.proj, 1)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        """Embedded frames x (B, P, D), mask (B, P), 0 on padding -> (B, D); zero for a row without frames."""
        present, mask = mask.any(1, keepdim=True), mask.bool()
        cos, sin = rotary(torch.arange(x.shape[1], device=x.device), self.rotary_size, self.theta)
        visible = (mask | ~present)[:, None, None]  # a softmax needs at least one entry
        for layer in self.layers:
            x, _, _ = layer(x, visible, cos, sin)
        x = (self.norm(x) * mask[..., None]).sum(1) / mask.sum(1, keepdim=True).clamp(min=1)
        return self.proj(x) * present
