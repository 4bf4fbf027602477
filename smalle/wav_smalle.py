"""Writes wav files without any audio library."""

import os
import pathlib
import tempfile
import wave

import torch


def write_wav(path, samples, sampling_rate):
    """16-bit mono wav of floats (L,) in -1..1, array or tensor, complete or not at all. NaN becomes silence."""
    path = pathlib.Path(path)
    samples = torch.as_tensor(samples, dtype=torch.float32).flatten().nan_to_num(nan=0.0)
    data = (samples.clamp(-1, 1) * 32767).short().numpy().tobytes()
    handle, partial = tempfile.mkstemp(dir=path.parent, suffix=".partial")
    try:
        with os.fdopen(handle, "wb") as raw, wave.open(raw) as file:
            file.setnchannels(1)
            file.setsampwidth(2)
            file.setframerate(sampling_rate)
            file.writeframes(data)
        os.chmod(partial, 0o644)
        os.replace(partial, path)
    except BaseException:
        os.unlink(partial)
        raise
