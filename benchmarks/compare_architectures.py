"""Trains variants of a model on the same data for the same number of steps, with several seeds, and compares them.

  python benchmarks/compare_architectures.py benchmarks/compare_architectures.yaml [KEY.SUBKEY=VALUE ...]
      [--scorer score.py | --asr NAME]

The YAML file holds a recipe of `smalle train`, what each variant changes in it, and the seeds. Each run gets a folder
under `out`. Measured are loss and perplexity of each codebook on held-out utterances, and the increase of the loss when
each utterance gets the text of another one: nothing in a model that does not read. With a scorer (see `smalle
evaluate`) each run also speaks the texts of held-out utterances, and skips, repeats and word errors are counted.

An interrupted command continues: finished runs are not repeated. Prints tables in Markdown, mean ± standard deviation
over the seeds, and appends a row for each run and each way of generation to benchmarks/results.jsonl.
"""

import argparse
import copy
import json
import math
import statistics
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.compute
import pyarrow.parquet
import torch
from transformers import AutoTokenizer

sys.path.insert(0, str(Path(__file__).parents[1]))
from smalle.train.data.batching import Collator  # noqa: E402
from smalle.train.data.dataset import Sample, read_table  # noqa: E402
from smalle.train.evaluation.evaluate import Settings, add_scorer_options, evaluate  # noqa: E402
from smalle.train.model.recipe import Recipe, make_dataclass, read_recipe  # noqa: E402
from smalle.train.model.trainer import build_trainer, train  # noqa: E402

from benchmarks.timing import markdown, record  # noqa: E402
from smalle import SmallEForTextToSpeech, SmallEProcessor  # noqa: E402
from smalle.codec_smalle import load_codec  # noqa: E402
from smalle.saving_smalle import write_json, write_text  # noqa: E402

BATCH_SIZE = 25  # texts that are spoken at once
SCORES = {
    "skips": "skips of 100",
    "repeats": "repeats of 100",
    "silent": "silent of 100",
    "wer": "WER (%)",
    "cer": "CER (%)",
}


@dataclass
class Plan:
    """The YAML file of a comparison.

    Attributes:
        out: Folder of the runs.
        seeds: Each variant is trained with each of them.
        variants: What each variant changes in the recipe, by its name.
        recipe: The recipe, as a mapping; its output_dir and seed are set here.
        codec: Codec of the data.
        sentences: Number of held-out texts to speak, `count`, and the shortest and longest of their recordings,
            `seconds`.
        generate: Options of generate(); a table for each.
        speakers: Speakers to train and to evaluate on; all without it.
    """

    out: str
    seeds: list[int]
    variants: dict[str, dict[str, dict[str, Any]]]
    recipe: dict[str, Any]
    codec: str
    sentences: dict[str, Any]
    generate: list[dict[str, Any]]
    speakers: list[str] | None = None


def merge(recipe: dict, changes: dict[str, dict[str, Any]]) -> dict:
    """A recipe with some values changed, part by part."""
    recipe = copy.deepcopy(recipe)
    for part, values in changes.items():
        recipe.setdefault(part, {}).update(values)
    return recipe


def select(plan: Plan, part: str) -> str:
    """The codes of a part ("train", "eval"); those of `speakers` are written to the folder `out`."""
    source, path = plan.recipe["data"][part], Path(plan.out, f"{part}.parquet")
    if not plan.speakers:
        return source
    table = read_table(source)
    table = table.filter(pyarrow.compute.is_in(table["speaker"], pyarrow.array(plan.speakers)))
    if not len(table):
        raise ValueError(f"speakers={plan.speakers}: expected some of those in {source}.")
    path.parent.mkdir(parents=True, exist_ok=True)
    pyarrow.parquet.write_table(table, path)
    return str(path)


def held_out_texts(path: str | Path, count: int, seconds: Sequence[float]) -> list[str]:
    """The first `count` texts of utterances that last between two `seconds`. Raises ValueError if there are fewer."""
    table = read_table(path)
    rows = zip(table["text"].to_pylist(), table["duration"].to_pylist())
    texts = list(dict.fromkeys(text for text, duration in rows if seconds[0] <= duration <= seconds[1]))
    if len(texts) < count:
        raise ValueError(f"sentences.count={count}: {path} has {len(texts)} texts of {seconds} s; ask for fewer.")
    return texts[:count]


def with_next_text(collator: Collator | Callable) -> Callable:
    """A collator that gives each sample of a batch the text of the next one."""

    def collate(samples: list[Sample]):
        texts = [sample.text for sample in samples]
        return collator(
            [
                sample._replace(text=text, words=np.full((len(text.split()), 2), np.nan, np.float32))
                for sample, text in zip(samples, texts[1:] + texts[:1])
            ]
        )

    return collate


def train_run(recipe: dict) -> dict:
    """Trains, or continues, and measures the losses on the held-out data, in nats."""
    folder = Path(recipe["training"]["output_dir"])
    trained = (folder / "model.safetensors").is_file()
    trainer = build_trainer(make_dataclass(Recipe, {**recipe, "init": str(folder)} if trained else recipe))
    if not trained:
        train(trainer, resume=True)
    collator = trainer.data_collator
    collator.text_dropout = 0.0
    measured = trainer.evaluate()
    trainer.data_collator = with_next_text(collator)
    another = trainer.evaluate()["eval_loss_0"]
    losses = [measured[f"eval_loss_{q}"] for q in range(trainer.model.config.num_codebooks)]
    return {
        "parameters": trainer.model.num_parameters(),
        "steps": recipe["training"]["max_steps"],
        "losses": losses,
        "another_text": round(another - losses[0], 4),
        "alignment_loss": measured.get("eval_alignment"),
    }


def speak(plan: Plan, folder: Path, seed: int, options: dict, scoring: dict) -> dict:
    """The scores of a trained run that speaks with some options of generate(); counts are of 100 utterances."""
    checkpoint = folder / "model"
    if not checkpoint.is_dir():
        processor = SmallEProcessor(AutoTokenizer.from_pretrained(folder))
        processor.codec = load_codec(plan.codec)
        processor.save_pretrained(checkpoint)
        SmallEForTextToSpeech.from_pretrained(folder, dtype=torch.float32).save_pretrained(checkpoint)
    settings = Settings(
        str(checkpoint),
        Path(plan.out, "sentences.txt"),
        seed=seed,
        batch_size=BATCH_SIZE,
        device="cuda" if torch.cuda.is_available() else "cpu",
        generate=options,
    )
    summary = evaluate(settings, folder / "spoken", **scoring)
    summary.pop("folder")
    counts = {name: 100 * summary[name] / summary["utterances"] for name, words in SCORES.items() if "of 100" in words}
    return {**summary, **counts}


def once(path: Path, labels: dict, make: Callable[[], dict]) -> dict:
    """The contents of a JSON file. If it is missing, `make` makes them, and a row with `labels` goes to the results."""
    if not path.is_file():
        made = make()
        write_json(path, made)
        record("compare", **labels, **made)
    return json.loads(path.read_text(encoding="utf-8"))


def open_folder(folder: Path, recipe: dict) -> None:
    """Makes the folder of a run. Raises ValueError if it holds a run of another recipe."""
    path = folder / "recipe.json"
    if path.is_file() and json.loads(path.read_text(encoding="utf-8")) != recipe:
        raise ValueError(f"{folder} holds a run of another recipe: delete it, or name another `out`.")
    folder.mkdir(parents=True, exist_ok=True)
    write_json(path, recipe)


def run(plan: Plan, name: str, seed: int, paths: dict[str, str], scoring: dict) -> dict:
    """One variant with one seed: {"measured": of train_run, "spoken": [of speak, for each of plan.generate]}."""
    folder = Path(plan.out, f"{name}-{seed}".replace(" ", "-"))
    settings = {"data": paths, "training": {"seed": seed, "output_dir": str(folder)}}
    recipe = merge(merge(plan.recipe, plan.variants[name]), settings)
    open_folder(folder, recipe)
    labels = {"plan": Path(plan.out).name, "variant": name, "seed": seed}
    measured = once(folder / "measured.json", labels, lambda: train_run(recipe))
    spoken = [
        once(
            folder / f"{title(options).replace(' ', '_')}.json",
            {**labels, "generate": options},
            lambda options=options: speak(plan, folder, seed, options, scoring),
        )
        for options in (plan.generate if scoring else [])
    ]
    return {"measured": measured, "spoken": spoken}


def title(options: dict) -> str:
    """Options of generate() in words."""
    return " ".join(f"{name} {value}" for name, value in sorted(options.items())) or "default"


def cell(values: Sequence[float], digits: int) -> str:
    """Mean ± standard deviation; of a single value the value."""
    spread = f" ± {statistics.stdev(values):.{digits}f}" if len(values) > 1 else ""
    return f"{statistics.mean(values):.{digits}f}{spread}"


def perplexity_table(runs: dict[str, list[dict]]) -> str:
    """Table of {variant: [of train_run, for each seed]}. The perplexity of all codebooks is that of their mean loss."""
    codebooks = range(len(next(iter(runs.values()))[0]["losses"]))
    numbers = (f"of codebook {q + 1}" for q in codebooks)
    header = ["variant", "parameters (M)", "seeds", "perplexity", *numbers, "increase with another text (nats)"]
    rows = []
    for name, seeds in runs.items():
        whole = [math.exp(statistics.mean(one["losses"])) for one in seeds]
        each = [cell([math.exp(one["losses"][q]) for one in seeds], 1) for q in codebooks]
        text = cell([one["another_text"] for one in seeds], 3)
        rows.append([name, f"{seeds[0]['parameters'] / 1e6:.2f}", len(seeds), cell(whole, 1), *each, text])
    return markdown(header, rows)


def speech_table(runs: dict[str, list[dict]]) -> str:
    """Table of {variant: [of speak, for each seed]}."""
    rows = [[name, *(cell([one[key] for one in seeds], 1) for key in SCORES)] for name, seeds in runs.items()]
    return markdown(["variant", *SCORES.values()], rows)


def report(plan: Plan, results: dict[str, list[dict]]) -> str:
    """The tables of {variant: [of run, for each seed]}."""
    tables = [perplexity_table({name: [one["measured"] for one in runs] for name, runs in results.items()})]
    complete = all(one["spoken"] for runs in results.values() for one in runs)
    for n, options in enumerate(plan.generate if complete else []):
        scores = speech_table({name: [one["spoken"][n] for one in runs] for name, runs in results.items()})
        tables.append(f"{title(options)}\n\n{scores}")
    return "\n\n".join(tables)


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("plan", help="the YAML file")
    parser.add_argument("overrides", nargs="*", metavar="KEY.SUBKEY=VALUE")
    add_scorer_options(parser, threads=1)
    arguments = parser.parse_intermixed_args(argv)
    plan = read_recipe(Plan, arguments.plan, arguments.overrides)
    scoring = {name: getattr(arguments, name) for name in ("scorer", "scorer_python", "asr", "threads")}
    scoring = scoring if arguments.scorer or arguments.asr else {}
    Path(plan.out).mkdir(parents=True, exist_ok=True)
    paths = {part: select(plan, part) for part in ("train", "eval")}
    if scoring:
        lines = held_out_texts(paths["eval"], **plan.sentences)
        write_text(Path(plan.out, "sentences.txt"), "".join(f"{line}\n" for line in lines))
    order = [(seed, name) for seed in plan.seeds for name in plan.variants]
    results = {name: [] for name in plan.variants}
    for number, (seed, name) in enumerate(order, 1):
        print(f"run {number} of {len(order)}: {name}, seed {seed}", flush=True)
        results[name].append(run(plan, name, seed, paths, scoring))
    print(f"\n{report(plan, results)}")


if __name__ == "__main__":
    main()
