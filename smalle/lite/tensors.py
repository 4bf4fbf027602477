"""Files of a checkpoint without PyTorch: configurations, weights, voices."""

import contextlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import numpy as np
from safetensors import SafetensorError, deserialize, safe_open

from ..saving_smalle import OBJECTS, check_kinds, read_object

KINDS = {"F32": np.float32, "F16": np.float16, "I16": np.int16, "I32": np.int32, "I64": np.int64}
CODE_KINDS = "I64", "I32", "I16", "I8", "U8"  # data types of a voice's codes
MAX_CODE, MAX_FRAMES = 2**15 - 1, 2**16  # limits of a voice, as in voices_smalle


class NeedsPyTorch(ValueError):
    """A voice that needs PyTorch."""


@contextlib.contextmanager
def errors_name(path: Path) -> Iterator[None]:
    """Makes a ValueError about the contents of a file name the file."""
    try:
        yield
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error


def check_files(folder: Path) -> None:
    """Raises ValueError for a JSON file of a checkpoint that `read_object` refuses."""
    for name in OBJECTS:
        if (folder / name).is_file():
            read_object(folder / name)


def read_config(path: Path, defaults: Mapping[str, Any], kinds: Mapping[str, Any] | None = None) -> SimpleNamespace:
    """A configuration, with defaults for missing fields.

    kinds: types of fields that may differ from the type of their default. Raises ValueError for a value of a wrong
    type.
    """
    config = SimpleNamespace(**{**defaults, **read_object(path)})
    with errors_name(path):
        check_kinds(config, {name: type(default) for name, default in defaults.items()} | dict(kinds or {}))
    return config


def as_floats(kind: str, shape: list[int], data: bytes) -> np.ndarray:
    """A tensor of a safetensors file in single precision."""
    if kind == "BF16":
        return (np.frombuffer(data, np.uint16).astype(np.uint32) << 16).view(np.float32).reshape(shape)
    return np.frombuffer(data, KINDS[kind]).astype(np.float32).reshape(shape)


class Weights(Mapping):
    """Tensors of a checkpoint by name, in stored form. Each is converted to single precision on access, to save memory;
    this raises ValueError for NaN, infinity and unknown data types."""

    def __init__(self, stored: dict[str, dict[str, Any]]):
        self.stored = stored

    def __getitem__(self, name: str) -> np.ndarray:
        stored = self.stored[name]
        if stored["dtype"] not in KINDS and stored["dtype"] != "BF16":
            raise ValueError(f"{name} is {stored['dtype']}: expected float32, float16 or bfloat16.")
        tensor = as_floats(stored["dtype"], stored["shape"], stored["data"])
        if not np.isfinite(tensor).all():
            raise ValueError(f"{name} holds NaN or infinity: download or save the checkpoint again.")
        return tensor

    def __iter__(self) -> Iterator[str]:
        return iter(self.stored)

    def __len__(self) -> int:
        return len(self.stored)

    def shape(self, name: str) -> tuple[int, ...] | None:
        """The shape of a tensor; None if there is no tensor of this name."""
        return tuple(self.stored[name]["shape"]) if name in self.stored else None

    def under(self, prefix: str) -> "Weights":
        """The tensors whose names start with a prefix, without the prefix."""
        return Weights({name[len(prefix) :]: x for name, x in self.stored.items() if name.startswith(prefix)})

    def renamed(self, name: str, new: str) -> "Weights":
        """The same tensors, with one of them also available under another name."""
        return Weights({**self.stored, new: self.stored[name]})


def read_weights(path: Path) -> Weights:
    """The tensors of a safetensors file. Raises ValueError for a damaged one."""
    try:
        return Weights(dict(deserialize(path.read_bytes())))
    except (OSError, SafetensorError) as error:
        raise ValueError(f"{path} cannot be read, {error}: download or save the checkpoint again.") from error


class Voice(NamedTuple):
    """A voice: codes (P, Q) of a recording; its transcript, "" to use only its speaker embedding; and the identity of
    the codec that made the codes, None if unknown."""

    codes: np.ndarray | None = None
    text: str = ""
    codec: str | None = None


def read_voice(path: Path) -> Voice:
    """The voice in a file that `voices_smalle.save_voice` wrote. Raises ValueError if it is not one, and NeedsPyTorch
    for tuned and converted voices."""
    try:
        with safe_open(path, "np") as file:
            metadata, names = file.metadata() or {}, set(file.keys())
            kind = file.get_slice("codes").get_dtype() if "codes" in names else None
            codes = file.get_tensor("codes") if kind in CODE_KINDS else None
        text, version = metadata["text"], metadata.get("version", "1")
    except (OSError, SafetensorError, KeyError) as error:
        raise ValueError(f"{path} is not a voice file: expected one that save_voice wrote.") from error
    if version == "2":
        raise NeedsPyTorch(f"{path} has a conversion, which needs PyTorch: use smalle instead of smalle.lite.")
    if version != "1":
        raise ValueError(f"{path} has version {version!r} of a voice file, expected 1: install a newer smalle.")
    if names != {"codes"}:
        raise NeedsPyTorch(
            f"{path} holds {sorted(names)}: tuned voices need PyTorch; use smalle instead of smalle.lite."
        )
    sized = codes is not None and codes.ndim == 2 and 0 < len(codes) <= MAX_FRAMES and codes.size
    if codes is None or not sized or codes.min() < 0 or codes.max() > MAX_CODE:
        raise ValueError(f"{path} holds codes of {kind}: expected up to {MAX_FRAMES} frames of integers of 0 or more.")
    return Voice(codes.astype(np.int64), text, metadata.get("codec"))
