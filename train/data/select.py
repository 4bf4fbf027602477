"""Selects rows of a corpus to train on, without copying recordings.

  python -m smalle.train.data.select CORPUS OUT [--where group=train] [--min-logprob -0.5] [--exclude SPEAKER ...]

CORPUS is a folder with metadata.jsonl; OUT gets a metadata.jsonl with the selected rows, which name the recordings by
their absolute paths. --exclude also leaves out the blends that a speaker is part of (speakers.json in CORPUS:
{speaker: [[voice, weight], ...]}).
"""

import argparse
import json
import os
import pathlib
import sys
from collections.abc import Iterable, Sequence

from smalle.cli.command import command_parser, run_command
from smalle.saving_smalle import write_jsonl

from .corpora import metadata_rows


def blend_parts(corpus: pathlib.Path) -> dict[str, set[str]]:
    """The voices of each blended speaker of a corpus."""
    path = corpus / "speakers.json"
    blends = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    return {speaker: {voice for voice, _ in parts} for speaker, parts in blends.items()}


def select(
    corpus: str | os.PathLike,
    where: Iterable[tuple[str, str]] = (),
    min_logprob: float | None = None,
    exclude: Iterable[str] = (),
) -> list[dict]:
    """The rows with a text whose columns have the values `where`, with absolute file names.

    min_logprob: rows whose transcript a recognizer wrote with less confidence ("logprob") are left out.
    """
    corpus, excluded, wanted = pathlib.Path(corpus).resolve(), set(exclude), list(where)
    blends, kept = blend_parts(corpus), []
    for row in metadata_rows(corpus):
        voices = {row.get("speaker", ""), *blends.get(row.get("speaker", ""), ())}
        doubtful = min_logprob is not None and row.get("logprob", 0.0) < min_logprob
        if row.get("text") and all(row.get(name) == value for name, value in wanted):
            kept += [] if doubtful or voices & excluded else [{**row, "file_name": str(corpus / row["file_name"])}]
    if not kept:
        raise ValueError(f"{corpus} has no rows with {wanted} beside the speakers {sorted(excluded)}")
    return kept


def equation(text: str) -> tuple[str, str]:
    """The two sides of "column=value"."""
    column, sign, value = text.partition("=")
    if not sign:
        raise argparse.ArgumentTypeError(f"{text!r}: expected column=value")
    return column, value


def main(argv: Sequence[str] | None = None) -> None:
    parser = command_parser("python -m smalle.train.data.select", __doc__)
    parser.add_argument("corpus", help="folder with metadata.jsonl")
    parser.add_argument("out", type=pathlib.Path, help="folder for the selected metadata.jsonl")
    parser.add_argument("--where", nargs="*", default=[], type=equation, metavar="COLUMN=VALUE")
    parser.add_argument("--min-logprob", type=float, help="smallest confidence of a recognized transcript")
    parser.add_argument("--exclude", nargs="*", default=[], metavar="SPEAKER", help="speakers to leave out")
    arguments = parser.parse_args(argv)
    rows = select(arguments.corpus, arguments.where, arguments.min_logprob, arguments.exclude)
    arguments.out.mkdir(parents=True, exist_ok=True)
    write_jsonl(arguments.out / "metadata.jsonl", rows)
    print(f"{len(rows)} recordings of {len({row['speaker'] for row in rows})} speakers in {arguments.out}")


if __name__ == "__main__":
    sys.exit(run_command("select", main))
