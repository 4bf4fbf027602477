"""The engine without PyTorch says the same as the one with it, and says what it cannot do."""

import subprocess
import sys
import threading

import numpy as np
import pytest

from smalle.serving.lite_engine import Cancelled, LiteEngine


@pytest.fixture(scope="module")
def lite():
    return LiteEngine()


def samples(engine, text, cancelled=None, word_times=False):
    parts = engine.speak(text, "heart", 0, word_times, cancelled or threading.Event())
    return np.concatenate([part.samples for part in parts])


def test_it_says_what_the_other_engine_says(lite, engine):
    text = "The weather is fine. [pause 0.2s] <break time='100ms'/> Is it?"
    assert samples(lite, text) == pytest.approx(samples(engine, text), abs=1e-3)


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
    with pytest.raises(ValueError, match="without PyTorch"):
        lite.encode_voice(np.zeros((1, 24000), np.float32), 24000, None)


def test_the_server_starts_without_pytorch():
    """As where torch and transformers are not installed: to import them fails."""
    code = (
        "import sys; sys.modules['torch'] = sys.modules['transformers'] = None\n"
        "import importlib.util; find = importlib.util.find_spec\n"
        "importlib.util.find_spec = lambda name, *x: None if name == 'torch' else find(name, *x)\n"
        "from fastapi.testclient import TestClient\n"
        "from smalle.serving.app import create_app\n"
        "with TestClient(create_app(), base_url='http://127.0.0.1') as client:\n"
        "    request = {'model': 'tts-1', 'input': 'Hi.', 'voice': 'heart', 'response_format': 'wav'}\n"
        "    answer = client.post('/v1/audio/speech', json=request)\n"
        "    print(client.get('/health').status_code, answer.status_code, answer.content[:4])\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout == "200 200 b'RIFF'\n", done.stderr[-2000:]
