"""Holds speech in memory as 16-bit samples, and draws random segments from it."""

import json
import random
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from smalle.codec_smalle import MelAnalysis

from ..data.audio import Clip, Problem, QualityGate
from ..data.corpora import corpus_clips
from ..data.prepare import read_ahead
from .pitch import PitchTrack


def list_clips(corpora: Iterable[str | Path], exclude_speakers: Iterable[str] = ()) -> list[Clip]:
    """Clips of the corpora without the excluded speakers and their blends.

    speakers.json in a corpus names the voices of its blends: {speaker: [[voice, weight], ...]}. Raises ValueError if no
    clip is left.
    """
    excluded, found = set(map(str, exclude_speakers)), []  # YAML reads a speaker 1867 as a number
    for corpus in map(Path, corpora):
        blends = {}
        if (corpus / "speakers.json").is_file():
            blends = json.loads((corpus / "speakers.json").read_text(encoding="utf-8"))
        for clip in corpus_clips(corpus, untranscribed=True):
            if isinstance(clip, Clip):
                voices = {clip.speaker} | {voice for voice, _ in blends.get(clip.speaker, ())}
                found += [] if voices & excluded else [clip]
    if not found:
        raise ValueError(f"no recordings in {list(map(str, corpora))} without the speakers {sorted(excluded)}")
    return found


def load_audio(
    clips: Sequence[Clip],
    sampling_rate: int,
    max_hours: float | None = None,
    threads: int = 16,
    seed: int = 0,
    gate: QualityGate | None = None,
) -> list[np.ndarray]:
    """Reads clips in a random order until there are `max_hours` of them: int16 arrays (L,) at sampling_rate.

    Reports clips that cannot be read or that the gate refuses. Raises ValueError if none is left.
    """
    clips = random.Random(seed).sample(clips, len(clips))
    limit = float("inf") if max_hours is None else max_hours * 3600 * sampling_rate
    audio, total, problems = [], 0, []
    for clip, wave in tqdm(
        read_ahead(clips, sampling_rate, threads), "loading audio", len(clips), unit="file", mininterval=2
    ):
        if isinstance(wave, Problem):
            problems.append(f"{clip.id}: {wave.reason}")
            continue
        if gate and (wave := gate(wave)) is None:
            problems.append(f"{clip.id}: too quiet, noisy or clipped")
            continue
        audio.append(np.round(wave * 32768).clip(-32768, 32767).astype(np.int16))
        total += len(wave)
        if total >= limit:
            break
    if problems:
        print(f"{len(problems)} recordings could not be used, first {problems[0]}", flush=True)
    if not audio:
        raise ValueError(f"none of {len(clips)} recordings could be used, first {problems[0]}")
    return audio


class Segments(NamedTuple):
    """Segments: waveform (B, L) in float32, index of the recording (B,) and of the first sample in it (B,), and
    occupied mel bands of the recording (B,), or None if the pool has not measured them."""

    waveform: Tensor
    recording: Tensor
    start: Tensor
    bands: Tensor | None


class AudioPool:
    """Recordings on one device, and random segments of them.

    All segments have the same probability. Recordings shorter than a segment are padded with silence.

    Args:
        audio: int16 arrays (L,).
        size: samples per segment.
        augmentation: changes segments (B, L), with the pool's generator.
        pitch: fundamental frequency of the recordings, for codecs with harmonic excitation.
    """

    def __init__(
        self,
        audio: Sequence[np.ndarray],
        size: int,
        device: torch.device,
        seed: int = 0,
        augmentation: Callable[[Tensor, torch.Generator], Tensor] | None = None,
        pitch: PitchTrack | None = None,
    ):
        audio = [np.pad(samples, (0, max(0, size - len(samples)))) for samples in audio]
        self.samples, self.lengths = torch.from_numpy(np.concatenate(audio)).to(device), [len(x) for x in audio]
        self.augmentation, self.pitch = augmentation, pitch
        self.bands: Tensor | None = None
        self.device, self.generator = device, torch.Generator(device).manual_seed(seed)
        lengths = torch.tensor(self.lengths)
        self.offsets = (lengths.cumsum(0) - lengths).to(device)
        self.choices = (lengths - size + 1).cumsum(0).to(device)  # segments up to each recording's end
        self.steps = torch.arange(size, device=device)

    def draw(self, count: int) -> Segments:
        """Random segments."""
        choice = torch.randint(int(self.choices[-1]), (count,), generator=self.generator, device=self.device)
        recording = torch.searchsorted(self.choices, choice, right=True)
        start = choice - torch.where(recording > 0, self.choices[recording - 1], 0)
        waveform = self.samples[(self.offsets[recording] + start)[:, None] + self.steps].float() / 32768
        if self.augmentation:
            waveform = self.augmentation(waveform, self.generator)
        return Segments(waveform, recording, start, None if self.bands is None else self.bands[recording])

    def recordings(self) -> Iterator[Tensor]:
        """Each recording (1, L), unchanged."""
        for samples in self.samples.split(self.lengths):
            yield samples[None].float() / 32768

    @torch.no_grad()
    def find_bands(self, analysis: MelAnalysis) -> None:
        """Measures the occupied mel bands of the recordings, for a codec with band extension."""
        counts = [
            analysis.occupied_bands(analysis.mel(waveform), torch.tensor([waveform.shape[1]]))
            for waveform in tqdm(self.recordings(), "bands", len(self.lengths), unit="file", mininterval=2)
        ]
        self.bands = torch.cat(counts)
        share = (self.bands < analysis.config.num_mels).float().mean()
        print(f"{100 * share:.0f} % of the recordings are band-limited", flush=True)
