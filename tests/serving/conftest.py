"""A running server with the embedded checkpoint."""

import contextlib
import dataclasses
import threading
import time
from typing import Any

import pytest

SENTENCE = "Good morning, dear listeners."
LONG = "The old man went down to the river and looked at the water for a long time. " * 20


@dataclasses.dataclass
class RunningServer:
    """url: of a server in this process. service: what works behind it."""

    url: str
    service: Any

    def wait_until_idle(self, seconds: float = 300):
        end = time.monotonic() + seconds
        pools = self.service.pool, self.service.preparing
        while any(pool.running or pool.waiting for pool in pools):
            assert time.monotonic() < end, "work goes on that nobody listens to"
            time.sleep(0.02)


@pytest.fixture(scope="session")
def engine():
    pytest.importorskip("fastapi")
    from smalle.serving.engine import CheckpointEngine

    return CheckpointEngine()


@contextlib.contextmanager
def running(engine, **settings):
    """Runs uvicorn in a thread."""
    import uvicorn

    from smalle.serving.app import create_app
    from smalle.serving.settings import Settings

    app = create_app(Settings(**settings), engine)
    server = uvicorn.Server(uvicorn.Config(app, port=0, log_level="warning", timeout_graceful_shutdown=5))
    thread = threading.Thread(target=server.run)
    thread.start()
    try:
        while not server.started:
            assert thread.is_alive()
            time.sleep(0.01)
        port = server.servers[0].sockets[0].getsockname()[1]
        yield RunningServer(f"http://127.0.0.1:{port}", app.state.service)
    finally:
        server.should_exit = True
        thread.join()


@pytest.fixture(scope="session")
def serve(engine):
    """Starts a server with given settings: `with serve(streams=1) as server`."""
    return lambda **settings: running(engine, **{"streams": 2, **settings})


@pytest.fixture(scope="session")
def server(serve):
    with serve(queue=64) as server:
        yield server


@pytest.fixture(scope="session")
def recording(engine):
    """A wav of three seconds of speech, its bytes."""
    import numpy as np

    from smalle.serving.encoding import Encoder

    text = "The river was wide, and nobody knew how deep it was."
    parts = [part.samples for part in engine.speak(text, "fenrir", 0, False, threading.Event())]
    encoder = Encoder("wav", engine.sampling_rate)
    return encoder.encode(np.concatenate(parts)) + encoder.finish()
