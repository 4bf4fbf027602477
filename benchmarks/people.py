"""Voices of people from one recording each, prepared in seconds: similarity, word errors and naturalness.

  python benchmarks/people.py CHECKPOINT OUT --sentences FILE --corpus FOLDER --scorer score.py [--group test] [options]

CORPUS has a metadata.jsonl with file_name, text, speaker, duration and, where --group asks for one, group. A speaker's
voice is taken of the recording nearest to 7 s, without its transcript; similarity is to the longest of the others. The
sentences go round the speakers. Prints the scores and appends a row to benchmarks/results.jsonl.
"""

import argparse
import collections
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parents[1]))
from smalle.train.evaluation.evaluate import add_scorer_options  # noqa: E402
from smalle.train.evaluation.scoring import write_manifest  # noqa: E402

from benchmarks.finetuned_voice import score_folder, word_error_rate  # noqa: E402
from benchmarks.quality import read_lines, read_metadata  # noqa: E402
from benchmarks.timing import record  # noqa: E402
from smalle import SmallEForTextToSpeech, SmallEProcessor  # noqa: E402

SECONDS = 7.0  # of the recording that is wanted
SHORTEST = 2.0


def find_people(corpus: Path, group: str | None, names: Sequence[str]) -> dict[str, tuple[dict, dict]]:
    """(recording to take the voice of, another recording) of each speaker with two or more."""
    own = collections.defaultdict(list)
    for row in read_metadata(corpus):
        if (group is None or row.get("group") == group) and (not names or row["speaker"] in names):
            own[row["speaker"]].append(row)
    people = {}
    for speaker, rows in sorted(own.items()):
        taken = min(rows, key=lambda row: abs(row["duration"] - SECONDS))
        others = [row for row in rows if row is not taken]
        if others and taken["duration"] >= SHORTEST:
            people[speaker] = taken, max(others, key=lambda row: row["duration"])
    if not people:
        raise ValueError(f"{corpus}: no speaker of group {group} with two recordings of {SHORTEST:g} s or more.")
    return people


def speak(arguments: argparse.Namespace, people: dict[str, tuple[dict, dict]]) -> tuple[list[dict], float]:
    """Rows of the manifest of the sentences, spoken in OUT, and the mean CPU seconds of preparing a voice."""
    processor = SmallEProcessor.from_pretrained(arguments.checkpoint)
    model = SmallEForTextToSpeech.from_pretrained(arguments.checkpoint).eval()
    voices, seconds, rows = {}, [], []
    for speaker, (taken, _) in people.items():
        started = time.process_time()
        voices[speaker] = processor.encode_voice(taken["path"])
        seconds.append(time.process_time() - started)
    names = list(people)
    for number, text in enumerate(read_lines(arguments.sentences)[:: arguments.every][: arguments.count]):
        speaker = names[number % len(names)]
        output = model.generate(**processor(text, voice=voices[speaker]), seed=number)
        processor.save_audio(processor.decode(output, voice=voices[speaker]), arguments.out / f"{number:03}.wav")
        other = str(Path(people[speaker][1]["path"]).resolve())
        rows.append({"audio": f"{number:03}.wav", "text": text, "reference": other})
    return rows, sum(seconds) / len(seconds)


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint")
    parser.add_argument("out", type=Path)
    parser.add_argument("--corpus", type=Path, required=True)
    parser.add_argument("--sentences", type=Path, required=True, help="text file, one sentence a line")
    parser.add_argument("--group", help="of the speakers")
    parser.add_argument("--speakers", nargs="*", default=[], help="names of speakers (default: all)")
    parser.add_argument("--every", type=int, default=2, help="take every N-th sentence (default: %(default)s)")
    parser.add_argument("--count", type=int, default=40, help="sentences (default: %(default)s)")
    parser.add_argument("--note", help="a remark, kept in the row")
    add_scorer_options(parser, required=True, threads=1)
    arguments = parser.parse_args(argv)
    torch.set_num_threads(arguments.threads)
    arguments.out.mkdir(parents=True, exist_ok=True)
    people = find_people(arguments.corpus, arguments.group, arguments.speakers)
    rows, seconds = speak(arguments, people)
    write_manifest(arguments.out, rows)
    scores = score_folder(arguments.out, arguments)
    means = {key: round(sum(row[key] or 0 for row in scores) / len(scores), 3) for key in ("similarity", "distillmos")}
    counts = {key + "s": sum(bool(row[key]) for row in scores) for key in ("skip", "repeat")}
    result = {
        "speakers": len(people),
        "sentences": len(scores),
        "wer": round(word_error_rate(scores), 2),
        **counts,
        "silent": sum(row["similarity"] is None for row in scores),
        **means,
        "preparing_seconds": round(seconds, 1),
    }
    record("people", arguments.note, group=arguments.group, **result)
    print(result)


if __name__ == "__main__":
    main()
