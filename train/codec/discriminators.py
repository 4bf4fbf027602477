"""Discriminators of log spectra at several resolutions.

This is the multi-resolution discriminator of EnCodec (Défossez et al. 2022, arXiv 2210.13438), but on log magnitudes,
with which it learns within hundreds of steps.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.parametrizations import weight_norm

from smalle.vocos_smalle import hann_window


def convolution(
    inputs: int, outputs: int, kernel: tuple, stride: tuple = (1, 1), dilation: tuple = (1, 1)
) -> nn.Module:
    padding = tuple((k - 1) * d // 2 for k, d in zip(kernel, dilation, strict=True))
    return weight_norm(nn.Conv2d(inputs, outputs, kernel, stride, padding, dilation))


class SpectrumDiscriminator(nn.Module):
    """Convolutions over the log magnitude and phase of a spectrogram, with leaky ReLUs between them."""

    def __init__(self, n_fft: int, width: int = 32):
        super().__init__()
        layers = [convolution(3, width, (3, 9), (1, 2))]
        layers += [convolution(width, width, (3, 9), (1, 2), (dilation, 1)) for dilation in (1, 2, 4)]
        layers += [convolution(width, width, (3, 3)), convolution(width, 1, (3, 3))]
        self.n_fft, self.layers = n_fft, nn.ModuleList(layers)

    def picture(self, waveform: Tensor) -> Tensor:
        """(B, L) -> log magnitude and complex values compressed to magnitude^0.3: (B, 3, frames, n_fft / 2 + 1)."""
        with torch.autocast(waveform.device.type, enabled=False):
            window = hann_window(self.n_fft, waveform.device)
            frames = waveform.float().unfold(1, self.n_fft, self.n_fft // 4) * (window * (2 / window.sum()))
            spectrum = torch.view_as_real(torch.fft.rfft(frames))
            energy = spectrum.square().sum(-1) + 1e-9
            compressed = spectrum * (energy**-0.35)[..., None]
            return torch.stack(
                (0.2 * energy.log() + 1.8, *compressed.unbind(-1)), 1
            )  # all three have about the same scale

    def forward(self, waveform: Tensor) -> list[Tensor]:
        """Waveform (B, L) -> the output of each layer; the last one holds the scores."""
        x = self.picture(waveform).contiguous(memory_format=torch.channels_last)
        outputs = []
        for layer in self.layers[:-1]:
            x = F.leaky_relu(layer(x), 0.1)
            outputs.append(x)
        return [*outputs, self.layers[-1](x)]


class Discriminators(nn.Module):
    """Applies all discriminators to a waveform (B, L): a list of lists of feature maps."""

    def __init__(self, windows: Sequence[int] = (1024, 512, 256), width: int = 32):
        super().__init__()
        self.members = nn.ModuleList([SpectrumDiscriminator(n_fft, width) for n_fft in windows])

    def forward(self, waveform: Tensor) -> list[list[Tensor]]:
        return [member(waveform) for member in self.members]
