"""The Wyoming protocol, with its own client."""

import asyncio
import contextlib
import socket
import threading

import numpy as np
import pytest

pytest.importorskip("fastapi")
pytest.importorskip("wyoming")

from wyoming.audio import AudioChunk, AudioStart, AudioStop  # noqa: E402
from wyoming.client import AsyncTcpClient  # noqa: E402
from wyoming.error import Error  # noqa: E402
from wyoming.info import Describe, Info  # noqa: E402
from wyoming.tts import (  # noqa: E402
    Synthesize,
    SynthesizeChunk,
    SynthesizeStart,
    SynthesizeStop,
    SynthesizeStopped,
    SynthesizeVoice,
)

from smalle.audio_smalle import pcm16  # noqa: E402

SENTENCE = "Good morning, dear listeners."


@pytest.fixture(scope="module")
def port(serve):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with serve(wyoming=f"tcp://127.0.0.1:{port}", max_characters=200) as server:
        yield port
        server.wait_until_idle()


def talk(port, *events, until):
    """The events that come back, up to one of the type `until`."""

    async def run():
        async with AsyncTcpClient("127.0.0.1", port) as client:
            for event in events:
                await client.write_event(event.event())
            received = []
            while event := await asyncio.wait_for(client.read_event(), 60):
                received.append(event)
                if until.is_type(event.type):
                    return received

    return asyncio.run(run())


def audio_of(events):
    return b"".join(AudioChunk.from_event(event).audio for event in events if AudioChunk.is_type(event.type))


def said(engine, text, voice="heart"):
    return pcm16(np.concatenate([x.samples for x in engine.speak(text, voice, 0, False, threading.Event())]))


def test_describes_its_voices(port, engine):
    info = Info.from_event(talk(port, Describe(), until=Info)[-1])
    (program,) = info.tts
    assert program.supports_synthesize_streaming and {voice.name for voice in program.voices} == set(engine.voices)
    assert program.voices[0].name == engine.default_voice and program.voices[0].languages == ["en"]


def test_speaks_a_text_in_chunks(port, engine):
    events = talk(port, Synthesize(SENTENCE, SynthesizeVoice(name="fenrir")), until=AudioStop)
    start = AudioStart.from_event(events[0])
    assert (start.rate, start.width, start.channels) == (24000, 2, 1) and len(events) > 3
    assert audio_of(events) == said(engine, SENTENCE, "fenrir")


def test_speaks_sentences_while_the_text_arrives(port, engine):
    pieces = ["Good mor", "ning, dear listeners. The wea", "ther is fine."]
    texts = [SynthesizeChunk(piece) for piece in pieces]
    whole = Synthesize("".join(pieces))  # older servers read this one
    events = talk(port, SynthesizeStart(), *texts, whole, SynthesizeStop(), until=SynthesizeStopped)
    assert [event.type for event in events].count("audio-start") == 1
    assert AudioStop.is_type(events[-2].type)
    assert audio_of(events) == said(engine, SENTENCE) + said(engine, "The weather is fine.")


@pytest.mark.parametrize(
    "part, requests",
    [
        ("not known", [Synthesize("Hi.", SynthesizeVoice(name="x"))]),
        ("201 characters", [Synthesize("a" * 201)]),
        ("202 characters", [SynthesizeStart(), SynthesizeChunk("a" * 101), SynthesizeChunk("a" * 101)]),
    ],
)
def test_wrong_requests_get_an_error_and_the_connection_lives(port, part, requests):
    events = talk(port, *requests, Describe(), until=Info)
    assert part in Error.from_event(events[0]).text and Info.is_type(events[-1].type)


def test_a_client_that_leaves_ends_its_work(serve):
    async def leave(port):
        async with AsyncTcpClient("127.0.0.1", port) as client:
            await client.write_event(Synthesize("The old man went down to the river. " * 50).event())
            await client.read_event()

    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with serve(wyoming=f"tcp://127.0.0.1:{port}") as server, contextlib.suppress(ConnectionError):
        asyncio.run(leave(port))
        server.wait_until_idle()
