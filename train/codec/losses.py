"""Distance of two waveforms by their spectrograms at several window lengths."""

import torch
from torch import nn

from smalle.codec_smalle import mel_filters
from smalle.vocos_smalle import hann_window

SCALES = ((256, 20), (512, 40), (1024, 80), (2048, 100))  # window in samples, mel bands


class SpectralLoss(nn.Module):
    """Mean over windows of L1 on log-mel magnitudes plus `linear` times L1 on the magnitudes.

    Magnitudes are those of a plain windowed transform, so that long windows, which resolve the harmonics of loud
    voiced sounds, weigh most. `floor` is where the logarithm stops. Hops are a quarter of the window.
    """

    def __init__(self, sampling_rate=24000, scales=SCALES, floor=1e-5, linear=0.3):
        super().__init__()
        self.sampling_rate, self.scales, self.floor, self.linear = sampling_rate, scales, floor, linear

        self.filters = {}  # by window and device: mel filters that average, (size / 2 + 1, mels)

    def mel(self, magnitude, size, num_mels):
        """Log of the magnitude in each mel band."""
        key = size, magnitude.device
        if key not in self.filters:
            filters = mel_filters(size, num_mels, self.sampling_rate, magnitude.device).T
            self.filters[key] = filters
        return (magnitude @ self.filters[key]).log()

    def magnitude(self, waveform, size):
        """(B, L) -> (B, frames, size / 2 + 1), differentiable at zero."""
        window = hann_window(size, waveform.device)
        frames = waveform.unfold(1, size, size // 4) * window
        return (torch.view_as_real(torch.fft.rfft(frames)).square().sum(-1) + self.floor**2).sqrt()

    def forward(self, output, target):
        """Scalar log-mel term and scalar linear term of two waveforms (B, L)."""
        log_term = linear_term = 0
        for size, num_mels in self.scales:
            got = self.magnitude(output, size)
            with torch.no_grad():
                wanted = self.magnitude(target, size)
                wanted_mel = self.mel(wanted, size, num_mels)
            log_term = log_term + (self.mel(got, size, num_mels) - wanted_mel).abs().mean()
            linear_term = linear_term + (got - wanted).abs().mean()
        return log_term / len(self.scales), self.linear * linear_term / len(self.scales)
