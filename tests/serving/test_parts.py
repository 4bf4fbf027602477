"""The parts of the server: time-stretching, sound files in pieces, the pool of threads, settings."""

import asyncio
import io
import threading
import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

pytest.importorskip("fastapi")
av = pytest.importorskip("av")

from smalle.reading.stretching import TimeStretcher  # noqa: E402
from smalle.serving.encoding import MEDIA_TYPES, Encoder  # noqa: E402
from smalle.serving.pool import Busy, WorkPool  # noqa: E402
from smalle.serving.settings import Settings  # noqa: E402

RATE = 24000


@pytest.fixture(scope="module")
def wave(engine):
    parts = engine.speak("The weather is fine today.", "heart", 0, False, threading.Event())
    return np.concatenate([part.samples for part in parts])


def stretched(wave, speed, cuts=()):
    stretcher = TimeStretcher(speed, RATE)
    return np.concatenate([*map(stretcher.stretch, np.split(wave, cuts)), stretcher.finish()])


def pitch(wave):
    """Hz of the strongest frequency."""
    return np.argmax(np.abs(np.fft.rfft(wave, 1 << 18))) * RATE / (1 << 18)


@given(st.sampled_from([0.25, 0.8, 1.0, 1.3, 4.0]), st.lists(st.integers(0, 40000), max_size=5))
@settings(max_examples=10, deadline=None)
def test_stretching_does_not_depend_on_the_pieces(wave, speed, cuts):
    whole = stretched(wave, speed)
    assert np.array_equal(stretched(wave, speed, sorted(cuts)), whole)
    assert len(whole) == round(len(wave) / speed)


@pytest.mark.parametrize("speed", [0.25, 0.5, 0.8, 1.25, 2.0, 4.0])
def test_stretching_keeps_pitch_and_level(wave, speed, record, tmp_path):
    hum = record(tmp_path / "hum.wav", 2, pitch=170)[0]
    assert pitch(stretched(hum, speed)) == pytest.approx(170, rel=0.02)
    other = stretched(wave, speed)
    assert np.sqrt(np.mean(other**2)) == pytest.approx(np.sqrt(np.mean(wave**2)), rel=0.15)


def test_stretching_a_tone_makes_no_breaks():
    tone = np.sin(2 * np.pi * 200 * np.arange(RATE) / RATE).astype(np.float32)
    for speed in (0.5, 1.7):
        middle = stretched(tone, speed)[2400:-4800]
        assert np.abs(np.diff(middle)).max() < 1.1 * np.abs(np.diff(tone)).max()


def decode(data):
    """Samples (L,) and sampling rate. soundfile cannot read a flac that does not say its length."""
    with av.open(io.BytesIO(data)) as file:
        frames = list(file.decode(audio=0))
    return np.concatenate([frame.to_ndarray()[0] for frame in frames]), frames[0].sample_rate


@pytest.mark.parametrize("format", MEDIA_TYPES)
def test_pieces_make_one_sound_file(wave, format):
    encoder = Encoder(format, RATE)
    pieces = [encoder.encode(part) for part in np.array_split(wave, 7)]
    data = b"".join(pieces) + encoder.finish()
    assert pieces[0]  # something leaves with the first audio
    if format == "pcm":
        assert len(data) == 2 * len(wave)
    else:
        samples, rate = decode(data)
        seconds = len(samples) / rate
        assert seconds == pytest.approx(len(wave) / RATE, abs=0.12)


@pytest.mark.parametrize("format", ["mp3", "opus", "flac"])
def test_a_long_pause_is_encoded(format):
    encoder = Encoder(format, RATE)
    data = encoder.encode(np.zeros(60 * RATE, np.float32)) + encoder.finish()
    samples, rate = decode(data)
    assert len(samples) / rate == pytest.approx(60, abs=0.2)


def test_pool_runs_so_many_at_once_and_refuses_beyond_the_queue():
    async def run():
        pool, go, most = WorkPool(2, 1), threading.Event(), []

        def work(_):
            most.append(pool.running)
            go.wait()
            yield "done"

        async def result():
            return [item async for item in pool.iterate(work)]

        tasks = [asyncio.create_task(result()) for _ in range(4)]
        await asyncio.sleep(0.1)
        assert (pool.running, pool.waiting) == (2, 1)
        with pytest.raises(Busy) as caught:
            await tasks[3]
        assert caught.value.retry_after >= 1
        go.set()
        assert await asyncio.gather(*tasks[:3]) == [["done"]] * 3
        await asyncio.sleep(0.05)
        assert max(most) == 2 and (pool.running, pool.waiting) == (0, 0)

    asyncio.run(run())


def test_pool_raises_what_work_raises_and_goes_on():
    async def run():
        pool = WorkPool(1, 0)

        def work(_):
            yield 1
            raise ValueError("no")

        stream = pool.iterate(work)
        assert await anext(stream) == 1
        with pytest.raises(ValueError, match="no"):
            await anext(stream)
        assert await pool.run(lambda _: 5) == 5

    asyncio.run(run())


def test_closing_a_stream_ends_its_work():
    async def run():
        pool, ended = WorkPool(1, 0), threading.Event()

        def work(cancelled):
            while not cancelled.is_set():
                yield time.sleep(0.001)
            ended.set()

        stream = pool.iterate(lambda cancelled: (x or 0 for x in work(cancelled)))
        await anext(stream)
        await stream.aclose()
        assert await asyncio.to_thread(ended.wait, 1)

    asyncio.run(run())


def test_settings_travel_to_workers(monkeypatch):
    chosen = Settings(streams=3, api_keys=("a", "b"), voices="x", max_recording=7.5)
    for name, value in chosen.to_environment().items():
        monkeypatch.setenv(name, value)
    assert Settings.from_environment() == chosen


@pytest.mark.parametrize("wrong", [{"streams": 0}, {"queue": -1}, {"api_keys": (" ",)}, {"max_recording": 0.0}])
def test_wrong_settings_are_refused(wrong):
    with pytest.raises(ValueError, match=next(iter(wrong)).replace("api_keys", "API key")):
        Settings(**wrong)


@pytest.mark.parametrize(
    "options, part",
    [
        (["--host", "0.0.0.0"], "--public"),
        (["--wyoming", "tcp://0.0.0.0:10200", "--api-key", "x"], "--public"),
        (["--wyoming", "http://x"], "tcp://HOST:PORT"),
        (["--wyoming", "--workers", "2"], "--workers"),
        (["--workers", "0"], "--workers"),
        (["--port", "70000"], "--port"),
        (["--api-key-file", "/dev/null"], "no key"),
    ],
)
def test_command_refuses_what_is_unsafe_or_wrong(options, part):
    from smalle.cli import serve

    with pytest.raises(ValueError, match=part):
        serve.settings_of(serve.parser().parse_args(options))


def test_command_reads_keys_and_takes_an_address_with_them(tmp_path):
    from smalle.cli import serve

    file = tmp_path / "keys"
    file.write_text("one\n\n two \n")
    options = ["--host", "0.0.0.0", "--api-key-file", str(file), "--api-key", "three", "--workers", "1"]
    chosen = serve.settings_of(serve.parser().parse_args(options))
    assert chosen.api_keys == ("three", "one", "two") and chosen.allowed_hosts == ["*"]
