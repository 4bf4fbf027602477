"""The engine without PyTorch says the same as the one with it, and says what it cannot do."""

import subprocess
import sys
import threading

import numpy as np
import pytest

from smalle.serving.engine import Cancelled
from smalle.serving.lite_engine import LiteEngine


@pytest.fixture(scope="module")
def lite():
    return LiteEngine()


def samples(engine, text, cancelled=None, word_times=False):
    parts = engine.speak(text, "heart", 0, word_times, cancelled or threading.Event())
    return np.concatenate([part.samples for part in parts])


def test_it_says_what_the_other_engine_says(lite, engine):
    text = "The weather is fine. [pause 0.2s] <break time='100ms'/> Is it?"
    assert samples(lite, text) == pytest.approx(samples(engine, text), abs=1e-3)


class Steps(threading.Event):
    """Counts how often the model asks whether it shall go on."""

    count = 0

    def is_set(self):
        self.count += 1
        return False


def test_only_what_is_streamed_is_heard_before_its_reading_has_ended(lite, engine):
    """What is not can be read again where it failed."""
    for speaker in (lite, engine):
        heard = {}
        for streamed in (True, False):
            steps = Steps()
            parts = speaker.speak("The weather is fine today.", "heart", 0, False, steps, None, streamed)
            first = next(parts).samples
            before = steps.count
            heard[streamed] = np.concatenate([first, *(part.samples for part in parts)])
            assert (before < steps.count) == streamed
        assert np.array_equal(*heard.values())


def test_setting_the_event_ends_the_work(lite):
    cancelled = threading.Event()
    parts = lite.speak("The weather is fine today, and nobody knows for how long.", "heart", 0, False, cancelled)
    next(parts)
    cancelled.set()
    with pytest.raises(Cancelled):
        list(parts)


def test_what_it_cannot_do_is_refused(lite):
    for text, message in {
        "<speak>Hi. <voice name='/etc/passwd'>Hi.</voice></speak>": "is not known: expected one of",
        "...": "no words",
    }.items():
        with pytest.raises(ValueError, match=message):
            lite.speak(text, None, 0, False, threading.Event())
    with pytest.raises(ValueError, match="needs PyTorch"):
        lite.encode_voice(np.zeros((1, 24000), np.float32), 24000, None, threading.Event())


SERVER = """
import importlib.util, json, sys, threading, time, urllib.request

class Missing:
    def find_spec(self, name, *_):
        if name.partition(".")[0] in ("torch", "transformers"):
            raise ModuleNotFoundError(name)

sys.meta_path.insert(0, Missing())
find_spec = importlib.util.find_spec
importlib.util.find_spec = lambda name, *rest: None if name == "torch" else find_spec(name, *rest)
import uvicorn
from smalle.serving.app import create_app

server = uvicorn.Server(uvicorn.Config(create_app(), port=0, log_level="warning"))
threading.Thread(target=server.run, daemon=True).start()
while not server.started:
    time.sleep(0.05)
base = "http://127.0.0.1:%s" % server.servers[0].sockets[0].getsockname()[1]
body = json.dumps({"model": "tts-1", "input": "Hi.", "voice": "heart", "response_format": "wav"}).encode()
request = urllib.request.Request(base + "/v1/audio/speech", body, {"Content-Type": "application/json"})
print(urllib.request.urlopen(base + "/health").status, urllib.request.urlopen(request).read()[:4])
server.should_exit = True
"""


def test_the_server_starts_without_pytorch():
    """As where torch and transformers are not installed: to import them fails."""
    done = subprocess.run([sys.executable, "-c", SERVER], capture_output=True, text=True)
    assert done.stdout == "200 b'RIFF'\n", done.stderr[-2000:]
