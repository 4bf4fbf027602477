"""Who speaks, as a vector that stands beside every word: what a recording gives where prompts alone give too little.

Beyond the paper, which clones by continuing a prompt. A small model learns to keep the voice that it goes on with only
from many speakers; a vector of a whole recording, added to the values that the cross-attention reads, is in every step
as it was.
"""

import torch
from torch import nn

from .layers_smalle import TransformerLayer, ends_residual_branch, rotary


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
