"""Voices: what they are, their files, and recordings, in any form that people have them in, as waveforms."""

import io
import os
from typing import NamedTuple

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from .cache_smalle import STATE_NAME
from .validation_smalle import INTEGERS

try:
    import soundfile
except (ImportError, OSError):
    soundfile = None

try:
    import soxr
except ImportError:
    soxr = None

SAMPLING_RATES = 1000, 1_000_000  # Hz; beyond them a number is not a sampling rate
LOUDEST = 16.0  # floats beyond are samples of another scale, such as 16 bits


class Voice(NamedTuple):
    """A recording, a tuned state or both: codes (P, Q) of a recording; what it says, which makes it a prompt to go on
    from, or "", where it tells who speaks and no more; tensors of a starting state by name (`cache_smalle`);
    identity of the codec that made the codes, None where it is not known."""

    codes: torch.LongTensor | None = None
    text: str = ""
    state: dict[str, torch.Tensor] | None = None
    codec: str | None = None


def check_voice_codes(name, codes):
    """ValueError unless codes are those of a recording (P, Q)."""
    right = torch.is_tensor(codes) and codes.ndim == 2 and codes.dtype in INTEGERS
    if not right or not codes.numel() or codes.min() < 0:
        what = f"{tuple(codes.shape)}, {codes.dtype}" if torch.is_tensor(codes) else type(codes).__name__
        raise ValueError(f"{name} codes {what}: expected a tensor of integers (frames, codebooks), 0 up.")


def save_voice(path, codes=None, text="", state=None, codec=None):
    """Writes a `Voice` to one safetensors file, complete or not at all."""
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in (state or {}).items()}
    if codes is not None:
        check_voice_codes("codes=", codes)
        tensors["codes"] = codes.to(torch.int16).contiguous()
    if not tensors:
        raise ValueError("A voice needs codes of a recording, or a state, or both.")
    partial = f"{path}.partial"
    save_file(tensors, partial, metadata={"text": text, **({"codec": codec} if codec else {})})
    os.replace(partial, path)


def load_voice(path):
    """The `Voice` of a file, its codes as int64."""
    try:
        with safe_open(path, "pt") as file:
            metadata, tensors = file.metadata(), {name: file.get_tensor(name) for name in file.keys()}
        text, codec = metadata["text"], metadata.get("codec")
    except (SafetensorError, KeyError, TypeError, OSError) as error:
        raise ValueError(f"{path} is not a voice file: expected one that save_voice wrote.") from error
    codes = tensors.pop("codes", None)
    if any(not STATE_NAME.fullmatch(name) for name in tensors) or codes is None and not tensors:
        raise ValueError(f"{path} is not a voice file: it holds {sorted(tensors)}, expected codes or a state.")
    if codes is not None:
        check_voice_codes(f"{path} holds", codes)
    return Voice(None if codes is None else codes.long(), text, tensors or None, codec)


def join_voices(voices):
    """One recording of several, one after the other; a prompt where all have their texts.

    Raises ValueError where some have."""
    if len({bool(voice.text) for voice in voices}) > 1:
        raise ValueError("Some of the recordings come without what they say: give the text of each, or of none.")
    codes, text = torch.cat([voice.codes for voice in voices]), " ".join(voice.text for voice in voices).strip()
    return Voice(codes, text, codec=voices[0].codec)


def read_recording(source):
    """Waveform (channels, L) float32 and sampling rate of an audio file: its path, its bytes or the open file."""
    if soundfile is None:
        raise ValueError("Reading a recording needs soundfile: install it, or give the waveform as an array.")
    name = f"audio={str(source)!r}"
    if isinstance(source, (bytes, bytearray, memoryview)):
        source, name = io.BytesIO(source), f"audio, {len(source)} bytes,"
    elif not hasattr(source, "read") and not os.path.isfile(source):
        raise ValueError(f"{name}: there is no such file; expected a recording.")
    try:
        audio, sampling_rate = soundfile.read(source, dtype="float32", always_2d=True)
    except (soundfile.SoundFileError, TypeError) as error:
        raise ValueError(f"{name} is not a recording: expected wav, flac, ogg or mp3.") from error
    return audio.T, sampling_rate


def open_recording(audio, sampling_rate=None):
    """Samples and sampling rate of a recording.

    audio: samples as an array, a tensor or a list; or a path, the bytes of a file, an open file; or a row of a data
    set, {"array", "sampling_rate"} or {"bytes", "path"}.
    """
    if isinstance(audio, dict):
        if audio.get("array") is not None:
            return audio["array"], audio.get("sampling_rate", sampling_rate)
        audio = audio["bytes"] if audio.get("bytes") is not None else audio.get("path")
        if audio is None:
            raise ValueError("audio is a dict without samples: expected array and sampling_rate, or bytes, or path.")
    if isinstance(audio, (str, os.PathLike, bytes, bytearray, memoryview)) or hasattr(audio, "read"):
        return read_recording(audio)
    if torch.is_tensor(audio):
        audio = audio.detach().cpu()
        audio = audio.float() if audio.is_floating_point() else audio
    return audio, sampling_rate


def is_one_recording(audio):
    """Whether `audio` is a recording and not a list with one for each text."""
    return not isinstance(audio, (list, tuple)) or not audio or isinstance(audio[0], (int, float, np.number))


def to_waveform(audio, sampling_rate, wanted_rate):
    """Mono waveform (L,) float32 at the wanted rate of a recording as `open_recording` takes it."""
    audio, sampling_rate = open_recording(audio, sampling_rate)
    try:
        audio = np.asarray(audio)
    except (ValueError, TypeError, RuntimeError) as error:
        raise ValueError(f"audio is {type(audio).__name__}: expected samples (L,), (channels, L) or a path.") from error
    if audio.dtype.kind != "f":
        raise ValueError(f"audio holds {audio.dtype}: expected floats in -1..1; divide 16-bit audio by 32768.")
    if audio.ndim not in (1, 2) or not audio.size or audio.ndim == 2 and audio.shape[0] > audio.shape[1]:
        raise ValueError(f"audio has shape {audio.shape}, nothing to encode: expected (L,) or (channels, L).")
    if not np.isfinite(audio).all():
        raise ValueError("audio holds NaN or infinity: expected floats in -1..1.")
    if np.abs(audio).max() > LOUDEST:
        loudest = np.abs(audio).max()
        raise ValueError(f"audio reaches {loudest:g}: expected floats in -1..1; divide 16-bit audio by 32768.")
    number = isinstance(sampling_rate, (int, float, np.number)) and not isinstance(sampling_rate, bool)
    if not number or not SAMPLING_RATES[0] <= sampling_rate <= SAMPLING_RATES[1]:
        raise ValueError(
            f"sampling_rate={sampling_rate!r}: expected how many samples a second the waveform has, between "
            f"{SAMPLING_RATES[0]} and {SAMPLING_RATES[1]}."
        )
    audio = audio.astype(np.float32) if audio.ndim == 1 else audio.astype(np.float32).mean(0)
    if sampling_rate == wanted_rate:
        return audio
    if soxr is None:
        raise ValueError(f"The waveform has {sampling_rate} Hz; expected {wanted_rate}, or install soxr.")
    return soxr.resample(audio, sampling_rate, wanted_rate)
