"""`smalle serve --workers 2`: two processes that answer as one."""

import concurrent.futures
import contextlib
import os
import re
import select
import signal
import subprocess
import sys
import threading
import time

import psutil
import pytest

pytest.importorskip("fastapi")
requests = pytest.importorskip("requests")

from smalle.serving.voices import VoiceStore  # noqa: E402
from tests.serving.test_leaving import LONG, start  # noqa: E402

COMMAND = sys.executable, "-m", "smalle", "serve", "--port", "0", "--workers", "2", "--streams", "1"


def wait_for(condition, seconds=600):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.2)


class Server:
    """The command, started with a folder for temporary files."""

    def __init__(self, folder, *options):
        environment = {**os.environ, "TMPDIR": str(folder)}
        self.process = subprocess.Popen([*COMMAND, *options], stderr=subprocess.PIPE, text=True, env=environment)
        self.log: list[str] = []
        self.reader = threading.Thread(target=lambda: self.log.extend(self.process.stderr), daemon=True)
        self.reader.start()

    def wait_until_it_serves(self):
        wait_for(lambda: "".join(self.log).count("startup complete") == 2)
        self.url = re.search(r"http://\S+:\d+", "".join(self.log))[0]

    def workers(self):
        """The processes that load the model."""
        return [x for x in psutil.Process(self.process.pid).children() if "spawn_main" in " ".join(x.cmdline())]

    def metric(self, name):
        lines = requests.get(f"{self.url}/metrics").text.splitlines()
        return sum(float(line.split()[-1]) for line in lines if line.startswith(name))

    def stop(self):
        self.process.send_signal(signal.SIGTERM)
        self.process.wait(60)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("temporary")


@pytest.fixture(scope="module")
def server(folder):
    server = Server(folder)
    try:
        server.wait_until_it_serves()
        yield server
    finally:
        server.stop()


def test_a_voice_that_one_process_made_is_known_to_all(server, folder, engine):
    (shared,) = folder.glob("*/voices")
    store = VoiceStore(engine, str(shared))  # as a third worker has it
    made, voices = store.add("Anna", engine.processor.get_voice("emma")), f"{server.url}/v1/audio/voices"
    for _ in range(8):  # each on a connection of its own, which either worker may take
        assert "Anna" in [voice["name"] for voice in requests.get(voices).json()["data"]]
    assert requests.delete(f"{voices}/{made.id}").json()["deleted"] and not store.all()


def test_what_they_did_is_counted_together(server):
    body = {"model": "tts-1", "voice": "heart", "input": "Hi."}
    before = server.metric("smalle_speeches_total")
    with concurrent.futures.ThreadPoolExecutor(4) as pool:
        ask = [pool.submit(requests.post, f"{server.url}/v1/audio/speech", json=body, timeout=300) for _ in range(4)]
    assert [asked.result().status_code for asked in ask] == [200] * 4
    assert server.metric("smalle_speeches_total") == before + 4


def test_one_that_dies_takes_its_own_streams_only_and_is_replaced(server):
    one, other = server.workers()
    with contextlib.ExitStack() as stack:
        clients = []
        while server.metric("smalle_running") < 2:  # each speaks one text at once; which of them gets it is chance
            assert len(clients) < 30
            clients.append(stack.enter_context(start(server, LONG)))
            wait_for(lambda: server.metric("smalle_running") + server.metric("smalle_waiting") == len(clients))
        wait_for(lambda: len(readable(clients)) == 2)
        speaking = readable(clients)
        one.kill()
        wait_for(lambda: server.metric("smalle_running") == 1)
        assert sorted(map(goes_on, speaking)) == [False, True]
    wait_for(lambda: server.metric("smalle_running") == server.metric("smalle_waiting") == 0)
    wait_for(lambda: "".join(server.log).count("startup complete") == 3)
    assert other in server.workers() and one not in server.workers()


def readable(connections):
    return select.select(connections, [], [], 0)[0]


def goes_on(connection):
    """Whether more comes than what was sent already."""
    with contextlib.suppress(ConnectionError):
        while readable([connection]):
            if not connection.recv(1 << 20):
                return False
        return bool(connection.recv(1))
    return False


def test_sigterm_leaves_no_process_and_no_file(server, folder):
    workers = server.workers()
    assert len(workers) == 2 and list(folder.iterdir())
    server.stop()
    assert not any(worker.is_running() for worker in workers)
    assert not list(folder.iterdir())


def test_workers_that_cannot_start_end_the_command(tmp_path):
    server = Server(tmp_path, "--lexicon", str(tmp_path / "missing.txt"))
    assert server.process.wait(300) == 2
    server.reader.join()
    assert "missing.txt" in "".join(server.log) and "did not start" in server.log[-1]
