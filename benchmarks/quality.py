"""How well a checkpoint speaks: word errors, skips, repeats, endings, naturalness, likeness to the speaker.

usage: python benchmarks/quality.py CHECKPOINT OUT --eval FOLDER --corpus FOLDER ... --judge score.py [options]

--only says which parts; all of them by default:
  sentences  FOLDER/sentences.txt of --eval in the default voice, one reading
  hard       FOLDER/hard.txt in the default voice
  presets    FOLDER/sentences.txt in every voice of the checkpoint
  cloning    five of the sentences in the voice of each speaker that is kept out of all training
             (train.texts.HELD_OUT_VOICES), by the recording nearest to 6 s, compared with the longest of the others
  words      benchmarks/texts/words.txt: one or two words
  paragraph  benchmarks/texts/paragraph.txt: a minute, by processor.stream

--corpus: folders of recordings as for training, in which those speakers are looked for; the table says how many were
found. benchmarks/texts/strangers.jsonl is a plan of two recordings of each, for train.synthesize. --sentences N: so
many lines of each list, evenly spread (cloning: of each speaker's). The other options are those of smalle.train.evaluation.evaluate,
which does the work and keeps recordings, report.json and index.html of each part in a folder under OUT.

Prints a table in Markdown, writes OUT/table.md, and appends a row for each part to benchmarks/results.jsonl. The same
command again does what is missing: a part that was judged is neither spoken nor judged nor recorded again. "cut": not
ended by the model itself but by max_new_tokens; "run on": two words or more heard behind the last one.
"""

import argparse
import json
import pathlib
import sys

import torch

sys.path.insert(0, str(pathlib.Path(__file__).parents[1]))
from smalle.corpus.speakers import HELD_OUT_VOICES  # noqa: E402
from smalle.train.data.corpora import read_metadata  # noqa: E402
from smalle.train.evaluation.evaluate import RUNTIMES, Settings, evaluate, option, read_text, weights_digest  # noqa: E402

from benchmarks.measuring import record, table  # noqa: E402
from smalle import SmallEConfig, SmallEProcessor  # noqa: E402
from smalle.hub_smalle import write_text  # noqa: E402

PARTS = "sentences", "hard", "presets", "cloning", "words", "paragraph"
OF_EVAL = PARTS[:4]  # these read a list of --eval
TEXTS = pathlib.Path(__file__).parent / "texts"
EACH = 5  # sentences of a stranger
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


def lines(path):
    """What a list holds, without empty lines."""
    return [line.strip() for line in read_text(path).splitlines() if line.strip()]


def spread(things, count):
    """`count` of them, evenly spread; all where it is None or they are fewer."""
    return things[:: max(1, len(things) // count)][:count] if count else things


def write_list(arguments, name, rows):
    """A list for smalle.train.evaluation.evaluate, under a name that tells how long it is."""
    stem, suffix = name.split(".")
    path = arguments.out / "lists" / f"{stem}-{len(rows)}.{suffix}"
    path.parent.mkdir(parents=True, exist_ok=True)
    write_text(path, "".join(f"{row}\n" for row in rows))
    return path


def few(arguments, source):
    """As many lines of a list as are asked for."""
    return write_list(arguments, source.name, spread(lines(source), arguments.sentences))


def find_strangers(folders):
    """{speaker: (row of a prompt, path of the longest recording of another text)} of those that the folders have.

    ValueError where they have nobody."""
    rows = [row for folder in folders for row in read_metadata(folder) if row["speaker"] in HELD_OUT_VOICES]
    found = {}
    for speaker in HELD_OUT_VOICES:
        own = sorted((row for row in rows if row["speaker"] == speaker), key=lambda row: row["file_name"])
        right = [row for row in own if 3 <= row["duration"] <= 10]
        prompt = min(right, key=lambda row: abs(row["duration"] - PROMPT_SECONDS), default=None)
        others = [row for row in own if prompt and row["text"] != prompt["text"]]
        if others:
            found[speaker] = prompt, str(pathlib.Path(max(others, key=lambda row: row["duration"])["path"]).resolve())
    if not found:
        raise ValueError(
            f"{', '.join(map(str, folders)) or '--corpus'}: no recording of 3 to 10 s and another of any "
            f"of {', '.join(HELD_OUT_VOICES)}; smalle.corpus.synthesize makes those of {TEXTS}/strangers.jsonl"
        )
    return found


def cloning_rows(found, sentences, each):
    """Rows of a manifest for smalle.train.evaluation.evaluate --clone: each stranger has sentences of its own."""
    rows = []
    for number, speaker in enumerate(HELD_OUT_VOICES):
        for sentence in sentences[number :: len(HELD_OUT_VOICES)][:each] if speaker in found else ():
            prompt, reference = found[speaker]
            rows.append(
                {
                    "audio": str(pathlib.Path(prompt["path"]).resolve()),
                    "audio_text": prompt["text"],
                    "text": sentence,
                    "reference": reference,
                }
            )
    return rows


def cloning_lists(arguments):
    """(name for the table, manifest) of the part `cloning`: prompts, and where a model hears who speaks, recordings
    without their texts."""
    found, each = find_strangers(arguments.corpus), min(arguments.sentences or EACH, EACH)
    rows = cloning_rows(found, lines(arguments.eval / "sentences.txt"), each)
    name = f"cloning, {len(found)} of {len(HELD_OUT_VOICES)} strangers"
    lists = {name: ("cloning.jsonl", rows)}
    if SmallEConfig.from_pretrained(arguments.checkpoint).speaker_layers:
        textless = [{key: value for key, value in row.items() if key != "audio_text"} for row in rows]
        lists[f"{name}, without transcripts"] = "heard.jsonl", textless
    for name, (file, rows) in lists.items():
        yield name, write_list(arguments, file, [json.dumps(row, ensure_ascii=False) for row in rows])


def presets(checkpoint):
    """(name for the table, what to ask for) of each preset; the default is asked for by no name, as in `sentences`."""
    processor = SmallEProcessor.from_pretrained(checkpoint)
    for name in processor.voices:
        default = name == processor.default_voice
        yield f"preset {name}{' (default)' if default else ''}", None if default else name


def runs(arguments, part):
    """(name for the table, list, other settings) of what a part speaks."""
    if part == "cloning":
        for name, path in cloning_lists(arguments):
            yield name, path, {"clone": True, "batch_size": 1}
    elif part == "paragraph":
        yield part, TEXTS / "paragraph.txt", {"stream": True, "batch_size": 1}
    elif part == "presets":
        path = few(arguments, arguments.eval / "sentences.txt")
        for name, voice in presets(arguments.checkpoint):
            yield name, path, {"voice": voice}
    else:
        yield part, few(arguments, (arguments.eval if part in OF_EVAL else TEXTS) / f"{part}.txt"), {}


def measure(arguments, part, settings):
    """The row of a part, which is spoken and judged where it was not."""
    judge = arguments.asr or arguments.judge.name
    report = arguments.out / settings.name / "report.json"
    judged = report.is_file() and json.loads(report.read_text(encoding="utf-8")).get("judge") == judge
    judging = (
        {}
        if judged
        else {
            "judge": arguments.judge,
            "judge_python": arguments.judge_python,
            "asr": arguments.asr,
            "threads": arguments.threads,
        }
    )
    summary = evaluate(settings, arguments.out, **judging)
    row = {"part": part, **{key: summary[key] for key in (*COLUMNS, "seconds") if summary.get(key) is not None}}
    if not judged:
        weights = weights_digest(settings.checkpoint)
        record(
            "quality",
            arguments.note,
            model=pathlib.Path(settings.checkpoint).resolve().name,
            weights=weights and weights[:12],
            runtime=settings.runtime,
            seed=settings.seed,
            batch=settings.batch_size,
            generate=settings.generate,
            judge=judge,
            **row,
        )
    return row


def parse(argv=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", help="folder or Hub name")
    parser.add_argument("out", type=pathlib.Path)
    parser.add_argument("--only", nargs="+", default=list(PARTS), choices=PARTS, metavar="PART")
    parser.add_argument("--eval", type=pathlib.Path, help="folder of sentences.txt and hard.txt")
    parser.add_argument("--corpus", type=pathlib.Path, nargs="+", default=[], help="folders with the strangers")
    parser.add_argument("--sentences", type=int, metavar="N", help="lines of each list; all by default")
    parser.add_argument("--judge", type=pathlib.Path, help="program that scores a manifest")
    parser.add_argument("--asr", help="judge by this speech recognizer of transformers: folder or Hub name")
    parser.add_argument("--judge-python", default=sys.executable)
    parser.add_argument("--runtime", choices=RUNTIMES, default="torch")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--batch-size", type=int, default=25, help="clones and streams are made one by one")
    parser.add_argument("--generate", type=option, action="append", default=[], metavar="KEY=VALUE")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--note", help="what else is to be known, kept in the rows")
    arguments = parser.parse_intermixed_args(argv)
    if (arguments.judge is None) == (arguments.asr is None):
        parser.error("give --judge or --asr, one of them")
    if arguments.judge and not arguments.judge.is_file():
        parser.error(f"judge {arguments.judge} does not exist")
    if arguments.eval is None and set(arguments.only) & set(OF_EVAL):
        parser.error(f"{', '.join(OF_EVAL)} read lists of --eval FOLDER: give it, or --only words paragraph")
    if arguments.batch_size < 1 or arguments.sentences is not None and arguments.sentences < 1:
        parser.error(f"--batch-size {arguments.batch_size}, --sentences {arguments.sentences}: expected 1 or more")
    return arguments


def main(argv=None):
    arguments = parse(argv)
    torch.set_num_threads(arguments.threads)
    common = {
        "seed": arguments.seed,
        "device": arguments.device,
        "runtime": arguments.runtime,
        "batch_size": arguments.batch_size,
        "generate": dict(arguments.generate),
    }
    rows = []
    for part in arguments.only:
        for name, path, settings in runs(arguments, part):
            settings = Settings(arguments.checkpoint, path, **{**common, **settings})
            rows.append(measure(arguments, name, settings))
    shown = table(COLUMNS, rows)
    write_text(arguments.out / "table.md", shown + "\n")
    print(shown)


if __name__ == "__main__":
    sys.exit(main())
