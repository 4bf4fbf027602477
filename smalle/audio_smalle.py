"""Waveforms and sound files: reads recordings in any form, checks and resamples them, and writes 16-bit wav."""

import io
import logging
import os
import re
import struct
import warnings
import wave
from collections.abc import Iterable
from typing import Any

import numpy as np

from .saving_smalle import atomic_write

try:
    import soundfile
except (ImportError, OSError):
    soundfile = None

try:
    import soxr
except ImportError:
    soxr = None

logger = logging.getLogger(__name__)

SAMPLING_RATES = 1000, 1_000_000  # Hz; numbers outside this range are mistakes
MAX_LEVEL = 16.0  # larger values are on another scale, such as that of 16-bit integers
MIN_LEVEL = 1e-3  # -60 dB; a recording with a lower peak is silent
SPEECH_LEVEL = -23.0  # dBFS; recordings are brought to this level before they are encoded
REFERENCE_SECONDS = 1.0, 20.0  # shortest and longest reference recording; longer ones are cut
MARGIN = 0.1  # seconds of silence that are kept at both ends of a reference
MAX_CLIPPED = 0.02  # largest share of samples at the peak of a recording
MIN_DEPTH = 9.0  # dB between loud and quiet frames; speech has 20 or more
MIN_SECONDS = 0.1  # shortest prompt
PROMPT_SECONDS = 10.0, 13.0  # a prompt longer than the second is cut to at most the first
MAX_DRIFT = 0.06  # largest distance between a pause and the estimated end of a sentence, as a share of a recording
MAX_SAMPLES = 1 << 28  # longest file, about 3 hours at 24 kHz
UNKNOWN_SIZE = 0xFFFFFFFF  # the size field of a wav whose length is not known yet
NUMBERS = int, float, np.number
FILES = str, os.PathLike, bytes, bytearray, memoryview

# --- reading


def read_sound_file(source: Any) -> tuple[np.ndarray, int]:
    """Reads a sound file: its path, its bytes or the open file. Returns samples (channels, L) float32 and the rate."""
    if soundfile is None:
        raise ValueError("Reading a sound file needs soundfile: install it, or give the waveform as an array.")
    name = f"audio={str(source)!r}"
    if isinstance(source, (bytes, bytearray, memoryview)):
        source, name = io.BytesIO(source), f"audio, {len(source)} bytes,"
    elif not hasattr(source, "read") and not os.path.isfile(source):
        problem = "is a folder" if os.path.isdir(source) else "does not exist"
        raise ValueError(f"{name} {problem}: expected a sound file.")
    try:
        with soundfile.SoundFile(source) as file:
            if file.frames * file.channels > MAX_SAMPLES:  # the file is too long, or its header is damaged
                raise ValueError(f"{name} is too long: {file.frames} samples in {file.channels} channels.")
            return file.read(dtype="float32", always_2d=True).T, file.samplerate
    except (soundfile.SoundFileError, TypeError) as error:
        raise ValueError(f"{name} cannot be read as a sound file: expected wav, flac, ogg or mp3.") from error


def read_recording(audio: Any, sampling_rate: float | None = None) -> tuple[Any, float | None]:
    """Samples and sampling rate of a recording in any form.

    Args:
        audio: samples as an array, a tensor or a list; the path or the bytes of a sound file, or the open file; a row
            of a data set, {"array", "sampling_rate"} or {"bytes", "path"}.
        sampling_rate: sampling rate of an array of samples, in Hz; ignored where `audio` contains its own.
    """
    if isinstance(audio, dict):
        if audio.get("array") is not None:
            return audio["array"], audio.get("sampling_rate", sampling_rate)
        audio = audio["bytes"] if audio.get("bytes") is not None else audio.get("path")
        if audio is None:
            raise ValueError("audio is a dict without samples: expected array and sampling_rate, or bytes, or path.")
    if isinstance(audio, FILES) or hasattr(audio, "read"):
        return read_sound_file(audio)
    if hasattr(audio, "is_floating_point"):  # a tensor; this module does not import PyTorch
        audio = audio.detach().cpu()
        audio = audio.float() if audio.is_floating_point() else audio
    return audio, sampling_rate


def is_one_recording(audio: Any) -> bool:
    """Whether `audio` is a single recording and not a list of them."""
    if not isinstance(audio, (list, tuple)):
        return True
    numbers = [isinstance(part, NUMBERS) for part in audio[:2]]
    if len(audio) == 2 and any(numbers) and not all(numbers):
        raise ValueError(
            "audio is a pair of samples and a sampling rate: pass them separately, audio=samples, sampling_rate=rate."
        )
    return not audio or numbers[0]


def load_waveform(audio: Any, sampling_rate: float | None, target_rate: int) -> np.ndarray:
    """A recording, as `read_recording` takes it, as mono waveform (L,) float32 at `target_rate`; channels are averaged.

    Raises ValueError if it is not a recording, if it is silent, and if its samples are not in -1..1.
    """
    audio, sampling_rate = read_recording(audio, sampling_rate)
    try:
        audio = np.asarray(audio)
    except (ValueError, TypeError, RuntimeError) as error:
        raise ValueError(f"audio is {type(audio).__name__}: expected samples (L,), (channels, L) or a path.") from error
    if audio.dtype.kind != "f":
        raise ValueError(f"audio holds {audio.dtype}: expected floats in -1..1; divide 16-bit audio by 32768.")
    if audio.ndim not in (1, 2) or not audio.size or audio.ndim == 2 and audio.shape[0] > audio.shape[1]:
        raise ValueError(f"audio has shape {audio.shape}: expected samples (L,) or (channels, L).")
    if not np.isfinite(audio).all():
        raise ValueError("audio holds NaN or infinity: expected floats in -1..1.")
    if (level := np.abs(audio).max()) > MAX_LEVEL:
        raise ValueError(f"audio reaches {level:g}: expected floats in -1..1; divide 16-bit audio by 32768.")
    number = isinstance(sampling_rate, NUMBERS) and not isinstance(sampling_rate, bool)
    if sampling_rate is None or not number or not SAMPLING_RATES[0] <= sampling_rate <= SAMPLING_RATES[1]:
        raise ValueError(
            f"sampling_rate={sampling_rate!r}: expected the waveform's sampling rate in Hz, {SAMPLING_RATES[0]} to "
            f"{SAMPLING_RATES[1]}."
        )
    audio = audio.astype(np.float32) if audio.ndim == 1 else audio.astype(np.float32).mean(0)
    if (level := np.abs(audio).max()) < MIN_LEVEL:
        raise ValueError(f"audio is silent, its peak is {level:g}: expected a recording of speech.")
    if sampling_rate == target_rate:
        return audio
    if soxr is None:
        raise ValueError(
            f"audio has a sampling rate of {sampling_rate} Hz: install soxr, or resample it to {target_rate} Hz."
        )
    audio = soxr.resample(audio, sampling_rate, target_rate)
    if not len(audio):
        raise ValueError(
            f"audio is too short, it has no samples left at {target_rate} Hz: expected a longer recording."
        )
    return audio


def speech_level(samples: np.ndarray, frame: int = 600) -> tuple[float, float]:
    """The speech level in dBFS, and the distance between loud and quiet frames in dB, of samples (L,) in [-1, 1].

    The speech level is the mean over the frames that are at most 25 dB below the loud ones.
    """
    count = max(1, len(samples) // frame)
    energies = np.square(np.resize(samples, (count, frame))).mean(1) + 1e-12
    levels = 10 * np.log10(energies)
    loud = np.quantile(levels, 0.9)
    return float(10 * np.log10(energies[levels > loud - 25].mean())), float(loud - np.quantile(levels, 0.05))


def to_speech_level(samples: np.ndarray, dbfs: float = SPEECH_LEVEL) -> np.ndarray:
    """Samples (L,) scaled to a speech level, or to a lower one if they would clip."""
    scaled = samples * np.float32(10 ** ((dbfs - speech_level(samples)[0]) / 20))
    return scaled / max(1.0, float(np.abs(scaled).max()))


def speech_span(samples: np.ndarray, rate: int, longest: float) -> slice:
    """The part of a recording (L,) that holds speech: from its first to its last loud frame, plus MARGIN on both sides.

    If that is longer than `longest` seconds, the part with the most loud frames is used, cut at pauses, and a warning
    says which.
    """
    hop = rate // 50
    loud = loud_frames(samples, hop)
    first, last = begin, end = loud[[0, -1]]
    margin, most = round(MARGIN * 50), round(longest * 50)
    if end + 1 - begin > most:
        heard = np.cumsum(np.isin(np.arange(end + 2), loud + 1))
        first = begin + int((heard[begin + most :] - heard[begin : end + 2 - most]).argmax())
        last = first + most - 1
        before, after = gaps(loud[(loud >= first) & (loud <= last)])
        near = most // 5  # cutting at a pause further away would lose too much speech
        first = next((n for n in after if first > begin and n - first < near), first)
        last = next((n for n in before[::-1] if last < end and last - n < near), last)
        warnings.warn(
            f"audio is {len(samples) / rate:.0f} s long: only {first / 50:.1f} to {(last + 1) / 50:.1f} s of it are "
            "used. Give 5 to 10 s of speech to choose the part yourself.",
            stacklevel=2,
        )
    return slice(max(0, first - margin) * hop, (last + 1 + margin) * hop)


def loud_frames(samples: np.ndarray, hop: int) -> np.ndarray:
    """Indices of the frames of `hop` samples in a recording (L,) that are at most 30 dB below the loudest ones."""
    hop = min(hop, len(samples))
    energies = np.square(samples[: len(samples) // hop * hop].reshape(-1, hop)).mean(1)
    return np.flatnonzero(energies > 10 ** (-3.0) * np.quantile(energies, 0.95))


def gaps(loud: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The loud frames before and after each pause of at least 0.15 s; loud: indices of frames, 50 per second."""
    places = np.flatnonzero(np.diff(loud) > 0.15 * 50)
    return loud[places], loud[places + 1]


def pauses(samples: np.ndarray, rate: int) -> np.ndarray:
    """The middle, in seconds, of each pause of at least 0.15 s in a recording (L,)."""
    before, after = gaps(loud_frames(samples, rate // 50))
    return (before + after + 1) / 2 / 50


def cut_prompt(samples: np.ndarray, text: str, rate: int) -> tuple[np.ndarray, str]:
    """A recording (L,) and its transcript, cut at a pause and the end of a sentence if it is longer than
    PROMPT_SECONDS. Raises ValueError if it cannot be cut or is too short."""
    seconds = len(samples) / rate
    if seconds < MIN_SECONDS:
        raise ValueError(f"audio is {seconds:.2g} s long: expected a recording of speech, 3 to 10 s are best.")
    if seconds <= PROMPT_SECONDS[1]:
        return samples, text
    ends = [match.end() for match in re.finditer(r"[.!?](?=[\"')]*\s)", text)]
    places = [  # the distance from each pause to the estimated end of each sentence
        (abs(pause - seconds * end / len(text)), pause, end)
        for pause in pauses(samples, rate)
        for end in ends
        if pause <= PROMPT_SECONDS[0]
    ]
    wrong, pause, end = min(places, default=(seconds, 0.0, 0))
    if wrong > MAX_DRIFT * seconds:
        raise ValueError(
            f"audio is {seconds:.0f} s long, and no pause in it matches the end of a sentence of audio_text: expected "
            "3 to 10 s with their transcript."
        )
    logger.warning(f"audio is {seconds:.0f} s long: only its first {pause:.1f} s are used, up to {text[:end][-30:]!r}.")
    return samples[: round(pause * rate)], text[:end]


def clean_reference(samples: np.ndarray, rate: int) -> np.ndarray:
    """A recording (L,) in -1..1, prepared for the speaker encoder: without offset, without silence at its ends, at most
    REFERENCE_SECONDS[1] long, at SPEECH_LEVEL.

    Raises ValueError if the recording is too short or clipped, or if it has a constant level, as tones and noise have.
    """
    shortest, longest = REFERENCE_SECONDS
    clipped = float((np.abs(samples) >= 0.999 * np.abs(samples).max()).mean())
    samples = samples - samples.mean()
    samples = samples[speech_span(samples, rate, longest)]
    if len(samples) < shortest * rate:
        raise ValueError(
            f"audio holds {len(samples) / rate:.1f} s of sound: expected at least {shortest:g} s of speech; 5 to 10 s "
            "are best."
        )
    if (depth := speech_level(samples)[1]) < MIN_DEPTH:
        raise ValueError(
            f"audio has a steady level, which varies by only {depth:.1f} dB: expected a recording of speech, without "
            "music or loud noise."
        )
    if clipped > MAX_CLIPPED:
        raise ValueError(f"audio is clipped, {clipped:.0%} of its samples: record it again at a lower level.")
    return to_speech_level(samples)


# --- writing


def pcm16(samples: Any) -> bytes:
    """16-bit samples of floats (L,) in -1..1, an array or a tensor. NaN becomes silence."""
    samples = samples.detach().float().cpu() if hasattr(samples, "detach") else samples
    samples = np.nan_to_num(np.asarray(samples, np.float32).ravel(), nan=0.0)
    return (samples.clip(-1, 1) * np.float32(32767)).astype(np.int16).tobytes()


def streaming_wav_header(sampling_rate: int) -> bytes:
    """The header of a 16-bit mono wav of unknown length, as a pipe needs it; `pcm16` samples follow."""
    kind = struct.pack("<HHIIHH", 1, 1, sampling_rate, 2 * sampling_rate, 2, 16)
    return struct.pack("<4sI8sI16s4sI", b"RIFF", UNKNOWN_SIZE, b"WAVEfmt ", len(kind), kind, b"data", UNKNOWN_SIZE)


def write_wav(path: str | os.PathLike, samples: Any | Iterable[Any], sampling_rate: int) -> int:
    """Writes a 16-bit mono wav of floats (L,) in -1..1, or of an iterable of them. Returns the number of samples."""
    with atomic_write(path) as temporary, wave.open(str(temporary), "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(sampling_rate)
        for chunk in [samples] if hasattr(samples, "ndim") else samples:
            file.writeframesraw(pcm16(chunk))
        return file.tell()
