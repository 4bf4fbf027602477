"""Writes wav files without any audio library."""

import os
import pathlib
import struct
import tempfile
import wave

import torch

UNKNOWN = 0xFFFFFFFF  # size of a wav whose end is not known yet, as players expect it


def pcm16(samples):
    """Bytes of 16-bit samples, of floats (L,) in -1..1, array or tensor. NaN becomes silence."""
    samples = torch.as_tensor(samples, dtype=torch.float32).flatten().nan_to_num(nan=0.0)
    return (samples.clamp(-1, 1) * 32767).short().numpy().tobytes()


def endless_header(sampling_rate):
    """The head of a 16-bit mono wav that ends where the pipe ends; `pcm16` follows."""
    kind = struct.pack("<HHIIHH", 1, 1, sampling_rate, 2 * sampling_rate, 2, 16)
    return struct.pack("<4sI8sI16s4sI", b"RIFF", UNKNOWN, b"WAVEfmt ", len(kind), kind, b"data", UNKNOWN)


def write_wav(path, samples, sampling_rate):
    """16-bit mono wav, complete or not at all, of floats (L,) in -1..1 or an iterable of them; returns the samples'
    number."""
    path, size = pathlib.Path(path).resolve(), 0  # a link stays one
    handle, partial = tempfile.mkstemp(dir=path.parent, suffix=".partial")
    try:
        with os.fdopen(handle, "wb") as raw, wave.open(raw) as file:
            file.setnchannels(1)
            file.setsampwidth(2)
            file.setframerate(sampling_rate)
            for chunk in [samples] if hasattr(samples, "ndim") else samples:
                data = pcm16(chunk)
                file.writeframesraw(data)
                size += len(data)
        os.chmod(partial, 0o644)
        os.replace(partial, path)
    except BaseException:
        os.unlink(partial)
        raise
    return size // 2
