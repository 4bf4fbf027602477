"""Speech in memory as 16-bit samples, latents of it, and random segments of both."""

import json
import random
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from smalle.codec_smalle import SmallECodec

from ..data.audio import Clip, Problem
from ..data.corpora import corpus_clips
from ..data.prepare import read_ahead
from .pitch import PitchTrack


def list_clips(corpora: Iterable[str | Path], exclude_speakers: Iterable[str] = ()) -> list[Clip]:
    """Clips of the corpora, without the excluded speakers and every blend that they are part of.

    speakers.json in a corpus names the voices of its blends: {speaker: [[voice, weight], ...]}. Raises ValueError where
    no clip is left.
    """
    excluded, found = set(exclude_speakers), []
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
    clips: Sequence[Clip], sampling_rate: int, max_hours: float | None = None, threads: int = 16, seed: int = 0
) -> list[np.ndarray]:
    """Reads clips in a random order until there are `max_hours` of them: int16 arrays (L,) at sampling_rate.

    Clips that cannot be read are reported. Raises ValueError where none can.
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
        audio.append(np.round(wave * 32768).clip(-32768, 32767).astype(np.int16))
        total += len(wave)
        if total >= limit:
            break
    if problems:
        print(f"{len(problems)} recordings could not be read, first {problems[0]}", flush=True)
    if not audio:
        raise ValueError(f"none of {len(clips)} recordings could be read, first {problems[0]}")
    return audio


class SegmentSampler:
    """Draws segments, all with the same probability, of sequences that lie in one tensor one after the other.

    Args:
        lengths: (N,), of the sequences; those shorter than a segment are never drawn.
        size: length of a segment.
        generator: on the device of the tensor.
    """

    def __init__(self, lengths: Tensor, size: int, generator: torch.Generator):
        self.generator, self.device = generator, generator.device
        self.offsets = (lengths.cumsum(0) - lengths).to(self.device)
        self.choices = (lengths - size + 1).clamp(min=0).cumsum(0).to(self.device)  # segments up to each sequence's end
        self.steps = torch.arange(size, device=self.device)

    def draw(self, count: int) -> tuple[Tensor, Tensor, Tensor]:
        """Sequence (count,) and start in it (count,) of segments, and their rows (count, size) in the tensor."""
        choice = torch.randint(int(self.choices[-1]), (count,), generator=self.generator, device=self.device)
        sequence = torch.searchsorted(self.choices, choice, right=True)
        start = choice - torch.where(sequence > 0, self.choices[sequence - 1], 0)
        return sequence, start, (self.offsets[sequence] + start)[:, None] + self.steps


class Segments(NamedTuple):
    """waveform (B, L), float32; of each, the number of its recording and its first sample there, both (B,)."""

    waveform: Tensor
    recording: Tensor
    start: Tensor


class AudioPool:
    """Recordings on one device, and random segments of them; those shorter than a segment are padded with silence.

    Args:
        audio: int16 arrays (L,).
        size: samples of a segment.
        gain_db: range of the gain of a segment.
        pitch: fundamental frequency of the recordings, for codecs with a harmonic excitation.
    """

    def __init__(
        self,
        audio: Sequence[np.ndarray],
        size: int,
        device: torch.device,
        seed: int = 0,
        gain_db: Sequence[float] = (0.0, 0.0),
        pitch: PitchTrack | None = None,
    ):
        audio = [np.pad(samples, (0, max(0, size - len(samples)))) for samples in audio]
        self.samples, self.lengths = torch.from_numpy(np.concatenate(audio)).to(device), [len(x) for x in audio]
        self.gain_db, self.pitch, self.generator = gain_db, pitch, torch.Generator(device).manual_seed(seed)
        self.sampler = SegmentSampler(torch.tensor(self.lengths), size, self.generator)

    def _scale(self, samples: Tensor) -> Tensor:
        """Samples (B, L) int16 as float32, each row with a random gain."""
        low, high = self.gain_db
        gain = low + (high - low) * torch.rand(len(samples), 1, generator=self.generator, device=samples.device)
        return samples.float() * (10 ** (gain / 20) / 32768)

    def draw(self, count: int) -> Segments:
        """Random segments."""
        recording, start, rows = self.sampler.draw(count)
        return Segments(self._scale(self.samples[rows]), recording, start)

    def recordings(self) -> Iterator[Tensor]:
        """Each recording whole (1, L), with a random gain."""
        for samples in self.samples.split(self.lengths):
            yield self._scale(samples[None])


class LatentPool:
    """Latents before quantization (N, D), float16, and codes (N, Q) of an AudioPool; random segments of `frames`."""

    @torch.no_grad()
    def __init__(self, codec: SmallECodec, pool: AudioPool, frames: int):
        latents, codes = [], []
        for waveform in tqdm(pool.recordings(), "latents", len(pool.lengths), unit="file", mininterval=2):
            found = codec.analysis(waveform[:, : waveform.shape[1] // codec.hop_length * codec.hop_length])
            latents.append(found[0].T.half())
            codes.append(codec.quantizer.encode(found)[0].T.to(torch.int16))
        lengths = torch.tensor([len(part) for part in latents])
        if lengths.max() < frames:
            raise ValueError(
                f"refiner.frames is {frames}; expected at most {lengths.max()}, those of the longest recording"
            )
        self.latents, self.codes = torch.cat(latents), torch.cat(codes)
        self.sampler = SegmentSampler(lengths, frames, pool.generator)

    def draw(self, count: int) -> tuple[Tensor, Tensor]:
        """Latents (count, D, frames), float32, and codes (count, Q, frames), int64."""
        rows = self.sampler.draw(count)[2]
        return self.latents[rows].float().transpose(1, 2), self.codes[rows].long().transpose(1, 2)
