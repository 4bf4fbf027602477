"""What tuning a checkpoint to a new speaker brings: similarity and word errors before and after.

usage: python benchmarks/new_voice.py CORPUS BASE OUT --sentences FILE --judge score.py [options] [key.subkey=value ...]

CORPUS: a folder of one speaker's recordings, as smalle.train.adapt.finetune takes it. Some of its texts, the same in each run, are
left out of everything and then spoken, and as many lines of FILE, evenly spread. Each is compared with recordings of
other texts that were left out, ten joined (--joined), which varies less than one of three seconds. BASE speaks in its
own voice and with a recording as its prompt; then the tuned state and LoRA speak (train/recipes/finetune-*.yaml, with
what `key.subkey=value` changes in both), through a codec that was tuned too. The recordings left out are
judged as they are and through both codecs: no voice comes closer.

OUT keeps everything, of one set of options; the same command again does what is missing. Prints a table in Markdown and
writes OUT/table.md.
"""

import argparse
import json
import pathlib
import shutil
import statistics
import sys

import numpy as np
import torch

ROOT = pathlib.Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))
from smalle.train.adapt.clone import run, tune_codec  # noqa: E402
from smalle.train.adapt.finetune import split_rows  # noqa: E402
from smalle.train.codec.copy_synthesis import copy_synthesis  # noqa: E402
from smalle.train.data.audio import read_audio  # noqa: E402
from smalle.train.data.corpora import read_metadata  # noqa: E402
from smalle.train.evaluation.evaluate import Settings, evaluate, judge_recordings, option, write_rows  # noqa: E402

from benchmarks.measuring import markdown  # noqa: E402
from smalle import SmallEProcessor  # noqa: E402
from smalle.audio_smalle import write_wav  # noqa: E402
from smalle.codec_smalle import load_codec  # noqa: E402
from smalle.hub_smalle import write_json, write_jsonl, write_text  # noqa: E402
from smalle.voices_smalle import save_voice  # noqa: E402

JOINED_RATE = 24000  # Hz
METHODS = {"state": "tuned state", "lora": "LoRA"}
COLUMNS = "", "ECAPA to her recordings", "WER, her sentences", "WER, other sentences", "WER, all", "DistillMOS"


def join(paths, path):
    """Writes recordings one behind the other; gives the path of that."""
    parts = [read_audio(one, JOINED_RATE) for one in paths]
    write_wav(path, torch.from_numpy(np.concatenate(parts)), JOINED_RATE)
    return str(path)


def leave_out(corpus, sentences, count, out, joined=1):
    """Writes OUT/recordings, the corpus to tune on; OUT/left-out/manifest.jsonl, a recording of each text left out;
    OUT/spoken.jsonl, the sentences to speak, each with a reference of `joined` recordings of texts that follow its own.
    Gives the number of texts left out."""
    rows = [{**row, "file_name": str(pathlib.Path(row["path"]).resolve())} for row in read_metadata(corpus)]
    kept, left_out = split_rows(rows, count)
    takes = sorted({row["text"]: row for row in left_out}.values(), key=lambda row: row["text"])
    others = [line.strip() for line in sentences.read_text(encoding="utf-8").splitlines() if line.strip()]
    texts = [row["text"] for row in takes] + others[:: max(1, len(others) // count)][:count]
    if len(takes) < 2:
        raise ValueError(
            f"{corpus}: {len(takes)} text left out, expected two, to compare one with the other: "
            "10 different texts at least"
        )
    joined = max(1, min(joined, len(takes) - 1))
    (out / "left-out").mkdir(parents=True, exist_ok=True)
    ring = [take["file_name"] for take in takes] * (joined + 1)
    references = [
        ring[n + 1] if joined == 1 else join(ring[n + 1 : n + 1 + joined], out / "left-out" / f"{n:03}.wav")
        for n in range(len(takes))
    ] * len(texts)
    spoken = [{"text": text, "reference": reference} for text, reference in zip(texts, references)]
    recordings = [{**row, "audio": take["file_name"]} for row, take in zip(spoken, takes)]
    (out / "recordings").mkdir(parents=True, exist_ok=True)
    write_rows(out / "left-out", recordings)
    for path, lines in ((out / "recordings/metadata.jsonl", kept), (out / "spoken.jsonl", spoken)):
        write_jsonl(path, lines)
    return len(takes)


def prompt_of(base, out, seconds=4.0):
    """Path of a voice of BASE: the recording to tune on that is nearest to so many seconds, as a prompt."""
    path = out / "prompt.safetensors"
    if not path.is_file():
        row = min(read_metadata(out / "recordings"), key=lambda row: abs(row["duration"] - seconds))
        save_voice(path, *SmallEProcessor.from_pretrained(base).encode_voice(row["path"], row["text"]))
    return path


def copies(codec, out, arguments):
    """Rows of the judge's report of the recordings left out through a codec, in OUT."""
    if not (out / "manifest.jsonl").is_file():
        source = out.parent / "left-out" / "manifest.jsonl"
        rows = [json.loads(line) for line in source.read_text(encoding="utf-8").splitlines()]
        made = copy_synthesis(codec, source, out).read_text(encoding="utf-8").splitlines()
        write_rows(out, [{**row, "audio": json.loads(copy)["audio"]} for row, copy in zip(rows, made)])
    return judged(out, arguments)


def tune(method, base, out, overrides):
    """OUT/METHOD and OUT/METHOD-whole by smalle.train.adapt.finetune, if they are not there."""
    if (out / f"{method}-whole").is_dir():
        return
    codec = ["--codec", out / "codec"] if (out / "codec").is_dir() else []
    run(
        "smalle.train.adapt.finetune",
        ROOT / "train" / "recipes" / f"finetune-{method}.yaml",
        out / "recordings",
        base,
        out / method,
        *overrides,
        "--name",
        "voice",
        "--whole",
        out / f"{method}-whole.partial",
        *codec,
    )
    shutil.move(out / f"{method}-whole.partial", out / f"{method}-whole")


def judged(folder, arguments):
    """Rows of the judge's report of a folder with a manifest."""
    path = folder / "judged.json"
    if not path.is_file():
        write_json(
            path,
            judge_recordings(arguments.judge, arguments.judge_python, folder / "manifest.jsonl", arguments.threads),
        )
    return json.loads(path.read_text(encoding="utf-8"))["rows"]


def spoken(checkpoint, voice, arguments):
    """Rows of the judge's report of what a checkpoint says of OUT/spoken.jsonl."""
    settings = Settings(
        str(checkpoint),
        arguments.out / "spoken.jsonl",
        voice=voice and str(voice),
        batch_size=arguments.batch_size,
        generate=dict(arguments.generate),
    )
    folder = pathlib.Path(evaluate(settings, arguments.out / "spoken")["folder"])
    return judged(folder, arguments)


def word_errors(rows):
    """WER in percent of a judge's rows."""
    return 100 * sum(row["errors"] for row in rows) / max(1, sum(row["words"] for row in rows))


def line(name, rows, count):
    """Values of a row of the table; the first `count` rows are the speaker's own sentences."""
    found = [[row[key] for row in rows if row.get(key) is not None] for key in ("similarity", "distillmos")]
    mean = [f"{statistics.mean(values):.2f}" if values else "–" for values in found]  # a judge may not say
    parts = [f"{word_errors(part):.1f} %" if part else "" for part in (rows[:count], rows[count:], rows)]
    return name, mean[0], *parts, mean[1]


def parse():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in ("corpus", "base"):
        parser.add_argument(name)
    parser.add_argument("out", type=pathlib.Path)
    parser.add_argument("overrides", nargs="*")
    parser.add_argument("--sentences", type=pathlib.Path, required=True, help="text file, one a line")
    parser.add_argument("--judge", type=pathlib.Path, required=True, help="program that scores a manifest")
    parser.add_argument("--judge-python", default=sys.executable)
    parser.add_argument("--count", type=int, default=20, help="texts to leave out; and lines of --sentences to speak")
    parser.add_argument("--joined", type=int, default=10, help="recordings in what each sentence is compared with")
    parser.add_argument("--codec-minutes", type=float, default=4, help="to tune the codec; 0: not at all")
    parser.add_argument("--methods", nargs="*", default=list(METHODS), choices=METHODS)
    parser.add_argument("--generate", type=option, action="append", default=[], metavar="KEY=VALUE")
    parser.add_argument("--batch-size", type=int, default=20)
    parser.add_argument("--threads", type=int, default=2)
    arguments = parser.parse_intermixed_args()
    arguments.out = arguments.out.resolve()
    if pathlib.Path(arguments.base).is_dir():  # else a name on the Hub
        arguments.base = str(pathlib.Path(arguments.base).resolve())
    return arguments


def main():
    arguments = parse()
    base, out = arguments.base, arguments.out
    torch.set_num_threads(arguments.threads)
    count = leave_out(arguments.corpus, arguments.sentences, arguments.count, out, arguments.joined)
    if arguments.codec_minutes:
        tune_codec(base, out, arguments.codec_minutes)
    for method in arguments.methods:
        tune(method, base, out, arguments.overrides)
    table = [line("her recordings", judged(out / "left-out", arguments), count)]
    codec = SmallEProcessor.from_pretrained(base).codec
    table += [line("her recordings through the codec", copies(codec, out / "copies", arguments), count)]
    if arguments.codec_minutes:
        codec, name = load_codec(str(out / "codec")), "her recordings through the tuned codec"
        table += [line(name, copies(codec, out / "copies-tuned", arguments), count)]
    table += [line("base, its own voice", spoken(base, None, arguments), count)]
    prompt = prompt_of(base, out)
    table += [line("base, a recording of hers as prompt", spoken(base, prompt, arguments), count)]
    for method in arguments.methods:
        table += [line(METHODS[method], spoken(out / f"{method}-whole", None, arguments), count)]
    shown = markdown(COLUMNS, table)
    write_text(out / "table.md", shown + "\n")
    print(shown)


if __name__ == "__main__":
    sys.exit(main())
