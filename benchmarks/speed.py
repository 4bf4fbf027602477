"""How fast a checkpoint speaks: times real time from text to samples, first audio, peak memory.

  python benchmarks/speed.py [MODEL] [--runtimes torch native] [--seconds 10] [--threads 1] [--busy 2] [--note TEXT]

MODEL is a checkpoint's folder; without one, a model of the paper's shape (64M, GLA) with EnCodec and Vocos in their
published sizes, all with random weights. Speech is streamed for batch 1, in pieces of up to ten seconds that do not end
earlier, after a short one as a warm-up. Each runtime has a process of its own, whose peak memory includes loading.
Times are wall-clock and processor times (with one thread, the time on a machine without other work). --busy: each is
measured alone and beside so many endless loops, where speech should cost less than twice its processor time. It ends
with 1 where it costs more. $SMALLE_KERNELS
(plain, avx2, avx_vnni, avx512_vnni, neon_dot) chooses the native runtime's instructions. Prints a table in Markdown and
appends a row for each measurement to benchmarks/results.jsonl.
"""

import argparse
import json
import pathlib
import sys
import tempfile

import torch

sys.path.insert(0, str(pathlib.Path(__file__).parents[1]))
from benchmarks.speakers import PAPER, RUNTIMES, Speaker, prepared  # noqa: E402
from benchmarks.timing import COLUMNS, endless_loops, in_own_process, memory, record, table, time_speech  # noqa: E402
from smalle.runtime_smalle import FewThreads  # noqa: E402


def speak(folder, runtime, seconds, threads):
    """Measures in this process; returns the figures of a row."""
    torch.set_num_threads(threads)
    FewThreads.count = threads
    speaker = Speaker(folder, runtime)
    time_speech(speaker.speak(1.0), speaker.sampling_rate)
    speed = time_speech(speaker.speak(seconds), speaker.sampling_rate)
    return {"parameters": speaker.parameters, **speed, "peak_mb": memory()}


def measure(arguments, folder, runtime, busy):
    """One row, measured in a process of its own beside `busy` endless loops."""
    options = "--runtimes", runtime, "--seconds", arguments.seconds, "--threads", arguments.threads
    with endless_loops(busy):
        (figures,) = in_own_process(__file__, folder, *options)
    model = pathlib.Path(arguments.model).name if arguments.model else PAPER
    details = dict(model=model, runtime=runtime, threads=arguments.threads, busy=busy)
    return record("speed", arguments.note, **details, **figures)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", nargs="?")
    parser.add_argument("--runtimes", nargs="+", default=["torch", "native"], choices=RUNTIMES)
    parser.add_argument("--seconds", type=float, default=10.0, help="of speech")
    parser.add_argument("--threads", type=int, default=1, help="of PyTorch in a step, and in the codec")
    parser.add_argument("--busy", type=int, default=0, help="endless loops beside a second measurement of each")
    parser.add_argument("--note", help="a remark, kept in the row")
    parser.add_argument("--child", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.child:
        print(json.dumps(speak(arguments.model, *arguments.runtimes, arguments.seconds, arguments.threads)))
        return
    rows = []
    with tempfile.TemporaryDirectory() as work:
        for runtime in arguments.runtimes:
            folder = prepared(arguments.model, pathlib.Path(work) / "checkpoint")
            rows += [measure(arguments, folder, runtime, busy) for busy in sorted({0, arguments.busy})]
    print(f"{rows[0]['model']}, {rows[0]['machine']}, torch threads: {arguments.threads}\n")
    print(table({"runtime": "runtime", "busy": "endless loops beside", **COLUMNS}, rows))
    pairs = zip(rows[::2], rows[1::2]) if arguments.busy else ()
    sys.exit(any(busy["real_time_cpu"] < alone["real_time_cpu"] / 2 for alone, busy in pairs))


if __name__ == "__main__":
    main()
