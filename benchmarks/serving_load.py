"""Load on a running `smalle serve`: 200 requests of one sentence, 8 at once, by `hey` (apt install hey).

    smalle serve --port 8000 --queue 8 &
    python benchmarks/serving_load.py http://127.0.0.1:8000 --pid $!

Prints the seconds to the first audio of a request alone, how the requests of the load ended, and what the server's
process holds before and after.
"""

import argparse
import collections
import csv
import io
import json
import statistics
import subprocess
import time
import urllib.request

import psutil

SENTENCE = "Hello! The weather is fine today, and this small machine can talk."


def body(text: str) -> str:
    return json.dumps({"model": "tts-1", "voice": "alloy", "input": text, "response_format": "pcm"})


def first_audio(url: str) -> float:
    """Seconds from a request to its first audio, while nobody else asks."""
    headers = {"Content-Type": "application/json"}
    request = urllib.request.Request(f"{url}/v1/audio/speech", body(SENTENCE).encode(), headers)
    begun = time.perf_counter()
    with urllib.request.urlopen(request) as response:
        response.read(1)
        seconds = time.perf_counter() - begun
        response.read()
    return seconds


def held(pid: int) -> dict[str, float]:
    """Memory in MB, threads and open files of a process."""
    process = psutil.Process(pid)
    return {
        "memory_mb": round(process.memory_info().rss / 1e6, 1),
        "threads": process.num_threads(),
        "files": process.num_fds(),
    }


def load(url: str, requests: int, at_once: int) -> list[dict[str, str]]:
    """Rows of `hey`: seconds and status of each request."""
    options = ["-n", str(requests), "-c", str(at_once), "-t", "0", "-o", "csv", "-m", "POST"]
    command = ["hey", *options, "-T", "application/json", "-d", body(SENTENCE), f"{url}/v1/audio/speech"]
    return list(csv.DictReader(io.StringIO(subprocess.run(command, check=True, capture_output=True, text=True).stdout)))


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("url")
    parser.add_argument("--pid", type=int, required=True, help="process of the server")
    parser.add_argument("--requests", type=int, default=200)
    parser.add_argument("--at-once", type=int, default=8)
    arguments = parser.parse_args()
    alone = [first_audio(arguments.url) for _ in range(5)]
    before, cpu = held(arguments.pid), sum(psutil.Process(arguments.pid).cpu_times()[:2])
    begun = time.perf_counter()
    rows = load(arguments.url, arguments.requests, arguments.at_once)
    seconds = time.perf_counter() - begun
    cpu = sum(psutil.Process(arguments.pid).cpu_times()[:2]) - cpu
    result = {
        "first_audio_alone_s": round(statistics.median(alone), 3),
        "status": dict(collections.Counter(row["status-code"] for row in rows)),
        "seconds": round(seconds, 1),
        "cpu_seconds_of_the_server": round(cpu, 1),
        "median_request_s": round(statistics.median(float(row["response-time"]) for row in rows), 2),
        "before": before,
        "after": held(arguments.pid),
    }
    print(json.dumps(result))


if __name__ == "__main__":
    main()
