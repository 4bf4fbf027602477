"""Voices from one recording each: similarity and word errors by speaker embedding, and after a minute or two of tuning.

  python benchmarks/one_recording.py BASE OUT --sentences FILE --corpus FOLDER ... --scorer score.py [options] \
      [KEY.SUBKEY=VALUE ...]

Speakers, recordings and sentences are those of `quality.py --only cloning`: speakers held out of all training, the
recording nearest to 6 s, five sentences each, compared with the longest of their other recordings. BASE takes the
recording as speaker embedding; then codec and model are tuned to it (`smalle clone`, with KEY.SUBKEY=VALUE changed).

OUT keeps the results of one set of options; the same command continues. Prints a table in Markdown, writes
OUT/table.md, and appends two rows to benchmarks/results.jsonl.
"""

import argparse
import json
import statistics
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parents[1]))
from smalle.train.adapt.clone import clone  # noqa: E402
from smalle.train.evaluation.evaluate import Settings, add_scorer_options, evaluate, option  # noqa: E402
from smalle.train.evaluation.scoring import read_jsonl, write_manifest  # noqa: E402

from benchmarks.finetuned_voice import score_folder, word_error_rate  # noqa: E402
from benchmarks.quality import SENTENCES_EACH, cloning_rows, find_speakers, read_lines  # noqa: E402
from benchmarks.timing import markdown, record  # noqa: E402
from smalle import SmallEProcessor  # noqa: E402
from smalle.saving_smalle import write_json, write_jsonl, write_text  # noqa: E402
from smalle.voices_smalle import save_voice  # noqa: E402

COLUMNS = "voice", "utterances", "ECAPA similarity", "WER", "skips", "repeats", "DistillMOS"


def tune(name: str, prompt: dict, arguments: argparse.Namespace) -> tuple[Path, float]:
    """The checkpoint that is tuned to a recording, made if it does not exist, and the seconds that this took."""
    out = arguments.out / name
    if not (out / "checkpoint").is_dir():
        started = time.time()
        path, text, overrides = Path(prompt["path"]).resolve(), prompt["text"], arguments.overrides
        clone(path, text, arguments.base, out / "checkpoint", name, arguments.codec_minutes, overrides)
        write_json(out / "seconds.json", time.time() - started)
    return out / "checkpoint", json.loads((out / "seconds.json").read_text(encoding="utf-8"))


def embed(name: str, prompt: dict, arguments: argparse.Namespace) -> Path:
    """A voice file of the recording without its transcript, for BASE."""
    path = arguments.out / name / "voice.safetensors"
    if not path.is_file():
        save_voice(path, *SmallEProcessor.from_pretrained(arguments.base).reference_voice(prompt["path"], None))
    return path


def speak(checkpoint: str | Path, voice: Path | None, path: Path, arguments: argparse.Namespace) -> list[dict]:
    """Rows of the manifest of the sentences in `path` as a checkpoint speaks them."""
    settings = Settings(
        str(checkpoint),
        path,
        voice=voice and str(voice),
        seed=arguments.seed,
        batch_size=SENTENCES_EACH,
        generate=dict(arguments.generate),
    )
    folder = Path(evaluate(settings, path.parent / "spoken")["folder"])
    rows = read_jsonl(folder / "manifest.jsonl")
    return [{**row, "audio": str((folder / row["audio"]).resolve())} for row in rows]


def score_rows(rows: list[dict], folder: Path, arguments: argparse.Namespace) -> dict:
    """The scores of recordings: means and counts. They are kept in a folder."""
    folder.mkdir(exist_ok=True)
    write_manifest(folder, rows)
    rows = score_folder(folder, arguments)
    known = {key: [row[key] for row in rows if row.get(key) is not None] for key in ("similarity", "distillmos")}
    return {
        "utterances": len(rows),
        **{key: round(statistics.mean(values), 3) for key, values in known.items()},  # silence has none
        "wer": round(word_error_rate(rows), 2),
        "skips": sum(bool(row["skip"]) for row in rows),
        "repeats": sum(bool(row["repeat"]) for row in rows),
    }


def parse(argv: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("base")
    parser.add_argument("out", type=Path)
    parser.add_argument("overrides", nargs="*", metavar="KEY.SUBKEY=VALUE")
    parser.add_argument("--sentences", type=Path, required=True, help="text file, one sentence a line")
    parser.add_argument("--corpus", type=Path, nargs="+", required=True, help="folders with the held-out speakers")
    parser.add_argument("--codec-minutes", type=float, default=1.0, help="to tune the codec; 0: not at all")
    parser.add_argument("--generate", type=option, action="append", default=[], metavar="KEY=VALUE")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--note", help="a remark, kept in the rows")
    add_scorer_options(parser, required=True, threads=1)
    return parser.parse_intermixed_args(argv)


def main(argv: Sequence[str] | None = None) -> None:
    arguments = parse(argv)
    torch.set_num_threads(arguments.threads)
    arguments.out = arguments.out.resolve()
    speakers, spoken, seconds = find_speakers(arguments.corpus), {"speaker embedding": [], "tuned": []}, []
    for name, speaker in speakers.items():
        rows = cloning_rows({name: speaker}, read_lines(arguments.sentences), SENTENCES_EACH)
        path = arguments.out / name / "sentences.jsonl"
        path.parent.mkdir(parents=True, exist_ok=True)
        write_jsonl(path, [{"text": row["text"], "reference": row["reference"]} for row in rows])
        checkpoint, took = tune(name, speaker[0], arguments)
        seconds.append(took)
        spoken["speaker embedding"] += speak(arguments.base, embed(name, speaker[0], arguments), path, arguments)
        spoken["tuned"] += speak(checkpoint, None, path, arguments)
    table = []
    for voice, rows in spoken.items():
        scores = score_rows(rows, arguments.out / f"scores-{voice}".replace(" ", "-"), arguments)
        similarity, wer, mos = f"{scores['similarity']:.3f}", f"{scores['wer']:.1f} %", f"{scores['distillmos']:.2f}"
        table.append((voice, scores["utterances"], similarity, wer, scores["skips"], scores["repeats"], mos))
        record(
            "one recording",
            arguments.note,
            voice=voice,
            speakers=len(speakers),
            seed=arguments.seed,
            overrides=arguments.overrides,
            codec_minutes=arguments.codec_minutes,
            generate=dict(arguments.generate),
            tuning_seconds=round(statistics.mean(seconds), 1),
            **scores,
        )
    shown = markdown(COLUMNS, table)
    write_text(arguments.out / "table.md", shown + "\n")
    print(shown)


if __name__ == "__main__":
    main()
