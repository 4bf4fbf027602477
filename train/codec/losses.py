"""Losses of a codec's decoder: spectral distance, adversarial loss and feature matching."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from smalle.codec_smalle import mel_filters
from smalle.vocos_smalle import hann_window

SCALES = ((256, 20), (512, 40), (1024, 80), (2048, 100))  # window in samples, mel bands


def low_pass(waveform: Tensor, cutoff: Tensor, sampling_rate: int, width: float = 150.0) -> Tensor:
    """Low-pass filters each waveform (B, L) at its own cutoff (B,) in Hz; `width`: transition band in Hz."""
    length = waveform.shape[1]
    hertz = torch.linspace(0, sampling_rate / 2, length // 2 + 1, device=waveform.device)
    gain = ((cutoff[:, None] - hertz) / width + 0.5).clamp(0, 1)
    return torch.fft.irfft(torch.fft.rfft(waveform) * gain, length)


class SpectralLoss(nn.Module):
    """Mean over window lengths of L1 on log-mel magnitudes plus `linear` times L1 on magnitudes.

    Magnitudes are not normalized by the window length. Long windows, which resolve the harmonics of voiced sounds,
    therefore have the largest weight. The hop is a quarter of the window. `floor` limits the logarithm from below.
    """

    def __init__(
        self,
        sampling_rate: int = 24000,
        scales: Sequence[tuple[int, int]] = SCALES,
        floor: float = 1e-5,
        linear: float = 0.3,
    ):
        super().__init__()
        self.sampling_rate, self.scales, self.floor, self.linear = sampling_rate, scales, floor, linear

    def spectrograms(self, waveform: Tensor, size: int, num_mels: int) -> tuple[Tensor, Tensor]:
        """(B, L) -> magnitudes (B, T, size / 2 + 1), differentiable at zero, and log-mel ones (B, T, num_mels)."""
        frames = waveform.unfold(1, size, size // 4) * hann_window(size, waveform.device)
        magnitude = (torch.view_as_real(torch.fft.rfft(frames)).square().sum(-1) + self.floor**2).sqrt()
        return magnitude, (magnitude @ mel_filters(size, num_mels, self.sampling_rate, waveform.device).T).log()

    def forward(self, output: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
        """The log-mel term and the linear term between two waveforms (B, L); both are scalars."""
        log_term = linear_term = output.new_zeros(())
        for size, num_mels in self.scales:
            magnitude, log_mel = self.spectrograms(output, size, num_mels)
            with torch.no_grad():
                target_magnitude, target_log_mel = self.spectrograms(target, size, num_mels)
            log_term = log_term + (log_mel - target_log_mel).abs().mean()
            linear_term = linear_term + (magnitude - target_magnitude).abs().mean()
        return log_term / len(self.scales), self.linear * linear_term / len(self.scales)


def discriminator_loss(maps: list[list[Tensor]]) -> Tensor:
    """Hinge loss of the discriminators, averaged over them.

    maps: feature maps of each discriminator, its scores last. The first half of the batch is real, the second half
        generated.
    """
    loss = maps[0][-1].new_zeros((), dtype=torch.float32)
    for *_, scores in maps:
        real, fake = scores.float().chunk(2)
        loss = loss + F.relu(1 - real).mean() + F.relu(1 + fake).mean()
    return loss / len(maps)


def generator_loss(maps: list[list[Tensor]]) -> tuple[Tensor, Tensor]:
    """Adversarial loss and feature matching of the same batch: means over discriminators.

    Feature matching is the L1 distance of real and generated feature maps, divided by the mean of the real one and
    summed over layers.
    """
    adversarial = matching = maps[0][-1].new_zeros((), dtype=torch.float32)
    for *features, scores in maps:
        adversarial = adversarial + F.relu(1 - scores.float().chunk(2)[1]).mean()
        for feature in features:
            real, fake = feature.chunk(2)
            real = real.detach()
            distance = (fake - real).abs().mean(dtype=torch.float32)
            matching = matching + distance / (real.abs().mean(dtype=torch.float32) + 1e-6)
    return adversarial / len(maps), matching / len(maps)
