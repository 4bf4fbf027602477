"""Reads corpus folders: recordings and the metadata.jsonl that describes them."""

import json
import pathlib
import wave

import numpy as np

SUFFIXES = (".wav", ".flac", ".ogg", ".opus", ".mp3")


def read_metadata(folder):
    """Rows of FOLDER/metadata.jsonl, each with the full path of its recording under "path".

    Without that file, NAME.wav (flac, ogg, mp3) and what it says in NAME.txt. A row that names no speaker is spoken by
    the folder's; one without a duration (s) gets that of its recording.
    """
    folder = pathlib.Path(folder)
    if (folder / "metadata.jsonl").is_file():
        with open(folder / "metadata.jsonl", encoding="utf-8") as lines:
            rows = [json.loads(line) for line in lines if line.strip()]
    else:
        rows = list(pairs(folder))
    if not rows:
        raise ValueError(
            f"{folder} holds no recordings: expected metadata.jsonl (file_name, text a row), or NAME.wav with NAME.txt."
        )
    return [complete(row, folder) for row in rows]


def pairs(folder):
    """Rows of recordings with a text file of the same name."""
    for path in sorted(folder.glob("*")):
        if path.suffix in SUFFIXES and path.with_suffix(".txt").is_file():
            yield {"file_name": path.name, "text": path.with_suffix(".txt").read_text(encoding="utf-8").strip()}


def complete(row, folder):
    """A row with its path, speaker and duration."""
    row = {"speaker": folder.resolve().name, **row, "path": str(folder / row["file_name"])}
    if "duration" not in row:
        import soundfile

        row["duration"] = soundfile.info(row["path"]).duration
    return row


def read_audio(path, sampling_rate):
    """A recording as float32 (L,) in -1..1, mono, at the wanted rate. 16-bit mono wav needs no library."""
    if str(path).endswith(".wav"):
        with wave.open(str(path)) as file:
            if file.getsampwidth() == 2 and file.getnchannels() == 1 and file.getframerate() == sampling_rate:
                return np.frombuffer(file.readframes(file.getnframes()), "<i2").astype(np.float32) / 32768
    import soundfile

    audio, rate = soundfile.read(path, dtype="float32", always_2d=True)
    audio = audio.mean(1)
    if rate != sampling_rate:
        import soxr

        audio = soxr.resample(audio, rate, sampling_rate)
    return np.clip(audio, -1, 1)
