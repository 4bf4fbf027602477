"""Uploaded voices, in memory or in a folder. Input from clients is never used in a path."""

import contextlib
import dataclasses
import io
import json
import os
import pathlib
import re
import secrets
import threading
import time
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import soundfile

from ..saving_smalle import atomic_folder, delete_folder, write_json
from .engine import Engine

VOICE_ID = re.compile(r"voice_[0-9a-f]{24}")
MIN_SECONDS = 1.0
MAX_CHANNELS, MAX_RATE = 8, 192_000  # limits for a recording (rate in Hz); larger ones could expand to gigabytes
MAX_NAME = 64  # characters
FILE = "voice.safetensors"
LOADED = 8  # voices of the folder that are cached in memory, 1.2 MB each


@dataclasses.dataclass(frozen=True)
class UploadedVoice:
    """id: in OpenAI's format, "voice_" and 24 hexadecimal digits. created_at: seconds since 1970."""

    id: str
    name: str
    created_at: int


def read_upload(data: bytes, max_seconds: float) -> tuple[np.ndarray, int]:
    """Samples (channels, L) float32 and sampling rate of a sound file. Never decodes more than `max_seconds`.

    Raises:
        ValueError: it is not a sound file, or too short or too long.
    """
    try:
        with soundfile.SoundFile(io.BytesIO(data)) as file:
            rate, most = file.samplerate, int(max_seconds * file.samplerate)
            if file.channels > MAX_CHANNELS:
                raise ValueError(f"The recording has {file.channels} channels: expected mono or stereo.")
            if rate > MAX_RATE:
                raise ValueError(f"The recording has {rate} samples a second: expected at most {MAX_RATE}.")
            samples = np.zeros((0, file.channels), np.float32)
            # not in one piece, because the header of a file may claim gigabytes
            for block in file.blocks(rate, dtype="float32", always_2d=True):
                samples = np.concatenate((samples, block))
                if len(samples) > most:
                    break
    except (soundfile.SoundFileError, TypeError, RuntimeError) as error:
        raise ValueError("The file cannot be read as a recording: expected wav, flac, ogg or mp3.") from error
    if not MIN_SECONDS * rate <= len(samples) <= most:
        length = f"more than {max_seconds:g} s" if len(samples) > most else f"{len(samples) / rate:.1f} s"
        raise ValueError(
            f"The recording lasts {length}: expected {MIN_SECONDS:g} to {max_seconds:g} s of one speaker; 5 to "
            "10 s are best."
        )
    return samples.T, rate


def check_voice_name(name: str, engine: Engine) -> str:
    """The name without leading and trailing spaces. Raises ValueError if it is not allowed for a voice."""
    name = name.strip()
    if not 0 < len(name) <= MAX_NAME or not name.isprintable() or name in engine.voices:
        raise ValueError(
            f"name={name[: MAX_NAME + 1]!r}: expected 1 to {MAX_NAME} printable characters that are not the name of "
            "a preset."
        )
    return name


class VoiceStore(Mapping[str, Any]):
    """Uploaded voices: voices of the engine by id or name. Thread-safe.

    Args:
        folder: folder in which the voices are stored, each in a subfolder. Other processes may share it. Recently used
            voices are cached in memory. None: all voices are kept only in memory.
        most: maximum number of voices.

    Raises:
        ValueError: the folder cannot be written.
    """

    def __init__(self, engine: Engine, folder: str | None = None, most: int = 100):
        self.engine, self.most = engine, most
        self.folder = None if folder is None else pathlib.Path(folder)
        self._about: dict[str, UploadedVoice] = {}  # by id
        self._loaded: dict[str, Any] = {}  # voices of the engine by id, the most recently used last
        self._lock = threading.RLock()
        if self.folder is not None:
            with contextlib.suppress(OSError):
                self.folder.mkdir(parents=True, exist_ok=True)
            if not self.folder.is_dir() or not os.access(self.folder, os.W_OK):
                raise ValueError(f"{folder} cannot be written: expected a folder of the server's user for voices.")
        self.all()  # reads the folder now, so that the first request is not slower

    # --- access

    def all(self) -> list[UploadedVoice]:
        """The voices, the oldest first."""
        with self._lock:
            if self.folder is not None:
                kept = {path.name for path in self.folder.iterdir() if VOICE_ID.fullmatch(path.name)}
                for id in self._about.keys() - kept:  # another process deleted it
                    self._forget(id)
                for id in kept - self._about.keys():
                    self._read(self.folder / id)
            return sorted(self._about.values(), key=lambda voice: (voice.created_at, voice.id))

    def find(self, name: str) -> UploadedVoice | None:
        """The voice with that id, or the newest one with that name."""
        voices = self.all()
        return next((x for x in voices if x.id == name), None) or next(
            (x for x in voices[::-1] if x.name == name), None
        )

    def __getitem__(self, name: str) -> Any:
        found = self.find(name)
        if found is None:
            raise KeyError(name)
        with self._lock:
            voice = self._loaded.get(found.id)
            if voice is None and self.folder is not None:
                voice = self.engine.load_voice(self.folder / found.id / FILE)
            self._keep(found.id, voice)
        return voice

    def __iter__(self) -> Iterator[str]:
        return iter([key for voice in self.all() for key in (voice.name, voice.id)])

    def __len__(self) -> int:
        return 2 * len(self.all())

    # --- changes

    def check_room(self, name: str) -> str:
        """The name for a new voice. Raises ValueError if there are too many voices, or if the name is not allowed."""
        if not self.most:
            raise ValueError("This server does not accept recordings: uploaded voices are turned off (max_voices=0).")
        if len(self.all()) >= self.most:
            raise ValueError(f"There are {self.most} uploaded voices already: delete one first.")
        return check_voice_name(name, self.engine)

    def add(self, name: str, voice: Any) -> UploadedVoice:
        """Stores a voice. Raises ValueError as `check_room` does."""
        with self._lock:
            name = self.check_room(name)
            uploaded = UploadedVoice(f"voice_{secrets.token_hex(12)}", name, int(time.time()))
            if self.folder is not None:
                with atomic_folder(self.folder / uploaded.id) as temporary:
                    self.engine.save_voice(temporary / FILE, voice)
                    write_json(temporary / "about.json", {"name": name, "created_at": uploaded.created_at})
            self._about[uploaded.id] = uploaded
            self._keep(uploaded.id, voice)
        return uploaded

    def delete(self, id: str) -> bool:
        """Deletes a voice; returns whether it existed."""
        with self._lock:
            if id not in {voice.id for voice in self.all()}:
                return False
            self._forget(id)
            if self.folder is not None:
                with contextlib.suppress(FileNotFoundError):  # another process has deleted it
                    delete_folder(self.folder / id)
        return True

    def _keep(self, id: str, voice: Any) -> None:
        """Caches a voice in memory. If there is a folder, only the last `LOADED` voices are cached."""
        self._loaded.pop(id, None)
        self._loaded[id] = voice
        if self.folder is not None and len(self._loaded) > LOADED:
            del self._loaded[next(iter(self._loaded))]

    def _forget(self, id: str) -> None:
        del self._about[id]
        self._loaded.pop(id, None)

    def _read(self, path: pathlib.Path) -> None:
        """Reads the voice in a folder, unless it is damaged, belongs to another model, or was deleted meanwhile."""
        with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
            about = json.loads((path / "about.json").read_text(encoding="utf-8"))
            uploaded = UploadedVoice(path.name, str(about["name"]), int(about["created_at"]))
            self._keep(path.name, self.engine.load_voice(path / FILE))
            self._about[path.name] = uploaded
