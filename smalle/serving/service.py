"""The service behind HTTP and Wyoming: speaking with a named voice, and adding uploaded voices."""

import logging
import threading
import time
from collections.abc import AsyncGenerator, Iterator
from typing import Any, NamedTuple

from ..reading.stretching import TimeStretcher
from .encoding import Encoder
from .engine import Engine
from .metrics import Metrics
from .openai import VOICE_NAMES, ApiError
from .pool import Busy, WorkPool
from .settings import Settings
from .voices import UploadedVoice, VoiceStore, read_upload

logger = logging.getLogger(__name__)


class Part(NamedTuple):
    """Bytes of a sound file, and words as in `Speech`, with times in the stretched speech."""

    data: bytes
    words: list[dict[str, Any]]


class SpeechService:
    """An engine with its voices and threads."""

    def __init__(self, engine: Engine, settings: Settings):
        self.engine, self.settings = engine, settings
        self.pool = WorkPool(settings.streams, settings.queue)
        self.preparing = WorkPool(1, settings.queue)  # for voices, so that requests for speech need not wait for them
        self.voices = VoiceStore(engine, settings.voices, settings.max_voices)
        self.metrics = Metrics(self.pool, self.preparing)

    def close(self) -> None:
        """Ends the threads after their current work."""
        self.pool.close()
        self.preparing.close()

    def find_voice(self, name: str) -> str | None:
        """The name of the preset or the id of the uploaded voice that a name or an id stands for. Raises ApiError if
        there is none."""
        if name in self.engine.voices:
            return name
        if uploaded := self.voices.find(name):
            return uploaded.id
        if name in VOICE_NAMES:
            preset = VOICE_NAMES[name]
            return preset if preset in self.engine.voices else self.engine.default_voice
        known = ", ".join(self.engine.voices)
        raise ApiError(404, f"voice={name[:100]!r} is not known: expected {known}, or an uploaded voice.", "voice")

    async def speak(
        self,
        text: str,
        voice: str | None,
        format: str = "pcm",
        speed: float = 1.0,
        seed: int = 0,
        word_times: bool = False,
        streamed: bool = True,
    ) -> AsyncGenerator[Part]:
        """Yields a sound file in parts while it is generated. Closing the generator ends the work within a step.

        Args:
            voice: a result of `find_voice`.
            format: one of `encoding.MEDIA_TYPES`.
            streamed: yield the file while it is generated. Otherwise it is yielded at the end, and failed readings may
                be repeated.

        Raises:
            ApiError, Busy: raised instead of the first part.
        """

        def work(cancelled: threading.Event) -> Iterator[Part]:
            chosen = voice if voice is None else self.voices.get(voice, voice)
            speech = self.engine.speak(text, chosen, seed, word_times, cancelled, self.voices, streamed)
            encoder = Encoder(format, self.engine.sampling_rate, streamed)
            stretcher = TimeStretcher(speed, self.engine.sampling_rate)
            left = self.settings.max_seconds
            for samples, words in speech:
                seconds = len(samples) / self.engine.sampling_rate / speed
                self.metrics.audio.inc(seconds)
                if (left := left - seconds) < 0:
                    raise ValueError(f"The speech is longer than {self.settings.max_seconds:g} s: send it in parts.")
                times = [{**x, "start": x["start"] / speed, "end": x["end"] / speed} for x in words]
                yield Part(encoder.encode(stretcher.stretch(samples)), times)
            yield Part(encoder.encode(stretcher.finish()) + encoder.finish(), [])

        begun, outcome = time.monotonic(), "left"
        parts = self.pool.iterate(work)
        try:
            first = True
            async for part in parts:
                if first and part.data:
                    self.metrics.first.observe(time.monotonic() - begun)
                    first = False
                if part.data or part.words:
                    yield part
            outcome = "done"
        except Busy:
            outcome = "busy"
            raise
        except ValueError as error:
            outcome = "refused"
            raise ApiError(400, str(error), "input") from error
        except Exception:
            outcome = "failed"
            raise
        finally:
            self.metrics.requests.labels(outcome).inc()
            await parts.aclose()

    async def add_voice(self, name: str, recording: bytes, transcript: str | None) -> UploadedVoice:
        """Makes a voice from a recording and stores it. One voice is made at a time; cancelling ends the work soon.

        Raises:
            ApiError: the recording cannot be used. Busy: the queue is full.
        """

        def make(cancelled: threading.Event) -> UploadedVoice:
            samples, rate = read_upload(recording, self.settings.max_recording)
            return self.voices.add(name, self.engine.encode_voice(samples, rate, transcript, cancelled))

        try:
            self.voices.check_room(name)
            return await self.preparing.run(make)
        except ValueError as error:
            raise ApiError(400, str(error)) from error
        except OSError as error:
            logger.error("A voice cannot be stored: %s", error)
            raise ApiError(507, "The server cannot write the voice to its disk; see its log.") from error
