"""What quantization took from latents, as far as their neighbours tell.

A vocoder that reads quantized latents has to guess in samples what they were. The refiner says it in latents, where the
square error of one frame is that of its log-mel spectrum, and is learnt within minutes (docs/training-log.md).
"""

from dataclasses import dataclass

import torch
from torch import nn

from .vocos_chunks_smalle import convolve
from .vocos_smalle import ConvNeXtBlock

AHEAD = 1  # frames that each convolution sees ahead; the rest of its kernel looks back


@dataclass
class RefinerState:
    """Where a refiner stands, a value: hand it back to go on.

    waiting: latents (B, D, <= frames seen ahead) that are not refined yet; inputs: of each convolution, its last inputs
    (B, C, < kernel).
    """

    waiting: torch.Tensor
    inputs: tuple[torch.Tensor, ...]


class LatentRefiner(nn.Module):
    """Quantized latents (B, D, T) to what latents before quantization are in the mean, by ConvNeXt blocks."""

    def __init__(self, config):
        super().__init__()
        size, layers, kernel = config.refiner_hidden_size, config.refiner_num_layers, config.refiner_kernel_size
        self.register_buffer("latent_scale", torch.ones(config.latent_size))  # deviation of quantized latents
        self.register_buffer("rest_scale", torch.ones(config.latent_size))  # of what they lack
        self.embed = nn.Conv1d(config.latent_size, size, kernel)
        self.blocks = nn.ModuleList(
            ConvNeXtBlock(size, config.refiner_intermediate_size, kernel, 1 / layers) for _ in range(layers)
        )
        self.norm = nn.LayerNorm(size, eps=1e-6)
        self.out = nn.Linear(size, config.latent_size)

    def rest(self, latents, inputs=None, last=True):
        """What quantized latents (B, D, T) lack, in units of rest_scale, of the frames (B, D, T') that are certain now;
        and the inputs to keep of each convolution."""
        inputs = list(inputs or [None] * (1 + len(self.blocks)))
        scaled = (latents / self.latent_scale.float()[:, None]).to(self.embed.weight.dtype)
        _, x, inputs[0] = convolve(self.embed, scaled, inputs[0], last, AHEAD)
        for n, block in enumerate(self.blocks, 1):
            x, y, inputs[n] = convolve(block.dwconv, x, inputs[n], last, AHEAD)
            x = block.pointwise(x, y)
        return self.out(self.norm(x.transpose(1, 2))).transpose(1, 2).float(), tuple(inputs)

    def forward(self, latents, state=None, last=True):
        """Refined latents (B, D, T') that are certain after quantized ones (B, D, T), and the state to go on from.

        Without a state and with `last`: all of them. Joined over chunks they are the same whatever the chunks.
        """
        waiting = latents if state is None else torch.cat((state.waiting, latents), 2)
        rest, inputs = self.rest(latents, state and state.inputs, last)
        ready = rest.shape[2]
        refined = waiting[..., :ready] + rest * self.rest_scale.float()[:, None]
        return refined, None if last else RefinerState(waiting[..., ready:], inputs)
