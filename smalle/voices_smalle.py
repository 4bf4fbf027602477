"""Voices and their files."""

import os
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from .cache_smalle import STATE_NAME
from .saving_smalle import atomic_write
from .validation_smalle import INTEGERS


class Voice(NamedTuple):
    """A voice to speak with: a reference recording, a tuned initial state, or both.

    codes (P, Q): the recording, None without one.
    text: its transcript, which makes the recording a prompt to continue; "" if only the speaker embedding is taken.
    state: tensors of a tuned initial state by name (`cache_smalle`).
    codec: identity of the codec that made the codes, None if unknown.
    """

    codes: torch.Tensor | None = None
    text: str = ""
    state: dict[str, torch.Tensor] | None = None
    codec: str | None = None


def check_voice_codes(name: str, codes: Any) -> None:
    """Raises ValueError unless `codes` are those of a recording (P, Q)."""
    right = torch.is_tensor(codes) and codes.ndim == 2 and codes.dtype in INTEGERS
    if not right or not codes.numel() or codes.min() < 0:
        what = f"{tuple(codes.shape)}, {codes.dtype}" if torch.is_tensor(codes) else type(codes).__name__
        raise ValueError(f"{name} codes {what}: expected integers of 0 or more, a tensor (frames, codebooks).")


def save_voice(path: str | os.PathLike, codes=None, text: str = "", state=None, codec: str | None = None) -> None:
    """Writes the parts of a `Voice` to one safetensors file."""
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in (state or {}).items()}
    if codes is not None:
        check_voice_codes("codes=", codes)
        tensors["codes"] = codes.to(torch.int16).contiguous()
    if not tensors:
        raise ValueError("A voice needs codes of a recording, or a state, or both.")
    with atomic_write(path) as temporary:
        save_file(tensors, temporary, metadata={"text": text, **({"codec": codec} if codec else {})})


def load_voice(path: str | os.PathLike) -> Voice:
    """Reads a voice file. Raises ValueError if it is none."""
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


def join_voices(voices: Sequence[Voice]) -> Voice:
    """Joins recordings of one speaker, all with a transcript or all without."""
    if len({bool(voice.text) for voice in voices}) > 1:
        raise ValueError("Some recordings have a transcript and some have none: give one for each, or none at all.")
    codes = torch.cat([voice.codes for voice in voices if voice.codes is not None])
    return Voice(codes, " ".join(voice.text for voice in voices).strip(), codec=voices[0].codec)
