"""Processor time of a decode step, a prompt's frame and a text, by each kernel of the native runtime.

  python benchmarks/steps.py [MODEL] [--rounds 10] [--kernels NAME ...] [--note TEXT]

MODEL is a checkpoint's folder; without one, a model of the paper's shape (64M, GLA) with random weights. Kernels take
turns, so that a machine with other work treats them alike; of each the least and the median time are told. With
guidance a step has two rows. Prints a table in Markdown and appends a row for each kernel to benchmarks/results.jsonl.
"""

import argparse
import pathlib
import sys
import tempfile
import time

import torch
from tqdm import trange

sys.path.insert(0, str(pathlib.Path(__file__).parents[1]))
from benchmarks.speakers import PAPER, SENTENCE, Speaker, prepared  # noqa: E402
from benchmarks.timing import machine, record, table  # noqa: E402
from smalle.native_smalle import choose_kernels  # noqa: E402
from smalle.runtime_smalle import FewThreads, encode_text, start_steps  # noqa: E402

KERNELS = "plain", "avx2", "avx_vnni", "avx512_vnni", "neon_dot"
PROMPT, STEPS = 160, 40
TITLES = {"kernels": "kernels", "step_ms": "step (ms)", "prompt_ms": "frame of a prompt (ms)", "text_ms": "text (ms)"}


def milliseconds(call, *arguments):
    """Processor time of a call, and what it returns."""
    started = time.process_time_ns()
    result = call(*arguments)
    return (time.process_time_ns() - started) / 1e6, result


def take_turn(model, ids, mask, times):
    """Measures each part once or more and adds the milliseconds to `times`, by name."""
    rows, shape = len(ids), (len(ids), PROMPT, model.config.num_codebooks)
    codes, read = torch.randint(3, 1000, shape), torch.ones(shape[:2], dtype=torch.bool)
    spent, state = milliseconds(encode_text, model, ids, mask)
    times["text_ms"].append(spent / rows)
    steps = start_steps(model, state, False)
    steps(codes[:, :1], read[:, :1])
    times["prompt_ms"].append(milliseconds(steps.read, codes, read)[0] / PROMPT)
    for frame in codes[:, :STEPS].split(1, 1):
        times["step_ms"].append(milliseconds(steps, frame, read[:, :1])[0])


def summary(times):
    """The least and the median of times."""
    times = sorted(times)
    return f"{times[0]:.3g} / {times[len(times) // 2]:.3g}"


@torch.no_grad()
def measure(speaker, kernels, rounds):
    """Times of each of the kernels that are here, by name."""
    model, text = speaker.model, speaker.processor(SENTENCE)
    rows = 1 + (getattr(model.generation_config, "guidance_scale", None) not in (None, 1))
    ids, mask = (text[name].repeat(rows, 1) for name in ("input_ids", "attention_mask"))
    encode_text(model, ids, mask)
    library, found = model.native_weights.library, {}
    for _ in trange(rounds, leave=False):
        for name in kernels:
            try:
                choose_kernels(library, name)
            except ValueError:  # of another processor
                continue
            take_turn(model, ids, mask, found.setdefault(name, {part: [] for part in TITLES if part != "kernels"}))
    return found


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", nargs="?")
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--kernels", nargs="+", default=KERNELS, choices=KERNELS)
    parser.add_argument("--note", help="a remark, kept in the rows")
    arguments = parser.parse_args()
    with FewThreads(), tempfile.TemporaryDirectory() as work:
        folder = prepared(arguments.model, pathlib.Path(work) / "checkpoint")
        found = measure(Speaker(folder, "native"), arguments.kernels, arguments.rounds)
    name = pathlib.Path(arguments.model).name if arguments.model else PAPER
    rows = [
        record("steps", arguments.note, model=name, kernels=kernels, **{part: summary(x) for part, x in times.items()})
        for kernels, times in found.items()
    ]
    print(f"{name}, {machine()}; least / median of processor time\n\n{table(TITLES, rows)}")


if __name__ == "__main__":
    main()
