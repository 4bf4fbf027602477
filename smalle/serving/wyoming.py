"""The Wyoming protocol, which Home Assistant and other voice assistants use."""

import contextlib
import functools
import importlib.metadata
from collections.abc import AsyncIterator

from wyoming.audio import AudioChunk, AudioStart, AudioStop
from wyoming.error import Error
from wyoming.event import Event
from wyoming.info import Attribution, Describe, Info, TtsProgram, TtsVoice
from wyoming.ping import Ping, Pong
from wyoming.server import AsyncEventHandler, AsyncServer
from wyoming.tts import (
    Synthesize,
    SynthesizeChunk,
    SynthesizeStart,
    SynthesizeStop,
    SynthesizeStopped,
    SynthesizeVoice,
)

from ..text_tables_smalle import BREAKS
from .openai import ApiError
from .pool import Busy
from .service import SpeechService

SENTENCE_END = BREAKS[0]
ATTRIBUTION = Attribution(name="Small-E for transformers", url="https://arxiv.org/abs/2406.04467")


def describe(service: SpeechService) -> Info:
    """The description of this server: one program with the presets and the uploaded voices."""
    version = importlib.metadata.version("smalle")

    def voice(name: str, description: str) -> TtsVoice:
        return TtsVoice(name, ATTRIBUTION, True, description, version, languages=["en"])

    names = list(service.engine.voices)
    if service.engine.default_voice in names:  # clients use the first voice by default
        names.sort(key=lambda name: name != service.engine.default_voice)
    voices = [voice(name, name.capitalize()) for name in names]
    voices += [voice(uploaded.id, uploaded.name) for uploaded in service.voices.all()]
    about = "Small-E, a small text-to-speech model"
    program = TtsProgram("smalle", ATTRIBUTION, True, about, version, voices, supports_synthesize_streaming=True)
    return Info(tts=[program])


class WyomingHandler(AsyncEventHandler):
    """Serves one client: describe, ping, synthesize, and texts that arrive in pieces."""

    def __init__(self, service: SpeechService, *streams):
        super().__init__(*streams)
        self.service = service
        self.voice: SynthesizeVoice | None = None  # voice of the text that is arriving
        self.unread: str | None = None  # the part that is not spoken yet; None: no text is arriving
        self.started = False  # whether AudioStart was sent

    async def handle_event(self, event: Event) -> bool:
        try:
            await self._handle(event)
        except (ApiError, Busy) as error:
            await self._stop()
            await self.write_event(Error(str(error), type(error).__name__).event())
        return True

    async def _handle(self, event: Event):
        if Describe.is_type(event.type):
            await self.write_event(describe(self.service).event())
        elif Ping.is_type(event.type):
            await self.write_event(Pong(Ping.from_event(event).text).event())
        elif SynthesizeStart.is_type(event.type):
            self.voice, self.unread = SynthesizeStart.from_event(event).voice, ""
        elif SynthesizeChunk.is_type(event.type) and self.unread is not None:
            await self._add(SynthesizeChunk.from_event(event).text)
        elif SynthesizeStop.is_type(event.type) and self.unread is not None:
            await self._speak(self.unread, self.voice)
            await self._stop()
            await self.write_event(SynthesizeStopped().event())
            self.unread = None
        elif (
            Synthesize.is_type(event.type) and self.unread is None
        ):  # otherwise it repeats the text that came in pieces
            request = Synthesize.from_event(event)
            await self._speak(request.text, request.voice)
            await self._stop()

    async def _add(self, text: str):
        """Speaks the complete sentences."""
        *sentences, self.unread = SENTENCE_END.split((self.unread or "") + text)
        if len(self.unread) > self.service.settings.max_characters:
            waiting, self.unread = self.unread, ""
            self._check_length(waiting)
        if sentences:
            await self._speak(" ".join(sentences), self.voice)

    async def _speak(self, text: str, voice: SynthesizeVoice | None):
        if not any(map(str.isalnum, text)):
            return
        self._check_length(text)
        name = voice.name if voice else None
        chosen = self.service.find_voice(name) if name else self.service.engine.default_voice
        form = {"rate": self.service.engine.sampling_rate, "width": 2, "channels": 1}
        async with contextlib.aclosing(self.service.speak(text, chosen)) as parts:
            async for part in parts:
                if not self.started:
                    await self.write_event(AudioStart(**form).event())
                    self.started = True
                await self.write_event(AudioChunk(audio=part.data, **form).event())

    def _check_length(self, text: str):
        if len(text) > self.service.settings.max_characters:
            raise ApiError(
                400, f"The text has {len(text)} characters: expected at most {self.service.settings.max_characters}."
            )

    async def _stop(self):
        if self.started:
            await self.write_event(AudioStop().event())
            self.started = False


@contextlib.asynccontextmanager
async def serve_wyoming(service: SpeechService, uri: str) -> AsyncIterator[None]:
    """Serves the protocol at a URI such as tcp://127.0.0.1:10200. Raises ValueError for a wrong URI."""
    server = AsyncServer.from_uri(uri)
    await server.start(functools.partial(WyomingHandler, service))
    try:
        yield
    finally:
        await server.stop()
