"""The layers that the models are made of: a mixer of the sequence, then a gated feed-forward layer, pre-norm."""

import torch
import torch.nn.functional as F
from torch import nn
from transformers.modeling_layers import GradientCheckpointingLayer

from .mixers_smalle import build_mixer
from .rwkv_smalle import ChannelMix


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
