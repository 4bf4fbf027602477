"""Soaks the server: clients ask for speech and leave at random, for as long as is asked.

  python -m tests.reliability.soak [--minutes 60] [--every 10] [--clients 4] [--model CHECKPOINT]

Starts `smalle serve` on this machine, at a free port. All clients leave every ten minutes; prints the server's memory,
threads and open files then, and at the end what became of the requests. Exits with 1 where memory grew by more than 5 %
after the first time, a thread or a file is kept, or a request failed.
"""

import argparse
import http.client
import json
import os
import random
import socket
import subprocess
import sys
import threading
import time
from collections import Counter
from pathlib import Path

SENTENCES = "Nobody asked.", "The old house stood at the end of a long road, and nobody had lived there for years."


def free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return one.getsockname()[1]


def state(process: int) -> tuple[float, int, int]:
    """Megabytes in memory, threads and open files of a process."""
    folder = Path(f"/proc/{process}")
    pages = int((folder / "statm").read_text().split()[1])
    return (
        pages * os.sysconf("SC_PAGE_SIZE") / 1e6,
        len(list((folder / "task").iterdir())),
        len(os.listdir(folder / "fd")),
    )


def is_up(port: int) -> bool:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=5)
    try:
        connection.request("GET", "/health")
        return connection.getresponse().status == 200
    except OSError:
        return False
    finally:
        connection.close()


def ask(port: int, choice: random.Random) -> str:
    """Asks for speech; leaves early one time in two. Returns what became of it."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=300)
    body = {"model": "smalle-mini", "input": choice.choice(SENTENCES), "voice": "heart", "response_format": "pcm"}
    try:
        connection.request("POST", "/v1/audio/speech", json.dumps(body), {"Content-Type": "application/json"})
        answer = connection.getresponse()
        if answer.status in (429, 503):
            time.sleep(0.2)
            return "refused, for the server was busy"
        if answer.status != 200:
            return f"failed with {answer.status}"
        if choice.random() < 0.5:
            answer.read(choice.randrange(1, 20_000))
            return "left"
        return "heard to the end" if answer.read() else "failed, without a sample"
    except (OSError, http.client.HTTPException) as error:
        return f"failed with {type(error).__name__}"
    finally:
        connection.close()


def clients(port: int, count: int, until: float, outcomes: Counter) -> None:
    """Asks with so many clients until a time."""

    def work(seed):
        choice = random.Random(seed)
        while time.monotonic() < until:
            outcomes[ask(port, choice)] += 1

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def settled(process: int) -> tuple[float, int, int]:
    """The state of the server once its clients have left."""
    time.sleep(2)
    return state(process)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=60, help="default: %(default)s")
    parser.add_argument("--every", type=float, default=10, help="minutes between reports (default: %(default)s)")
    parser.add_argument("--clients", type=int, default=4, help="default: %(default)s")
    parser.add_argument("--model", help="checkpoint (default: the embedded one)")
    arguments = parser.parse_args()
    port, outcomes, states = free_port(), Counter(), []
    command = [sys.executable, "-m", "smalle", "serve", "--port", str(port)]
    with subprocess.Popen([*command, *(["--model", arguments.model] if arguments.model else [])]) as server:
        try:
            while not is_up(port):
                if server.poll() is not None:
                    return 2
                time.sleep(0.2)
            begun, minutes = time.monotonic(), 0.0
            while minutes < arguments.minutes:
                minutes = min(minutes + arguments.every, arguments.minutes)
                clients(port, arguments.clients, begun + 60 * minutes, outcomes)
                states.append(settled(server.pid))
                megabytes, threads, files = states[-1]
                print(f"after {minutes:g} minutes: {megabytes:.0f} MB, {threads} threads, {files} files", flush=True)
        finally:
            server.terminate()
    print(", ".join(f"{count} {what}" for what, count in sorted(outcomes.items())))
    failed = any(what.startswith("failed") for what in outcomes)
    kept = any(late > early for early, late in zip(states[0][1:], states[-1][1:]))
    return int(failed or kept or states[-1][0] > 1.05 * states[0][0])


if __name__ == "__main__":
    sys.exit(main())
