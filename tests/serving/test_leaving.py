"""Clients that leave: their work ends within a step, and nothing of it is kept."""

import json
import os
import socket
import threading
import time
import urllib.parse

import pytest

from smalle import voices_smalle

pytest.importorskip("fastapi")

LONG = "The old man went down to the river and looked at the water for a long time. " * 20


def start(server, text=LONG):
    """A connection that has asked for speech."""
    body = json.dumps({"model": "tts-1", "voice": "heart", "input": text, "response_format": "pcm"}).encode()
    return send(server, "/v1/audio/speech", "application/json", body)


def send(server, path, kind, body):
    """A connection that has sent a POST."""
    host = urllib.parse.urlsplit(server.url)
    connection = socket.create_connection((host.hostname, host.port))
    head = f"POST {path} HTTP/1.1\r\nHost: {host.netloc}\r\nContent-Type: {kind}\r\n"
    connection.sendall(f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body)
    return connection


def kept():
    """Numbers of threads and open files of this process."""
    files = len(os.listdir("/proc/self/fd")) if os.path.isdir("/proc/self/fd") else 0
    return threading.active_count(), files


def test_fifty_clients_that_leave_keep_nothing(server):
    for connection in [start(server, "Hello.") for _ in range(2)]:  # so that both threads have begun
        while connection.recv(65536):
            if not server.service.pool.running:
                break
        connection.close()
    server.wait_until_idle()
    before = kept()
    clients = [start(server) for _ in range(50)]
    for index, connection in enumerate(clients):
        if index < 2:
            assert connection.recv(64).startswith(b"HTTP/1.1 200")  # these hear the beginning, the others wait
        connection.close()
    server.wait_until_idle()
    deadline = time.monotonic() + 100
    while any(now > then for now, then in zip(kept(), before)) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert all(now <= then for now, then in zip(kept(), before))
    begun = time.process_time()
    time.sleep(0.5)
    assert time.process_time() - begun < 0.2  # no core is kept


def test_one_who_leaves_the_queue_gives_the_place_to_the_next(serve):
    with serve(streams=1, queue=1) as server:
        pool = server.service.pool
        speaking = start(server)
        assert speaking.recv(64).startswith(b"HTTP/1.1 200")
        waiting = start(server)
        wait_for(lambda: pool.waiting == 1)
        waiting.close()
        wait_for(lambda: pool.waiting == 0)
        assert pool.running == 1
        speaking.close()
        wait_for(lambda: pool.running == 0)


def wait_for(condition, seconds=300):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.01)


def test_a_voice_is_prepared_beside_the_speeches_and_ends_when_its_client_leaves(serve, recording, monkeypatch):
    monkeypatch.setattr(voices_smalle, "TUNING_STEPS", 1_000_000)
    parts = b"".join(
        b'--x\r\nContent-Disposition: form-data; name="%s"\r\n\r\n%s\r\n' % part
        for part in ((b"name", b"Anna"), (b"consent", b"yes"), (b'audio_sample"; filename="a.wav', recording))
    )
    with serve(streams=1, queue=0) as server:
        preparing = server.service.preparing
        uploading = send(server, "/v1/audio/voices", "multipart/form-data; boundary=x", parts + b"--x--\r\n")
        wait_for(lambda: preparing.running == 1)
        speaking = start(server, "Hello.")
        assert speaking.recv(64).startswith(b"HTTP/1.1 200")
        speaking.close()
        assert preparing.running == 1
        uploading.close()
        server.wait_until_idle()
        assert not server.service.voices.all()


def test_a_slow_reader_does_not_keep_a_thread(server):
    connection = start(server, "One sentence that takes some seconds to say, which nobody reads for now. " * 3)
    wait_for(lambda: server.service.pool.running == 1)
    server.wait_until_idle()  # although nothing was read
    connection.close()
