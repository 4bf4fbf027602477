"""Reads recordings: whole or in part, from a file or from anything that reads and seeks like one."""

import csv
import io
import json
import pathlib

import numpy as np
import soundfile
import soxr

SUFFIXES = (".wav", ".flac", ".ogg", ".opus", ".mp3")
UNREADABLE = (OSError, RuntimeError, EOFError, ValueError)  # soundfile's errors are RuntimeErrors


class Window(io.RawIOBase):
    """`size` bytes of a file from `offset` on, as a file of their own: a member of a tar archive."""

    def __init__(self, path, offset, size):
        self.file, self.offset, self.size, self.place = open(path, "rb"), offset, size, 0

    def readable(self):
        return True

    def seekable(self):
        return True

    def readinto(self, buffer):
        self.file.seek(self.offset + self.place)
        count = self.file.readinto(memoryview(buffer)[: max(0, self.size - self.place)])
        self.place += count
        return count

    def seek(self, offset, whence=io.SEEK_SET):
        self.place = offset + {io.SEEK_SET: 0, io.SEEK_CUR: self.place, io.SEEK_END: self.size}[whence]
        return self.place

    def tell(self):
        return self.place

    def close(self):
        self.file.close()
        super().close()


def read_part(file, sampling_rate, start=0.0, duration=None):
    """Seconds `start` to `start + duration` (or the end) of an open SoundFile: float32 (L,), mono, at the wanted rate.

    Raises ValueError where the file ends before (a tenth of a second is forgiven) or holds no or infinite samples.
    """
    file.seek(min(round(start * file.samplerate), file.frames))
    wanted = -1 if duration is None else round(duration * file.samplerate)
    audio = file.read(wanted, dtype="float32", always_2d=True).mean(1)
    if not len(audio) or len(audio) < wanted - 0.1 * file.samplerate:
        found = len(audio) / file.samplerate
        raise ValueError(f"holds {found:.2f} s from {start:.2f} s on: expected {duration or 'some'}")
    if not np.isfinite(audio).all():
        raise ValueError("holds NaN or infinity: expected finite samples")
    if file.samplerate != sampling_rate:
        audio = soxr.resample(audio, file.samplerate, sampling_rate)
    return np.clip(audio, -1, 1)


def read_audio(source, sampling_rate):
    """A whole recording (path or file) as `read_part`."""
    with soundfile.SoundFile(source) as file:
        return read_part(file, sampling_rate)


def read_metadata(folder):
    """Rows of FOLDER/metadata.jsonl, each with the full path of its recording under "path".

    Without that file, NAME.wav (flac, ogg, mp3) and what it says in NAME.txt. A row that names no speaker is spoken by
    the folder's; one without a duration (s) gets that of its recording.
    """
    folder = pathlib.Path(folder)
    rows = metadata_rows(folder)
    if not rows:
        raise ValueError(
            f"{folder} holds no recordings: expected metadata.jsonl (file_name, text a row), or NAME.wav with NAME.txt."
        )
    return [complete(row, folder) for row in rows]


def metadata_rows(folder):
    """What metadata.jsonl or metadata.csv says, or the text files beside recordings; nothing where there are none."""
    if (folder / "metadata.jsonl").is_file():
        with open(folder / "metadata.jsonl", encoding="utf-8") as lines:
            return [json.loads(line) for line in lines if line.strip()]
    if (folder / "metadata.csv").is_file():
        with open(folder / "metadata.csv", encoding="utf-8", newline="") as file:
            return list(csv.DictReader(file))
    return list(pairs(folder))


def pairs(folder):
    """Rows of recordings with a text file of the same name."""
    for path in sorted(folder.glob("*")):
        if path.suffix in SUFFIXES and path.with_suffix(".txt").is_file():
            yield {"file_name": path.name, "text": path.with_suffix(".txt").read_text(encoding="utf-8").strip()}


def complete(row, folder):
    """A row with its path, speaker and duration."""
    row = {"speaker": folder.resolve().name, **row, "path": str(folder / row["file_name"])}
    if "duration" not in row:
        row["duration"] = soundfile.info(row["path"]).duration
    return row
