"""Voices and their files.

A voice file is a safetensors file of `codes` and of the tensors of a state; its metadata has the `version` of this form
(none: 1), the `text` and, where it is known, the `codec`. Nothing of it is believed before it is checked.
"""

import os
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from .cache_smalle import STATE_NAME, join_state
from .saving_smalle import atomic_write
from .validation_smalle import FLOATS, INTEGERS

VERSION = 1  # of the files that this code writes; it reads those up to this version
MAX_CODE = 2**15 - 1  # files hold 16 bits
MAX_FRAMES, MAX_CODEBOOKS = 2**16, 64  # of a recording; 15 minutes at 75 frames a second
MAX_STATE = 2**25  # numbers of a state; a model of 64M parameters has 3 million


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
    if not right or not codes.numel() or codes.min() < 0 or codes.max() > MAX_CODE:
        what = f"{tuple(codes.shape)}, {codes.dtype}" if torch.is_tensor(codes) else type(codes).__name__
        raise ValueError(
            f"{name} codes {what}: expected integers of 0 or more, a tensor (frames, codebooks), at most {MAX_CODE}."
        )
    if len(codes) > MAX_FRAMES or codes.shape[1] > MAX_CODEBOOKS:
        raise ValueError(
            f"{name} codes {tuple(codes.shape)}: expected at most {MAX_FRAMES} frames of {MAX_CODEBOOKS} codebooks. "
            "Shorten the recording."
        )


def check_voice_state(name: str, state: dict[str, torch.Tensor]) -> None:
    """Raises ValueError unless these are tensors of a state: known names, finite numbers."""
    if wrong := [key for key in state if not STATE_NAME.fullmatch(key)]:
        raise ValueError(f"{name} {sorted(wrong)}: expected codes or the tensors of a state.")
    for key, tensor in state.items():
        if tensor.dtype not in FLOATS or not tensor.numel() or not tensor.isfinite().all():
            raise ValueError(
                f"{name} {key}, {tuple(tensor.shape)}, {tensor.dtype}: expected finite numbers. Tune the voice again."
            )
    try:
        size = join_state({key: tensor.to("meta") for key, tensor in state.items()}).numel() if state else 0
    except RuntimeError as error:
        raise ValueError(
            f"{name} {sorted(state)}, whose shapes do not fit: expected the tensors of a state."
        ) from error
    if size > MAX_STATE:
        raise ValueError(f"{name} a state of {size} numbers: expected at most {MAX_STATE}, that of a model.")


def save_voice(path: str | os.PathLike, codes=None, text: str = "", state=None, codec: str | None = None) -> None:
    """Writes the parts of a `Voice` to one safetensors file."""
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in (state or {}).items()}
    check_voice_state("state= holds", tensors)
    if codes is not None:
        check_voice_codes("codes=", codes)
        tensors["codes"] = codes.to(torch.int16).contiguous()
    if not tensors:
        raise ValueError("A voice needs codes of a recording, or a state, or both.")
    metadata = {"version": str(VERSION), "text": text, **({"codec": codec} if codec else {})}
    with atomic_write(path) as temporary:
        save_file(tensors, temporary, metadata=metadata)


def load_voice(path: str | os.PathLike) -> Voice:
    """Reads a voice file. Raises ValueError if it is none."""
    try:
        with safe_open(path, "pt") as file:
            metadata, tensors = file.metadata(), {name: file.get_tensor(name) for name in file.keys()}
        text, codec, version = metadata["text"], metadata.get("codec"), metadata.get("version", "1")
    except (SafetensorError, KeyError, TypeError, OSError) as error:
        raise ValueError(f"{path} is not a voice file: expected one that save_voice wrote.") from error
    if version not in map(str, range(1, VERSION + 1)):
        raise ValueError(f"{path} has version {version!r} of a voice file, expected {VERSION}: install a newer smalle.")
    codes = tensors.pop("codes", None)
    if codes is None and not tensors:
        raise ValueError(f"{path} is not a voice file: it is empty, expected codes or a state.")
    check_voice_state(f"{path} holds", tensors)
    if codes is not None:
        check_voice_codes(f"{path} holds", codes)
    return Voice(None if codes is None else codes.long(), text, tensors or None, codec)


def join_voices(voices: Sequence[Voice]) -> Voice:
    """Joins recordings of one speaker, all with a transcript or all without."""
    if len({bool(voice.text) for voice in voices}) > 1:
        raise ValueError("Some recordings have a transcript and some have none: give one for each, or none at all.")
    codes = torch.cat([voice.codes for voice in voices if voice.codes is not None])
    return Voice(codes, " ".join(voice.text for voice in voices).strip(), codec=voices[0].codec)
