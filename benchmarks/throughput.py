"""How fast models train: Small-E against the decoder-only baseline of the same size, on samples of 5 to 120 seconds.

  python benchmarks/throughput.py [RECIPE ...] [--seconds 5 10 25 60 120] [--batch-seconds 60] [--steps 2]
      [--device cuda] [--fp32] [--threads 1] [--note TEXT] [--report]

RECIPE: a file, or the name of a recipe of the package; default: smalle-64m and decoder-only-64m. All models get the
same batches: the same texts (16 characters a second) and random codes, as many samples of a length as --batch-seconds
holds, at least one. A step is one of `smalle train` with that recipe: forward, losses, backward, clipping, AdamW, in
bfloat16 or with --fp32. On one CPU thread it is measured in processor time, to which other programs add little, else in
wall-clock time (a row has both); the shortest of --steps steps counts, after a warm-up step. Models take turns, length
by length.

Prints tables in Markdown, appends a row for each measurement to benchmarks/results.jsonl and, for several lengths,
draws benchmarks/throughput.svg (--plot names another file). --report measures nothing and reports the newest rows of
those recipes and lengths. 120 seconds take Small-E about 9 GB.
"""

import argparse
import collections
import itertools
import json
import pathlib
import sys
import tempfile
import time

import numpy as np
import torch
from transformers import AutoTokenizer, TrainerCallback

ROOT = pathlib.Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))
from smalle.train.data.batching import Collator  # noqa: E402
from smalle.train.data.dataset import Sample  # noqa: E402
from smalle.train.model.initialization import build_model  # noqa: E402
from smalle.train.model.recipe import Recipe, TrainingOptions, find_recipe, make_dataclass, read_recipe  # noqa: E402
from smalle.train.model.trainer import SmallETrainer, check_objective  # noqa: E402

from benchmarks.plot import Panel, svg  # noqa: E402
from benchmarks.speakers import SENTENCE  # noqa: E402
from benchmarks.timing import RESULTS, markdown, record  # noqa: E402

RECIPES = ["smalle-64m", "decoder-only-64m"]
CHARACTERS = 16  # a second of speech
QUIET = {
    "save_strategy": "no",
    "eval_strategy": "no",
    "logging_strategy": "no",
    "metric_for_best_model": None,
    "disable_tqdm": True,
    "minutes": None,
    "dataloader_num_workers": 0,
}
COLUMNS = {
    "model": "model",
    "seconds": "sample (s)",
    "batch": "samples a batch",
    "step_s": "a step (s)",
    "tokens_per_s": "audio tokens/s",
    "audio_per_s": "audio (s/s)",
}


class Stopwatch(TrainerCallback):
    """Seconds of each step: wall-clock and processor time."""

    def __init__(self):
        self.steps = []

    def now(self):
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        return np.array([time.perf_counter(), time.process_time()])

    def on_step_begin(self, *args, **kwargs):
        self.begun = self.now()

    def on_step_end(self, *args, **kwargs):
        self.steps.append(self.now() - self.begun)

    def shortest(self):
        """(wall-clock, processor) seconds of the shortest step but the first."""
        return np.min(self.steps[1:], 0).tolist()


def sample(seconds, config, rng) -> Sample:
    """A text that takes so long to say, with evenly timed words, and random codes."""
    characters = round(CHARACTERS * seconds)
    text = (SENTENCE * (characters // len(SENTENCE) + 1))[:characters].strip()
    shape = round(seconds * config.frame_rate), config.num_codebooks
    edges = np.linspace(0, seconds, len(text.split()) + 1, dtype=np.float32)
    codes = torch.from_numpy(rng.integers(0, config.codebook_size, shape))
    return Sample(text, codes, np.stack((edges[:-1], edges[1:]), 1))


def trainer(recipe, seconds, batch, steps, arguments, folder):
    """A Trainer of a recipe that makes so many steps on one batch."""
    tokenizer = AutoTokenizer.from_pretrained(ROOT / "checkpoints" / "smalle-mini")
    torch.manual_seed(0)
    model = build_model(recipe, len(tokenizer))
    config = model.config
    rng = np.random.default_rng(round(1000 * seconds))
    training = {**recipe.training, **QUIET, "output_dir": folder, "max_steps": steps}
    training |= {"bf16": not arguments.fp32, "use_cpu": arguments.device == "cpu"}
    return SmallETrainer(
        model=model,
        args=make_dataclass(TrainingOptions, training, "training"),
        train_dataset=[sample(seconds, config, rng) for _ in range(batch)],
        sampler=list(itertools.repeat(range(batch), steps)),
        objective=check_objective(recipe.objective, config),
        processing_class=tokenizer,
        data_collator=Collator(tokenizer, config.num_codebooks, config.frame_rate),
    )


def measure(name, recipe, seconds, arguments):
    """One row."""
    batch, stopwatch = max(1, round(arguments.batch_seconds / seconds)), Stopwatch()
    with tempfile.TemporaryDirectory() as folder:
        run = trainer(recipe, seconds, batch, 1 + arguments.steps, arguments, folder)
        run.add_callback(stopwatch)
        run.train()
    config, (by_clock, by_processor) = run.model.config, stopwatch.shortest()
    alone = arguments.device == "cpu" and torch.get_num_threads() == 1  # its time is not that of other programs
    step, audio = by_processor if alone else by_clock, batch * seconds
    return {
        "threads": torch.get_num_threads(),
        **({} if arguments.device == "cpu" else {"machine": torch.cuda.get_device_name()}),
        "clock": "processor" if alone else "wall",
        "dtype": "float32" if arguments.fp32 else "bfloat16",
        "model": name,
        "parameters": run.model.num_parameters(),
        "seconds": seconds,
        "batch": batch,
        "text_tokens": len(run.processing_class(run.train_dataset[0].text).input_ids),
        "step_s": round(step, 4),
        "step_wall_s": round(by_clock, 4),
        "audio_per_s": round(audio / step, 3),
        "tokens_per_s": round(audio * config.frame_rate * config.num_codebooks / step, 1),
    }


def newest(name, seconds):
    """The last row of results.jsonl on that model and length."""
    wanted = {"benchmark": "throughput", "model": name, "seconds": seconds}
    rows = [row for row in map(json.loads, RESULTS.read_text().splitlines()) if wanted.items() <= row.items()]
    if not rows:
        raise SystemExit(f"{RESULTS} holds nothing on {name} at {seconds:g} s: measure it first, without --report")
    return rows[-1]


def growth(rows):
    """How the time of a model grows with the length of a sample.

    The exponent is that of a power of the length, fitted by least squares of the logarithms. The second figure is the
    largest deviation of the time for a second of audio from its mean.
    """
    length, cost = (np.array([row[name] for row in rows]) for name in ("seconds", "audio_per_s"))
    exponent = 1 - np.polyfit(np.log(length), np.log(cost), 1)[0]
    each, ends = 1 / cost, (length.argmax(), length.argmin())
    return {
        "exponent": f"{exponent:.2f}",
        "largest deviation from the mean": f"{abs(each / each.mean() - 1).max():.0%}",
        " : ".join(f"{length[end]:g} s" for end in ends): f"{each[ends[0]] / each[ends[1]]:.2f}",
    }


def report(by_model, arguments):
    """Prints what was measured: each row, ratios of throughputs, growth with length."""
    measured = ([row[name] for name in COLUMNS] for rows in by_model.values() for row in rows)
    print(markdown(COLUMNS.values(), measured), end="\n\n")
    (first, *_), *others = by_model.values()
    if others:
        lengths = [row["seconds"] for row in by_model[first["model"]]]
        speeds = {name: [row["audio_per_s"] for row in rows] for name, rows in by_model.items()}
        ratios = (
            [name, *(f"{own / other:.2f}" for own, other in zip(speeds[first["model"]], speeds[name]))]
            for name in list(by_model)[1:]
        )
        print(markdown([f"{first['model']}, times", *(f"{length:g} s" for length in lengths)], ratios), end="\n\n")
    if len(arguments.seconds) > 1:
        grown = {name: growth(rows) for name, rows in by_model.items()}
        header = ["growth with length", *next(iter(grown.values()))]
        print(markdown(header, ([name, *figures.values()] for name, figures in grown.items())), end="\n\n")
        points = {
            name: [(row["seconds"], row["seconds"] / row["audio_per_s"]) for row in rows]
            for name, rows in by_model.items()
        }
        ticks = {length: f"{length:g} s" for length in arguments.seconds}
        arguments.plot.write_text(svg(Panel("Training: a step on a sample", "s", ticks, points, log=True)))


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recipes", nargs="*", default=RECIPES)
    parser.add_argument("--seconds", nargs="+", type=float, default=[5, 10, 25, 60, 120], help="lengths of samples")
    parser.add_argument("--batch-seconds", type=float, default=60.0, help="audio in a batch, unless a sample has more")
    parser.add_argument("--steps", type=int, default=2, help="that are measured")
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--fp32", action="store_true", help="in place of bfloat16")
    parser.add_argument("--threads", type=int, default=1, help="of torch on a CPU")
    parser.add_argument("--plot", type=pathlib.Path, default=ROOT / "benchmarks" / "throughput.svg")
    parser.add_argument("--report", action="store_true", help="of the newest rows, without measuring")
    parser.add_argument("--note", help="a remark, kept in the row")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    recipes, by_model = (
        {find_recipe(name).stem: read_recipe(Recipe, name) for name in arguments.recipes},
        collections.defaultdict(list),
    )
    for seconds, name in itertools.product(arguments.seconds, recipes):
        if arguments.report:
            by_model[name].append(newest(name, seconds))
            continue
        row = record("throughput", arguments.note, **measure(name, recipes[name], seconds, arguments))
        by_model[name].append(row)
        print(*(f"{row[key]}" for key in COLUMNS), sep="  ", file=sys.stderr, flush=True)
    report(by_model, arguments)


if __name__ == "__main__":
    main()
