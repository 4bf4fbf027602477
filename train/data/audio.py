"""Clips and their audio. A clip is one utterance of a corpus, stored in a file, a tar archive or a parquet file."""

import contextlib
import dataclasses
import io
import itertools
import json
import tarfile
from collections.abc import Callable, Iterable, Iterator
from typing import IO, Any

import numpy as np
import pyarrow.parquet
import soundfile
import soxr

from smalle.audio_smalle import SPEECH_LEVEL, speech_level, to_speech_level

UNREADABLE = (OSError, RuntimeError, EOFError, ValueError, tarfile.TarError)  # soundfile raises RuntimeErrors


@dataclasses.dataclass(frozen=True, slots=True)
class Clip:
    """Seconds `start` to `start + duration` of a recording, or to its end if duration is None.

    id: unique in its corpus. text: None without transcript. words: (start, end) in seconds of each word of
    text.split(), if known. path: the audio file; or an uncompressed tar archive, with member=(offset, size) in bytes;
    or a parquet file, with row=(row group, row in the group). speed: playback speed, by resampling; start, duration and
    words refer to speed 1.
    """

    id: str
    path: str
    speaker: str
    text: str | None = None
    start: float = 0.0
    duration: float | None = None
    words: tuple = ()
    member: tuple[int, int] | None = None
    row: tuple[int, int] | None = None
    speed: float = 1.0

    @property
    def seconds(self) -> float:
        """Duration at the clip's speed; estimated from the text if unknown."""
        duration = self.duration if self.duration is not None else max(1.0, len(self.text or "") / 15)
        return duration / self.speed

    def at_speed(self, speed: float) -> "Clip":
        """The clip at another speed, and thus pitch, as a separate speaker.

        Speed perturbation (Ko et al. 2015); each speed is a separate speaker (Yamamoto et al. 2019).
        """
        if speed == 1:
            return self
        suffix = f" x{speed:g}"
        return dataclasses.replace(self, id=self.id + suffix, speaker=self.speaker + suffix, speed=speed)

    def to_json(self) -> str:
        return json.dumps({key: value for key, value in dataclasses.asdict(self).items() if value}, ensure_ascii=False)

    @classmethod
    def from_json(cls, line: str) -> "Clip":
        return cls(**json.loads(line))


@dataclasses.dataclass(frozen=True, slots=True)
class Problem:
    """A clip or file that cannot be used, and the reason."""

    id: str
    reason: str

    def to_json(self) -> str:
        return json.dumps(dataclasses.asdict(self), ensure_ascii=False)


@contextlib.contextmanager
def open_file(path: str, member: tuple[int, int] | None = None) -> Iterator[IO[bytes]]:
    """Opens a file, or the member (offset, size) of an uncompressed tar archive, for reading."""
    if member is None:
        with open(path, "rb") as file:
            yield file
    else:
        with tarfile.open(path, "r:") as archive:
            info = tarfile.TarInfo()
            info.offset_data, info.size = member
            yield archive.extractfile(info)


def read_samples(file: soundfile.SoundFile, start: float = 0.0, duration: float | None = None) -> np.ndarray:
    """Seconds `start` to `start + duration`, or to the end, as float32 (L, channels) at the file's rate.

    Raises ValueError if more than 0.1 s is missing at the end, and if samples are missing, NaN or infinite.
    """
    file.seek(min(round(start * file.samplerate), file.frames))
    wanted = -1 if duration is None else round(duration * file.samplerate)
    samples = file.read(wanted, dtype="float32", always_2d=True)
    if not len(samples) or len(samples) < wanted - 0.1 * file.samplerate:
        found = len(samples) / file.samplerate
        raise ValueError(f"has {found:.2f} s of audio after {start:.2f} s: expected {duration or 'some'}")
    if not np.isfinite(samples).all():
        raise ValueError("contains NaN or infinity: expected finite samples")
    return samples


def read_audio(source: Any, sampling_rate: float, start: float = 0.0, duration: float | None = None) -> np.ndarray:
    """Seconds `start` to `start + duration` of a path or file: mono float32 (L,) in [-1, 1], resampled.

    Raises ValueError as `read_samples`, and what soundfile raises for files that it cannot read.
    """
    with soundfile.SoundFile(source) as file:
        audio = read_samples(file, start, duration).mean(1)
        if file.samplerate != sampling_rate:
            audio = soxr.resample(audio, file.samplerate, sampling_rate)
    return np.clip(audio, -1, 1)


def group_by_file(clips: Iterable[Clip], max_size: int = 16) -> Iterator[list[Clip]]:
    """Groups consecutive clips of the same file or row group, up to `max_size` each, for `read_clips`."""
    for _, group in itertools.groupby(clips, lambda clip: (clip.path, clip.member, clip.row and clip.row[0])):
        while part := list(itertools.islice(group, max_size)):
            yield part


def read_clips(group: list[Clip], read: Callable[[IO[bytes], Clip], Any]) -> list[Any]:
    """The results of read(file, clip) for the clips of a group; a Problem for each clip that cannot be read."""

    def attempt(clip, open_clip):
        try:
            file = open_clip(clip)
            file.seek(0)
            return read(file, clip)
        except UNREADABLE as error:
            return Problem(clip.id, str(error))

    path, row = group[0].path, group[0].row
    try:
        if row is None:
            with open_file(path, group[0].member) as file:
                return [attempt(clip, lambda _: file) for clip in group]
        with pyarrow.parquet.ParquetFile(path) as table:
            audio = table.read_row_group(row[0], columns=["audio"]).column("audio")
        return [attempt(clip, lambda clip: open_parquet_audio(audio[clip.row[1]].as_py())) for clip in group]
    except UNREADABLE as error:
        return [Problem(clip.id, str(error)) for clip in group]


def open_parquet_audio(audio: dict | None) -> IO[bytes]:
    """Opens the value {"bytes", "path"} of an audio column."""
    if not audio or not (audio.get("bytes") or audio.get("path")):
        raise ValueError("its row contains no audio")
    return io.BytesIO(audio["bytes"]) if audio.get("bytes") else open(audio["path"], "rb")


def read_waveform(file: IO[bytes], clip: Clip, sampling_rate: int) -> np.ndarray:
    """The clip's waveform float32 (L,) at its speed, for `read_clips`."""
    return read_audio(file, sampling_rate / clip.speed, clip.start, clip.duration)


@dataclasses.dataclass(frozen=True)
class QualityGate:
    """Rejects recordings of low quality and scales the others to the same level.

    Attributes:
        level_dbfs: Speech level after scaling; lower if the recording would clip.
        min_level_dbfs: Lowest accepted speech level.
        min_snr_db: Smallest accepted distance between loud and quiet frames.
        max_clipped: Largest accepted share of samples at full scale.
    """

    level_dbfs: float = SPEECH_LEVEL
    min_level_dbfs: float = -42.0
    min_snr_db: float = 20.0
    max_clipped: float = 0.002

    def __call__(self, samples: np.ndarray) -> np.ndarray | None:
        """Scaled samples (L,) in [-1, 1]; None if they are rejected."""
        level, snr = speech_level(samples)
        if level < self.min_level_dbfs or snr < self.min_snr_db or (np.abs(samples) > 0.99).mean() > self.max_clipped:
            return None
        return to_speech_level(samples, self.level_dbfs)
