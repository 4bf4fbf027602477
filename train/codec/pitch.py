"""Fundamental frequency of recordings, for codecs with pulses: Praat's autocorrelation (Boersma 1993).

Through praat-parselmouth (GPL-3.0), a tool of training, no part of any model.
"""

import concurrent.futures
import os

import numpy as np
import torch
from tqdm import tqdm

FRAME_SECONDS = 0.005
FLOOR, CEILING = 60.0, 500.0  # Hz


def fundamental(samples, sampling_rate):
    """f0 in Hz every 5 ms of int16 samples (L,), float32, 0 where there is no voice."""
    import parselmouth

    sound = parselmouth.Sound(samples / 32768, sampling_rate)
    grid = np.zeros(int(sound.duration / FRAME_SECONDS) + 1, np.float32)
    if sound.duration > 3.1 / FLOOR:  # three periods, Praat's window
        pitch = sound.to_pitch_ac(time_step=FRAME_SECONDS, pitch_floor=FLOOR, pitch_ceiling=CEILING)
        places = np.rint(np.asarray(pitch.xs()) / FRAME_SECONDS).astype(int)
        grid[places.clip(max=len(grid) - 1)] = pitch.selected_array["frequency"]
    return grid


def fundamentals(audio, sampling_rate, processes=None):
    """`fundamental` of each recording, over all cores."""
    rates = [sampling_rate] * len(audio)
    with concurrent.futures.ProcessPoolExecutor(processes or os.cpu_count()) as pool:
        found = pool.map(fundamental, audio, rates, chunksize=16)
        return list(tqdm(found, total=len(audio), desc="pitch", unit="file", mininterval=2))


def bridge(f0):
    """Fills what is unvoiced from the voiced frames around it, in log frequency; 150 Hz where nothing is voiced."""
    voiced = np.flatnonzero(f0)
    if not len(voiced):
        return np.full_like(f0, 150.0)
    return np.exp(np.interp(np.arange(len(f0)), voiced, np.log(f0[voiced]))).astype(np.float32)


class PitchTrack:
    """The f0 of an AudioPool: bridged f0 and where there is a voice, at any sample of its files."""

    def __init__(self, audio, sampling_rate, device):
        self.step = round(FRAME_SECONDS * sampling_rate)
        tracks = fundamentals(audio, sampling_rate)
        counts = torch.tensor([len(track) for track in tracks])
        self.offsets = (counts.cumsum(0) - counts).to(device)
        self.counts = counts.to(device)
        self.voiced = torch.from_numpy(np.concatenate(tracks) > 0).to(device)
        self.f0 = torch.from_numpy(np.concatenate([bridge(track) for track in tracks])).to(device)

    def at(self, file, samples):
        """f0 in Hz and voicing, both (B, T), at samples (B, T) of files (B,)."""
        place = (samples + self.step // 2) // self.step
        place = self.offsets[file][:, None] + torch.minimum(place, self.counts[file][:, None] - 1)
        return self.f0[place], self.voiced[place]
