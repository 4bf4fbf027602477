"""Speak a plan of sentences with Kokoro-82M into a corpus folder: python -m smalle.corpus.synthesize PLAN.jsonl OUT --weights W

A row of the plan: {"id": "s1", "text": "Hello.", "phonemes": "həlˈO.", "speaker": "mix1", "voice": {"af_heart": 0.6,
"am_adam": 0.4}, "speed": 1.0}; phonemes in the misaki alphabet, voice weights of any sign; "prosody", weights as
well, where it is not spoken as it sounds; "stray", {"voice": [7, 0.75], "prosody": [8, 0.35]}, random directions for
both: a seed and a length. --voices or --crowd speak the plan's texts by other speakers. Writes
OUT/<speaker>/<id>.wav (16 bit, mono, 24 kHz) and OUT/metadata.jsonl. Rows are taken in the plan's order; a row whose
file exists is skipped, so that a run that was stopped by its time limit goes on where it ended.
"""

import argparse
import itertools
import json
import multiprocessing
import os
import sys
import time
import wave
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

from .kokoro_model import MAX_PHONEMES, SAMPLES_PER_FRAME, SAMPLING_RATE, STYLE, Kokoro, load_kokoro, load_voices
from .sampled_speakers import is_sampled_speaker

FIELDS = {"id": str, "text": str, "phonemes": str, "speaker": str, "voice": dict, "speed": (int, float)}
STRAY = ("voice", "prosody")
FRAME_STEP = 32  # lengths are rounded up to few values: convolution plans are cached by shape
BATCH_STEP = 8
WAV_HEADER = 44  # bytes
EACH_OF_CROWD = 2
COUNTERS = ("spoken", "broken", "too_long", "seconds")


@dataclass
class Options:
    """What a worker needs to know."""

    out: Path
    weights: Path
    device: str
    dtype: str
    processes: int
    chunk: int  # sentences planned together
    batch_seconds: float  # of speech decoded together
    deadline: float  # seconds since the epoch
    seed: int


@dataclass
class Sentence:
    row: dict
    tokens: list[int]
    style: torch.Tensor
    start: int = 0  # of its features in those of the chunk
    durations: np.ndarray | None = None  # frames of each token

    @property
    def frames(self) -> int:
        return int(self.durations.sum())


def read_plan(path: Path, voices: dict[str, torch.Tensor]) -> list[dict]:
    """Rows of the plan. Raises ValueError for a row that cannot be spoken."""
    rows, seen = [], set()
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        try:
            row = json.loads(line)
        except json.JSONDecodeError as error:
            raise ValueError(f"{path}:{number}: not JSON ({error}); expected one object a line") from None
        for field, kind in FIELDS.items():
            if not isinstance(row.get(field), kind):
                raise ValueError(f"{path}:{number}: {field} is {row.get(field)!r}; see the module for a row's form")
        if unknown := (row["voice"].keys() | row.get("prosody", {}).keys()) - voices.keys():
            known = ", ".join(sorted(voices))
            raise ValueError(f"{path}:{number}: no voice {', '.join(sorted(unknown))}; expected some of {known}")
        if not row["voice"] or not 0.3 <= row["speed"] <= 3:
            raise ValueError(
                f"{path}:{number}: voice {row['voice']} at speed {row['speed']}; "
                "expected one voice at least and a speed from 0.3 to 3"
            )
        if not strays(row.get("stray", {})):
            raise ValueError(
                f"{path}:{number}: stray is {row['stray']!r}; expected a seed and a length for each of "
                f'{", ".join(STRAY)}, as {{"voice": [7, 0.75]}}'
            )
        name = file_name(row)
        if Path(name).parts != (row["speaker"], f"{row['id']}.wav") or ".." in name or name in seen:
            raise ValueError(f"{path}:{number}: file name {name!r} is unsafe or taken; id and speaker need other names")
        seen.add(name)
        rows.append(row)
    return rows


def strays(value) -> bool:
    """Whether a value is a row's "stray"."""
    return (
        isinstance(value, dict)
        and value.keys() <= set(STRAY)
        and all(
            isinstance(pair, list) and len(pair) == 2 and isinstance(pair[0], int) and isinstance(pair[1], int | float)
            for pair in value.values()
        )
    )


def in_voices(rows: list[dict], names: list[str]) -> list[dict]:
    """The plan for these voices alone, in turn: each takes the next row whose phonemes are of its accent.

    Those of other languages speak American English."""
    spoken = {
        accent: iter([row for row in rows if {voice[0] for voice in row["voice"]} == {accent}]) for accent in "ab"
    }
    turns = []
    for name in itertools.cycle(names):
        row = next(spoken["b" if name[0] == "b" else "a"], None)  # a voice's first letter is its accent
        if row is None:
            return turns
        turns.append({**row, "speaker": name, "voice": {name: 1.0}})
    return turns


def file_name(row: dict) -> str:
    return f"{row['speaker']}/{row['id']}.wav"


def style_of(row: dict, voices: dict[str, torch.Tensor], phonemes: int) -> torch.Tensor:
    """The row's blend of voices for a sentence of so many phonemes, (256,): how it sounds, and how it is spoken."""

    def blend(weights):
        return sum(weight * voices[name][phonemes - 1] for name, weight in weights.items())

    halves = [blend(row["voice"])[:STYLE], blend(row.get("prosody", row["voice"]))[STYLE:]]
    for half, name in zip(halves, STRAY, strict=True):
        seed, length = row.get("stray", {}).get(name, (0, 0))
        random = torch.randn(STYLE, generator=torch.Generator().manual_seed(seed))
        half += length * torch.nn.functional.normalize(random, dim=0)
    return torch.cat(halves)


def plan_batch(model: Kokoro, batch: list[Sentence], device: str, start: int) -> torch.Tensor:
    """Fill in the sentences' durations; returns their token features one behind the other, (tokens, C)."""
    lengths = torch.tensor([len(s.tokens) for s in batch])
    width = -(-int(lengths.max()) // 16) * 16
    tokens = torch.tensor([s.tokens + [0] * (width - len(s.tokens)) for s in batch])
    styles = torch.stack([s.style for s in batch])
    speeds = torch.tensor([float(s.row["speed"]) for s in batch])
    features, durations = model.plan(tokens.to(device), lengths, styles.to(device), speeds.to(device))
    for i, (sentence, counts) in enumerate(zip(batch, durations.cpu().numpy(), strict=True)):
        sentence.start, sentence.durations = start + i * width, counts[: len(sentence.tokens)]
    return features.flatten(0, 1)


def plan_chunk(model: Kokoro, chunk: list[Sentence], device: str) -> torch.Tensor:
    chunk.sort(key=lambda s: len(s.tokens))
    features, start = [], 0
    for i in range(0, len(chunk), 64):
        features.append(plan_batch(model, chunk[i : i + 64], device, start))
        start += len(features[-1])
    return torch.cat(features)


def decoder_batches(chunk: list[Sentence], seconds: float) -> Iterator[tuple[int, list[Sentence]]]:
    """Padded length in frames and sentences of about equal length, the longest first."""
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


def speech_span(audio: np.ndarray) -> slice:
    """At most 0.10 s before and 0.20 s behind what is louder than the peak less 40 dB, in steps of 5 ms."""
    hop = SAMPLING_RATE // 200
    level = np.abs(audio[: len(audio) // hop * hop]).reshape(-1, hop).max(axis=1)
    loud = np.flatnonzero(level > 0.01 * level.max())
    start = max(0, loud[0] * hop - SAMPLING_RATE // 10)
    return slice(start, min(len(audio), (loud[-1] + 1) * hop + SAMPLING_RATE // 5))


def usable(audio: np.ndarray, text: str) -> bool:
    """Whether trimmed audio can be a reading of the text: finite, audible, 5 to 30 characters a second."""
    pace = len(text) * SAMPLING_RATE / len(audio)
    return len(text) <= 20 or 5 <= pace <= 30


def finish(audio: np.ndarray, row: dict, out: Path) -> float:
    """Check, trim and write one sentence; returns its seconds, 0 where the audio is broken and nothing was written."""
    if not np.isfinite(audio).all() or np.abs(audio).max() < 0.05:
        return 0.0
    audio = audio[speech_span(audio)]
    if not usable(audio, row["text"]):
        return 0.0
    path = out / file_name(row)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(".part")
    with wave.open(str(partial), "wb") as file:
        file.setparams((1, 2, SAMPLING_RATE, 0, "NONE", ""))
        file.writeframes((audio.clip(-1, 1) * 32767).round().astype("<i2").tobytes())
    os.replace(partial, path)
    return len(audio) / SAMPLING_RATE


def work(worker: int, rows: list[dict], options: Options, counts) -> None:
    """Speak rows chunk by chunk; `counts` is shared memory for this worker's COUNTERS."""
    torch.set_num_threads(1)
    torch.set_float32_matmul_precision("high")
    torch.manual_seed(options.seed + worker)
    model = load_kokoro(options.weights, options.device, getattr(torch, options.dtype))
    voices = load_voices(options.weights)
    for start in range(0, len(rows), options.chunk):
        chunk = []
        for row in rows[start : start + options.chunk]:
            tokens = model.tokenize(row["phonemes"])
            if not 0 < len(tokens) - 2 <= MAX_PHONEMES:
                counts[2] += 1
                continue
            chunk.append(Sentence(row, tokens, style_of(row, voices, len(tokens) - 2)))
        if time.time() > options.deadline or not speak_chunk(model, chunk, options, counts):
            return


def speak_chunk(model: Kokoro, chunk: list[Sentence], options: Options, counts) -> bool:
    """Speak and write sentences; returns whether there was time for all."""
    if not chunk:
        return True
    features = plan_chunk(model, chunk, options.device)
    for length, batch in decoder_batches(chunk, options.batch_seconds):
        if time.time() > options.deadline:
            return False
        waves = speak_batch(model, features, batch, length, options.device)
        for sentence, audio in zip(batch, waves, strict=True):
            seconds = finish(audio[: sentence.frames * SAMPLES_PER_FRAME], sentence.row, options.out)
            counts[0 if seconds else 1] += 1
            counts[3] += seconds
    return True


def run(rows: list[dict], options: Options) -> dict[str, float]:
    """Speak the rows in parallel, until all are done or the deadline has passed; returns the sums of COUNTERS.

    Chunks are dealt to the workers in turn, so that the time limit cuts the end of the plan.
    """
    shares = [
        [row for i, row in enumerate(rows) if i // options.chunk % options.processes == worker]
        for worker in range(options.processes)
    ]
    context = multiprocessing.get_context("spawn")
    # Without a lock: each worker writes to its own, so one that dies holds up nobody.
    counts = [context.RawArray("d", len(COUNTERS)) for _ in range(options.processes)]
    workers = [
        context.Process(target=work, args=(i, shares[i], options, counts[i]), daemon=True)
        for i in range(options.processes)
    ]
    for process in workers:
        process.start()
    begin = time.time()
    with tqdm(total=len(rows), unit="sentence", mininterval=5) as bar:
        while any(p.is_alive() for p in workers) and time.time() < options.deadline + 60:
            time.sleep(0.5)
            sums = total(counts)
            bar.set_postfix_str(
                f"{sums['seconds'] / 3600:.2f} h, {sums['seconds'] / (time.time() - begin):.0f} x", refresh=False
            )
            bar.update(int(sums["spoken"] + sums["broken"] + sums["too_long"]) - bar.n)
    for i, process in enumerate(workers):
        if process.is_alive():
            process.kill()
        process.join()
        if process.exitcode:
            print(
                f"warning: process {i} ended with exit code {process.exitcode}; run again for its rows",
                file=sys.stderr,
                flush=True,
            )
    return total(counts)


def total(counts) -> dict[str, float]:
    """Sums of the workers' COUNTERS."""
    return dict(zip(COUNTERS, np.sum([list(c) for c in counts], axis=0), strict=True))


def write_metadata(rows: list[dict], out: Path) -> float:
    """List all rows of the plan that have a file; returns their hours."""
    partial, seconds = out / "metadata.jsonl.part", 0.0
    with open(partial, "w", encoding="utf-8") as file:
        for row in rows:
            path = out / file_name(row)
            if path.is_file():
                duration = (path.stat().st_size - WAV_HEADER) / 2 / SAMPLING_RATE
                seconds += duration
                entry = {
                    "file_name": file_name(row),
                    "text": row["text"],
                    "phonemes": row["phonemes"],
                    "speaker": row["speaker"],
                    "duration": round(duration, 3),
                }
                file.write(json.dumps(entry, ensure_ascii=False) + "\n")
    os.replace(partial, out / "metadata.jsonl")
    return seconds / 3600


def parse(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m smalle.corpus.synthesize", description=__doc__)
    parser.add_argument("plan", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--weights", type=Path, required=True, help="folder written by python -m smalle.corpus.kokoro")
    others = parser.add_mutually_exclusive_group()
    others.add_argument("--voices", nargs="+", help="speak the plan in these voices alone, in turn")
    others.add_argument(
        "--crowd",
        type=int,
        metavar="SPEAKERS",
        help="speak two short texts of the plan by each of so many speakers (smalle.corpus.sampled_speakers)",
    )
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument(
        "--dtype",
        choices=("float16", "bfloat16", "float32"),
        help="of the decoder; float16 on a GPU, float32 elsewhere",
    )
    parser.add_argument("--processes", type=int, default=4)
    parser.add_argument("--minutes", type=float, default=1e6, help="time limit")
    parser.add_argument("--batch-seconds", type=float, help="speech decoded together: 240 on a GPU, 20 elsewhere")
    parser.add_argument("--seed", type=int, default=0)
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> int:
    begin, args = time.time(), parse(argv)
    gpu = args.device != "cpu"
    try:
        voices = load_voices(args.weights)
        rows = read_plan(args.plan, voices)
        if unknown := set(args.voices or ()) - voices.keys():
            raise ValueError(f"--voices {' '.join(sorted(unknown))}: expected some of {', '.join(sorted(voices))}")
    except (OSError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    if args.voices:
        rows = in_voices(rows, args.voices)
    if args.crowd:
        rows = is_sampled_speaker(rows, args.crowd, EACH_OF_CROWD, voices, args.seed)
    args.out.mkdir(parents=True, exist_ok=True)
    todo = [row for row in rows if not (args.out / file_name(row)).is_file()]
    options = Options(
        args.out,
        args.weights,
        args.device,
        args.dtype or ("float16" if gpu else "float32"),
        args.processes,
        512 if gpu else 8,
        args.batch_seconds or (240 if gpu else 20),
        begin + 60 * args.minutes,
        args.seed,
    )
    sums = run(todo, options)
    hours, elapsed = write_metadata(rows, args.out), time.time() - begin
    print(
        f"{sums['spoken']:.0f} of {len(todo)} sentences spoken in {elapsed:.0f} s, "
        f"{sums['seconds'] / elapsed:.1f} times real time; "
        f"{sums['broken']:.0f} broken and {sums['too_long']:.0f} empty or too long were left out; "
        f"the corpus has {hours:.2f} h",
        flush=True,
    )
    return 0 if sums["spoken"] or not todo else 1


if __name__ == "__main__":
    sys.exit(main())
