"""Encodes corpora into codes for training, written to shards OUT/train-00000.parquet, OUT/eval-00000.parquet, ...

  smalle prepare CORPUS... --codec FOLDER --output OUT [options]
  smalle prepare CORPUS... --codec FOLDER --output OUT --engine ray    # on all machines of a cluster

CORPUS is Libri-light (folder or .tar), LibriTTS, a folder with metadata.jsonl or metadata.csv or with NAME.txt next to
NAME.wav, or parquet files. Run the same command again to resume; the engine may differ. OUT/problems.jsonl lists
unusable clips. `datasets.load_dataset(OUT)` reads the result.

Columns: id (of the clip in its corpus), text, speaker, duration (s), words (start and end in seconds of each word of
text.split(), flat; empty if unknown), codes (uint16, flat: frame by frame, num_codebooks values each), reference (codes
of the clip as a simulated home recording, with --references; otherwise empty).
"""

import argparse
import collections
import concurrent.futures
import functools
import itertools
import json
import os
import pathlib
import random
import sys
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import datasets
import numpy as np
import pyarrow.parquet
import torch
import tqdm

from smalle.audio_smalle import to_speech_level
from smalle.cli.command import command_parser, run_command
from smalle.codec_smalle import EncodecCodec, SmallECodec, load_codec
from smalle.saving_smalle import atomic_write, write_text

from .audio import Clip, Problem, QualityGate, group_by_file, read_clips, read_waveform
from .corpora import corpus_clips
from .home_recording import HomeRecording
from .shard_plan import REQUEST, SPLITS, load_or_make_plan, read_planned_clips

FEATURES = datasets.Features(
    {
        "id": datasets.Value("string"),
        "text": datasets.Value("string"),
        "speaker": datasets.Value("string"),
        "duration": datasets.Value("float32"),
        "words": datasets.List(datasets.Value("float32")),
        "codes": datasets.List(datasets.Value("uint16")),
        "reference": datasets.List(datasets.Value("uint16")),
    }
)
CARD = """\
---
configs:
- config_name: default
  data_files:
{files}
---
Codes of {codec}: {hours:.1f} hours. Columns: id, text, speaker, duration, words, codes (frame by frame).
"""
BAR = "{percentage:3.0f}% of {total:.2f} h of audio |{bar}| {elapsed}, {remaining} left"
Codec = SmallECodec | EncodecCodec
Transcribe = Callable[[list[np.ndarray], int], list[str]]


def load_codec_on(name: str, device: torch.device | str) -> Codec:
    """Loads a codec, by folder or Hub name, to a device."""
    codec = load_codec(name).eval()
    torch.nn.Module.to(codec, device)  # codec.to(device); the annotations of transformers lack the argument
    return codec


@torch.inference_mode()
def encode(codec: Codec, waves: list[np.ndarray]) -> list[torch.Tensor]:
    """Codes (T, Q) of waveforms float32 (L,) of any lengths, computed as one batch."""
    lengths = torch.tensor([len(wave) for wave in waves])
    batch = torch.zeros(len(waves), int(lengths.max()))
    for row, wave in zip(batch, waves):
        row[: len(wave)] = torch.from_numpy(wave)
    device = next(codec.parameters()).device
    codes = codec.encode(batch.to(device), lengths.to(device)).transpose(1, 2).cpu()
    frames = (lengths + codec.hop_length - 1) // codec.hop_length
    return [row[:count] for row, count in zip(codes, frames.tolist())]


def read_ahead(
    clips: Iterable[Clip], sampling_rate: int, threads: int, ahead: int = 4
) -> Iterator[tuple[Clip, np.ndarray | Problem]]:
    """Yields (clip, waveform or Problem) in the order of the clips; threads read a few recordings ahead."""
    read = functools.partial(read_waveform, sampling_rate=sampling_rate)
    with concurrent.futures.ThreadPoolExecutor(threads) as pool:
        reading: collections.deque = collections.deque()
        for group in itertools.chain(group_by_file(clips), [None] * (threads + ahead)):
            if group:
                reading.append((group, pool.submit(read_clips, group, read)))
            if reading and (group is None or len(reading) > threads + ahead):
                done, waves = reading.popleft()
                yield from zip(done, waves.result())


def make_batches(
    clips: Iterable[tuple[Any, np.ndarray]], batch_samples: int, buffered: int = 4
) -> Iterator[list[tuple[Any, np.ndarray]]]:
    """Yields lists of (clip, waveform) with at most `batch_samples` samples, including padding.

    Sorts by length within a buffer of `buffered` batches, so memory use does not depend on the size of the corpus.
    """

    def cut(buffer):
        batch = []
        for pair in sorted(buffer, key=lambda pair: len(pair[1])):
            if batch and len(pair[1]) * (len(batch) + 1) > batch_samples:
                yield batch
                batch = []
            batch.append(pair)
        yield batch

    buffer, size = [], 0
    for pair in clips:
        buffer.append(pair)
        size += len(pair[1])
        if size > buffered * batch_samples:
            yield from cut(buffer)
            buffer, size = [], 0
    if buffer:
        yield from cut(buffer)


def encode_clips(
    clips: Iterable[Clip],
    codec: Codec,
    report: Callable[[Problem], Any],
    batch_seconds: float = 400,
    threads: int = 8,
    transcribe: Transcribe | None = None,
    codebooks: int | None = None,
    gate: QualityGate | None = None,
    home: HomeRecording | None = None,
) -> Iterator[list[dict]]:
    """Yields batches of rows of FEATURES.

    Args:
        report: called with each Problem.
        transcribe: (waveforms, sampling rate) -> texts, for clips without text.
        codebooks: number of codebooks to keep; all by default.
        gate: scales recordings to one level, and rejects some.
        home: makes the references.
    """

    def waves():
        for clip, wave in read_ahead(clips, codec.sampling_rate, threads):
            if not isinstance(wave, Problem) and gate is not None:
                levelled = gate(wave)
                wave = Problem(clip.id, "is too quiet, too noisy or clipped") if levelled is None else levelled
            if isinstance(wave, Problem):
                report(wave)
            else:
                yield clip, wave

    def encoded(waves):
        return [codes[:, :codebooks].numpy().astype(np.uint16).ravel() for codes in encode(codec, waves)]

    for batch in make_batches(waves(), int(batch_seconds * codec.sampling_rate)):
        untranscribed = [wave for clip, wave in batch if not clip.text]
        transcripts = iter(transcribe(untranscribed, codec.sampling_rate) if transcribe and untranscribed else ())
        rows, recordings = [], [wave for _, wave in batch]
        references = [np.zeros(0, np.uint16)] * len(batch)
        if home is not None:
            seeds = [zlib.crc32(clip.id.encode()) for clip, _ in batch]
            references = encoded([to_speech_level(home(wave, seed)) for wave, seed in zip(recordings, seeds)])
        for (clip, wave), codes, reference in zip(batch, encoded(recordings), references):
            text = clip.text or next(transcripts, None)
            if not text:
                report(Problem(clip.id, "the recognizer found no words in it" if transcribe else "has no text"))
                continue
            row = {"id": clip.id, "text": text, "speaker": clip.speaker, "duration": len(wave) / codec.sampling_rate}
            row["words"] = [time / clip.speed for word in clip.words for time in word]
            row["codes"], row["reference"] = codes, reference
            rows.append(row)
        yield rows


def encode_corpora(
    corpora: Iterable[str | os.PathLike],
    codec: Codec,
    speaker: str | None = None,
    max_clips: int | None = None,
    batch_seconds: float = 400,
    threads: int = 8,
    gate: QualityGate | None = None,
) -> Iterator[dict]:
    """Yields rows of FEATURES of the corpora, or of one `speaker`, for at most `max_clips` random clips.

    Raises ValueError for an unknown speaker and, if there is no gate, for unusable clips.
    """

    def refuse(problem):
        if gate is None:
            raise ValueError(f"{problem.id}: {problem.reason}")

    clips = []
    for clip in itertools.chain.from_iterable(map(corpus_clips, corpora)):
        if isinstance(clip, Clip):
            clips.append(clip)
        else:
            refuse(clip)
    wanted = [clip for clip in clips if speaker in (None, clip.speaker)]
    if speaker and not wanted:
        names = sorted({clip.speaker for clip in clips})
        raise ValueError(
            f"speaker={speaker!r} is not in {', '.join(map(str, corpora))}: expected one of {', '.join(names[:8])}"
        )
    if max_clips and max_clips < len(wanted):
        wanted = random.Random(0).sample(wanted, max_clips)
    for rows in encode_clips(wanted, codec, refuse, batch_seconds, threads, gate=gate):
        yield from rows


def write_codes(rows: list[dict], path: str | os.PathLike) -> str | os.PathLike:
    """Writes rows of FEATURES as one parquet file; returns its path."""
    table = pyarrow.table({name: [row.get(name) for row in rows] for name in FEATURES}, schema=FEATURES.arrow_schema)
    with atomic_write(path) as temporary:
        pyarrow.parquet.write_table(table, temporary, row_group_size=1000)
    return path


class ShardWriter:
    """Writes planned shards with the codec and the other options of the command."""

    def __init__(self, arguments: argparse.Namespace):
        self.out: pathlib.Path = arguments.output
        self.codec = load_codec_on(arguments.codec, arguments.device)
        self.options = {name: getattr(arguments, name) for name in ("batch_seconds", "threads", "codebooks")}
        if arguments.gate:
            self.options["gate"] = QualityGate()
        if arguments.references:
            self.options["home"] = HomeRecording(self.codec.sampling_rate)
        if arguments.asr:
            from .transcriber import Transcriber

            self.options["transcribe"] = Transcriber(arguments.asr, arguments.device)

    def write(self, name: str, hours: float) -> Iterator[float]:
        """Writes OUT/plan/NAME.problems and then OUT/NAME.parquet, with rows in random order.

        Yields hours of finished audio, which add up to `hours`.
        """
        rows: list[dict] = []
        problems: list[Problem] = []
        left = hours
        for batch in encode_clips(read_planned_clips(self.out, name), self.codec, problems.append, **self.options):
            rows += batch
            done = min(sum(row["duration"] for row in batch) / 3600, left)
            left -= done
            yield done
        random.Random(name).shuffle(rows)
        write_text(self.out / "plan" / f"{name}.problems", "".join(problem.to_json() + "\n" for problem in problems))
        write_codes(rows, self.out / f"{name}.parquet")
        yield left  # clips may be unreadable or shorter than planned


def write_shards(shards: dict[str, float], arguments: argparse.Namespace) -> Iterator[float]:
    """Writes planned shards, {name: hours}, in this process; yields hours of finished audio."""
    writer = ShardWriter(arguments)
    for name, hours in shards.items():
        yield from writer.write(name, hours)


def on_ray() -> Callable[[dict[str, float], argparse.Namespace], Iterator[float]]:
    """`write_shards` for the workers of a Ray cluster. Raises ValueError if Ray is not installed."""
    try:
        from .prepare_on_ray import write_shards
    except ModuleNotFoundError as error:
        raise ValueError(f"--engine ray needs the package {error.name}: run pip install 'smalle[ray]'.") from error
    return functools.partial(write_shards, ShardWriter)


def finish(out: pathlib.Path, shards: dict[str, float], codec: str) -> None:
    """Writes OUT/problems.jsonl and a README.md from which `datasets` knows the splits; prints a summary."""
    files = [out / "plan" / "problems.jsonl", *(out / "plan" / f"{name}.problems" for name in shards)]
    problems = [line for path in files for line in path.read_text(encoding="utf-8").splitlines()]
    hours = {split: [shards[name] for name in shards if name.startswith(f"{split}-")] for split in SPLITS}
    hours = {split: values for split, values in hours.items() if values}
    names = "\n".join(f'  - split: {split}\n    path: "{split}-*.parquet"' for split in hours)
    write_text(out / "problems.jsonl", "".join(f"{line}\n" for line in problems))
    write_text(out / "README.md", CARD.format(files=names, codec=codec, hours=sum(shards.values())))
    for split, values in hours.items():
        print(f"{split}: {sum(values):.2f} hours in {len(values)} shards, {out}/{split}-*.parquet")
    if problems:
        print(f"{len(problems)} clips left out, see {out}/problems.jsonl; the first: {json.loads(problems[0])}")


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = command_parser("smalle prepare", __doc__)
    add = parser.add_argument
    add("corpora", nargs="+", metavar="CORPUS", help="folder or file of speech")
    add("--codec", required=True, help="codec: folder or Hub name; 'encodec' for EnCodec at 3 kbps")
    add("--output", required=True, type=pathlib.Path, help="folder for the shards")
    add("--device", help="such as cpu or cuda (default: the GPU, if there is one)")
    add(
        "--engine",
        choices=("local", "ray"),
        default="local",
        help="local: this process; ray: one worker for each core or GPU of a Ray cluster or of this machine",
    )
    add("--exclude", nargs="*", default=[], metavar="SPEAKER", help="speakers to leave out")
    add(
        "--eval-clips",
        type=int,
        default=600,
        help="clips to hold out for evaluation without --eval-speakers (default: %(default)s)",
    )
    speakers = "speakers to hold out for {}: names, or a number"
    add("--eval-speakers", nargs="*", default=[], metavar="SPEAKER", help=speakers.format("evaluation"))
    add("--test-speakers", nargs="*", default=[], metavar="SPEAKER", help=speakers.format("a test split"))
    add(
        "--speeds",
        nargs="+",
        type=float,
        default=[1.0],
        metavar="SPEED",
        help="copy the training split at these speeds, each with its own speakers (default: 1)",
    )
    add(
        "--libriheavy-cuts",
        nargs="*",
        default=[],
        metavar="FILE",
        help="Libri-light: manifests of Libriheavy with the transcripts",
    )
    add(
        "--asr",
        metavar="NAME",
        help="transcribe clips without text with this recognizer of transformers: folder or Hub name",
    )
    add(
        "--min-snr",
        type=float,
        metavar="DB",
        help="Libri-light: skip recordings with a lower signal-to-noise ratio",
    )
    add("--max-seconds", type=float, default=25.0, help="Libri-light: longest clip without transcript (default: 25)")
    add("--codebooks", type=int, metavar="N", help="keep the first N codebooks (default: all)")
    add(
        "--gate",
        action="store_true",
        help="scale speech to -23 dBFS, and skip quiet, noisy and clipped recordings",
    )
    add(
        "--references",
        action="store_true",
        help="also encode each clip as a simulated home recording, as a reference for the speaker encoder",
    )
    add("--shard-hours", type=float, default=2.0, help="hours of audio per shard (default: 2)")
    add(
        "--batch-seconds",
        type=float,
        default=400.0,
        help="seconds of audio encoded at once, padding included (default: 400)",
    )
    add("--threads", type=int, help="threads that read audio (default: number of cores; 1 in each worker of ray)")
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> None:
    """Runs the command."""
    arguments = parse(argv)
    if int(os.environ.get("WORLD_SIZE", 1)) > 1:
        raise ValueError("WORLD_SIZE is above 1, but each process would write all shards: use --engine ray instead")
    local = arguments.engine == "local"
    arguments.output = out = arguments.output.absolute()
    arguments.device = arguments.device or ("cuda" if torch.cuda.is_available() else "cpu")
    arguments.threads = arguments.threads or (os.cpu_count() or 1 if local else 1)
    arguments.corpora = [os.path.abspath(corpus) for corpus in arguments.corpora]
    shards = load_or_make_plan(out, {name: getattr(arguments, name) for name in REQUEST})
    todo = {name: hours for name, hours in shards.items() if not (out / f"{name}.parquet").is_file()}
    write = write_shards if local else on_ray()
    if todo:
        total, left = sum(shards.values()), sum(todo.values())
        with tqdm.tqdm(total=total, initial=total - left, bar_format=BAR) as bar:
            for hours in write(todo, arguments):
                bar.update(hours)
    finish(out, shards, arguments.codec)


if __name__ == "__main__":
    sys.exit(run_command("smalle", main))
