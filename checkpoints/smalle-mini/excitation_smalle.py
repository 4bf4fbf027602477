"""Excitation of a vocoder: a pulse train that follows a fundamental frequency, and noise.

Harmonics that hang together need no discriminator to be learned: a decoder that filters pulses and noise (as in Wang
et al. 2019, arXiv 1904.12088, and Engel et al. 2020, arXiv 2001.04643) only has to get magnitudes right.
"""

import functools
import math

import torch
import torch.nn.functional as F

NOISE_FRAMES = 1024


def pulse_train(f0, hop_length, sampling_rate):
    """Pulses (B, T * hop_length) of f0 (B, T) in Hz: a cosine of amplitude 1 for each harmonic below 0.46 of the rate.

    f0[:, t] holds in the middle of frame t, and in between it is interpolated.
    """
    f0 = F.interpolate(f0.float()[:, None], scale_factor=hop_length, mode="linear")[:, 0].clamp(min=20.0)
    cycles = (f0 / sampling_rate).unflatten(1, (-1, hop_length)).cumsum(2)
    whole = cycles[..., -1].cpu().double().cumsum(1) % 1.0  # single precision would lose the high harmonics' phase
    before = F.pad(whole[:, :-1], (1, 0)).to(cycles)
    phase = 2 * math.pi * ((cycles + before[..., None]) % 1.0).flatten(1)
    harmonics = (0.46 * sampling_rate / f0).floor()
    # the sum of cos(h * phase), h = 1 ... harmonics, in closed form; its limit where the phase passes zero
    half = (phase / 2).sin()
    summed = ((harmonics + 0.5) * phase).sin() / (2 * torch.where(half.abs() < 1e-3, torch.ones_like(half), half)) - 0.5
    return torch.where(half.abs() < 1e-3, harmonics, summed)


@functools.lru_cache(maxsize=8)
def noise_table(bins, device):
    """Complex normal noise (NOISE_FRAMES, bins), the same in every process."""
    with torch.inference_mode(False):
        noise = torch.randn(NOISE_FRAMES, bins, 2, generator=torch.Generator().manual_seed(0))
        return torch.view_as_complex(noise).to(device)


def noise(frames, bins, device, start=0):
    """Complex normal noise (frames, bins): frame t of any audio takes row start + t of the table, round again."""
    rows = (torch.arange(frames, device=device) + start) % NOISE_FRAMES
    return noise_table(bins, device)[rows]
