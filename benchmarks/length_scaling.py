"""Time and memory of one stream as it grows, from one second to ten minutes of speech.

  python benchmarks/length_scaling.py [--models NAME ...] [--seconds 1 3 10 30 60 120 300 600] [--note TEXT]
      [--plot FILE]

    python benchmarks/length_scaling.py --models "smalle-mini, native" --seconds 10 60 600 1800

Each model reads a long text sentence by sentence in a process of its own, after a second of speech as a warm-up.
Measured at each of the lengths are wall-clock and processor time, the memory of the process, and its peak, which
includes loading. Prints a table in Markdown, appends a row for each line of it to
benchmarks/results.jsonl and draws --plot.
"""

import argparse
import json
import pathlib
import sys
import tempfile

import torch
from tqdm import tqdm

sys.path.insert(0, str(pathlib.Path(__file__).parents[1]))
from benchmarks.plot import Panel, svg  # noqa: E402
from benchmarks.speakers import OURS, Speaker, prepared  # noqa: E402
from benchmarks.timing import in_own_process, machine, memory, now, record, table, time_speech  # noqa: E402
from smalle.runtime_smalle import FewThreads  # noqa: E402

LENGTHS = [1, 3, 10, 30, 60, 120, 300, 600]
TITLES = {
    "model": "model",
    "seconds": "speech (s)",
    "work_s": "time (s)",
    "work_cpu_s": "by processor time",
    "held_mb": "memory held (MB)",
    "peak_mb": "most so far (MB)",
}


def follow(speaker, lengths):
    """Yields time and memory of one stream at each of the lengths (seconds)."""
    (started, started_cpu), samples, lengths = now(), 0, sorted(lengths)
    for wave in speaker.speak(lengths[-1]):
        samples += len(wave)
        while lengths and samples >= int(lengths[0] * speaker.sampling_rate):
            clock, processor = now()
            yield {
                "seconds": lengths.pop(0),
                "work_s": round(clock - started, 2),
                "work_cpu_s": round(processor - started_cpu, 2),
                "held_mb": memory("VmRSS"),
                "peak_mb": memory(),
            }


def measure(arguments, name, work):
    """The rows of a model, which are recorded."""
    options = "--models", name, "--seconds", *arguments.seconds, "--threads", arguments.threads
    figures = in_own_process(__file__, "--folder", prepared(OURS[name][0], work / "paper"), *options)
    return [record("length", arguments.note, model=name, threads=arguments.threads, **figure) for figure in figures]


def draw(rows):
    """Time and memory against the length of speech."""
    series = [{}, {}]
    for row in rows:
        for lines, key in zip(series, ("work_s", "peak_mb")):
            lines.setdefault(row["model"], []).append((row["seconds"], row[key]))
    ticks = {1: "1 s", 10: "10 s", 60: "1 min", 600: "10 min", 1800: "30 min"}
    return svg(
        Panel("Time to speak", "seconds", ticks, series[0], log=True),
        Panel("Peak memory", "MB", ticks, series[1]),
    )


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    streams = ["smalle-mini, native", "Small-E 64M, native"]
    parser.add_argument("--models", nargs="+", default=streams, choices=OURS, metavar="NAME", help="; ".join(OURS))
    parser.add_argument("--seconds", type=float, nargs="+", default=LENGTHS, help="of speech, at which to measure")
    parser.add_argument("--threads", type=int, default=1, help="of PyTorch")
    parser.add_argument("--note", help="a remark, kept in the rows")
    parser.add_argument("--plot", type=pathlib.Path, help="file of the picture, SVG")
    parser.add_argument("--folder", help=argparse.SUPPRESS)
    parser.add_argument("--child", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.child:
        torch.set_num_threads(arguments.threads)
        FewThreads.count = arguments.threads
        speaker = Speaker(arguments.folder, OURS[arguments.models[0]][1])
        time_speech(speaker.speak(1.0), speaker.sampling_rate)
        for figures in follow(speaker, arguments.seconds):
            print(json.dumps(figures))
        return
    with tempfile.TemporaryDirectory() as work:
        names = tqdm(arguments.models, leave=False)
        rows = [row for name in names for row in measure(arguments, name, pathlib.Path(work))]
    print(f"{machine()}, torch {torch.__version__}, its threads: {arguments.threads}\n")
    print(table(TITLES, rows))
    if arguments.plot:
        arguments.plot.write_text(draw(rows))


if __name__ == "__main__":
    main()
