"""Discriminators that hear whether a waveform is real: by periods, and by spectrograms at several resolutions.

Periods as in HiFi-GAN (Kong et al. 2020, arXiv 2010.05646), complex spectrograms as in EnCodec (Défossez et al. 2022,
arXiv 2210.13438); both narrower here. Hinge losses.
"""

import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.utils.parametrizations import weight_norm

from smalle.vocos_smalle import hann_window


def convolution(inputs, outputs, kernel, stride=(1, 1), dilation=(1, 1)):
    padding = tuple((k - 1) * d // 2 for k, d in zip(kernel, dilation, strict=True))
    return weight_norm(nn.Conv2d(inputs, outputs, kernel, stride, padding, dilation))


class ConvolutionStack(nn.Module):
    """Convolutions with leaky ReLUs between; gives every layer's output, the last one being the scores."""

    def __init__(self, layers):
        super().__init__()
        self.layers = nn.ModuleList(layers)

    def forward(self, x):
        x = x.contiguous(memory_format=torch.channels_last)
        outputs = []
        for layer in self.layers[:-1]:
            x = F.leaky_relu(layer(x), 0.1)
            outputs.append(x)
        return [*outputs, self.layers[-1](x)]


class PeriodDiscriminator(nn.Module):
    """Folds the waveform into rows of `period` samples and looks down the columns."""

    def __init__(self, period, width=32):
        super().__init__()
        self.period = period
        sizes = [1, width, 2 * width, 4 * width, 8 * width]
        layers = [convolution(a, b, (5, 1), (3, 1)) for a, b in zip(sizes, sizes[1:], strict=False)]
        layers += [convolution(sizes[-1], sizes[-1], (5, 1)), convolution(sizes[-1], 1, (3, 1))]
        self.stack = ConvolutionStack(layers)

    def forward(self, waveform):
        """(B, L) -> list of feature maps, scores last."""
        x = F.pad(waveform, (0, -waveform.shape[1] % self.period))
        return self.stack(x.view(len(x), 1, -1, self.period))


class SpectrogramDiscriminator(nn.Module):
    """Looks at the complex spectrogram, its magnitudes compressed so that quiet bands are heard too."""

    def __init__(self, n_fft, width=32, power=0.4):
        super().__init__()
        self.n_fft, self.power = n_fft, power
        layers = [convolution(2, width, (3, 9), (1, 2))]
        layers += [convolution(width, width, (3, 9), (1, 2), (dilation, 1)) for dilation in (1, 2, 4)]
        layers += [convolution(width, width, (3, 3)), convolution(width, 1, (3, 3))]
        self.stack = ConvolutionStack(layers)

    def forward(self, waveform):
        """(B, L) -> list of feature maps, scores last."""
        with torch.autocast(waveform.device.type, enabled=False):
            window = hann_window(self.n_fft, waveform.device)
            frames = waveform.float().unfold(1, self.n_fft, self.n_fft // 4) * (window * (2 / window.sum()))
            spectrum = torch.view_as_real(torch.fft.rfft(frames))
            energy = spectrum.square().sum(-1, keepdim=True) + 1e-8
            spectrum = spectrum * energy ** ((self.power - 1) / 2)
        return self.stack(spectrum.permute(0, 3, 1, 2))


class Discriminators(nn.Module):
    """All of them on one waveform (B, L): a list of lists of feature maps."""

    def __init__(self, periods=(2, 3, 5, 7, 11), windows=(2048, 1024, 512), width=32):
        super().__init__()
        members = [PeriodDiscriminator(period, width) for period in periods]
        members += [SpectrogramDiscriminator(n_fft, width) for n_fft in windows]
        self.members = nn.ModuleList(members)

    def forward(self, waveform):
        return [member(waveform) for member in self.members]


def discriminator_loss(maps):
    """Hinge loss where the first half of the batch is real and the second is not; mean over discriminators."""
    loss = 0
    for *_, scores in maps:
        real, fake = scores.float().chunk(2)
        loss = loss + F.relu(1 - real).mean() + F.relu(1 + fake).mean()
    return loss / len(maps)


def generator_loss(maps):
    """Of the same batch, seen by the generator: adversarial loss and relative L1 of the features.

    Means over discriminators; features sum over layers, relative to the mean of the real ones, which are constants.
    """
    adversarial = matching = 0
    for *features, scores in maps:
        adversarial = adversarial + F.relu(1 - scores.float().chunk(2)[1]).mean()
        for feature in features:
            real, fake = feature.chunk(2)
            real = real.detach()
            distance = (fake - real).abs().mean(dtype=torch.float32)
            matching = matching + distance / (real.abs().mean(dtype=torch.float32) + 1e-6)
    return adversarial / len(maps), matching / len(maps)
