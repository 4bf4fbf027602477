"""Simulates home recordings from clean ones, as references for the speaker encoder.

A model that is trained only with clean references imitates noise, reverberation or a cut word. With these references
and clean targets it learns to ignore such defects.
"""

from dataclasses import dataclass, field

import numpy as np
import torch

from ..codec.acoustics import Acoustics

BANDWIDTHS = (3400.0, 4000.0, 5500.0, 7000.0, 8000.0)  # Hz: telephone, low-rate MP3, recordings at 16 kHz


def home_acoustics() -> Acoustics:
    """Acoustics with more reverberation and noise than in the training of a codec."""
    return Acoustics(
        microphone_share=0.5,
        room_share=0.4,
        direct_to_reverberant_db=(0.0, 12.0),
        noise_share=0.6,
        snr_db=(5.0, 35.0),
        gain_db=(-20.0, 6.0),
    )


@dataclass(frozen=True)
class HomeRecording:
    """Simulates home recordings. Each share is the fraction of recordings with a defect.

    Attributes:
        cut_share: Beginnings, and ends, that are cut, by up to max_cut seconds; at least half of a recording remains.
        pause_share: Recordings with a pause of up to max_pause seconds at their quietest point.
        narrow_share: Recordings that are limited to one of BANDWIDTHS.
        hum_share, clipped_share, offset_share: Recordings with mains hum, clipping, and a constant offset.
    """

    sampling_rate: int = 24000
    cut_share: float = 0.3
    max_cut: float = 0.7
    pause_share: float = 0.3
    max_pause: float = 1.2
    narrow_share: float = 0.5
    hum_share: float = 0.1
    clipped_share: float = 0.1
    offset_share: float = 0.05
    acoustics: Acoustics = field(default_factory=home_acoustics)

    def __call__(self, samples: np.ndarray, seed: int) -> np.ndarray:
        """A home recording, float32 in [-1, 1], from clean samples (L,); the seed determines the defects."""
        random = np.random.default_rng(seed)
        samples = self._insert_pause(self._cut(samples, random), random)
        segment = torch.from_numpy(np.ascontiguousarray(samples, np.float32))[None]
        samples = self.acoustics(segment, torch.Generator().manual_seed(seed), self.sampling_rate)[0].numpy()
        samples = self._add_hum_and_offset(self._limit_band(samples, random), random)
        if random.random() < self.clipped_share:
            samples = samples * random.uniform(2, 8)
        return np.clip(samples, -1, 1).astype(np.float32)

    def _cut(self, samples: np.ndarray, random: np.random.Generator) -> np.ndarray:
        most = min(round(self.max_cut * self.sampling_rate), len(samples) // 4)
        begin, end = (int(random.integers(0, most + 1)) if random.random() < self.cut_share else 0 for _ in range(2))
        return samples[begin : len(samples) - end]

    def _insert_pause(self, samples: np.ndarray, random: np.random.Generator) -> np.ndarray:
        """Inserts silence at the quietest point, at least 0.1 s from both ends."""
        hop = self.sampling_rate // 50
        frames = samples[: len(samples) // hop * hop].reshape(-1, hop)
        if random.random() >= self.pause_share or len(frames) < 20:
            return samples
        place = (5 + int(np.square(frames[5:-5]).mean(1).argmin())) * hop + hop // 2
        pause = np.zeros(round(random.uniform(0.2, self.max_pause) * self.sampling_rate), samples.dtype)
        return np.concatenate((samples[:place], pause, samples[place:]))

    def _limit_band(self, samples: np.ndarray, random: np.random.Generator) -> np.ndarray:
        if random.random() >= self.narrow_share:
            return samples
        spectrum = np.fft.rfft(samples)
        hertz = np.linspace(0, self.sampling_rate / 2, len(spectrum))
        spectrum *= np.clip((random.choice(BANDWIDTHS) - hertz) / 200 + 0.5, 0, 1)
        return np.fft.irfft(spectrum, len(samples))

    def _add_hum_and_offset(self, samples: np.ndarray, random: np.random.Generator) -> np.ndarray:
        if random.random() < self.hum_share:
            phase = 2 * np.pi * random.choice((50.0, 60.0)) * np.arange(len(samples)) / self.sampling_rate
            harmonics = np.sum([np.sin(n * phase) / n for n in (1, 2, 3, 5)], 0)
            level = np.sqrt(np.square(samples).mean() + 1e-9)
            samples = samples + level * random.uniform(0.02, 0.2) * harmonics
        if random.random() < self.offset_share:
            samples = samples + random.uniform(-0.1, 0.1)
        return samples
