"""Synthesizes the lines of a text file, or the rows of a .jsonl file, with a checkpoint, and scores the result.

  smalle evaluate CHECKPOINT SENTENCES.txt OUT [--scorer score.py | --asr NAME]
  smalle evaluate CHECKPOINT PROMPTS.jsonl OUT                     # voices of recordings
  smalle evaluate CHECKPOINT SENTENCES.txt OUT --runtime native    # in 8 bits, on a CPU
  smalle evaluate CHECKPOINT PARAGRAPHS.txt OUT --stream           # long texts, sentence by sentence

A row of a .jsonl file is {"text", "audio"?, "audio_text"?, "reference"?}. `audio` is a recording of the voice to use,
and `audio_text` its transcript. `reference` is a recording to compare the result with. Paths are relative to the file.

The results go to a folder under OUT whose name contains every option that changes a recording. It holds 0001.wav,
0001.png (its alignment), ..., manifest.jsonl, report.json and index.html. Existing recordings are kept, so an
interrupted run continues, and a finished one can be scored later.

Besides the scores, "cut" is the number of utterances that were stopped at max_new_tokens, and "run_on" the number of
those with two or more recognized words after the end of the text.
"""

import argparse
import hashlib
import json
import subprocess
import sys
from collections.abc import Iterable, Sequence
from dataclasses import asdict, replace
from pathlib import Path

import torch

from smalle.checkpoint import find_checkpoint
from smalle.cli.command import command_parser, run_command
from smalle.runtime_smalle import RUNTIMES
from smalle.saving_smalle import write_json, write_text

from .report import results_page
from .scoring import count_endings, read_jsonl, recognize, score, write_manifest
from .synthesis import Settings, Utterance, make_recordings, read_cut, wave_path


def read_text(path: Path) -> str:
    """The text of a UTF-8 file. Raises ValueError if it cannot be read."""
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} cannot be read as text: {error}") from error


def read_utterances(path: Path) -> list[Utterance]:
    """The utterances of a text file, one per line, or of the rows {"text", "audio"?, "audio_text"?, "reference"?} of a
    .jsonl file, whose paths are relative to it.

    Raises ValueError with the line number for other rows and missing files.
    """
    utterances = []
    for number, line in enumerate(read_text(path).splitlines(), 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line) if path.suffix == ".jsonl" else {"text": line.strip()}
            files = {key: path.parent.resolve() / row[key] for key in ("audio", "reference") if row.get(key)}
            utterance = Utterance(row["text"], files.get("audio"), row.get("audio_text"), files.get("reference"))
        except (json.JSONDecodeError, KeyError, TypeError, AttributeError) as error:
            message = f'{path}, line {number}: expected a JSON object with "text"; got {line[:60]!r}'
            raise ValueError(message) from error
        for file in files.values():
            if not file.is_file():
                raise ValueError(f"{path}, line {number}: {file} does not exist")
        utterances.append(utterance)
    if not utterances:
        raise ValueError(f"{path} contains no text: give a file with one sentence per line")
    return utterances


def weights_digest(checkpoint: str) -> str | None:
    """SHA-256 of the safetensors files of a local checkpoint; None for one on the Hub."""
    return digest(sorted(Path(checkpoint).rglob("*.safetensors")) if Path(checkpoint).is_dir() else [])


def digest(files: Iterable[str | Path]) -> str | None:
    """SHA-256 of the contents of files; None for no files."""
    sums, files = hashlib.sha256(), list(files)
    for file in files:
        with Path(file).open("rb") as stream:
            while block := stream.read(1 << 20):
                sums.update(block)
    return sums.hexdigest() if files else None


def open_folder(out: Path, settings: Settings, utterances: list[Utterance]) -> Path:
    """The folder of these settings; creates it if it is missing.

    Raises ValueError if it holds recordings of other weights, texts or voices.
    """
    folder, prompts = out / settings.name, [u.audio for u in utterances if u.audio]
    voice = [settings.voice] if settings.voice and Path(settings.voice).is_file() else []
    made_from = {
        "weights": weights_digest(settings.checkpoint),
        "texts": [u.text for u in utterances],
        "prompts": list(map(str, prompts)),
        "prompt_texts": [u.audio_text for u in utterances if u.audio],
        "voices": digest([*voice, *sorted(set(prompts))]),
    }
    record = folder / "made_from.json"
    if record.is_file() and json.loads(record.read_text(encoding="utf-8")) != made_from:
        raise ValueError(f"{folder} holds recordings of other weights, texts or voices: delete it, or name another OUT")
    folder.mkdir(parents=True, exist_ok=True)
    write_json(record, made_from)
    return folder


def manifest_rows(folder: Path, utterances: list[Utterance]) -> list[dict]:
    """The rows of the manifest of a folder of recordings."""
    rows, cut = [], read_cut(folder)
    for index, utterance in enumerate(utterances):
        name = wave_path(folder, index).name
        rows.append({"audio": name, "text": utterance.text, **({"cut": cut[name]} if name in cut else {})})
        if utterance.reference:
            rows[-1]["reference"] = str(utterance.reference)
    return rows


def evaluate(
    settings: Settings,
    out: Path,
    scorer: Path | None = None,
    scorer_python: str = sys.executable,
    threads: int = 1,
    asr: str | None = None,
) -> dict:
    """Synthesizes, scores if there is a scorer or recognizer, and writes report.json and index.html.

    Returns:
        {"folder", "utterances"}, "audio_seconds", "work_seconds" and "speed" (seconds of audio per second of work)
        if something was synthesized, and the summary of the scores with "cut" and "run_on".

    Raises:
        ValueError: For wrong input.
        CalledProcessError: If the scorer fails.
    """
    utterances = read_utterances(settings.texts)
    prompted = any(utterance.audio for utterance in utterances)
    if prompted and settings.voice:
        raise ValueError(
            f"--voice {settings.voice}: {settings.texts} already names a recording for each voice; remove --voice"
        )
    if prompted or settings.stream:
        settings = replace(settings, batch_size=1)
    folder = open_folder(out, settings, utterances)
    path = folder / "report.json"
    report = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    timing = make_recordings(settings, utterances, folder)
    rows = manifest_rows(folder, utterances)
    manifest = write_manifest(folder, rows)
    report |= {"timing": timing} if timing else {}
    report["settings"] = {**asdict(settings), "texts": str(settings.texts)}
    write_json(path, report)
    if scorer is not None:
        report |= {**score(manifest, scorer, scorer_python, threads), "scorer": scorer.name}
    if asr is not None:
        report |= {**recognize(manifest, asr, settings.device), "scorer": asr}
    report["summary"] = {**report.get("summary", {}), **count_endings(read_jsonl(manifest), report.get("rows", []))}
    write_json(path, report)
    write_text(folder / "index.html", results_page(folder, report.get("rows", rows), report))
    counts = {"folder": str(folder), "utterances": len(utterances)}
    return {**counts, **report.get("timing", {}), **report["summary"]}


def option(text: str) -> tuple[str, object]:
    """KEY=VALUE as a pair; the value is parsed as JSON if possible."""
    key, equals, value = text.partition("=")
    if not (equals and key.isidentifier()):
        raise argparse.ArgumentTypeError(f"expected KEY=VALUE, for example temperature=0.8; got {text!r}")
    try:
        return key, json.loads(value)
    except json.JSONDecodeError:
        return key, value


def add_common_options(
    parser: argparse.ArgumentParser, batch_size: int = 8, device: str | None = None, threads: int | None = None
) -> None:
    """Adds the options that the evaluation and the benchmarks built on it share."""
    parser.add_argument("--seed", type=int, default=0, help="seed of the sampling (default: %(default)s)")
    parser.add_argument(
        "--batch-size",
        type=int,
        default=batch_size,
        help="number of texts per batch; 1 with recordings as voices and with --stream (default: %(default)s)",
    )
    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--device", default=device, help="cpu or cuda (default here: %(default)s)")
    parser.add_argument(
        "--runtime",
        choices=RUNTIMES,
        default="torch",
        help="torch: PyTorch; native: C with 8-bit weights; auto: native if possible (default: torch)",
    )
    parser.add_argument(
        "--generate",
        type=option,
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="an option of model.generate, such as temperature=0.8; may be given several times",
    )
    add_scorer_options(parser, threads=threads)


def add_scorer_options(parser: argparse.ArgumentParser, required: bool = False, threads: int | None = None) -> None:
    """Adds the options that choose a scorer."""
    parser.add_argument(
        "--scorer", type=Path, required=required, help="Python program that scores a manifest (docs/evaluation.md)"
    )
    parser.add_argument(
        "--scorer-python", default=sys.executable, help="the Python that runs the scorer (default: this one)"
    )
    if not required:
        parser.add_argument("--asr", help="score with this transformers speech recognizer: folder or Hub name")
    parser.add_argument("--threads", type=int, default=threads, help="CPU threads of the model and of the scorer")


def parse(argv: Sequence[str] | None = None) -> argparse.Namespace:
    parser = command_parser("smalle evaluate", __doc__)
    parser.add_argument("checkpoint", type=find_checkpoint, help="folder, Hub name or smalle-mini")
    parser.add_argument("texts", type=Path, help="text file with one sentence per line, or .jsonl")
    parser.add_argument("out", type=Path, help="parent folder of the folder of results")
    parser.add_argument("--voice", help="preset voice or voice file (default: the checkpoint's default voice)")
    parser.add_argument(
        "--dtype",
        choices=["float32", "bfloat16", "float16"],
        default="float32",
        help="data type of the model (default: float32)",
    )
    parser.add_argument("--stream", action="store_true", help="use the streaming interface, for texts of any length")
    add_common_options(parser)
    args = parser.parse_args(argv)
    if args.batch_size < 1:
        parser.error(f"--batch-size must be at least 1, got {args.batch_size}")
    if args.scorer and args.asr:
        parser.error("give --scorer or --asr, not both")
    if args.scorer and not args.scorer.is_file():
        parser.error(f"scorer {args.scorer} does not exist")
    return args


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command. Returns 0, or 1 if the scorer fails; raises ValueError for wrong input."""
    args = parse(argv)
    if args.threads:
        torch.set_num_threads(args.threads)
    settings = Settings(
        checkpoint=args.checkpoint,
        texts=args.texts,
        voice=args.voice,
        seed=args.seed,
        batch_size=args.batch_size,
        dtype=args.dtype,
        device=args.device,
        runtime=args.runtime,
        stream=args.stream,
        generate=dict(args.generate),
    )
    try:
        summary = evaluate(settings, args.out, args.scorer, args.scorer_python, args.threads or 1, args.asr)
    except subprocess.CalledProcessError as error:
        print(f"smalle: the scorer failed with exit code {error.returncode}; the recordings are kept", file=sys.stderr)
        return 1
    print(json.dumps(summary))
    return 0


if __name__ == "__main__":
    sys.exit(run_command("smalle", main))
