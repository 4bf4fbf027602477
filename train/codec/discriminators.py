"""Discriminators of waveforms: by periods (HiFi-GAN, Kong et al. 2020, arXiv 2010.05646), and by complex spectrograms
at several resolutions (EnCodec, Défossez et al. 2022, arXiv 2210.13438); both narrower here."""

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


class Discriminator(nn.Module):
    """Convolutions with leaky ReLUs between over a picture (B, C, H, W) that `picture` makes of a waveform."""

    def __init__(self, layers: list[nn.Module]):
        super().__init__()
        self.layers = nn.ModuleList(layers)

    def picture(self, waveform: Tensor) -> Tensor:
        raise NotImplementedError

    def forward(self, waveform: Tensor) -> list[Tensor]:
        """Waveform (B, L) -> the output of each layer; the last one's are the scores."""
        x = self.picture(waveform).contiguous(memory_format=torch.channels_last)
        outputs = []
        for layer in self.layers[:-1]:
            x = F.leaky_relu(layer(x), 0.1)
            outputs.append(x)
        return [*outputs, self.layers[-1](x)]


class PeriodDiscriminator(Discriminator):
    """Folds the waveform into rows of `period` samples; convolves along the columns."""

    def __init__(self, period: int, width: int = 32):
        sizes = [1, width, 2 * width, 4 * width, 8 * width]
        layers = [convolution(a, b, (5, 1), (3, 1)) for a, b in zip(sizes, sizes[1:], strict=False)]
        layers += [convolution(sizes[-1], sizes[-1], (5, 1)), convolution(sizes[-1], 1, (3, 1))]
        super().__init__(layers)
        self.period = period

    def picture(self, waveform: Tensor) -> Tensor:
        """(B, L) -> (B, 1, ceil(L / period), period)."""
        x = F.pad(waveform, (0, -waveform.shape[1] % self.period))
        return x.view(len(x), 1, -1, self.period)


class SpectrogramDiscriminator(Discriminator):
    """Convolves over the complex spectrogram, whose magnitudes are compressed so that quiet bands count."""

    def __init__(self, n_fft: int, width: int = 32, power: float = 0.4):
        layers = [convolution(2, width, (3, 9), (1, 2))]
        layers += [convolution(width, width, (3, 9), (1, 2), (dilation, 1)) for dilation in (1, 2, 4)]
        layers += [convolution(width, width, (3, 3)), convolution(width, 1, (3, 3))]
        super().__init__(layers)
        self.n_fft, self.power = n_fft, power

    def picture(self, waveform: Tensor) -> Tensor:
        """(B, L) -> real and imaginary part (B, 2, frames, n_fft / 2 + 1)."""
        with torch.autocast(waveform.device.type, enabled=False):
            window = hann_window(self.n_fft, waveform.device)
            frames = waveform.float().unfold(1, self.n_fft, self.n_fft // 4) * (window * (2 / window.sum()))
            spectrum = torch.view_as_real(torch.fft.rfft(frames))
            energy = spectrum.square().sum(-1, keepdim=True) + 1e-8
            return (spectrum * energy ** ((self.power - 1) / 2)).permute(0, 3, 1, 2)


class Discriminators(nn.Module):
    """All discriminators on one waveform (B, L): a list of lists of feature maps."""

    def __init__(
        self, periods: Sequence[int] = (2, 3, 5, 7, 11), windows: Sequence[int] = (2048, 1024, 512), width: int = 32
    ):
        super().__init__()
        self.members = nn.ModuleList([PeriodDiscriminator(period, width) for period in periods])
        self.members.extend([SpectrogramDiscriminator(n_fft, width) for n_fft in windows])

    def forward(self, waveform: Tensor) -> list[list[Tensor]]:
        return [member(waveform) for member in self.members]
