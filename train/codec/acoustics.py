"""Augments segments with microphone responses, reverberation, noise and gain.

The codec is trained to reproduce the augmented segment. Nothing is delayed, so pitch and words keep their positions.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


def rms(waveform: Tensor) -> Tensor:
    """Root mean square (B, 1) of (B, L)."""
    return (waveform.square().mean(1, keepdim=True) + 1e-9).sqrt()


def amplitude(decibels: Tensor) -> Tensor:
    """The amplitude factor of a gain in dB."""
    return 10 ** (decibels / 20)


class RowSampler:
    """Random numbers for each row of a batch."""

    def __init__(self, batch: int, generator: torch.Generator):
        self.batch, self.generator, self.device = batch, generator, generator.device

    def uniform(self, span: Sequence[float]) -> Tensor:
        """Uniform numbers (B, 1) between the ends of the span."""
        low, high = span
        return low + (high - low) * torch.rand(self.batch, 1, generator=self.generator, device=self.device)

    def normal(self, size: int) -> Tensor:
        """Normal numbers (B, size)."""
        return torch.randn(self.batch, size, generator=self.generator, device=self.device)

    def choose(self, share: float) -> Tensor:
        """Booleans (B, 1), true for this share of the rows."""
        return self.uniform((0.0, 1.0)) < share


@dataclass(frozen=True)
class Acoustics:
    """How many segments are augmented, and how strongly.

    Attributes:
        microphone_share: Share of the segments that pass through the smooth response of a microphone.
        microphone_ripple: Standard deviation of its widest ripple in nepers.
        room_share: Share of the segments with reverberation.
        reverberation_seconds: Range of the time in which reverberation falls by 60 dB.
        direct_to_reverberant_db: Range of the ratio of direct sound to reverberation.
        noise_share: Share of the segments with noise, whose colour is between white and brown.
        snr_db: Range of the signal-to-noise ratio.
        gain_db: Range of the gain of a segment.
    """

    microphone_share: float = 0.0
    microphone_ripple: float = 0.25
    room_share: float = 0.0
    reverberation_seconds: Sequence[float] = (0.15, 0.6)
    direct_to_reverberant_db: Sequence[float] = (2.0, 14.0)
    noise_share: float = 0.0
    snr_db: Sequence[float] = (14.0, 40.0)
    gain_db: Sequence[float] = (0.0, 0.0)

    def __call__(self, segments: Tensor, generator: torch.Generator, sampling_rate: int = 24000) -> Tensor:
        """Augments segments (B, L) in [-1, 1]; scales down those that would clip."""
        sampler, length, level = RowSampler(len(segments), generator), segments.shape[1], rms(segments)
        if self.microphone_share or self.room_share:
            size = 2 * length
            response = self._microphone(sampler, size) * self._room(sampler, size, length, sampling_rate)
            segments = torch.fft.irfft(torch.fft.rfft(segments, size) * response, size)[:, :length]
            segments = segments * (level / rms(segments))
        if self.noise_share:
            segments = segments + self._noise(sampler, length, sampling_rate) * level
        segments = segments * amplitude(sampler.uniform(self.gain_db))
        return segments / segments.abs().amax(1, keepdim=True).clamp(min=1)

    def _microphone(self, sampler: RowSampler, size: int) -> Tensor:
        """Frequency response (B, size / 2 + 1), smooth in log frequency."""
        octaves = (torch.linspace(0, 1, size // 2 + 1, device=sampler.device).clamp(min=1e-3).log2() + 10) / 10
        orders = torch.arange(1, 5, device=sampler.device)
        curve = sampler.normal(4) * (self.microphone_ripple / orders) @ torch.cos(torch.pi * orders[:, None] * octaves)
        return torch.where(sampler.choose(self.microphone_share), curve, 0.0).exp()

    def _room(self, sampler: RowSampler, size: int, length: int, sampling_rate: int) -> Tensor:
        """Frequency response (B, size / 2 + 1) of a direct path with a tail of decaying noise."""
        taps = min(int(0.35 * sampling_rate), length)
        seconds = torch.arange(taps, device=sampler.device) / sampling_rate
        tail = sampler.normal(taps) * torch.exp(-6.9 * seconds / sampler.uniform(self.reverberation_seconds))
        tail[:, : sampling_rate // 1000] = 0
        level = amplitude(-sampler.uniform(self.direct_to_reverberant_db))
        tail = tail / tail.norm(dim=1, keepdim=True).clamp(min=1e-9) * level
        tail = torch.where(sampler.choose(self.room_share), tail, 0.0)
        tail[:, 0] = 1
        return torch.fft.rfft(tail, size)

    def _noise(self, sampler: RowSampler, length: int, sampling_rate: int) -> Tensor:
        """Noise (B, length) at a level relative to the segment's."""
        hertz = torch.linspace(0, sampling_rate / 2, length // 2 + 1, device=sampler.device)
        colour = (hertz + 200) ** -sampler.uniform((0.0, 1.2))
        noise = torch.fft.irfft(torch.fft.rfft(sampler.normal(length)) * colour, length)
        noise = noise / rms(noise) * amplitude(-sampler.uniform(self.snr_db))
        return torch.where(sampler.choose(self.noise_share), noise, 0.0)
