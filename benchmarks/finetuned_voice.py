"""What fine-tuning to a new speaker brings: similarity and word errors before and after.

  python benchmarks/finetuned_voice.py CORPUS BASE OUT --sentences FILE --scorer score.py [options]
      [KEY.SUBKEY=VALUE ...]

CORPUS is a folder of one speaker's recordings, as `smalle finetune` takes it. Some of its texts, the same in each run,
are held out of everything and then spoken, with as many lines of FILE, evenly spread. Each result is compared with
recordings of other held-out texts, ten joined (--joined), which vary less than one of three seconds. BASE speaks with
its default voice and with a recording as its prompt; then the tuned state and LoRA speak, with a tuned codec
(recipes finetune-*, with KEY.SUBKEY=VALUE changed in both). The held-out recordings are scored as they are
and through both codecs, as the upper bound.

OUT keeps the results of one set of options; the same command continues. Prints a table in Markdown and writes
OUT/table.md.
"""

import argparse
import json
import statistics
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))
from smalle.train.adapt import finetune  # noqa: E402
from smalle.train.adapt.clone import tune_codec  # noqa: E402
from smalle.train.codec.copy_synthesis import copy_synthesis  # noqa: E402
from smalle.train.data.audio import read_audio  # noqa: E402
from smalle.train.data.corpora import read_metadata  # noqa: E402
from smalle.train.evaluation.evaluate import Settings, add_scorer_options, evaluate, option  # noqa: E402
from smalle.train.evaluation.scoring import read_jsonl, score, write_manifest  # noqa: E402

from benchmarks.timing import markdown  # noqa: E402
from smalle import SmallEProcessor  # noqa: E402
from smalle.audio_smalle import write_wav  # noqa: E402
from smalle.codec_smalle import load_codec  # noqa: E402
from smalle.saving_smalle import atomic_folder, write_json, write_jsonl, write_text  # noqa: E402
from smalle.voices_smalle import save_voice  # noqa: E402

JOINED_RATE = 24000  # Hz
METHODS = {"state": "tuned state", "lora": "LoRA"}
COLUMNS = "", "ECAPA similarity", "WER, held-out sentences", "WER, other sentences", "WER, all", "DistillMOS"


def join_recordings(paths: list[str], path: Path) -> str:
    """Writes recordings one after the other into one file; returns its path."""
    parts = [read_audio(one, JOINED_RATE) for one in paths]
    write_wav(path, torch.from_numpy(np.concatenate(parts)), JOINED_RATE)
    return str(path)


def hold_out(corpus: str, sentences: Path, count: int, out: Path, joined: int = 1) -> int:
    """Divides a corpus into recordings to tune on and held-out ones.

    Writes OUT/recordings, the corpus to tune on; OUT/held-out/manifest.jsonl, a recording of each held-out text; and
    OUT/sentences.jsonl, the sentences to speak, each with a reference of `joined` recordings of other texts.

    Returns:
        The number of held-out texts, which are the first of the sentences.
    """
    rows = [{**row, "file_name": str(Path(row["path"]).resolve())} for row in read_metadata(corpus)]
    kept, held_out = finetune.split_rows(rows, count)
    takes = sorted({row["text"]: row for row in held_out}.values(), key=lambda row: row["text"])
    others = [line.strip() for line in sentences.read_text(encoding="utf-8").splitlines() if line.strip()]
    texts = [row["text"] for row in takes] + others[:: max(1, len(others) // count)][:count]
    if len(takes) < 2:
        raise ValueError(f"{corpus}: expected 10 different texts or more, of which two are held out and compared.")
    joined = max(1, min(joined, len(takes) - 1))
    for folder in ("held-out", "recordings"):
        (out / folder).mkdir(parents=True, exist_ok=True)
    ring = [take["file_name"] for take in takes] * (joined + 1)
    references = [
        ring[n + 1] if joined == 1 else join_recordings(ring[n + 1 : n + 1 + joined], out / "held-out" / f"{n:03}.wav")
        for n in range(len(takes))
    ] * len(texts)
    spoken = [{"text": text, "reference": reference} for text, reference in zip(texts, references)]
    write_manifest(out / "held-out", [{**row, "audio": take["file_name"]} for row, take in zip(spoken, takes)])
    write_jsonl(out / "recordings/metadata.jsonl", kept)
    write_jsonl(out / "sentences.jsonl", spoken)
    return len(takes)


def make_prompt(base: str, out: Path, seconds: float = 4.0) -> Path:
    """A voice of the base with the recording nearest to `seconds` as its prompt; returns its path."""
    path = out / "prompt.safetensors"
    if not path.is_file():
        row = finetune.nearest_row(read_metadata(out / "recordings"), seconds)
        save_voice(path, *SmallEProcessor.from_pretrained(base).reference_voice(row["path"], row["text"]))
    return path


def tune(method: str, base: str, out: Path, overrides: Sequence[str]) -> None:
    """Writes OUT/METHOD and the complete checkpoint OUT/METHOD-checkpoint, unless they exist."""
    if (out / f"{method}-checkpoint").is_dir():
        return
    codec = ["--codec", str(out / "codec")] if (out / "codec").is_dir() else []
    recipe, corpus = f"finetune-{method}", str(out / "recordings")
    with atomic_folder(out / f"{method}-checkpoint") as folder:
        options = ["--name", "voice", "--save-checkpoint", str(folder), *codec]
        finetune.main([recipe, corpus, base, str(out / method), *overrides, *options])


def score_folder(folder: Path, arguments: argparse.Namespace) -> list[dict]:
    """Rows of the scores of a folder with a manifest, which are kept in it."""
    path = folder / "scores.json"
    if not path.is_file():
        manifest = folder / "manifest.jsonl"
        write_json(path, score(manifest, arguments.scorer, arguments.scorer_python, arguments.threads))
    return json.loads(path.read_text(encoding="utf-8"))["rows"]


def score_copies(codec: torch.nn.Module, out: Path, arguments: argparse.Namespace) -> list[dict]:
    """Rows of the scores of the held-out recordings through a codec, which go to OUT."""
    if not (out / "manifest.jsonl").is_file():
        source = out.parent / "held-out" / "manifest.jsonl"
        copies = read_jsonl(copy_synthesis(codec, source, out))
        write_manifest(out, [{**row, "audio": copy["audio"]} for row, copy in zip(read_jsonl(source), copies)])
    return score_folder(out, arguments)


def score_speech(checkpoint: str | Path, voice: Path | None, arguments: argparse.Namespace) -> list[dict]:
    """Rows of the scores of OUT/sentences.jsonl as a checkpoint speaks it."""
    settings = Settings(
        str(checkpoint),
        arguments.out / "sentences.jsonl",
        voice=voice and str(voice),
        batch_size=arguments.batch_size,
        generate=dict(arguments.generate),
    )
    return score_folder(Path(evaluate(settings, arguments.out / "spoken")["folder"]), arguments)


def word_error_rate(rows: list[dict]) -> float:
    """Word error rate in percent over rows of scores."""
    return 100 * sum(row["errors"] for row in rows) / max(1, sum(row["words"] for row in rows))


def table_row(name: str, rows: list[dict], count: int) -> tuple[str, ...]:
    """A row of the table; the first `count` rows are the held-out sentences."""
    found = [[row[key] for row in rows if row.get(key) is not None] for key in ("similarity", "distillmos")]
    mean = [f"{statistics.mean(values):.2f}" if values else "–" for values in found]  # a scorer may not tell
    parts = [f"{word_error_rate(part):.1f} %" if part else "" for part in (rows[:count], rows[count:], rows)]
    return name, mean[0], *parts, mean[1]


def parse(argv: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("corpus")
    parser.add_argument("base")
    parser.add_argument("out", type=Path)
    parser.add_argument("overrides", nargs="*", metavar="KEY.SUBKEY=VALUE")
    parser.add_argument("--sentences", type=Path, required=True, help="text file, one sentence a line")
    parser.add_argument("--count", type=int, default=20, help="texts to hold out; and lines of --sentences to speak")
    parser.add_argument("--joined", type=int, default=10, help="recordings in each reference")
    parser.add_argument("--codec-minutes", type=float, default=4, help="to tune the codec; 0: not at all")
    parser.add_argument("--methods", nargs="*", default=list(METHODS), choices=METHODS)
    parser.add_argument("--generate", type=option, action="append", default=[], metavar="KEY=VALUE")
    parser.add_argument("--batch-size", type=int, default=20)
    add_scorer_options(parser, required=True, threads=2)
    arguments = parser.parse_intermixed_args(argv)
    arguments.out = arguments.out.resolve()
    return arguments


def main(argv: Sequence[str] | None = None) -> None:
    arguments = parse(argv)
    base, out = arguments.base, arguments.out
    torch.set_num_threads(arguments.threads)
    count = hold_out(arguments.corpus, arguments.sentences, arguments.count, out, arguments.joined)
    if arguments.codec_minutes:
        tune_codec(base, out, arguments.codec_minutes)
    for method in arguments.methods:
        tune(method, base, out, arguments.overrides)
    scores = {"recordings": score_folder(out / "held-out", arguments)}
    codec = SmallEProcessor.from_pretrained(base).codec
    scores["recordings through the codec"] = score_copies(codec, out / "copies", arguments)
    if arguments.codec_minutes:
        codec = load_codec(str(out / "codec"))
        scores["recordings through the tuned codec"] = score_copies(codec, out / "copies-tuned", arguments)
    scores["base, default voice"] = score_speech(base, None, arguments)
    scores["base, a recording as prompt"] = score_speech(base, make_prompt(base, out), arguments)
    for method in arguments.methods:
        scores[METHODS[method]] = score_speech(out / f"{method}-checkpoint", None, arguments)
    shown = markdown(COLUMNS, [table_row(name, rows, count) for name, rows in scores.items()])
    write_text(out / "table.md", shown + "\n")
    print(shown)


if __name__ == "__main__":
    main()
