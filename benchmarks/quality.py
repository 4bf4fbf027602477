"""How well a checkpoint speaks: word errors, skips, repeats, endings, naturalness, similarity to the speaker.

  python benchmarks/quality.py CHECKPOINT OUT --eval FOLDER --corpus FOLDER ... --scorer score.py [options]

--only selects parts; all of them by default:
  sentences  FOLDER/sentences.txt of --eval in the default voice, one candidate each
  hard       FOLDER/hard.txt in the default voice
  presets    FOLDER/sentences.txt in every voice of the checkpoint
  cloning    five of the sentences in the voice of each speaker that is held out of all training
             (smalle.corpus.speakers.HELD_OUT_VOICES), from the recording nearest to 6 s; similarity is to the longest
             of the speaker's other recordings. With a speaker encoder also without the recording's transcript
  words      benchmarks/texts/words.txt: one or two words
  paragraph  benchmarks/texts/paragraph.txt: a minute, by the streaming interface

--corpus: folders of recordings as for training, in which those speakers are looked for; the table says how many were
found. benchmarks/texts/held_out_speakers.jsonl is a plan of two recordings of each for smalle.corpus.synthesize.
--sentences N takes N lines of each list, evenly spread (cloning: of each speaker's). The other options are those of
`smalle evaluate`, which does the work and keeps recordings, report.json and index.html of each part under OUT.

Prints a table in Markdown, writes OUT/table.md, and appends a row for each part to benchmarks/results.jsonl. The same
command continues: a part with scores is neither spoken nor scored nor recorded again. "cut": ended by max_new_tokens
and not by the model; "run on": two words or more after the last one of the text.
"""

import argparse
import json
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parents[1]))
from smalle.corpus.speakers import HELD_OUT_VOICES  # noqa: E402
from smalle.train.data.corpora import read_metadata  # noqa: E402
from smalle.train.evaluation.evaluate import (  # noqa: E402
    Settings,
    add_common_options,
    evaluate,
    read_text,
    weights_digest,
)

from benchmarks.timing import record, table  # noqa: E402
from smalle import SmallEConfig, SmallEProcessor  # noqa: E402
from smalle.saving_smalle import write_text  # noqa: E402

PARTS = "sentences", "hard", "presets", "cloning", "words", "paragraph"
EVAL_PARTS = PARTS[:4]  # these read a list of --eval
TEXTS = Path(__file__).parent / "texts"
SENTENCES_EACH = 5  # of a held-out speaker
PROMPT_SECONDS = 6  # the nearest of 3 to 10 s is the prompt
COLUMNS = {
    "part": "part",
    "utterances": "utterances",
    "wer": "WER %",
    "cer": "CER %",
    "skips": "skips",
    "repeats": "repeats",
    "silent": "silent",
    "cut": "cut",
    "run_on": "run on",
    "distillmos": "DistillMOS",
    "similarity": "ECAPA",
}
Speakers = dict[str, tuple[dict, str]]  # the row of a prompt, and the path of the longest recording of another text


def read_lines(path: Path) -> list[str]:
    """The lines of a list that are not empty."""
    return [line.strip() for line in read_text(path).splitlines() if line.strip()]


def spread(items: list, count: int | None) -> list:
    """`count` items, evenly spread; all if it is None or there are fewer."""
    return items[:: max(1, len(items) // count)][:count] if count else items


def write_list(arguments: argparse.Namespace, name: str, rows: list[str]) -> Path:
    """Writes a list for `evaluate` under a name that contains its length."""
    stem, suffix = name.split(".")
    path = arguments.out / "lists" / f"{stem}-{len(rows)}.{suffix}"
    path.parent.mkdir(parents=True, exist_ok=True)
    write_text(path, "".join(f"{row}\n" for row in rows))
    return path


def shorten_list(arguments: argparse.Namespace, source: Path) -> Path:
    """A list with as many lines as --sentences asks for."""
    return write_list(arguments, source.name, spread(read_lines(source), arguments.sentences))


def find_speakers(folders: Sequence[Path]) -> Speakers:
    """The held-out speakers in some corpora. Raises ValueError if there are none."""
    rows = [row for folder in folders for row in read_metadata(folder) if row["speaker"] in HELD_OUT_VOICES]
    found = {}
    for speaker in HELD_OUT_VOICES:
        own = sorted((row for row in rows if row["speaker"] == speaker), key=lambda row: row["file_name"])
        prompts = [row for row in own if 3 <= row["duration"] <= 10]
        prompt = min(prompts, key=lambda row: abs(row["duration"] - PROMPT_SECONDS), default=None)
        others = [row for row in own if prompt and row["text"] != prompt["text"]]
        if others:
            found[speaker] = prompt, str(Path(max(others, key=lambda row: row["duration"])["path"]).resolve())
    if not found:
        raise ValueError(
            f"{', '.join(map(str, folders)) or '--corpus'}: no recording of 3 to 10 s and another of any of "
            f"{', '.join(HELD_OUT_VOICES)}; smalle.corpus.synthesize makes those of {TEXTS}/held_out_speakers.jsonl"
        )
    return found


def cloning_rows(found: Speakers, sentences: list[str], count: int) -> list[dict]:
    """Rows for `evaluate`, `count` of each speaker, who has the same sentences whoever else is found."""
    rows = []
    for number, speaker in enumerate(HELD_OUT_VOICES):
        for sentence in sentences[number :: len(HELD_OUT_VOICES)][:count] if speaker in found else ():
            prompt, reference = found[speaker]
            rows.append(
                {
                    "audio": str(Path(prompt["path"]).resolve()),
                    "audio_text": prompt["text"],
                    "text": sentence,
                    "reference": reference,
                }
            )
    return rows


def cloning_lists(arguments: argparse.Namespace) -> Iterator[tuple[str, Path]]:
    """(name in the table, manifest) of `cloning`: with transcripts, and with a speaker encoder also without."""
    found, count = find_speakers(arguments.corpus), min(arguments.sentences or SENTENCES_EACH, SENTENCES_EACH)
    rows = cloning_rows(found, read_lines(arguments.eval / "sentences.txt"), count)
    name = f"cloning, {len(found)} of {len(HELD_OUT_VOICES)} held-out speakers"
    lists = {name: ("cloning.jsonl", rows)}
    if SmallEConfig.from_pretrained(arguments.checkpoint).speaker_layers:
        rows = [{key: value for key, value in row.items() if key != "audio_text"} for row in rows]
        lists[f"{name}, without transcripts"] = "cloning_without_transcripts.jsonl", rows
    for name, (file, rows) in lists.items():
        yield name, write_list(arguments, file, [json.dumps(row, ensure_ascii=False) for row in rows])


def preset_voices(checkpoint: str) -> Iterator[tuple[str, str | None]]:
    """(name in the table, `voice` of the settings) of each preset; None for the default, as in `sentences`."""
    processor = SmallEProcessor.from_pretrained(checkpoint)
    for name in processor.voices:
        default = name == processor.default_voice
        yield f"preset {name}{' (default)' if default else ''}", None if default else name


def runs(arguments: argparse.Namespace, part: str) -> Iterator[tuple[str, Path, dict]]:
    """(name in the table, list, settings that differ) of a part."""
    if part == "cloning":
        for name, path in cloning_lists(arguments):
            yield name, path, {"batch_size": 1}
    elif part == "paragraph":
        yield part, TEXTS / "paragraph.txt", {"stream": True, "batch_size": 1}
    elif part == "presets":
        path = shorten_list(arguments, arguments.eval / "sentences.txt")
        for name, voice in preset_voices(arguments.checkpoint):
            yield name, path, {"voice": voice}
    else:
        folder = arguments.eval if part in EVAL_PARTS else TEXTS
        yield part, shorten_list(arguments, folder / f"{part}.txt"), {}


def measure(arguments: argparse.Namespace, part: str, settings: Settings) -> dict:
    """The row of a part, which is spoken and scored if it was not before."""
    scorer = arguments.asr or arguments.scorer.name
    report = arguments.out / settings.name / "report.json"
    scored = report.is_file() and json.loads(report.read_text(encoding="utf-8")).get("scorer") == scorer
    names = () if scored else ("scorer", "scorer_python", "asr", "threads")
    summary = evaluate(settings, arguments.out, **{name: getattr(arguments, name) for name in names})
    row = {"part": part, **{key: summary[key] for key in (*COLUMNS, "seconds") if summary.get(key) is not None}}
    if not scored:
        weights = weights_digest(settings.checkpoint)
        record(
            "quality",
            arguments.note,
            model=Path(settings.checkpoint).resolve().name,
            weights=weights and weights[:12],
            runtime=settings.runtime,
            seed=settings.seed,
            batch=settings.batch_size,
            generate=settings.generate,
            scorer=scorer,
            **row,
        )
    return row


def parse(argv: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", help="folder or Hub name")
    parser.add_argument("out", type=Path)
    parser.add_argument("--only", nargs="+", default=list(PARTS), choices=PARTS, metavar="PART")
    parser.add_argument("--eval", type=Path, help="folder of sentences.txt and hard.txt")
    parser.add_argument("--corpus", type=Path, nargs="+", default=[], help="folders with the held-out speakers")
    parser.add_argument("--sentences", type=int, metavar="N", help="lines of each list; all by default")
    parser.add_argument("--note", help="a remark, kept in the rows")
    add_common_options(parser, batch_size=25, device="cpu", threads=1)
    arguments = parser.parse_intermixed_args(argv)
    if (arguments.scorer is None) == (arguments.asr is None):
        parser.error("give --scorer or --asr, one of them")
    if arguments.scorer and not arguments.scorer.is_file():
        parser.error(f"scorer {arguments.scorer} does not exist")
    if arguments.eval is None and set(arguments.only) & set(EVAL_PARTS):
        parser.error(f"{', '.join(EVAL_PARTS)} read lists of --eval FOLDER: give it, or --only words paragraph")
    if arguments.batch_size < 1 or arguments.sentences is not None and arguments.sentences < 1:
        parser.error(f"--batch-size {arguments.batch_size}, --sentences {arguments.sentences}: expected 1 or more")
    return arguments


def main(argv: Sequence[str] | None = None) -> None:
    arguments = parse(argv)
    torch.set_num_threads(arguments.threads)
    common = {name: getattr(arguments, name) for name in ("seed", "device", "runtime", "batch_size")}
    common["generate"] = dict(arguments.generate)
    rows = []
    for part in arguments.only:
        for name, path, settings in runs(arguments, part):
            settings = Settings(arguments.checkpoint, path, **{**common, **settings})
            rows.append(measure(arguments, name, settings))
    shown = table(COLUMNS, rows)
    write_text(arguments.out / "table.md", shown + "\n")
    print(shown)


if __name__ == "__main__":
    main()
