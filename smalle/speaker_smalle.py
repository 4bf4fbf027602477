"""Who speaks, beside every token of the text: what a recording gives where prompts alone give too little.

Beyond the paper, which clones by continuing a prompt. A small model learns to keep the voice that it goes on with only
from many speakers; what is added to the values that the cross-attention reads is in every step as it was. That is a
vector of the whole recording and, with `speaker_attention`, what each token finds in it: how this voice says the like.
"""

from typing import NamedTuple

import torch
from torch import nn

from .attention_smalle import attention_map
from .layers_smalle import TransformerLayer, ends_residual_branch, rotary


class Heard(NamedTuple):
    """Recordings as they were heard: vectors (B, D), zero where nothing was; frames (B, P, D) and their mask (B, P)
    bool."""

    vector: torch.Tensor
    frames: torch.Tensor
    mask: torch.Tensor

    def only(self, rows):
        """What was heard in `rows` (B, 1) bool, nothing in the others."""
        return Heard(self.vector * rows, self.frames, self.mask & rows)

    @classmethod
    def join(cls, several):
        """Those of several batches of as many frames, one behind the other."""
        return cls(*map(torch.cat, zip(*several)))


class SpeakerAttention(nn.Module):
    """Multi-head attention of a text's tokens to the frames of a recording: no position counts, but what is said."""

    def __init__(self, config):
        super().__init__()
        size, self.num_heads = config.hidden_size, config.num_attention_heads
        self.q_proj, self.k_proj, self.v_proj, self.o_proj = (nn.Linear(size, size) for _ in range(4))
        ends_residual_branch(self.o_proj, 1)

    def forward(self, text, heard):
        """text (B, N, D), `Heard` -> (B, N, D), zero where nothing is heard; the map (B, N, P), the mean of heads."""
        q, k, v = (
            layer(x).unflatten(-1, (self.num_heads, -1)).transpose(1, 2)
            for layer, x in ((self.q_proj, text), (self.k_proj, heard.frames), (self.v_proj, heard.frames))
        )
        maps = attention_map(q, k, heard.mask[:, None, None])
        found = (maps.to(v.dtype) @ v).transpose(1, 2).flatten(-2)
        return self.o_proj(found) * heard.mask.any(1)[:, None, None], maps.mean(1)


class SpeakerEncoder(nn.Module):
    """Embedded frames of a recording through transformer layers as the text's; their mean, projected, is its vector."""

    def __init__(self, config):
        super().__init__()
        self.rotary_size, self.theta, depth = config.rotary_size, config.rope_theta, config.speaker_layers
        self.layers = nn.ModuleList(TransformerLayer(config, depth) for _ in range(depth))
        self.norm = nn.LayerNorm(config.hidden_size, eps=config.norm_eps)
        self.proj = nn.Linear(config.hidden_size, config.hidden_size)
        ends_residual_branch(self.proj, 1)
        self.attention = SpeakerAttention(config) if config.speaker_attention else None

    def forward(self, x, mask):
        """x (B, P, D), mask (B, P), 0 on padding -> `Heard`."""
        heard, mask = mask.any(1, keepdim=True), mask.bool()
        steps = torch.arange(x.shape[1], device=x.device)
        cos, sin = rotary(steps, self.rotary_size, self.theta)
        visible = (mask | ~heard)[:, None, None]  # softmax needs something
        for layer in self.layers:
            x, _, _ = layer(x, visible, cos, sin)
        x = self.norm(x)
        mean = (x * mask[..., None]).sum(1) / mask.sum(1, keepdim=True).clamp(min=1)
        return Heard(self.proj(mean) * heard, x, mask)

    def beside(self, text, heard):
        """What is added to a text's values (B, N, D): (B, N, D), or (B, 1, D) where each token hears the same; and of
        these the map (B, N, P) of the recording, or None."""
        voice = heard.vector[:, None]
        if self.attention is None:
            return voice, None
        found, maps = self.attention(text, heard)
        return voice + found, maps
