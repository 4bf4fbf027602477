"""Corpora -> codes: shards OUT/train-00000.parquet, OUT/eval-00000.parquet, ..., which `datasets` reads.

usage: python -m smalle.train.data.prepare CORPUS... --codec FOLDER --out OUT [options]
       torchrun --nproc-per-node N -m smalle.train.data.prepare ...    (or accelerate launch; RANK and WORLD_SIZE say who is who)

A CORPUS is any layout of train.corpora. Each process writes its share of the shards, whole or not at all; the same
command again goes on after a kill, with any number of processes. What cannot be read is listed in OUT/problems.jsonl.

Columns: text, speaker, duration (s), words (start and end of each word of text.split() in seconds, one after the
other; empty where the corpus does not say), codes (uint16, frames after each other, num_codebooks values a frame),
source (the clip's name in its corpus).
"""

import argparse
import collections
import concurrent.futures
import itertools
import json
import os
import pathlib
import random

import datasets
import numpy as np
import pyarrow.parquet
import torch
import tqdm

from smalle.codec_smalle import load_codec

from ..files import write_text
from .clips import Problem, read_clips, recordings
from .corpora import corpus_clips
from .plan import SPLITS, load_or_make_plan, make_plan, read_part_of_plan

FEATURES = datasets.Features(
    {
        "text": datasets.Value("string"),
        "speaker": datasets.Value("string"),
        "duration": datasets.Value("float32"),
        "words": datasets.List(datasets.Value("float32")),
        "codes": datasets.List(datasets.Value("uint16")),
        "source": datasets.Value("string"),
    }
)


@torch.inference_mode()
def encode(codec, waves):
    """Waveforms of different lengths -> list of codes (T, Q), one batch."""
    lengths = torch.tensor([len(wave) for wave in waves])
    batch = torch.zeros(len(waves), int(lengths.max()))
    for row, wave in zip(batch, waves):
        row[: len(wave)] = torch.from_numpy(wave)
    device = next(codec.parameters()).device
    codes = codec.encode(batch.to(device), lengths.to(device)).transpose(1, 2).cpu()
    frames = (lengths + codec.hop_length - 1) // codec.hop_length
    return [row[:count] for row, count in zip(codes, frames.tolist())]


def read_ahead(clips, sampling_rate, threads, ahead=4):
    """(clip, waveform or Problem) of clips in their order; threads read a few recordings ahead."""
    groups = recordings(clips)
    with concurrent.futures.ThreadPoolExecutor(threads) as pool:
        reading = collections.deque()
        for group in itertools.chain(groups, [None] * (threads + ahead)):
            if group:
                reading.append((group, pool.submit(read_clips, group, sampling_rate)))
            if reading and (group is None or len(reading) > threads + ahead):
                done, waves = reading.popleft()
                yield from zip(done, waves.result())


def batches(pairs, batch_samples, hold=4):
    """Lists of (clip, waveform) whose padded length stays below `batch_samples`; like lengths go together.

    As many samples as fill `hold` batches are held back and sorted, so memory does not grow with the corpus.
    """
    held, size = [], 0

    def cut():
        batch = []
        for pair in sorted(held, key=lambda pair: len(pair[1])):
            if batch and len(pair[1]) * (len(batch) + 1) > batch_samples:
                yield batch
                batch = []
            batch.append(pair)
        yield batch

    for pair in pairs:
        held.append(pair)
        size += len(pair[1])
        if size > hold * batch_samples:
            yield from cut()
            held, size = [], 0
    if held:
        yield from cut()


def encode_clips(clips, codec, batch_seconds=400, threads=8, transcriber=None, problem=print):
    """Yields the row of each clip, one batch after the other: a list. problem is called with each Problem."""

    def waves():
        for clip, wave in read_ahead(clips, codec.sampling_rate, threads):
            if isinstance(wave, Problem):
                problem(wave)
            else:
                yield clip, wave

    for batch in batches(waves(), batch_seconds * codec.sampling_rate):
        silent = [wave for clip, wave in batch if not clip.text]
        heard = iter(transcriber(silent, codec.sampling_rate) if silent else ())
        rows = []
        for (clip, wave), codes in zip(batch, encode(codec, [wave for _, wave in batch])):
            text = clip.text or next(heard)
            if not text:
                problem(Problem(clip.source, "nothing is heard in it"))
                continue
            rows.append(
                {
                    "text": text,
                    "speaker": clip.speaker,
                    "duration": len(wave) / codec.sampling_rate,
                    "words": [time / clip.speed for word in clip.words for time in word],
                    "source": clip.source,
                    "codes": codes.numpy().astype(np.uint16).ravel(),
                }
            )
        yield rows


def prepare(corpora, codec, speaker=None, most=None, batch_seconds=400, threads=8):
    """Yields a row of codes for each clip of the corpora, or of one `speaker`; of `most` of them, drawn at random.

    Raises ValueError at one that cannot be read, and for a speaker that is not there.
    """

    def refuse(problem):
        raise ValueError(f"{problem.source}: {problem.reason}")

    clips = []
    for clip in itertools.chain(*map(corpus_clips, corpora)):
        if isinstance(clip, Problem):
            refuse(clip)
        clips.append(clip)
    wanted = [clip for clip in clips if speaker in (None, clip.speaker)]
    if speaker and not wanted:
        names = sorted({clip.speaker for clip in clips})
        raise ValueError(f"speaker={speaker!r}: {', '.join(map(str, corpora))} has {', '.join(names[:8])}")
    if most and most < len(wanted):
        wanted = random.Random(0).sample(wanted, most)
    for rows in encode_clips(wanted, codec, batch_seconds, threads, problem=refuse):
        yield from rows


def write(rows, path):
    """One parquet file, complete or not at all."""
    table = pyarrow.table({name: [row.get(name) for row in rows] for name in FEATURES}, schema=FEATURES.arrow_schema)
    pyarrow.parquet.write_table(table, f"{path}.partial", row_group_size=1000)
    os.replace(f"{path}.partial", path)
    return path


def write_shard(out, name, hours, codec, bar, **options):
    """One part of the plan as OUT/NAME.parquet, rows in random order; before it OUT/plan/NAME.problems."""
    rows, problems, end = [], [], bar.n + hours
    for batch in encode_clips(read_part_of_plan(out, name), codec, problem=problems.append, **options):
        rows += batch
        bar.update(min(sum(row["duration"] for row in batch) / 3600, end - bar.n))
    bar.update(end - bar.n)  # what could not be read, or was longer than planned
    random.Random(name).shuffle(rows)
    write_text(out / "plan" / f"{name}.problems", "".join(problem.to_json() + "\n" for problem in problems))
    write(rows, out / f"{name}.parquet")


BAR = "{percentage:3.0f}% of {total:.2f} h of audio |{bar}| {elapsed}, {remaining} left"
CARD = """\
---
configs:
- config_name: default
  data_files:
{files}
---
Codes of {codec}: {hours:.1f} hours. Columns: text, speaker, duration, words, codes (frames after each other), source.
"""


def finish(out, parts, codec_name):
    """OUT/problems.jsonl, and a README.md that tells `datasets` which shards are which split. Gives the problems."""
    files = [out / "plan" / "problems.jsonl", *(out / "plan" / f"{name}.problems" for name in parts)]
    problems = [line for path in files for line in path.read_text(encoding="utf-8").splitlines()]
    splits = [split for split in SPLITS if any(name.startswith(f"{split}-") for name in parts)]
    names = "\n".join(f'  - split: {split}\n    path: "{split}-*.parquet"' for split in splits)
    texts = {
        "problems.jsonl": "".join(f"{line}\n" for line in problems),
        "README.md": CARD.format(files=names, codec=codec_name, hours=sum(parts.values())),
    }
    for name, text in texts.items():
        write_text(out / name, text)  # every process may come here
    return [json.loads(line) for line in problems]


def parse():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    threads = max(1, (os.cpu_count() or 1) // int(os.environ.get("LOCAL_WORLD_SIZE", 1)))
    parser.add_argument("corpora", nargs="+")
    parser.add_argument("--codec", required=True, help="folder or Hub name; 'encodec' for EnCodec at 3 kbps")
    parser.add_argument("--out", required=True, type=pathlib.Path)
    parser.add_argument("--device", help="a GPU where there is one, the one of LOCAL_RANK")
    parser.add_argument("--exclude", nargs="*", default=[], help="speakers to leave out")
    for name, default, text in (
        ("--eval", 600, "clips of all speakers kept for evaluation, where no --eval-speakers are given"),
        ("--max-seconds", 25.0, "longest joined voiced stretch of Libri-light"),
        ("--shard-hours", 2.0, "audio of a shard"),
        ("--batch-seconds", 400.0, "padded audio of a batch"),
        ("--threads", threads, "threads that read audio"),
    ):
        parser.add_argument(name, type=type(default), default=default, help=f"{text} (default: %(default)s)")
    for name, text in (
        ("--eval-speakers", "speakers kept for evaluation: names, or how many"),
        ("--test-speakers", "speakers kept for the test: names, or how many"),
        ("--cuts", "cut manifests of Libriheavy: the transcripts of Libri-light"),
    ):
        parser.add_argument(name, nargs="*", default=[], help=text)
    parser.add_argument(
        "--speeds",
        nargs="+",
        type=float,
        default=[1.0],
        help="of what is trained on, each a speaker of its own; as 0.9 1 1.1",
    )
    parser.add_argument("--asr", help="recognizer of transformers for what has no transcript: folder or Hub name")
    parser.add_argument("--min-snr", type=float, help="dB; leaves out recordings of Libri-light with less")
    return parser.parse_args()


def main():
    arguments = parse()
    out, rank, world = arguments.out, int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
    device = arguments.device or (f"cuda:{os.environ.get('LOCAL_RANK', 0)}" if torch.cuda.is_available() else "cpu")
    corpora = [os.path.abspath(corpus) for corpus in arguments.corpora]
    options = dict(
        cuts=arguments.cuts,
        transcribe=bool(arguments.asr),
        min_snr=arguments.min_snr,
        max_seconds=arguments.max_seconds,
    )
    split = dict(
        exclude=arguments.exclude,
        eval_count=arguments.eval,
        eval_speakers=arguments.eval_speakers,
        test_speakers=arguments.test_speakers,
        shard_hours=arguments.shard_hours,
        speeds=arguments.speeds,
    )
    request = {"corpora": corpora, "codec": arguments.codec, "asr": arguments.asr, **options, **split}
    parts = load_or_make_plan(out, request, lambda: make_plan(out, corpora, **split, **options), first=rank == 0)
    mine = list(parts)[rank::world]
    done = {name for name in mine if (out / f"{name}.parquet").is_file()}
    if len(done) < len(mine):
        codec = load_codec(arguments.codec).to(device).eval()
        transcriber = None
        if arguments.asr:
            from ..evaluation.asr import Transcriber

            transcriber = Transcriber(arguments.asr, device)
        total, before = (sum(parts[name] for name in names) for names in (mine, done))
        with tqdm.tqdm(total=total, initial=before, disable=rank > 0, bar_format=BAR) as bar:
            for name in mine:
                if name not in done:
                    write_shard(
                        out,
                        name,
                        parts[name],
                        codec,
                        bar,
                        threads=arguments.threads,
                        transcriber=transcriber,
                        batch_seconds=arguments.batch_seconds,
                    )
    if all((out / f"{name}.parquet").is_file() for name in parts):
        problems = finish(out, parts, arguments.codec)
        for split in SPLITS:
            hours = [hours for name, hours in parts.items() if name.startswith(f"{split}-")]
            if hours:
                print(f"{split}: {sum(hours):.2f} hours in {len(hours)} shards, {out}/{split}-*.parquet")
        if problems:
            print(f"{len(problems)} left out, listed in {out}/problems.jsonl; first {problems[0]}")


if __name__ == "__main__":
    main()
