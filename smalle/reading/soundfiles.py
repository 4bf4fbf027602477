"""Writing sound files in common formats, while the sound is generated."""

import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import soundfile

from ..audio_smalle import write_wav
from ..saving_smalle import atomic_write

FORMATS: dict[str, dict[str, Any]] = {  # by file suffix
    "mp3": {"format": "MP3", "subtype": "MPEG_LAYER_III"},
    "opus": {"format": "OGG", "subtype": "OPUS"},
    "flac": {"format": "FLAC", "subtype": "PCM_16"},
    "wav": {"format": "WAV", "subtype": "PCM_16"},
}


def format_of(path: str | os.PathLike) -> str:
    """The format of a file, from its suffix; wav without one. Raises ValueError for unknown suffixes."""
    suffix = Path(path).suffix.removeprefix(".").lower() or "wav"
    if suffix not in FORMATS:
        raise ValueError(f"{path}: expected a file whose name ends with .{', .'.join(FORMATS)}.")
    return suffix


def write_sound(
    path: str | os.PathLike, waves: Iterable[Any], sampling_rate: int, tags: Mapping[str, str] | None = None
) -> int:
    """Writes a mono sound file in the format of its suffix.

    Args:
        waves: waveforms (L,) of floats in -1..1, arrays or tensors.
        tags: values for "title", "album", "artist", "tracknumber".

    Returns:
        The number of samples.
    """
    kind, size = FORMATS[format_of(path)], 0
    if not tags and kind["format"] == "WAV":
        return write_wav(path, waves, sampling_rate)
    with atomic_write(path) as temporary:
        with soundfile.SoundFile(temporary, "w", samplerate=sampling_rate, channels=1, **kind) as file:
            for name, value in (tags or {}).items():
                if value:
                    setattr(file, name, value)
            for wave in waves:
                for begin in range(0, len(wave), sampling_rate):  # the encoders of libsndfile overflow on long blocks
                    file.write(wave[begin : begin + sampling_rate])
                size += len(wave)
    return size
