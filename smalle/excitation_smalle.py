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
    return pulses_between(F.pad(f0[:, None], (1, 1), "replicate")[:, 0], hop_length, sampling_rate)[0]


def pulses_between(f0, hop_length, sampling_rate, phase=None):
    """As `pulse_train`, of T frames with neighbours: f0 (B, T + 2) -> pulses (B, T * hop_length), phase after them.

    phase (B,): cycles, 0 to 1, in double precision, where the frames before have ended; None: 0.
    """
    before, now, after = (part.float()[..., None] for part in (f0[:, :-2], f0[:, 1:-1], f0[:, 2:]))
    place = (torch.arange(hop_length, device=f0.device) + 0.5) / hop_length - 0.5  # frames from the middle of one's own
    f0 = (now + place.clamp(max=0) * (now - before) + place.clamp(min=0) * (after - now)).clamp(min=20.0)
    cycles = (f0 / sampling_rate).cumsum(2)
    ends = cycles[..., -1].cpu().double().cumsum(1)  # single precision would lose the high harmonics' phase
    starts = F.pad(ends, (1, 0)) + (0.0 if phase is None else phase[:, None])
    starts = starts % 1.0
    cycles = (cycles + starts[:, :-1, None].to(cycles)).flatten(1)
    phase = 2 * math.pi * (cycles - cycles.round())  # around 0, where the quotient below needs every digit
    harmonics = (0.46 * sampling_rate / f0).floor().flatten(1)
    # the sum of cos(h * phase), h = 1 ... harmonics, in closed form; its limit where the phase passes zero
    half = (phase / 2).sin()
    summed = ((harmonics + 0.5) * phase).sin() / (2 * torch.where(half.abs() < 1e-6, torch.ones_like(half), half)) - 0.5
    return torch.where(half.abs() < 1e-6, harmonics, summed), starts[:, -1]


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
