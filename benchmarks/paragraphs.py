"""Paragraphs that people paste, spoken by the pipeline: whether each ends, its length, its words.

  python benchmarks/paragraphs.py CHECKPOINT OUT --scorer score.py [--every 3] [--seed 0]

Reads benchmarks/texts/paragraphs/*.txt, six kinds of 50 paragraphs: books (in the public domain), encyclopedic prose,
e-mails, recipes, changelogs, posts of a forum. Each goes alone through `pipeline("text-to-speech")`. OUT keeps the
recordings and what was heard, and goes on where it stopped; a paragraph whose spelling has changed is spoken again.

"ended": the model, or the rule after the last word, ended every piece; "length": within 30 % of what the letters of the
spelled text say; WER: what the scorer heard against the text, both spelled out by the processor. Prints a table in
Markdown and appends its rows to benchmarks/results.jsonl.
"""

import argparse
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import pipeline

sys.path.insert(0, str(Path(__file__).parents[1]))
from smalle.train.evaluation.evaluate import add_scorer_options  # noqa: E402
from smalle.train.evaluation.scoring import recognize, score, write_manifest  # noqa: E402
from smalle.train.evaluation.word_errors import align, errors, words  # noqa: E402

from benchmarks.timing import record, table  # noqa: E402
from smalle import SmallEProcessor  # noqa: E402
from smalle.audio_smalle import write_wav  # noqa: E402
from smalle.saving_smalle import read_object, write_json  # noqa: E402
from smalle.streaming_smalle import expected_frames  # noqa: E402

TEXTS = Path(__file__).parent / "texts" / "paragraphs"
TOLERANCE = 0.3  # of a length
AT_ONCE = 25  # recordings that are heard before their words are kept
COLUMNS = {
    "kind": "kind",
    "paragraphs": "paragraphs",
    "seconds": "speech (s)",
    "ended": "ended",
    "length": "length",
    "wer": "WER %",
    "worst": "worst WER %",
}


def read_paragraphs(every: int = 1, folder: Path = TEXTS) -> Iterator[tuple[str, str]]:
    """(name, text) of every so-many-th paragraph of each file."""
    for path in sorted(folder.glob("*.txt")):
        for number, text in enumerate(path.read_text(encoding="utf-8").strip().split("\n\n")):
            if number % every == 0:
                yield f"{path.stem}-{number:02d}", text


def speak(checkpoint: str, out: Path, paragraphs: list[tuple[str, str]], seed: int) -> None:
    """Writes the recordings that are missing or of another spelling, and beside each what is known about it."""
    speaker: Any = pipeline("text-to-speech", model=checkpoint)
    reasons, generate = [], speaker.model.generate

    def recorded(**call):
        output = generate(**call)
        reasons.append(output.finish_reason[0])
        return output

    speaker.model.generate = recorded
    for name, text in paragraphs:
        spoken, file = speaker.processor.spell_out(text), out / f"{name}.json"
        if not file.is_file() or read_object(file)["text"] != spoken:
            torch.manual_seed(seed)
            speech = speaker(text)
            samples = write_wav(out / f"{name}.wav", speech["audio"], speech["sampling_rate"])
            facts = {"text": spoken, "finish_reason": reasons[-1], "expected": expected_frames(spoken, 100) / 100}
            write_json(file, {**facts, "seconds": round(samples / speech["sampling_rate"], 2)})


def listen(out: Path, names: list[str], arguments: argparse.Namespace) -> None:
    """Adds what the judge hears to what is known about recordings, so many at a time."""
    for start in range(0, len(names), AT_ONCE):
        part = {name: read_object(out / f"{name}.json") for name in names[start : start + AT_ONCE]}
        part = {name: facts for name, facts in part.items() if "heard" not in facts}
        if not part:
            continue
        manifest = write_manifest(out, [{"audio": f"{name}.wav", "text": part[name]["text"]} for name in part])
        if arguments.scorer:
            scores = score(manifest, arguments.scorer, arguments.scorer_python)
        else:
            scores = recognize(manifest, arguments.asr)
        for (name, facts), row in zip(part.items(), scores["rows"], strict=True):
            write_json(out / f"{name}.json", {**facts, "heard": row["heard"]})


def measure(out: Path, names: list[str], spell: Callable[[str], str]) -> dict[str, dict]:
    """What is known about each recording, with its word errors."""
    every = {name: read_object(out / f"{name}.json") for name in names}
    for facts in every.values():
        said, heard = (words(spell(text)) for text in (facts["text"], facts["heard"]))
        facts |= {"words": len(said), "errors": errors(align(said, heard))}
    write_json(out / "heard.json", every)
    return every


def summary(kind: str, rows: list[dict]) -> dict:
    """A row of the table."""
    near = [abs(row["seconds"] / row["expected"] - 1) <= TOLERANCE for row in rows]
    total = sum(row["words"] for row in rows)
    return {
        "kind": kind,
        "paragraphs": len(rows),
        "seconds": round(sum(row["seconds"] for row in rows)),
        "ended": sum(row["finish_reason"] in ("stop", "text_end") for row in rows),
        "length": sum(near),
        "wer": round(100 * sum(row["errors"] for row in rows) / total, 2),
        "worst": round(100 * max(row["errors"] / row["words"] for row in rows), 1),
    }


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", help="folder or Hub name")
    parser.add_argument("out", type=Path)
    parser.add_argument("--every", type=int, default=1, help="take every so-many-th paragraph (default: all)")
    parser.add_argument("--seed", type=int, default=0, help="(default: %(default)s)")
    parser.add_argument("--note", help="a remark, kept in the rows")
    add_scorer_options(parser)
    arguments = parser.parse_args(argv)
    if (arguments.scorer is None) == (arguments.asr is None):
        parser.error("give --scorer or --asr, one of them")
    torch.set_num_threads(1)
    arguments.out.mkdir(parents=True, exist_ok=True)
    paragraphs = list(read_paragraphs(arguments.every))
    speak(arguments.checkpoint, arguments.out, paragraphs, arguments.seed)
    spell = SmallEProcessor.from_pretrained(arguments.checkpoint).spell_out
    names = [name for name, _ in paragraphs]
    listen(arguments.out, names, arguments)
    facts = measure(arguments.out, names, spell)
    kinds = sorted({name.split("-")[0] for name in facts})
    rows = [summary(kind, [row for name, row in facts.items() if name.startswith(kind)]) for kind in kinds]
    rows.append(summary("all", list(facts.values())))
    for row in rows:
        record("paragraphs", arguments.note, checkpoint=Path(arguments.checkpoint).name, seed=arguments.seed, **row)
    print(table(COLUMNS, rows))


if __name__ == "__main__":
    main()
