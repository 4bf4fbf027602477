"""Reads recordings: whole or in part, from a file or from anything that reads and seeks like one."""

import io
import json
import pathlib

import numpy as np
import soundfile
import soxr

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
    if start:
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
    """Rows of FOLDER/metadata.jsonl, each with the full path of its recording under "path"."""
    folder = pathlib.Path(folder)
    if not (folder / "metadata.jsonl").is_file():
        raise ValueError(f"{folder} holds no metadata.jsonl: expected a corpus folder (file_name, text, speaker).")
    with open(folder / "metadata.jsonl", encoding="utf-8") as lines:
        rows = [json.loads(line) for line in lines if line.strip()]
    return [{**row, "path": str(folder / row["file_name"])} for row in rows]
