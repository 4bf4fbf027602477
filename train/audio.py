"""Reads corpus folders: recordings and the metadata.jsonl that describes them."""

import json
import pathlib
import wave

import numpy as np


def read_metadata(folder):
    """Rows of FOLDER/metadata.jsonl, each with the full path of its recording under "path"."""
    folder = pathlib.Path(folder)
    if not (folder / "metadata.jsonl").is_file():
        raise ValueError(f"{folder} holds no metadata.jsonl: expected a corpus folder (file_name, text, speaker a row).")
    with open(folder / "metadata.jsonl", encoding="utf-8") as lines:
        rows = [json.loads(line) for line in lines if line.strip()]
    return [{**row, "path": str(folder / row["file_name"])} for row in rows]


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
