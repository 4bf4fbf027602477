"""What the benchmarks share: clocks, memory, a process for each measurement, rows in results.jsonl, tables."""

import datetime
import json
import os
import pathlib
import platform
import resource
import subprocess
import sys
import time

import torch

from smalle.runtime_smalle import choose_kernels, load_library

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


def now():
    """The clock's time and the processor's, of all threads of this process together."""
    return time.perf_counter(), time.process_time()


def listen(chunks, sampling_rate):
    """Hears waveforms (L,) or (B, L) as they come: what a row holds of speed, seconds of all B together."""
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


def memory(kind="VmHWM"):
    """MB that this process has held at most; "VmRSS": that it holds now, which only Linux tells.

    getrusage would count the parent's, too, where the system tells more.
    """
    status = pathlib.Path("/proc/self/status")
    if status.is_file():
        return round(int(status.read_text().partition(f"{kind}:")[2].split()[0]) / 1024)
    return round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)


def machine():
    """The processor's name, its cores, and the instructions that the native runtime uses on it."""
    info = pathlib.Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.is_file() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    library, _ = load_library()
    used = choose_kernels(library, os.environ.get("SMALLE_KERNELS", "")) if library else "no native runtime"
    return f"{names[0] if names else platform.processor() or platform.machine()}, {os.cpu_count()} cores, {used}"


def commit():
    """The commit that is measured, with a + where files differ from it."""

    def git(*words):
        return subprocess.run(["git", "-C", str(ROOT), *words], capture_output=True, text=True).stdout.strip()

    return git("rev-parse", "--short", "HEAD") + ("+" if git("status", "--porcelain", "--", "smalle") else "")


def in_own_process(script, *arguments):
    """The JSON lines that a benchmark prints when it is called with --child: a process whose peak memory is its own.

    Raises RuntimeError with what it wrote to standard error.
    """
    done = subprocess.run([sys.executable, script, *map(str, arguments), "--child"], capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(done.stderr or f"{script} {arguments} ended with {done.returncode}")
    return [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]


def record(benchmark, note=None, **row):
    """Appends a row to results.jsonl with date, commit and machine; returns it."""
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


def markdown(header, rows):
    """A table of rows of values."""
    return "\n".join(f"| {' | '.join(map(str, row))} |" for row in (header, ["---"] * len(header), *rows))


def table(columns, rows):
    """Rows as Markdown; columns: {key: title}, a dash for what a row has not."""
    return markdown(columns.values(), ([row.get(key, "–") for key in columns] for row in rows))
