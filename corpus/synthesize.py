"""Synthesizes a plan with Kokoro-82M: writes OUT/<speaker>/<id>.wav (16 bit, mono, 24 kHz) and OUT/metadata.jsonl.

  python -m smalle.corpus.synthesize PLAN.jsonl OUT --weights FOLDER [--voices NAME ... | --sampled-speakers N]

A row of the plan: {"id": "s1", "text": "Hello.", "phonemes": "həlˈO.", "speaker": "mix1", "voice": {"af_heart": 0.6,
"am_adam": 0.4}, "speed": 1.0}. Phonemes are in misaki's alphabet; weights of voices may be negative. Optional:
"prosody", weights for durations and pitch, if they differ from the voice's; "noise": {"voice": [7, 0.75], "prosody":
[8, 0.35]}, the seed and the length of a random vector that is added to each half of the style.

Rows are synthesized in the plan's order. To resume, run the same command again: it skips rows whose file exists.
"""

import argparse
import itertools
import json
import multiprocessing
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

from smalle.audio_smalle import write_wav
from smalle.cli.command import command_parser, run_command
from smalle.saving_smalle import write_jsonl

from .kokoro_model import MAX_PHONEMES, SAMPLES_PER_FRAME, SAMPLING_RATE, STYLE, Kokoro, load_kokoro, load_voices
from .speakers import rows_by_accent, sample_speakers

FIELDS: dict[str, type | tuple[type, ...]] = {
    "id": str,
    "text": str,
    "phonemes": str,
    "speaker": str,
    "voice": dict,
    "speed": (int, float),
}
STYLE_HALVES = ("voice", "prosody")
FRAME_STEP, BATCH_STEP = 32, 8  # lengths and batch sizes are rounded to few values: convolutions are planned by shape
WAV_HEADER = 44  # bytes
TEXTS_PER_SAMPLED_SPEAKER = 2
COUNTERS = ("spoken", "broken", "too_long", "seconds")


@dataclass
class Sentence:
    row: dict
    tokens: list[int]
    style: torch.Tensor
    start: int = 0  # of its features in those of the chunk
    durations: np.ndarray = field(default_factory=lambda: np.zeros(0, int))  # frames of each token

    @property
    def frames(self) -> int:
        return int(self.durations.sum())


# --- the plan


def read_plan(path: Path, voices: dict[str, torch.Tensor]) -> list[dict]:
    """Rows of the plan. Raises ValueError with the line number for an invalid row."""
    rows, seen = [], set()
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        try:
            row = json.loads(line)
            check_row(row, voices)
            if file_name(row) in seen:
                raise ValueError(f"{file_name(row)} occurs twice; expected another id or speaker")
        except ValueError as error:
            raise ValueError(f"{path}:{number}: {error}") from None
        seen.add(file_name(row))
        rows.append(row)
    return rows


def check_row(row: dict, voices: dict[str, torch.Tensor]) -> None:
    """Raises ValueError for an invalid row."""
    if not isinstance(row, dict):
        raise ValueError(f"expected a JSON object, found {row!r}")
    for name, kind in FIELDS.items():
        if not isinstance(row.get(name), kind):
            raise ValueError(f"{name} is {row.get(name)!r}; `smalle.corpus.synthesize --help` describes a row")
    if unknown := (row["voice"].keys() | row.get("prosody", {}).keys()) - voices.keys():
        raise ValueError(f"no voice {', '.join(sorted(unknown))}; expected some of {', '.join(sorted(voices))}")
    if not row["voice"] or not 0.3 <= row["speed"] <= 3:
        raise ValueError(f"voice {row['voice']}, speed {row['speed']}; expected one or more voices, speed 0.3 to 3")
    noise = row.get("noise", {})
    if not isinstance(noise, dict) or not noise.keys() <= set(STYLE_HALVES) or not all(map(is_noise, noise.values())):
        raise ValueError(f'noise is {noise!r}; expected a seed and a length for each half, as {{"voice": [7, 0.75]}}')
    name = file_name(row)
    if Path(name).parts != (row["speaker"], f"{row['id']}.wav") or ".." in name:
        raise ValueError(f"file name {name!r} is unsafe; expected plain names as id and speaker")


def is_noise(value) -> bool:
    """Whether a value is [seed, length]."""
    return isinstance(value, list) and [*map(type, value)] in ([int, int], [int, float])


def rows_for_voices(rows: list[dict], names: list[str]) -> list[dict]:
    """The plan for these voices alone, in turn: each takes the next row whose phonemes are of its accent.

    Voices of other languages speak American English."""
    spoken = {accent: iter(of_accent) for accent, of_accent in rows_by_accent(rows).items()}
    turns: list[dict] = []
    for name in itertools.cycle(names):
        row = next(spoken["b" if name[0] == "b" else "a"], None)
        if row is None:
            return turns
        turns.append({**row, "speaker": name, "voice": {name: 1.0}})
    return turns


def file_name(row: dict) -> str:
    return f"{row['speaker']}/{row['id']}.wav"


def style_of(row: dict, voices: dict[str, torch.Tensor], phonemes: int) -> torch.Tensor:
    """The style (256,) of a row with this many phonemes: half for the timbre, half for the prosody."""

    def blend(weights):
        return sum(weight * voices[name][phonemes - 1] for name, weight in weights.items())

    halves = [blend(row["voice"])[:STYLE], blend(row.get("prosody", row["voice"]))[STYLE:]]
    for half, name in zip(halves, STYLE_HALVES, strict=True):
        seed, length = row.get("noise", {}).get(name, (0, 0))
        random = torch.randn(STYLE, generator=torch.Generator().manual_seed(seed))
        half += length * torch.nn.functional.normalize(random, dim=0)
    return torch.cat(halves)


# --- speech


def predict_durations(model: Kokoro, batch: list[Sentence], device: str, start: int) -> torch.Tensor:
    """Sets the sentences' durations; returns their tokens' features (tokens, C), `start` of them lying before."""
    lengths = torch.tensor([len(s.tokens) for s in batch])
    width = -(-int(lengths.max()) // 16) * 16
    tokens = torch.tensor([s.tokens + [0] * (width - len(s.tokens)) for s in batch])
    styles = torch.stack([s.style for s in batch])
    speeds = torch.tensor([float(s.row["speed"]) for s in batch])
    features, durations = model.plan(tokens.to(device), lengths, styles.to(device), speeds.to(device))
    for i, (sentence, counts) in enumerate(zip(batch, durations.cpu().numpy(), strict=True)):
        sentence.start, sentence.durations = start + i * width, counts[: len(sentence.tokens)]
    return features.flatten(0, 1)


def decoder_batches(chunk: list[Sentence], seconds: float) -> Iterator[tuple[int, list[Sentence]]]:
    """(padded length in frames, sentences of similar lengths), the longest first; `seconds` of speech each."""
    chunk = sorted(chunk, key=lambda s: -s.frames)
    while chunk:
        length = -(-(chunk[0].frames + 1) // FRAME_STEP) * FRAME_STEP
        size = max(1, int(seconds * SAMPLING_RATE / SAMPLES_PER_FRAME / length))
        size -= size % BATCH_STEP if size > BATCH_STEP else 0
        yield length, chunk[:size]
        chunk = chunk[size:]


def speak_batch(model: Kokoro, features: torch.Tensor, batch: list[Sentence], length: int, device: str) -> np.ndarray:
    """Waveforms (B, samples) of sentences whose features are in those of the chunk."""
    rows = batch + [batch[-1]] * (-len(batch) % BATCH_STEP if device != "cpu" else 0)
    index = np.zeros((len(rows), length), np.int64)
    for i, s in enumerate(rows):
        index[i, : s.frames] = np.repeat(np.arange(len(s.tokens)) + s.start, s.durations)
    styles = torch.stack([s.style for s in rows]).to(device)
    frames = torch.tensor([s.frames for s in rows])
    try:
        return model.speak(features[torch.from_numpy(index).to(device)], frames, styles)[: len(batch)].cpu().numpy()
    except torch.cuda.OutOfMemoryError:
        if len(batch) == 1:
            raise
    torch.cuda.empty_cache()
    half = (len(batch) + 1) // 2
    return np.concatenate([speak_batch(model, features, part, length, device) for part in (batch[:half], batch[half:])])


def trim(audio: np.ndarray, text: str) -> slice | None:
    """The span of the speech: what is above the peak less 40 dB, with 0.10 s before and 0.20 s behind, in 5 ms steps.

    None for a waveform that is no reading of the text: silent, not finite, or not of 5 to 30 characters a second.
    """
    if not np.isfinite(audio).all() or len(audio) < SAMPLING_RATE // 5 or np.abs(audio).max() < 0.05:
        return None
    hop = SAMPLING_RATE // 200
    level = np.abs(audio[: len(audio) // hop * hop]).reshape(-1, hop).max(axis=1)
    loud = np.flatnonzero(level > 0.01 * level.max())
    start = max(0, loud[0] * hop - SAMPLING_RATE // 10)
    end = min(len(audio), (loud[-1] + 1) * hop + SAMPLING_RATE // 5)
    pace = len(text) * SAMPLING_RATE / (end - start)
    return slice(start, end) if len(text) <= 20 or 5 <= pace <= 30 else None


def write_sentence(audio: np.ndarray, row: dict, out: Path) -> float:
    """Trims and writes one sentence; returns its seconds, 0 where the audio is broken and nothing was written."""
    span = trim(audio, row["text"])
    if span is None:
        return 0.0
    path = out / file_name(row)
    path.parent.mkdir(parents=True, exist_ok=True)
    return write_wav(path, audio[span], SAMPLING_RATE) / SAMPLING_RATE


def speak_chunk(model: Kokoro, chunk: list[Sentence], args: argparse.Namespace, counts) -> bool:
    """Speaks and writes sentences; returns whether there was time for all."""
    if not chunk:
        return True
    chunk.sort(key=lambda s: len(s.tokens))
    parts: list[torch.Tensor] = []
    for i in range(0, len(chunk), 64):
        parts.append(predict_durations(model, chunk[i : i + 64], args.device, sum(map(len, parts))))
    features = torch.cat(parts)
    for length, batch in decoder_batches(chunk, args.batch_seconds):
        if time.time() > args.deadline:
            return False
        waves = speak_batch(model, features, batch, length, args.device)
        for sentence, audio in zip(batch, waves, strict=True):
            seconds = write_sentence(audio[: sentence.frames * SAMPLES_PER_FRAME], sentence.row, args.out)
            counts[0 if seconds else 1] += 1
            counts[3] += seconds
    return True


def work(worker: int, rows: list[dict], args: argparse.Namespace, counts) -> None:
    """A process: speaks rows, chunk by chunk. counts: shared memory for its COUNTERS."""
    torch.set_num_threads(1)
    torch.set_float32_matmul_precision("high")
    torch.manual_seed(args.seed + worker)
    model = load_kokoro(args.weights, args.device, getattr(torch, args.dtype))
    voices = load_voices(args.weights)
    for start in range(0, len(rows), args.chunk):
        chunk = []
        for row in rows[start : start + args.chunk]:
            tokens = model.tokenize(row["phonemes"])
            if 0 < len(tokens) - 2 <= MAX_PHONEMES:
                chunk.append(Sentence(row, tokens, style_of(row, voices, len(tokens) - 2)))
            else:
                counts[2] += 1
        if time.time() > args.deadline or not speak_chunk(model, chunk, args, counts):
            return


def run(rows: list[dict], args: argparse.Namespace) -> dict[str, float]:
    """Speaks rows in parallel, until all are done or the deadline has passed; returns the sums of COUNTERS.

    Workers take chunks in turn, so that the time limit cuts off the end of the plan.
    """
    context = multiprocessing.get_context("spawn")
    # Without a lock: each process writes its own, so one that dies blocks none.
    counts = [context.RawArray("d", len(COUNTERS)) for _ in range(args.processes)]
    workers = []
    for worker in range(args.processes):
        share = [row for i, row in enumerate(rows) if i // args.chunk % args.processes == worker]
        workers.append(context.Process(target=work, args=(worker, share, args, counts[worker]), daemon=True))
        workers[-1].start()

    def total():
        return dict(zip(COUNTERS, np.sum([list(c) for c in counts], axis=0), strict=True))

    begin = time.time()
    with tqdm(total=len(rows), unit="sentence", mininterval=5) as bar:
        while any(p.is_alive() for p in workers) and time.time() < args.deadline + 60:
            time.sleep(0.5)
            sums = total()
            speed = sums["seconds"] / (time.time() - begin)
            bar.set_postfix_str(f"{sums['seconds'] / 3600:.2f} h, {speed:.0f} x real time", refresh=False)
            bar.update(int(sums["spoken"] + sums["broken"] + sums["too_long"]) - bar.n)
    for i, process in enumerate(workers):
        if process.is_alive():
            process.kill()
        process.join()
        if process.exitcode:
            print(f"warning: process {i} ended with exit code {process.exitcode}; run again to resume", file=sys.stderr)
    return total()


def write_metadata(rows: list[dict], out: Path) -> float:
    """Lists all rows of the plan that have a file in OUT/metadata.jsonl; returns their hours."""
    entries = []
    for row in rows:
        path = out / file_name(row)
        if path.is_file():
            duration = (path.stat().st_size - WAV_HEADER) / 2 / SAMPLING_RATE
            entry = {"file_name": file_name(row), **{name: row[name] for name in ("text", "phonemes", "speaker")}}
            entries.append({**entry, "duration": round(duration, 3)})
    write_jsonl(out / "metadata.jsonl", entries)
    return sum(entry["duration"] for entry in entries) / 3600


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = command_parser("python -m smalle.corpus.synthesize", __doc__)
    parser.add_argument(
        "plan", type=Path, help="texts and speakers, .jsonl, as python -m smalle.corpus.texts writes them"
    )
    parser.add_argument("out", type=Path, help="folder of the corpus to write")
    parser.add_argument(
        "--weights", type=Path, required=True, help="folder written by python -m smalle.corpus.kokoro_weights"
    )
    speakers = parser.add_mutually_exclusive_group()
    speakers.add_argument("--voices", nargs="+", help="use only these Kokoro voices, in turn, in place of the plan's")
    speakers.add_argument(
        "--sampled-speakers", type=int, metavar="N", help="let each of N new, random speakers say two short texts"
    )
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu", help="cpu or cuda")
    parser.add_argument(
        "--dtype",
        choices=("float16", "bfloat16", "float32"),
        help="of the decoder; float16 on a GPU, float32 elsewhere",
    )
    parser.add_argument("--processes", type=int, default=4, help="processes that share the plan (default: 4)")
    parser.add_argument(
        "--minutes",
        type=float,
        default=1e6,
        help="stop after this many minutes; the same command continues (default: no limit)",
    )
    parser.add_argument(
        "--batch-seconds", type=float, help="seconds of speech decoded at once (default: 240 on a GPU, else 20)"
    )
    parser.add_argument("--seed", type=int, default=0, help="of the sampled speakers (default: 0)")
    args = parser.parse_args(argv)
    gpu = args.device != "cpu"
    args.dtype = args.dtype or ("float16" if gpu else "float32")
    args.batch_seconds = args.batch_seconds or (240 if gpu else 20)
    args.chunk = 512 if gpu else 8  # sentences whose durations are predicted together
    args.deadline = time.time() + 60 * args.minutes
    return args


def main(argv: Sequence[str] | None = None) -> int:
    begin, args = time.time(), parse(argv)
    voices = load_voices(args.weights)
    rows = read_plan(args.plan, voices)
    if unknown := set(args.voices or ()) - voices.keys():
        raise ValueError(f"--voices {' '.join(sorted(unknown))}: expected some of {', '.join(sorted(voices))}")
    if args.voices:
        rows = rows_for_voices(rows, args.voices)
    if args.sampled_speakers:
        rows = sample_speakers(rows, args.sampled_speakers, TEXTS_PER_SAMPLED_SPEAKER, voices, args.seed)
    args.out.mkdir(parents=True, exist_ok=True)
    todo = [row for row in rows if not (args.out / file_name(row)).is_file()]
    sums = run(todo, args) if todo else dict.fromkeys(COUNTERS, 0.0)
    hours, elapsed = write_metadata(rows, args.out), time.time() - begin
    print(
        f"{sums['spoken']:.0f} of {len(todo)} sentences spoken in {elapsed:.0f} s, "
        f"{sums['seconds'] / elapsed:.1f} times real time; left out: {sums['broken']:.0f} broken, "
        f"{sums['too_long']:.0f} empty or too long; the corpus has {hours:.2f} h"
    )
    return 0 if sums["spoken"] or not todo else 1


if __name__ == "__main__":
    sys.exit(run_command("synthesize", main))
