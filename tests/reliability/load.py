"""Speaks many sentences in a row, quiet and beside endless processes: memory, threads, files and speed.

  python -m tests.reliability.load [--sentences 1000] [--beside 2] [--model CHECKPOINT]

Every second block of sentences is spoken beside the endless processes. Exits with 1 where memory grows by more than 5 %
after the first tenth, a thread or a file is kept, or the speed beside others is less than three quarters of a fair
share of the cores: beside two processes on two cores, less than half of that alone.
"""

import argparse
import contextlib
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator

from smalle.checkpoint import default_checkpoint, load_checkpoint
from smalle.serving.settings import available_cores

SENTENCES = (
    "The old house stood at the end of a long road.",
    "Nobody had lived there for years.",
    "Children said that a light moved in the windows at night.",
    "In 1984, it cost $5.20.",
    "Why did you not ask?",
)
BLOCKS = 10  # in turns, so that what else the machine does slows both halves down
ENDLESS = "import os\nparent = os.getppid()\nwhile os.getppid() == parent: sum(range(100_000))"


@contextlib.contextmanager
def endless_processes(count: int) -> Iterator[None]:
    """Keeps so many cores busy."""
    processes = [subprocess.Popen([sys.executable, "-c", ENDLESS]) for _ in range(count)]
    try:
        yield
    finally:
        for process in processes:
            process.kill()
            process.wait()


def memory() -> float:
    """Megabytes of this process in memory."""
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 1e6


def descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))


def speak(processor, model, count: int, first: int) -> tuple[float, float, list[float]]:
    """Speaks so many sentences; returns the seconds of speech, those that it took, and the memory after each."""
    seconds, begun, megabytes = 0.0, time.perf_counter(), []
    for number in range(first, first + count):
        samples = sum(len(wave) for wave in processor.stream(model, SENTENCES[number % len(SENTENCES)], seed=number))
        seconds += samples / processor.sampling_rate
        megabytes.append(memory())
    return seconds, time.perf_counter() - begun, megabytes


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sentences", type=int, default=1000, help="default: %(default)s")
    parser.add_argument("--beside", type=int, default=2, help="endless processes (default: %(default)s)")
    parser.add_argument("--model", default=default_checkpoint(), help="checkpoint (default: the embedded one)")
    arguments = parser.parse_args()
    processor, model = load_checkpoint(arguments.model)
    speak(processor, model, len(SENTENCES), 0)  # which loads the codec and packs the weights
    threads, files, megabytes = threading.active_count(), descriptors(), []
    block, totals = -(-arguments.sentences // BLOCKS), [[0.0, 0.0], [0.0, 0.0]]
    for number in range(BLOCKS):
        with endless_processes(arguments.beside * (number % 2)):
            *seconds, more = speak(processor, model, block, block * number)
        totals[number % 2] = [total + some for total, some in zip(totals[number % 2], seconds)]
        megabytes += more
    alone, beside = (speech / taken for speech, taken in totals)
    share = min(1.0, available_cores() / (1 + arguments.beside))
    early, late = max(megabytes[: max(1, len(megabytes) // 10)]), max(megabytes[-max(1, len(megabytes) // 10) :])
    kept = threading.active_count() - threads, descriptors() - files
    print(f"{len(megabytes)} sentences: {alone:.2f} times real time, {beside:.2f} beside {arguments.beside} processes")
    print(f"memory: {early:.0f} MB in the first tenth, {late:.0f} MB in the last")
    print(f"kept: {kept[0]} threads, {kept[1]} files")
    return int(late > 1.05 * early or any(kept) or beside < 0.75 * share * alone)


if __name__ == "__main__":
    sys.exit(main())
