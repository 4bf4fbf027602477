"""Trains variants of a model on the same data for the same steps, with seeds, and compares what they have learned.

usage: python benchmarks/compare.py benchmarks/compare.yaml [key.subkey=value ...] [--judge score.py | --asr NAME]

The YAML holds a recipe of smalle.train.model.trainer, what each variant changes in it, and the seeds. Every run gets a folder under
`out`: loss and perplexity of each codebook on left-out utterances, and what the text of another one costs (nothing,
where a model does not read). With a judge (see smalle.train.evaluation.evaluate) each run also speaks texts of left-out utterances, and
skips, repeats and word errors are counted from what is heard, for all alike. The same command goes on after a kill:
what is finished is not done again. Prints tables in Markdown, mean ± standard deviation over the seeds, and appends a
row for each run trained, and for each way it spoke, to benchmarks/results.jsonl.
"""

import argparse
import copy
import json
import math
import pathlib
import statistics
import sys

import numpy as np
import pyarrow.compute
import pyarrow.parquet
import torch
from transformers import AutoTokenizer

ROOT = pathlib.Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))
from smalle.train.data.dataset import read_table  # noqa: E402
from smalle.train.evaluation.evaluate import Settings, evaluate  # noqa: E402
from smalle.train.model.trainer import build_trainer, last_checkpoint, read_recipe  # noqa: E402

from benchmarks.measuring import markdown, record  # noqa: E402
from smalle import SmallEForTextToSpeech, SmallEProcessor  # noqa: E402
from smalle.codec_smalle import load_codec  # noqa: E402
from smalle.hub_smalle import write_json, write_text  # noqa: E402

BATCH = 25  # texts that are spoken at once
HEARD = {
    "skips": "skips of 100",
    "repeats": "repeats of 100",
    "silent": "silent of 100",
    "wer": "WER (%)",
    "cer": "CER (%)",
}


def merged(recipe, changes):
    """A recipe with some values changed, part by part."""
    recipe = copy.deepcopy(recipe)
    for part, values in changes.items():
        recipe.setdefault(part, {}).update(values)
    return recipe


def select(plan, part):
    """Path of the codes of a part ("train", "eval") that are compared on: those of `speakers`, written under `out`."""
    source, out = plan["recipe"]["data"][part], pathlib.Path(plan["out"])
    if not plan.get("speakers"):
        return source
    table = read_table(source)
    table = table.filter(pyarrow.compute.is_in(table["speaker"], pyarrow.array(plan["speakers"])))
    if not len(table):
        raise ValueError(f"speakers={plan['speakers']}: expected some of those in {source}.")
    out.mkdir(parents=True, exist_ok=True)
    pyarrow.parquet.write_table(table, out / f"{part}.parquet")
    return str(out / f"{part}.parquet")


def left_out_texts(path, count, seconds):
    """The first `count` texts of utterances that last between two `seconds`. ValueError where there are fewer."""
    table = read_table(path)
    rows = zip(table["text"].to_pylist(), table["duration"].to_pylist())
    texts = list(dict.fromkeys(text for text, duration in rows if seconds[0] <= duration <= seconds[1]))
    if len(texts) < count:
        raise ValueError(f"sentences.count={count}: {path} has {len(texts)} texts of {seconds} s; ask for fewer.")
    return texts[:count]


def with_another_text(collator):
    """A collator that gives each sample of a batch the text of the next one."""

    def collate(samples):
        texts = [text for text, *_ in samples]
        untimed = [np.full((len(text.split()), 2), np.nan, np.float32) for text in texts]
        codes = [codes for _, codes, _ in samples]
        return collator(list(zip(texts[1:] + texts[:1], codes, untimed[1:] + untimed[:1])))

    return collate


def train_run(recipe):
    """Trains, or goes on; then the loss of each codebook on what is left out, in nats, with what belongs to it."""
    folder = recipe["training"]["output_dir"]
    if (pathlib.Path(folder) / "model.safetensors").is_file():  # trained, not measured yet
        trainer = build_trainer({**recipe, "init": folder, "anew": []})
    else:
        trainer = build_trainer(recipe)
        trainer.train(resume_from_checkpoint=last_checkpoint(trainer))
        trainer.save_model()
    collator = trainer.data_collator
    collator.text_dropout = 0.0
    measured = trainer.evaluate()
    trainer.data_collator = with_another_text(collator)
    another = trainer.evaluate()["eval_loss_0"]
    losses = [measured[f"eval_loss_{q}"] for q in range(trainer.model.config.num_codebooks)]
    return {
        "parameters": trainer.model.num_parameters(),
        "steps": recipe["training"]["max_steps"],
        "losses": losses,
        "another_text": round(another - losses[0], 4),
        "map_loss": measured.get("eval_alignment"),
    }


def speak(plan, folder, way, judging):
    """What a judge hears of a trained run that speaks in one `way`: its summary, what it counts of 100 utterances."""
    checkpoint, sentences = folder / "model", pathlib.Path(plan["out"]) / "sentences.txt"
    if not checkpoint.is_dir():
        processor = SmallEProcessor(AutoTokenizer.from_pretrained(folder))
        processor._codec = load_codec(plan["codec"])
        processor.save_pretrained(checkpoint)
        processor.codec.save_pretrained(checkpoint / "codec")
        SmallEForTextToSpeech.from_pretrained(folder, dtype=torch.float32).save_pretrained(checkpoint)
    settings = Settings(
        str(checkpoint),
        sentences,
        seed=plan["recipe"]["training"]["seed"],
        batch_size=BATCH,
        device="cuda" if torch.cuda.is_available() else "cpu",
        generate=way,
    )
    summary = evaluate(settings, folder / "spoken", **judging)
    summary.pop("folder")
    counts = {name: 100 * summary[name] / summary["utterances"] for name, words in HEARD.items() if "of 100" in words}
    return {**summary, **counts}


def once(path, labels, make):
    """What lies in a JSON file; where it is missing `make` makes it, and a row with `labels` goes to the results."""
    if not path.is_file():
        made = make()
        write_json(path, made)
        record("compare", **labels, **made)
    return json.loads(path.read_text())


def claim(folder, recipe):
    """Makes the folder of a run; ValueError where it holds one of another recipe."""
    kept = folder / "recipe.json"
    if kept.is_file() and json.loads(kept.read_text()) != recipe:
        raise ValueError(f"{folder} holds a run of another recipe: delete it, or name another `out`.")
    folder.mkdir(parents=True, exist_ok=True)
    write_json(kept, recipe)


def run(plan, name, seed, paths, judging):
    """One variant with one seed: {"measured": of train_run, "spoken": [of speak, for each way]}."""
    folder = pathlib.Path(plan["out"]) / f"{name}-{seed}".replace(" ", "-")
    settings = {"data": paths, "training": {"seed": seed, "output_dir": str(folder)}}
    plan = {**plan, "recipe": merged(merged(plan["recipe"], plan["variants"][name]), settings)}
    claim(folder, plan["recipe"])
    labels = {"plan": pathlib.Path(plan["out"]).name, "variant": name, "seed": seed}
    measured = once(folder / "measured.json", labels, lambda: train_run(plan["recipe"]))

    def heard(way):
        path = folder / f"{title(way).replace(' ', '_')}.json"
        return once(path, {**labels, "way": way}, lambda: speak(plan, folder, way, judging))

    return {"measured": measured, "spoken": [heard(way) for way in plan["ways"]] if judging else []}


def title(way):
    """A way of speaking in words."""
    return " ".join(f"{name} {value}" for name, value in sorted(way.items())) or "default"


def cell(values, digits):
    """Mean ± standard deviation; the mean alone of a single value."""
    spread = f" ± {statistics.stdev(values):.{digits}f}" if len(values) > 1 else ""
    return f"{statistics.mean(values):.{digits}f}{spread}"


def perplexity_table(runs):
    """Table of {variant: [of train_run, for each seed]}. The perplexity of all codebooks is that of their mean loss."""
    codebooks = range(len(next(iter(runs.values()))[0]["losses"]))
    header = [
        "variant",
        "parameters (M)",
        "seeds",
        "perplexity",
        *(f"of codebook {q + 1}" for q in codebooks),
        "another text costs (nats)",
    ]
    rows = []
    for name, seeds in runs.items():
        whole = [math.exp(statistics.mean(one["losses"])) for one in seeds]
        each = [cell([math.exp(one["losses"][q]) for one in seeds], 1) for q in codebooks]
        text = cell([one["another_text"] for one in seeds], 3)
        rows.append([name, f"{seeds[0]['parameters'] / 1e6:.2f}", str(len(seeds)), cell(whole, 1), *each, text])
    return markdown(header, rows)


def speech_table(runs):
    """Table of {variant: [of speak, for each seed]}."""
    rows = [[name, *(cell([one[key] for one in seeds], 1) for key in HEARD)] for name, seeds in runs.items()]
    return markdown(["variant", *HEARD.values()], rows)


def report(plan, results):
    """The tables of {variant: [of run, for each seed]}."""
    tables = [perplexity_table({name: [one["measured"] for one in runs] for name, runs in results.items()})]
    for n, way in enumerate(plan["ways"] if all(one["spoken"] for runs in results.values() for one in runs) else []):
        heard = speech_table({name: [one["spoken"][n] for one in runs] for name, runs in results.items()})
        tables.append(f"{title(way)}\n\n{heard}")
    return "\n\n".join(tables)


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("plan", help="the YAML")
    parser.add_argument("overrides", nargs="*", metavar="key.subkey=value")
    parser.add_argument(
        "--judge", type=pathlib.Path, help="program that scores a manifest, as for smalle.train.evaluation.evaluate"
    )
    parser.add_argument("--judge-python", default=sys.executable, help="the Python that runs the judge")
    parser.add_argument("--asr", help="judge by this speech recognizer of transformers: folder or Hub name")
    arguments = parser.parse_intermixed_args(argv)
    plan = read_recipe(arguments.plan, arguments.overrides)
    judging = {"judge": arguments.judge, "judge_python": arguments.judge_python, "asr": arguments.asr}
    judging = judging if arguments.judge or arguments.asr else {}
    pathlib.Path(plan["out"]).mkdir(parents=True, exist_ok=True)
    paths = {part: select(plan, part) for part in ("train", "eval")}
    if judging:
        lines = left_out_texts(paths["eval"], **plan["sentences"])
        write_text(pathlib.Path(plan["out"]) / "sentences.txt", "".join(f"{line}\n" for line in lines))
    order = [(seed, name) for seed in plan["seeds"] for name in plan["variants"]]
    results = {name: [] for name in plan["variants"]}
    for number, (seed, name) in enumerate(order, 1):
        print(f"run {number} of {len(order)}: {name}, seed {seed}", flush=True)
        results[name].append(run(plan, name, seed, paths, judging))
    print(f"\n{report(plan, results)}")


if __name__ == "__main__":
    main()
