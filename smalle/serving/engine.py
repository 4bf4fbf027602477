"""The synthesizers behind the server: a protocol, and the engine that runs a checkpoint in this process."""

import pathlib
import threading
from collections import ChainMap
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple, Protocol

import numpy as np


class Cancelled(Exception):
    """Ends generation within a step."""


class Speech(NamedTuple):
    """A piece of speech: samples (L,) float32, and the words whose times became known with it.

    words: {"word", "start", "end"}, in seconds from the start of the speech.
    """

    samples: np.ndarray
    words: Sequence[dict[str, Any]] = ()


class Engine(Protocol):
    """A synthesizer for the server. Its methods are called from several threads at once.

    name: name of the model for `GET /v1/models`. voices: names of the presets. default_voice: one of them, or None.
    knows_words: whether it provides word times. clones: whether it can make voices from recordings.
    """

    name: str
    sampling_rate: int
    voices: Sequence[str]
    default_voice: str | None
    knows_words: bool
    clones: bool

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
        """Speaks a text. Setting `cancelled` ends this within a step of the model.

        Args:
            text: the text; its markup (docs/markup.md) may name other voices: presets, or keys of `uploaded`.
            voice: the name of a preset, a result of `encode_voice` or `load_voice`, or None.
            streamed: the speech is played while it is generated. Otherwise any failed reading may be repeated.

        Raises:
            ValueError: the text cannot be spoken. Raised by this call, not with the first piece.
        """

    def encode_voice(
        self, samples: np.ndarray, sampling_rate: int, transcript: str | None, cancelled: threading.Event
    ) -> Any:
        """Makes a voice from a recording (channels, L). Setting `cancelled` ends this soon. Raises ValueError if the
        recording cannot be used."""

    def save_voice(self, path: pathlib.Path, voice: Any) -> None:
        """Writes a voice to a file."""

    def load_voice(self, path: pathlib.Path) -> Any:
        """Reads a file that `save_voice` wrote. Raises ValueError if it is damaged or belongs to another model."""


class CheckpointEngine:
    """Runs a checkpoint in this process, with one core for each text."""

    knows_words = clones = True

    def __init__(self, model: str | None = None, lexicon: str | None = None):
        """Loads a checkpoint: a folder or a Hub name; None: the default one. lexicon: file of respellings, or None.

        Raises:
            ValueError: one of them cannot be read.
        """
        from ..checkpoint import check_checkpoint, default_checkpoint, load_checkpoint
        from ..text_tables_smalle import read_lexicon

        self.lexicon = read_lexicon(lexicon) if lexicon else {}
        source = model or default_checkpoint()
        check_checkpoint(source)
        import torch  # imported late, so that errors above are reported without delay

        from ..streaming_smalle import TextToSpeechStreamer

        torch.set_num_threads(1)  # texts that are spoken at the same time share the cores
        self.processor, self.model = load_checkpoint(source)
        self.streamer = TextToSpeechStreamer(self.model, self.processor)
        self.name: str = pathlib.PurePath(source).name or "smalle"
        self.sampling_rate: int = self.processor.sampling_rate
        self.voices: Sequence[str] = tuple(self.processor.voices)
        self.default_voice: str | None = self.processor.default_voice
        for _ in self.speak("Ready.", self.default_voice, 0, False, threading.Event()):
            pass  # loads the codec and packs the weights now, so that the first request is not slower

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
        from ..checkpoint import quality_settings
        from ..reading.markup import parse
        from ..reading.speech import speak

        def step(_: int):
            if cancelled.is_set():
                raise Cancelled

        options: dict[str, Any] = {
            "seed": seed,
            "progress": step,
            "output_timestamps": word_times,
            "lexicon": self.lexicon,
            **({} if streamed else quality_settings(self.model)),
        }
        known: list[Any] = [{name: name for name in self.voices}, uploaded or {}]
        chunks = speak(parse(text), self.streamer, voice=voice, voices=ChainMap(*known), **options)
        return (Speech(x.waveform.numpy(), x.words) for x in chunks if len(x.waveform) or x.words)

    def encode_voice(
        self, samples: np.ndarray, sampling_rate: int, transcript: str | None, cancelled: threading.Event
    ) -> Any:
        def step(*_: int):
            if cancelled.is_set():
                raise Cancelled

        if transcript is None and not self.model.config.speaker_layers:
            raise ValueError("This model has no speaker encoder: give the transcript of the recording.")
        return self.processor.encode_voice(samples, transcript, sampling_rate, progress=step)

    def save_voice(self, path: pathlib.Path, voice: Any) -> None:
        from ..voices_smalle import save_voice

        save_voice(path, *voice)

    def load_voice(self, path: pathlib.Path) -> Any:
        from ..voices_smalle import load_voice

        return self.processor.get_voice(load_voice(path))
