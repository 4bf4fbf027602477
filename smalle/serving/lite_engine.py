"""The engine of a server without PyTorch: preset voices of an embedded checkpoint, with `smalle.lite`."""

import pathlib
import threading
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from ..reading.markup import Segment, parse
from ..reading.stretching import TimeStretcher
from ..text_tables_smalle import read_lexicon, respell
from .engine import Cancelled, Speech


class LiteEngine:
    """Runs a checkpoint with `smalle.lite`, without cloning and without word times."""

    knows_words = clones = False

    def __init__(self, model: str | None = None, lexicon: str | None = None):
        """Loads a checkpoint, a folder; None: the default one. lexicon: file of respellings, or None.

        Raises:
            ValueError: one of them cannot be read.
        """
        from ..lite import TextToSpeech

        self.lexicon = read_lexicon(lexicon) if lexicon else {}
        self.speaker = TextToSpeech.load(model)
        self.name: str = self.speaker.folder.name or "smalle"
        self.sampling_rate: int = self.speaker.sampling_rate
        self.voices: Sequence[str] = tuple(self.speaker.voices)
        self.default_voice: str | None = self.speaker.default_voice

    def speak(
        self,
        text: str,
        voice: Any,
        seed: int,
        word_times: bool,
        cancelled: threading.Event,
        uploaded: Mapping[str, Any] | None = None,
        streamed: bool = True,
    ) -> Iterator[Speech]:
        """As `Engine.speak`; ignores `word_times`, since word times are not available."""
        segments = parse(text)
        for segment in segments:
            if segment.voice is not None and segment.voice not in self.voices:
                raise ValueError(f"voice={segment.voice!r} in the text is not known: expected one of {self.voices}.")
        return self._speak(segments, voice, seed, cancelled, streamed)

    def _speak(
        self, segments: Sequence[Segment], voice: str | None, seed: int, cancelled: threading.Event, streamed: bool
    ) -> Iterator[Speech]:
        from ..native_smalle import mersenne_twister

        def step(*_: Any) -> None:
            if cancelled.is_set():
                raise Cancelled

        options: dict[str, Any] = {"seed": mersenne_twister(seed), "retry_first": not streamed, "progress": step}
        for segment in segments:
            stretcher = TimeStretcher(segment.rate, self.sampling_rate)
            if segment.text:
                text = respell(segment.text, self.lexicon)
                for samples in self.speaker.stream(text, segment.voice or voice, **options):
                    yield Speech(stretcher.stretch(samples))
            silence = np.zeros(round(segment.pause * self.sampling_rate), np.float32)
            yield Speech(np.concatenate((stretcher.finish(), silence)))

    def encode_voice(
        self, samples: np.ndarray, sampling_rate: int, transcript: str | None, cancelled: threading.Event
    ) -> Any:
        raise ValueError("Cloning needs PyTorch, which is not installed on this server: choose a preset voice.")

    def save_voice(self, path: pathlib.Path, voice: Any) -> None:
        raise ValueError("Uploaded voices need PyTorch, which is not installed on this server.")

    def load_voice(self, path: pathlib.Path) -> Any:
        raise ValueError(f"The uploaded voice {path} needs PyTorch, which is not installed on this server.")
