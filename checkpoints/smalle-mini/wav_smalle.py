"""Writes wav files with nothing but the standard library."""

import os
import pathlib
import tempfile
import wave


def write_wav(path, samples, sampling_rate):
    """16-bit mono wav of floats (L,) in -1..1, complete or not at all."""
    path = pathlib.Path(path)
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
