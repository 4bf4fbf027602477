"""Voices of strangers from one recording each: likeness and word errors as they are heard, and after a minute or two of
tuning.

usage: python benchmarks/one_recording.py BASE OUT --sentences FILE --corpus FOLDER ... --judge score.py [options] \
           [key.subkey=value ...]

The strangers, their recordings and sentences are those of `quality.py --only cloning`: speakers that are kept out of
all training, the recording nearest to 6 s, five sentences each, compared with the longest of their others. BASE hears
the recording; then codec and model are tuned to it (smalle.train.adapt.clone, with what `key.subkey=value` changes).

OUT keeps everything, of one set of options; the same command again does what is missing. Prints a table in Markdown,
writes OUT/table.md, and appends a row to benchmarks/results.jsonl.
"""

import argparse
import json
import pathlib
import statistics
import sys
import time

import torch

sys.path.insert(0, str(pathlib.Path(__file__).parents[1]))
from smalle.train.adapt.clone import run  # noqa: E402
from smalle.train.evaluation.evaluate import Settings, evaluate, judge_recordings, option, write_rows  # noqa: E402

from benchmarks.measuring import markdown, record  # noqa: E402
from benchmarks.new_voice import word_errors  # noqa: E402
from benchmarks.quality import EACH, cloning_rows, find_strangers, lines  # noqa: E402
from smalle import SmallEProcessor  # noqa: E402
from smalle.hub_smalle import write_json, write_jsonl, write_text  # noqa: E402
from smalle.voices_smalle import save_voice  # noqa: E402

COLUMNS = "", "utterances", "ECAPA to the speaker", "WER", "skips", "repeats", "DistillMOS"


def tuned(name, prompt, arguments):
    """Folder of the checkpoint that was tuned to a recording, made now if it is not there, and seconds that it took."""
    out = arguments.out / name
    if not (out / "whole").is_dir():
        begun = time.time()
        run(
            "smalle.train.adapt.clone",
            pathlib.Path(prompt["path"]).resolve(),
            prompt["text"],
            arguments.base,
            out / "whole",
            *arguments.overrides,
            "--name",
            name,
            "--codec-minutes",
            arguments.codec_minutes,
        )
        write_json(out / "seconds.json", time.time() - begun)
    return out / "whole", json.loads((out / "seconds.json").read_text(encoding="utf-8"))


def heard(name, prompt, arguments):
    """Path of a voice of the recording alone, for BASE."""
    path = arguments.out / name / "heard.safetensors"
    if not path.is_file():
        path.parent.mkdir(parents=True, exist_ok=True)
        save_voice(path, *SmallEProcessor.from_pretrained(arguments.base).encode_voice(prompt["path"], None))
    return path


def spoken(checkpoint, voice, path, arguments):
    """Rows of a manifest of what a checkpoint says."""
    settings = Settings(
        str(checkpoint),
        path,
        voice=voice and str(voice),
        seed=arguments.seed,
        batch_size=EACH,
        generate=dict(arguments.generate),
    )
    folder = pathlib.Path(evaluate(settings, path.parent / "spoken")["folder"])
    rows = map(json.loads, (folder / "manifest.jsonl").read_text(encoding="utf-8").splitlines())
    return [{**row, "audio": str((folder / row["audio"]).resolve())} for row in rows]


def judged(rows, folder, arguments):
    """Rows of the judge's report of a manifest that is kept in a folder."""
    if not (folder / "judged.json").is_file():
        folder.mkdir(exist_ok=True)
        write_rows(folder, rows)
        write_json(
            folder / "judged.json",
            judge_recordings(arguments.judge, arguments.judge_python, folder / "manifest.jsonl", arguments.threads),
        )
    return json.loads((folder / "judged.json").read_text(encoding="utf-8"))["rows"]


def parse():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("base")
    parser.add_argument("out", type=pathlib.Path)
    parser.add_argument("overrides", nargs="*")
    parser.add_argument("--sentences", type=pathlib.Path, required=True, help="text file, one a line")
    parser.add_argument("--corpus", type=pathlib.Path, nargs="+", required=True, help="folders with the strangers")
    parser.add_argument("--judge", type=pathlib.Path, required=True, help="program that scores a manifest")
    parser.add_argument("--judge-python", default=sys.executable)
    parser.add_argument("--codec-minutes", type=float, default=1.0, help="to tune the codec; 0: not at all")
    parser.add_argument("--generate", type=option, action="append", default=[], metavar="KEY=VALUE")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--note", help="what else is to be known, kept in the row")
    return parser.parse_intermixed_args()


def main():
    arguments = parse()
    torch.set_num_threads(arguments.threads)
    arguments.out, arguments.base = arguments.out.resolve(), str(pathlib.Path(arguments.base).resolve())
    found, ways, seconds = find_strangers(arguments.corpus), {"heard": [], "tuned": []}, []
    for name, stranger in found.items():
        rows = cloning_rows({name: stranger}, lines(arguments.sentences), EACH)
        path = arguments.out / name / "sentences.jsonl"
        path.parent.mkdir(parents=True, exist_ok=True)
        write_jsonl(path, [{"text": row["text"], "reference": row["reference"]} for row in rows])
        whole, took = tuned(name, stranger[0], arguments)
        seconds.append(took)
        ways["heard"] += spoken(arguments.base, heard(name, stranger[0], arguments), path, arguments)
        ways["tuned"] += spoken(whole, None, path, arguments)
    table = []
    for way, rows in ways.items():
        rows = judged(rows, arguments.out / f"judged-{way}", arguments)
        known = {key: [row[key] for row in rows if row.get(key) is not None] for key in ("similarity", "distillmos")}
        mean = {key: statistics.mean(values) for key, values in known.items()}  # nothing is said of silence
        counts = [sum(map(bool, (row[key] for row in rows))) for key in ("skip", "repeat")]
        table.append(
            (
                way,
                len(rows),
                f"{mean['similarity']:.3f}",
                f"{word_errors(rows):.1f} %",
                *counts,
                f"{mean['distillmos']:.2f}",
            )
        )
        record(
            "one recording",
            arguments.note,
            way=way,
            speakers=len(found),
            seed=arguments.seed,
            overrides=arguments.overrides,
            codec_minutes=arguments.codec_minutes,
            generate=dict(arguments.generate),
            tuning_seconds=round(statistics.mean(seconds), 1),
            similarity=round(mean["similarity"], 3),
            wer=round(word_errors(rows), 2),
            skips=counts[0],
            repeats=counts[1],
            distillmos=round(mean["distillmos"], 3),
        )
    shown = markdown(COLUMNS, table)
    write_text(arguments.out / "table.md", shown + "\n")
    print(shown)


if __name__ == "__main__":
    main()
