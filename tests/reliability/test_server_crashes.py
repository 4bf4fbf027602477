"""A server that is killed, or whose disk is full, while voices are uploaded and deleted: a voice that it has confirmed
is there after a restart, and nothing half-written.

  CRASHES=200 python -m pytest tests/reliability/test_server_crashes.py      # in place of 5 of each kind
"""

import contextlib
import io
import os
import random
import shutil
import signal
import threading
import time
from pathlib import Path
from typing import Any, Self

import pytest
import torch

requests = pytest.importorskip("requests")
pytest.importorskip("fastapi")
soundfile = pytest.importorskip("soundfile")

import smalle.cli.serve  # noqa: E402, F401  (imported once: each server is a fork of this process)
from smalle.voices_smalle import load_voice  # noqa: E402
from tests.reliability.soak import free_port  # noqa: E402
from tests.reliability.test_crashes import SEED, output, spawn, wait  # noqa: E402

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")
CRASHES = int(os.environ.get("CRASHES", 5))
PATIENCE = 120  # seconds, on a busy machine
GONE = requests.ConnectionError, requests.exceptions.ChunkedEncodingError


@pytest.fixture(scope="module")
def wav(record, tmp_path_factory):
    """Bytes of a recording of just over a second."""
    path = tmp_path_factory.mktemp("recording") / "hum.wav"
    record(path, 1.1, 140)
    return path.read_bytes()


class Server:
    """`smalle serve` in a folder, with a tiny checkpoint, and a client. Its voices lie in `voices`."""

    def __init__(self, folder: Path, checkpoint: Path, limit: int | None = None):
        port, self.folder = free_port(), folder
        shutil.rmtree(folder / "temporary", ignore_errors=True)
        arguments = ["serve", "--model", f"{checkpoint}", "--port", f"{port}", "--voices", "voices"]
        self.process = spawn([*arguments, "--max-voices", "1000000"], folder, limit)
        self.url = f"http://127.0.0.1:{port}"

    def __enter__(self) -> Self:
        """Waits for the server."""
        end = time.monotonic() + PATIENCE
        while True:
            with contextlib.suppress(requests.ConnectionError):
                self.ask("GET", "/health")
                return self
            assert time.monotonic() < end and not os.waitpid(self.process, os.WNOHANG)[0], output(self.folder)
            time.sleep(0.01)

    def __exit__(self, *_) -> None:
        """Kills it, where it lives."""
        os.kill(self.process, signal.SIGKILL)
        assert wait(self.process) == -signal.SIGKILL

    def ask(self, method: str, path: str, **body) -> Any:
        """The answer of the server. Raises requests.RequestException for an error, and where the server died."""
        answer = requests.request(method, self.url + path, timeout=PATIENCE, **body)
        answer.raise_for_status()
        return answer

    def upload(self, wav: bytes) -> str:
        """The identifier of a new voice."""
        sample, fields = {"audio_sample": ("hum.wav", wav)}, {"name": "Anna", "consent": "yes", "transcript": "So."}
        return self.ask("POST", "/v1/audio/voices", files=sample, data=fields).json()["id"]

    def delete(self, voice: str) -> None:
        self.ask("DELETE", f"/v1/audio/voices/{voice}")

    def voices(self) -> set[str]:
        data = self.ask("GET", "/v1/audio/voices").json()["data"]
        return {voice["id"] for voice in data if voice["type"] != "preset"}

    def speaks(self, voice: str) -> bool:
        body = {"model": "tts-1", "voice": {"id": voice}, "input": "So.", "response_format": "wav"}
        return soundfile.info(io.BytesIO(self.ask("POST", "/v1/audio/speech", json=body).content)).frames > 0


def check_folder(folder: Path, voices: set[str]) -> None:
    """The folder of a server holds these voices, all of one recording, whole, and nothing else."""
    assert {path.name for path in folder.iterdir()} == voices
    codes = []
    for voice in voices:
        assert {path.name for path in (folder / voice).iterdir()} == {"about.json", "voice.safetensors"}
        codes.append(load_voice(folder / voice / "voice.safetensors").codes)
    assert all(torch.equal(codes[0], one) for one in codes)


def test_a_killed_server_keeps_what_it_confirmed_and_nothing_half_written(tiny_checkpoint, wav, tmp_path, report):
    """One server after the other has the same folder. Each is killed while voices are uploaded and deleted."""
    moments, kept, deleted = random.Random(SEED), set(), set()
    for _ in range(CRASHES):
        with Server(tmp_path, tiny_checkpoint) as server:
            found = server.voices()
            assert kept <= found, "a confirmed voice is lost"
            assert len(found - kept - deleted) <= 1, "more than the one whose upload was not confirmed"
            for voice in sorted(found)[3:]:
                server.delete(voice)
            begun = time.monotonic()
            kept, deleted = {*sorted(found)[:3], server.upload(wav)}, set()
            seconds = time.monotonic() - begun
            check_folder(tmp_path / "voices", kept)
            assert server.speaks(moments.choice(sorted(kept)))
            killer = threading.Timer(moments.uniform(0, 3 * seconds), os.kill, (server.process, signal.SIGKILL))
            killer.start()
            with contextlib.suppress(*GONE):
                while True:
                    kept.add(server.upload(wav))
                    deleted = {moments.choice(sorted(kept))}
                    kept -= deleted
                    server.delete(*deleted)
    report(f"{CRASHES} times killed, without a finding")


def test_a_server_on_a_full_disk_says_so_and_goes_on_serving(tiny_checkpoint, wav, tmp_path, report):
    with Server(tmp_path, tiny_checkpoint) as server:
        voice = server.upload(wav)
    largest = max(path.stat().st_size for path in tmp_path.glob("voices/*/*"))
    sizes = random.Random(SEED)
    for _ in range(CRASHES):
        with Server(tmp_path, tiny_checkpoint, sizes.randrange(largest)) as server:
            with pytest.raises(requests.HTTPError) as refused:
                server.upload(wav)
            assert refused.value.response.status_code == 507 and "voice" in refused.value.response.text
            assert server.voices() == {voice} and server.speaks(voice)
            check_folder(tmp_path / "voices", {voice})
    report(f"{CRASHES} times on a full disk, each of which it said so, without a finding")
