"""Cuts recordings into phrases at pauses, and writes pauses as commas where a transcript has no punctuation.

  python -m smalle.train.data.phrases CORPUS OUT [--aligned CODES.parquet] [--max-seconds 7]

CORPUS is a folder with metadata.jsonl whose rows have the times of words ("words");
CODES.parquet has them instead where a model found them (smalle.train.data.align). OUT gets a metadata.jsonl: for each
phrase the recording's absolute path, start and duration in seconds, text, speaker, and words, whose times are the
phrase's own. So a speaker with one recording has several utterances: one to say, others to be heard in. Recordings
without times stay whole; those whose transcripts have digits are left out, since how they were said is not known.
"""

import pathlib
import re
import sys
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
import pyarrow.parquet

from smalle.cli.command import command_parser, run_command
from smalle.saving_smalle import write_jsonl

from .audio import read_audio
from .corpora import metadata_rows
from .dataset import shards

RATE = 16000
HOP = 160  # samples of a frame of 10 ms
QUIET_DB = 28.0  # below the loud frames: a pause
COMMA_SECONDS, CUT_SECONDS = 0.2, 0.12  # shortest pause that is written; at which a recording is cut
MIN_SECONDS = 1.2  # of a phrase
MARGIN = 0.2  # seconds of silence that stay at either end
KEPT = "file_name", "speaker", "corpus", "licence"
PUNCTUATION = re.compile(r"[.,;:?!]")


class Phrase(NamedTuple):
    """Words `first` to `end` of a recording, seconds `start` to `stop`."""

    first: int
    end: int
    start: float
    stop: float


def quiet_frames(samples: np.ndarray) -> np.ndarray:
    """Which frames of HOP samples are quiet, (T,) bool, of samples (L,)."""
    frames = samples[: len(samples) // HOP * HOP].reshape(-1, HOP)
    levels = 10 * np.log10(np.square(frames).mean(1) + 1e-10)
    smooth = np.convolve(levels, np.ones(3) / 3, "same")
    return smooth < np.quantile(levels, 0.9) - QUIET_DB


def longest_run(quiet: np.ndarray, begin: float, end: float) -> tuple[float, float]:
    """(start, end) in seconds of the longest run of quiet frames between two times; at `end`, empty, if none is."""
    offset = max(0, round(begin * RATE / HOP))
    part = np.concatenate(([False], quiet[offset : round(end * RATE / HOP)], [False])).astype(np.int8)
    starts, stops = (np.flatnonzero(np.diff(part) == sign) for sign in (1, -1))
    if not len(starts):
        return end, end
    longest = int((stops - starts).argmax())
    return (offset + starts[longest]) * HOP / RATE, (offset + stops[longest]) * HOP / RATE


def find_pauses(words: np.ndarray, quiet: np.ndarray) -> np.ndarray:
    """(W - 1, 2): the pause after each word but the last, from times of words (W, 2)."""
    middle = words.mean(1)
    begins = np.minimum(middle, words[:, 0] + 0.12)  # an aligned word lasts until the next, pause included
    return np.array([longest_run(quiet, *span) for span in zip(begins, middle[1:])]).reshape(-1, 2)


def split(first: int, end: int, pauses: np.ndarray, edges: tuple[float, float], longest: float) -> Iterator[Phrase]:
    """Cuts words `first` to `end` at their longest pauses until each phrase lasts at most `longest` seconds."""
    start, stop = edges
    lengths = {
        n: pauses[n, 1] - pauses[n, 0]
        for n in range(first, end - 1)
        if pauses[n].mean() - start > MIN_SECONDS and stop - pauses[n].mean() > MIN_SECONDS
    }
    best = max(lengths, key=lambda n: lengths[n] - 0.02 * abs(n - (first + end) / 2), default=None)
    if stop - start <= longest or best is None or lengths[best] < CUT_SECONDS:
        yield Phrase(first, end, start, stop)
        return
    pause = pauses[best]
    yield from split(first, best + 1, pauses, (start, min(pause[0] + MARGIN, pause.mean())), longest)
    yield from split(best + 1, end, pauses, (max(pause[1] - MARGIN, pause.mean()), stop), longest)


def write_pauses(words: list[str], pauses: np.ndarray, phrase: Phrase, total: int, bare: bool) -> str:
    """The text of a phrase: with commas at its pauses and a full stop at the recording's end if the transcript is
    bare, and a comma where the phrase was cut."""
    said = []
    for n in range(phrase.first, phrase.end):
        mark = ""
        if n == total - 1:
            mark = "." if bare else ""
        elif bare and pauses[n, 1] - pauses[n, 0] >= COMMA_SECONDS or n == phrase.end - 1:
            mark = ","
        said.append(words[n] + ("" if PUNCTUATION.search(words[n][-1]) else mark))
    return " ".join(said)


def phrases_of(row: dict, words: np.ndarray, longest: float) -> Iterator[dict]:
    """Rows of metadata of the phrases of a recording; words (W, 2): the times of its words."""
    samples, said = read_audio(row["file_name"], RATE), row["text"].split()
    quiet, duration = quiet_frames(samples), len(samples) / RATE
    pauses, words = find_pauses(words, quiet), words.astype(np.float64).copy()
    paused = pauses[:, 1] - pauses[:, 0] >= COMMA_SECONDS  # a shorter one may be a closed lip
    words[:-1, 1] = np.where(paused, pauses[:, 0], words[:-1, 1])
    words[1:, 0] = np.where(paused, pauses[:, 1], words[1:, 0])
    _, speech = longest_run(quiet, 0.0, words[0].mean())  # silence before the first word
    start = max(0.0, speech - MARGIN) if words[0].mean() - speech > 1e-6 else 0.0
    bare = not PUNCTUATION.search(row["text"])
    for phrase in split(0, len(said), pauses, (start, duration), longest):
        text = write_pauses(said, pauses, phrase, len(said), bare)
        times = np.clip(words[phrase.first : phrase.end] - phrase.start, 0, phrase.stop - phrase.start)
        kept = {name: row[name] for name in KEPT if name in row}
        seconds = {"start": round(phrase.start, 3), "duration": round(phrase.stop - phrase.start, 3)}
        yield {**kept, "text": text, **seconds, "words": times.round(3).tolist()}


def aligned_times(codes: pathlib.Path) -> dict[str, list[float]]:
    """The times of words of each clip of prepared codes, flat, by id."""
    tables = (pyarrow.parquet.read_table(shard, columns=["id", "words"]) for shard in shards(codes))
    return {row["id"]: row["words"] for table in tables for row in table.to_pylist()}


def find_phrases(corpus: pathlib.Path, longest: float, aligned: pathlib.Path | None = None) -> Iterator[dict]:
    """Rows of metadata of the phrases of all recordings; `aligned`: codes with the times of their words."""
    times = {} if aligned is None else aligned_times(aligned)
    for row in metadata_rows(corpus):
        row = {**row, "text": " ".join(row["text"].split()), "file_name": str((corpus / row["file_name"]).resolve())}
        words = np.reshape(row.get("words") or times.get(f"{corpus.resolve().name}/{row['file_name']}") or (), (-1, 2))
        if re.search(r"\d", row["text"]):
            continue
        if len(words) == len(row["text"].split()):
            yield from phrases_of(row, words, longest)
        else:
            end = "" if PUNCTUATION.search(row["text"]) else "."
            yield {**{name: row[name] for name in KEPT if name in row}, "text": row["text"] + end}


def main(argv: Sequence[str] | None = None) -> None:
    parser = command_parser("python -m smalle.train.data.phrases", __doc__)
    parser.add_argument("corpus", type=pathlib.Path, help="folder with metadata.jsonl")
    parser.add_argument("out", type=pathlib.Path, help="folder for metadata.jsonl")
    parser.add_argument("--aligned", type=pathlib.Path, help="its codes with the times of words: file or shards")
    parser.add_argument("--max-seconds", type=float, default=7.0, help="longest phrase (default: %(default)s)")
    arguments = parser.parse_args(argv)
    rows = list(find_phrases(arguments.corpus, arguments.max_seconds, arguments.aligned))
    arguments.out.mkdir(parents=True, exist_ok=True)
    write_jsonl(arguments.out / "metadata.jsonl", rows)
    print(f"{len(rows)} phrases of {len({row['speaker'] for row in rows})} speakers in {arguments.out}")


if __name__ == "__main__":
    sys.exit(run_command("phrases", main))
