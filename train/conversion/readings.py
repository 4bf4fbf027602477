"""Readings of texts by one voice with the phone times of recordings, frame by frame.

They are parallel to the recordings, and carry nothing of their speakers except the pace.
"""

import itertools
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from tqdm import tqdm

from smalle.audio_smalle import to_speech_level
from smalle.codec_smalle import MelAnalysis
from smalle.saving_smalle import atomic_write

from .classes import Aligned
from .pairs import Pair, mel_frames
from .phones import FRAME, PHRASE_END, SILENCE, STRESSES, phone_of
from .stage import smooth_envelope
from .voice import FRAME as VOICE_FRAME
from .voice import HibariVoice

EARLY = 0.008  # seconds by which a reading starts before its recording, to make up for the delay of its frames
LEAD, TAIL = 6, 12  # most frames of the voice before the first phone and after the last one


class TimedVoice(Protocol):
    """A voice that speaks phonemes with given durations, such as `.voice.HibariVoice`."""

    def frames(self, phonemes: Sequence[str]) -> np.ndarray:
        """The voice's own durations (N + 2,) in frames, of phonemes (N) and of the pauses at both ends."""
        ...

    def speak(self, phonemes: Sequence[str], frames: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """The waveform for given durations (N + 2,) in frames."""
        ...


def places_of(symbols: Sequence[str]) -> list[int]:
    """The index of each symbol in `phone_sequence`.

    A stress mark has the index of the next phone, a length mark that of the previous phone.
    """
    places, place, silent = [], 0, True
    for symbol in symbols:
        number = phone_of(symbol)
        if number is not None:
            place += number != SILENCE or not silent
            silent = number == SILENCE
        places.append(place + (symbol in STRESSES))
    return places


def bounds_of(places: Sequence[int], natural: np.ndarray, starts: np.ndarray, ends: np.ndarray) -> np.ndarray:
    """Bounds (N + 1,) of symbols by the times of their places (N); those of one place divide it like `natural` (N,)."""
    bounds = [starts[places[0]]]
    for place, group in itertools.groupby(range(len(places)), key=places.__getitem__):
        shares = natural[list(group)]
        bounds += (starts[place] + shares.cumsum() / shares.sum() * (ends[place] - starts[place])).tolist()
    return np.array(bounds)


def whole_frames(bounds: np.ndarray, first: int) -> np.ndarray:
    """Rounds bounds (N + 1,) to durations (N + 1,) in frames from `first`, at least one frame each."""
    ends = [first]
    for bound in bounds:
        ends.append(max(ends[-1] + 1, round(bound)))
    return np.diff(ends)


def phrases_of(symbols: Sequence[str]) -> Iterator[slice]:
    """Slices of the phrases."""
    first = 0
    for index, symbol in enumerate(symbols):
        if symbol == PHRASE_END:
            if index > first:
                yield slice(first, index)
            first = index + 1


def read_in_times(
    voice: TimedVoice, frame: float, rate: int, symbols: Sequence[str], path: np.ndarray, rng: np.random.Generator
) -> np.ndarray:
    """Waveform of symbols with the times of a path (T,), the index in the phone sequence for each codec frame.

    frame: duration of the voice's frames in seconds. rate: its sampling rate in Hz.
    """
    places, count, hop = places_of(symbols), int(path.max()) + 2, round(frame * rate)
    starts, ends = (
        (np.searchsorted(path, np.arange(count), side) * FRAME - EARLY) / frame for side in ("left", "right")
    )
    total = len(path) * FRAME / frame
    wave, written = np.zeros(round(total * hop) + hop * TAIL, np.float32), 0
    phrases = list(phrases_of(symbols))
    for phrase, following in zip(phrases, [*phrases[1:], None]):
        known, natural = symbols[phrase], voice.frames(symbols[phrase])
        bounds = bounds_of([min(place, count - 1) for place in places[phrase]], natural[1:-1], starts, ends)
        begin = max(written, round(max(bounds[0], written)) - LEAD)
        if begin * hop >= len(wave):  # the recording is too short for its text
            break
        frames = whole_frames(bounds, begin)
        end = begin + frames.sum()
        limit = total if following is None else starts[min(places[following.start], count - 1)]
        tail = int(np.clip(round(limit) - end, 1, TAIL))
        speech = voice.speak(known, np.append(frames, tail), rng)[: len(wave) - begin * hop]
        wave[begin * hop : begin * hop + len(speech)] += speech
        written = end + tail
    return wave[: round(total * hop)]


@torch.no_grad()
def timed_envelopes(analysis: MelAnalysis, voice: TimedVoice, frame: float, row: Aligned, seed: int) -> Tensor:
    """Smooth envelopes (T, 48) of the reading of a pair with the times of its recording."""
    rng = np.random.default_rng(seed)
    path = np.append(row.recorded, row.recorded[-1:])  # one more frame, for the last windows
    wave = read_in_times(voice, frame, analysis.config.sampling_rate, row.pair.symbols, path, rng)
    frames = mel_frames(analysis, to_speech_level(wave).astype(np.float32), False)
    return smooth_envelope(frames)[: len(row.recorded)]


def make_readings(path: str, analysis: MelAnalysis, rows: Sequence[Aligned], moments: Tensor) -> list[Tensor]:
    """`timed_envelopes` of rows, standardized by moments (2, 48), in half; reads the file or creates it."""
    if not Path(path).exists():
        voice, found = HibariVoice(), {}
        for number, row in enumerate(tqdm(rows, "readings", mininterval=2)):
            envelopes = timed_envelopes(analysis, voice, VOICE_FRAME, row, number)
            found[str(number)] = ((envelopes - moments[0]) / moments[1]).half()
        with atomic_write(path) as temporary:
            save_file(found, temporary)
    return load_readings(path, [row.pair for row in rows])


def load_readings(path: str, pairs: Sequence[Pair]) -> list[Tensor]:
    """Readings (T, 48) of pairs, the last ones of a file. Raises ValueError if they belong to other pairs."""
    found = load_file(path)
    readings = [found[str(number)] for number in range(len(found))][-len(pairs) :]
    if [len(reading) for reading in readings] != [len(pair.mel) // 2 for pair in pairs]:
        raise ValueError(
            f"{path} holds readings of other pairs: give the pairs that smalle.train.conversion.content was run on."
        )
    return readings
