"""Small-E beside other synthesizers, in one run: speed from text to samples, first audio, peak memory, parameters.

  python benchmarks/peers.py [--models NAME ...] [--seconds 10] [--rows 1 8] [--threads 1] [--note TEXT]

Small-E is the embedded default and the paper's shape (64M, with EnCodec and Vocos), by the native runtime (C, 8 bits)
and by PyTorch; the others are the package pocket-tts and what transformers has (benchmarks/peer_models.py), in
published sizes. All but the embedded default have random weights. All speak for a given time, in pieces of up to ten
seconds, each in a process of its own and after a second of speech as a warm-up; peak memory includes loading.

--rows: texts at once; their seconds count together. First audio is when a model's interface returns samples, which for
many is when all of them are done. Times are wall-clock times, and processor times of all threads together.
--threads: of PyTorch. Besides, pocket-tts runs its decoder in a thread.

Prints a table in Markdown and appends a row for each measurement to benchmarks/results.jsonl. Left out are CSM, Dia,
Higgs and VibeVoice: with a billion parameters and more, none runs in real time on a CPU.
"""

import argparse
import importlib.util
import json
import pathlib
import sys
import tempfile

import torch
from tqdm import tqdm

sys.path.insert(0, str(pathlib.Path(__file__).parents[1]))
from benchmarks.peer_models import PEERS  # noqa: E402
from benchmarks.speakers import OURS, PIECE, Speaker, prepared  # noqa: E402
from benchmarks.timing import COLUMNS, in_own_process, machine, memory, record, table, time_speech  # noqa: E402
from smalle.runtime_smalle import FewThreads  # noqa: E402

TITLES = {"model": "model", "millions": "parameters (M)", "rows": "texts at once", **COLUMNS}


def in_pieces(peer, seconds, rows):
    """Speech of a peer, in pieces as long as those of Small-E."""
    for _ in range(max(1, round(seconds / PIECE))):
        yield from peer.speak(min(seconds, PIECE), rows)


def speak(name, folder, seconds, rows, threads):
    """Measures in this process; returns the figures of a row."""
    torch.manual_seed(0)
    torch.set_num_threads(threads)
    FewThreads.count = threads
    speaker = Speaker(folder, OURS[name][1]) if name in OURS else PEERS[name][0]()
    for length in (1.0, seconds):
        speech = speaker.speak(length, rows) if name in OURS else in_pieces(speaker, length, rows)
        speed = time_speech(speech, speaker.sampling_rate)
    return {"parameters": speaker.parameters, **speed, "peak_mb": memory()}


def missing(name):
    """The package that has to be installed for a peer, or None."""
    package = PEERS[name][1] if name in PEERS else None
    return None if package is None or importlib.util.find_spec(package) else package.replace("_", "-")


def measure(arguments, name, rows, work):
    """A row; None, and a message, if the peer failed."""
    options = ["--models", name, "--seconds", arguments.seconds, "--rows", rows, "--threads", arguments.threads]
    if name in OURS:
        options += ["--folder", prepared(OURS[name][0], work / "paper")]
    try:
        (figures,) = in_own_process(__file__, *options)
    except RuntimeError as error:
        tqdm.write(f"{name}: failed\n{error}", file=sys.stderr)
        return None
    row = record("peers", arguments.note, model=name, rows=rows, threads=arguments.threads, **figures)
    return {**row, "millions": f"{row['parameters'] / 1e6:.1f}"}


def main():
    names = [*OURS, *PEERS]
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", default=names, choices=names, metavar="NAME", help="; ".join(names))
    parser.add_argument("--seconds", type=float, default=10.0, help="of speech")
    parser.add_argument("--rows", type=int, nargs="+", default=[1, 8], help="texts at once")
    parser.add_argument("--threads", type=int, default=1, help="of PyTorch")
    parser.add_argument("--note", help="a remark, kept in the rows")
    parser.add_argument("--folder", help=argparse.SUPPRESS)
    parser.add_argument("--child", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.child:
        (name,), (rows,) = arguments.models, arguments.rows
        print(json.dumps(speak(name, arguments.folder, arguments.seconds, rows, arguments.threads)))
        return
    skipped = {name: package for name in arguments.models if (package := missing(name))}
    measurements = [
        (name, rows)
        for name in arguments.models
        for rows in arguments.rows
        if name not in skipped and (rows == 1 or name in OURS or PEERS[name][0].rows)
    ]
    with tempfile.TemporaryDirectory() as work:
        found = [measure(arguments, *what, pathlib.Path(work)) for what in tqdm(measurements, leave=False)]
    print(f"{machine()}, torch {torch.__version__}, its threads: {arguments.threads}\n")
    print(table(TITLES, [row for row in found if row]))
    for name, package in skipped.items():
        print(f"\n{name}: skipped, not installed: pip install -c constraints.txt {package}")


if __name__ == "__main__":
    main()
