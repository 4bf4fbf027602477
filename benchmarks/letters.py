"""Letters, names that are spelled, codes and digits in rows: spoken by the pipeline and heard.

  python benchmarks/letters.py CHECKPOINT OUT --scorer score.py [--seed 0]

Reads benchmarks/texts/letters/*.txt, four kinds of ten sentences. A recognizer writes "FBI", "F.B.I." or "f b i", "305"
or "three oh five": texts are compared by their letters and digits without spaces. "right": sentences in which all of
them are heard; "errors": of 100 letters and digits. OUT keeps the recordings and what was heard, as that of
paragraphs.py does. Prints each sentence that is heard wrong and a table in Markdown; appends rows to
benchmarks/results.jsonl.
"""

import argparse
import re
import sys
from collections.abc import Sequence
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parents[1]))
from smalle.train.evaluation.evaluate import add_scorer_options  # noqa: E402
from smalle.train.evaluation.word_errors import align, errors  # noqa: E402

from benchmarks.paragraphs import listen, read_paragraphs, speak  # noqa: E402
from benchmarks.timing import record, table  # noqa: E402
from smalle.saving_smalle import read_object  # noqa: E402

TEXTS = Path(__file__).parent / "texts" / "letters"
SMALL = (
    "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen seventeen"
)
NUMBERS = {word: n for n, word in enumerate(f"{SMALL} eighteen nineteen".split())} | {"oh": 0}
TENS = {word: 10 * n for n, word in enumerate("twenty thirty forty fifty sixty seventy eighty ninety".split(), 2)}
COLUMNS = {"kind": "kind", "sentences": "sentences", "right": "right", "errors": "errors %"}


def letters_and_digits(text: str) -> str:
    """Letters and digits of a text without spaces: "fbi305" of "F.B.I., three oh five"."""
    found = []
    for word in re.findall(r"[a-z']+|\d+", re.sub(r"\b(?:point|dot)\b", ".", text.lower())):
        last = found[-1] if found else ""
        if word in TENS:
            found.append(str(TENS[word]))
        elif word in NUMBERS and 0 < NUMBERS[word] < 10 and re.fullmatch("[2-9]0", last):
            found[-1] = last[0] + str(NUMBERS[word])
        elif word in NUMBERS:
            found.append(str(NUMBERS[word]))
        elif word == "hundred" and re.fullmatch(r"\d{1,2}", last):
            found[-1] += "00"
        else:
            found.append(word.replace("'", ""))
    return "".join(found)


def summary(kind: str, rows: list[dict]) -> dict:
    """A row of the table."""
    total = sum(len(row["said"]) for row in rows)
    return {
        "kind": kind,
        "sentences": len(rows),
        "right": sum(not row["errors"] for row in rows),
        "errors": round(100 * sum(row["errors"] for row in rows) / total, 2),
    }


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", help="folder or Hub name")
    parser.add_argument("out", type=Path)
    parser.add_argument("--seed", type=int, default=0, help="(default: %(default)s)")
    parser.add_argument("--note", help="a remark, kept in the rows")
    add_scorer_options(parser)
    arguments = parser.parse_args(argv)
    if (arguments.scorer is None) == (arguments.asr is None):
        parser.error("give --scorer or --asr, one of them")
    torch.set_num_threads(1)
    arguments.out.mkdir(parents=True, exist_ok=True)
    sentences = dict(read_paragraphs(folder=TEXTS))
    speak(arguments.checkpoint, arguments.out, list(sentences.items()), arguments.seed)
    listen(arguments.out, list(sentences), arguments)
    rows = {name: read_object(arguments.out / f"{name}.json") for name in sentences}
    for name, row in rows.items():
        said, heard = letters_and_digits(row["text"]), letters_and_digits(row["heard"])
        row |= {"said": said, "errors": errors(align(said, heard))}
        if row["errors"]:
            print(f"{name}: {row['text']!r} is heard as {row['heard'].strip()!r}")
    kinds = sorted({name.split("-")[0] for name in rows})
    summaries = [summary(kind, [row for name, row in rows.items() if name.startswith(kind)]) for kind in kinds]
    summaries.append(summary("all", list(rows.values())))
    for row in summaries:
        record("letters", arguments.note, checkpoint=Path(arguments.checkpoint).name, seed=arguments.seed, **row)
    print(table(COLUMNS, summaries))


if __name__ == "__main__":
    main()
