"""Shared by the benchmarks: clocks, memory, a process for each measurement, rows in results.jsonl, tables."""

import contextlib
import datetime
import json
import os
import pathlib
import platform
import resource
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator

import torch

from smalle.native_smalle import choose_kernels, load_library

ROOT = pathlib.Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks" / "results.jsonl"
COLUMNS = {
    "seconds": "speech (s)",
    "real_time": "times real time",
    "real_time_cpu": "by processor time",
    "first_audio_s": "first audio (s)",
    "first_audio_cpu_s": "by processor time",
    "peak_mb": "peak memory (MB)",
}


def now() -> tuple[float, float]:
    """Wall-clock time, and processor time of all threads of this process, in seconds."""
    return time.perf_counter(), time.process_time()


def time_speech(chunks: Iterable[torch.Tensor], sampling_rate: int) -> dict[str, float]:
    """The speed of a stream of waveforms (L,) or (B, L), as a row holds it; the seconds of all B count together."""
    started, samples, first = now(), 0, None
    for wave in chunks:
        samples += wave.numel()
        first = first or now()
    last = now()
    (first, first_cpu), (work, work_cpu) = ([x - y for x, y in zip(moment, started)] for moment in (first, last))
    audio = samples / sampling_rate
    return {
        "seconds": round(audio, 2),
        "real_time": float(f"{audio / work:.3g}"),
        "real_time_cpu": float(f"{audio / work_cpu:.3g}"),
        "first_audio_s": round(first, 3),
        "first_audio_cpu_s": round(first_cpu, 3),
    }


def memory(kind: str = "VmHWM") -> int:
    """Peak memory of this process in MB; with "VmRSS" what it holds now, which is known on Linux only.

    getrusage, which other systems have, may count the parent process too.
    """
    status = pathlib.Path("/proc/self/status")
    if status.is_file():
        return round(int(status.read_text().partition(f"{kind}:")[2].split()[0]) / 1024)
    return round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)


def machine() -> str:
    """The processor's name, its cores, and the instructions that the native runtime uses on it."""
    info = pathlib.Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.is_file() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    library, _ = load_library()
    used = choose_kernels(library, os.environ.get("SMALLE_KERNELS", "")) if library else "no native runtime"
    return f"{names[0] if names else platform.processor() or platform.machine()}, {os.cpu_count()} cores, {used}"


def commit() -> str:
    """The commit that is measured, with a + if files of smalle/ differ from it."""

    def git(*words):
        return subprocess.run(["git", "-C", str(ROOT), *words], capture_output=True, text=True).stdout.strip()

    return git("rev-parse", "--short", "HEAD") + ("+" if git("status", "--porcelain", "--", "smalle") else "")


@contextlib.contextmanager
def endless_loops(count: int) -> Iterator[None]:
    """Keeps so many processes computing beside what is measured."""
    loops = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(count)]
    try:
        yield
    finally:
        for loop in loops:
            loop.kill()
            loop.wait()


def in_own_process(script: str | pathlib.Path, *arguments) -> list[dict]:
    """Runs a benchmark with --child in a process of its own, whose peak memory is its own; returns its lines of JSON.

    Raises RuntimeError with its standard error if it fails.
    """
    done = subprocess.run([sys.executable, script, *map(str, arguments), "--child"], capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(done.stderr or f"{script} {arguments} ended with {done.returncode}")
    return [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]


def record(benchmark: str, note: str | None = None, **row) -> dict:
    """Appends a row to results.jsonl, with date, commit and machine; returns it."""
    row = {
        "benchmark": benchmark,
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "commit": commit(),
        "machine": machine(),
        "torch": torch.__version__,
        **row,
        **({"note": note} if note else {}),
    }
    with RESULTS.open("a") as file:
        file.write(json.dumps(row) + "\n")
    return row


def markdown(header: Iterable, rows: Iterable[Iterable]) -> str:
    """A table in Markdown."""
    header = list(header)
    return "\n".join(f"| {' | '.join(map(str, row))} |" for row in (header, ["---"] * len(header), *rows))


def table(columns: dict[str, str], rows: Iterable[dict]) -> str:
    """A table in Markdown of rows; columns: {key: title}. Missing values are dashes."""
    return markdown(columns.values(), ([row.get(key, "–") for key in columns] for row in rows))
