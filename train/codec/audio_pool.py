"""Speech held in memory as 16-bit samples, and random pieces of it.

A corpus is a folder as `audio.metadata_rows` reads it: rows with `file_name` (relative to the folder) and, where
known, `speaker` and `duration`. A speakers.json beside it names the voices that a blended speaker is made of.
"""

import json
import pathlib
import random
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import torch
from tqdm import tqdm

from ..data.audio import UNREADABLE, read_audio
from ..data.corpora import metadata_rows


def read_samples(path, sampling_rate):
    """A recording as mono int16 samples (L,) at the wanted rate; 16-bit ones at that rate stay as they are."""
    return np.round(read_audio(path, sampling_rate) * 32768).clip(-32768, 32767).astype(np.int16)


def list_files(corpora, exclude_speakers=()):
    """[(path, seconds or None)] of the corpora, without the excluded speakers and every blend that they are part of."""
    excluded, found = set(exclude_speakers), []
    for folder in map(pathlib.Path, corpora):
        rows = metadata_rows(folder)
        if not rows:
            raise ValueError(
                f"{folder} has no metadata.jsonl or metadata.csv, nor recordings with a text beside them; "
                "expected a corpus folder"
            )
        blends = {}
        if (folder / "speakers.json").is_file():
            blends = json.loads((folder / "speakers.json").read_text(encoding="utf-8"))
        for row in rows:
            voices = {row.get("speaker")} | {voice for voice, _ in blends.get(row.get("speaker"), ())}
            if not voices & excluded:
                found.append((folder / row["file_name"], row.get("duration")))
    if not found:
        raise ValueError(f"no files in {list(map(str, corpora))} after leaving out {sorted(excluded)}")
    return found


def load_corpus(corpora, sampling_rate, exclude_speakers=(), max_hours=None, threads=16, seed=0):
    """List of int16 arrays: the files of the corpora in a fixed random order until `max_hours` are there."""
    files = list_files(corpora, exclude_speakers)
    random.Random(seed).shuffle(files)
    limit = float("inf") if max_hours is None else max_hours * 3600 * sampling_rate
    audio, total, failed = [], 0, []
    bar = tqdm(total=len(files), desc="loading audio", unit="file", mininterval=2)

    def load(path):
        try:
            return read_samples(path, sampling_rate)
        except UNREADABLE as error:
            return error

    with ThreadPoolExecutor(threads) as pool:
        for start in range(0, len(files), 128):
            group = [path for path, _ in files[start : start + 128]]
            for path, samples in zip(group, pool.map(load, group), strict=True):
                if isinstance(samples, np.ndarray) and len(samples):
                    audio.append(samples)
                    total += len(samples)
                else:
                    failed.append(f"{path}: {samples}")
                bar.update()
            if total >= limit:
                break
    bar.close()
    if failed:
        print(f"{len(failed)} files could not be read, first {failed[0]}", flush=True)
    if not audio:
        raise ValueError(f"none of {len(files)} files could be read, first {failed[0]}")
    return audio


def draw_places(choices, count, generator):
    """File and place in it of `count` random pieces, all places alike; choices: how many there are up to each file."""
    choice = torch.randint(int(choices[-1]), (count,), generator=generator, device=choices.device)
    file = torch.searchsorted(choices, choice, right=True)
    return file, choice - torch.where(file > 0, choices[file - 1], 0)


class AudioPool:
    """All samples on one device; pieces of `size` samples that never cross from one file into the next."""

    def __init__(self, audio, size, device, seed=0):
        audio = [np.pad(samples, (0, max(0, size - len(samples)))) for samples in audio]
        lengths = torch.tensor([len(samples) for samples in audio])
        self.samples = torch.from_numpy(np.concatenate(audio)).to(device)
        self.offsets = (lengths.cumsum(0) - lengths).to(device)
        self.choices = (lengths - size + 1).cumsum(0).to(device)  # how many pieces there are up to each file
        self.steps = torch.arange(size, device=device)
        self.generator = torch.Generator(device).manual_seed(seed)
        self.pitch = None  # a train.pitch.PitchTrack, where somebody wants one

    def __len__(self):
        return len(self.samples)

    def pieces(self, count, gain_db=(0.0, 0.0)):
        """(count, size) float32, each scaled by a gain drawn from the range."""
        return self.located_pieces(count, gain_db)[0]

    def located_pieces(self, count, gain_db=(0.0, 0.0)):
        """As `pieces`, with the file and the first sample in it of each, both (count,)."""
        device = self.samples.device
        file, start = draw_places(self.choices, count, self.generator)
        low, high = gain_db
        gain = low + (high - low) * torch.rand(count, 1, generator=self.generator, device=device)
        samples = self.samples[(self.offsets[file] + start)[:, None] + self.steps]
        return samples.float() * (10 ** (gain / 20) / 32768), file, start
