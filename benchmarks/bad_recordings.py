"""Voices of bad recordings: each is refused with what to do, or the text is read right all the same.

  python benchmarks/bad_recordings.py CHECKPOINT OUT --sentences FILE --corpus FOLDER --scorer score.py [--group dev]
      [--people N] [options]

The bad recordings (KINDS) are made of those of several people, from CORPUS as in people.py; "good" is the recording as
it is. The sentences go round the people. Each is read once in the default voice, which is scored, too, and converted to
every voice. OUT/KIND/NUMBER.wav is what was said. Prints a table, which is also written to OUT/table.md, and appends a
row to benchmarks/results.jsonl.
"""

import argparse
import collections
import sys
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import soxr
import torch

sys.path.insert(0, str(Path(__file__).parents[1]))
from smalle.train.data.audio import read_audio  # noqa: E402
from smalle.train.evaluation.evaluate import add_scorer_options  # noqa: E402
from smalle.train.evaluation.scoring import score, write_manifest  # noqa: E402

from benchmarks.finetuned_voice import word_error_rate  # noqa: E402
from benchmarks.people import find_people  # noqa: E402
from benchmarks.quality import read_lines  # noqa: E402
from benchmarks.timing import markdown, record  # noqa: E402
from smalle import SmallEForTextToSpeech, SmallEProcessor  # noqa: E402
from smalle.saving_smalle import write_json, write_text  # noqa: E402
from smalle.voices_smalle import Voice  # noqa: E402

RATE = 24000  # Hz, of the recordings that are made
MOST_ERRORS = 10.0  # percent of the words with which a text counts as read right
DEFAULT = "default voice"  # that reads, not converted
WRONG_TRANSCRIPT = "Nothing of this was ever said by anybody."


class Material(NamedTuple):
    """What bad recordings are made of: `speech` and all recordings (L,) of a person, `other` (L,) of another person,
    and random numbers."""

    speech: np.ndarray
    everything: np.ndarray
    other: np.ndarray
    random: np.random.Generator

    def times(self, seconds: float = 6.0) -> np.ndarray:
        """Seconds (L,) at RATE."""
        return np.arange(round(seconds * RATE)) / RATE


# --- the kinds of recordings: samples (L,) at RATE in -1..1


def chord(material: Material) -> np.ndarray:
    """Three notes at once, which change twice a second."""
    times = material.times()
    roots = material.random.choice([110, 147, 165, 220], len(times) // (RATE // 2) + 1).repeat(RATE // 2)[: len(times)]
    return sum(0.1 * np.sin(2 * np.pi * np.cumsum(roots * ratio) / RATE) for ratio in (1, 1.25, 1.5))


def pulsing_chord(material: Material) -> np.ndarray:
    """Three notes that swell twice a second, over faint noise."""
    times, root = material.times(), material.random.uniform(150, 300)
    notes = sum(np.sin(2 * np.pi * root * ratio * times) for ratio in (1, 1.26, 1.5))
    return 0.1 * notes * np.sin(2 * np.pi * times) ** 2 + 0.02 * material.random.standard_normal(len(times))


def arpeggio(material: Material) -> np.ndarray:
    """Plucked notes with harmonics and vibrato, one after the other, as of a melody."""
    times, length = material.times(), RATE // 4
    steps = material.random.choice([0, 4, 7, 12, 16, 19], len(times) // length + 1)
    pitches = (220 * 2 ** (steps / 12)).repeat(length)[: len(times)] * (1 + 0.01 * np.sin(2 * np.pi * 5.5 * times))
    phases, fading = 2 * np.pi * np.cumsum(pitches) / RATE, np.exp(-8 * (times % 0.25))
    return 0.15 * fading * sum(np.sin(n * phases) / n for n in range(1, 7))


def beat(material: Material) -> np.ndarray:
    """Noise of two colours in a rhythm, as of drums."""
    times = material.times()
    noise = material.random.standard_normal(len(times))
    low = np.convolve(noise, np.hanning(60) / 30, "same")
    return 0.4 * low * np.exp(-12 * (times % 0.5)) + 0.1 * noise * np.exp(-30 * ((times + 0.25) % 0.5))


def fan_in_a_room(material: Material) -> np.ndarray:
    """Speech with the echoes of a room (0.4 s until they are 60 dB down), beside a fan 15 dB below it."""
    speech, random = material.speech, material.random
    times = np.arange(round(0.4 * RATE)) / RATE
    echoes = random.standard_normal(len(times)) * 10 ** (-3 * times / 0.4)
    room = np.convolve(speech, echoes / np.linalg.norm(echoes))[: len(speech)]
    heard = speech + 0.5 * room
    noise = np.convolve(random.standard_normal(len(speech)), np.hanning(120), "same")
    fan = noise / noise.std() + 0.5 * np.sin(2 * np.pi * 97 * np.arange(len(speech)) / RATE)
    return heard + fan / fan.std() * heard.std() * 10 ** (-15 / 20)


def louder(speech: np.ndarray, gain: float) -> np.ndarray:
    """Speech with its peak so many times as loud as fits."""
    return np.clip(gain * speech / np.abs(speech).max(), -1, 1)


def telephone(material: Material) -> np.ndarray:
    """Nothing above 4 kHz."""
    return soxr.resample(soxr.resample(material.speech, RATE, 8000), 8000, RATE)


KINDS: dict[str, Callable[[Material], np.ndarray]] = {
    "good": lambda material: material.speech,
    "silence": lambda material: np.zeros(5 * RATE),
    "tone": lambda material: 0.2 * np.sin(2 * np.pi * 440 * material.times()),
    "chord": chord,
    "pulsing chord": pulsing_chord,
    "arpeggio": arpeggio,
    "beat": beat,
    "clipped": lambda material: louder(material.speech, 12),
    "clipped a little": lambda material: louder(material.speech, 3),
    "0.4 s": lambda material: material.speech[RATE : RATE + round(0.4 * RATE)],
    "two minutes": lambda material: np.resize(material.everything, 120 * RATE),
    "8 kHz": telephone,
    "two people": lambda material: np.concatenate((material.speech, material.other)),
    "wrong transcript": lambda material: material.speech,
    "DC offset": lambda material: material.speech + 0.2,
    "fan in a room": fan_in_a_room,
}


# --- what becomes of them


def make_materials(corpus: Path, group: str | None, count: int) -> dict[str, Material]:
    """Those of so many people of a corpus, evenly spread among its speakers."""
    people = list(find_people(corpus, group, []).items())
    people = people[:: max(1, len(people) // count)][:count]
    if len(people) < 2:
        raise ValueError(f"{corpus}: one person in group {group}; expected two or more, for recordings of two people.")
    waves = [[read_audio(row["path"], RATE) for row in rows] for _, rows in people]
    return {
        name: Material(own[0], np.concatenate(own), waves[number - 1][0], np.random.default_rng(number))
        for number, ((name, _), own) in enumerate(zip(people, waves))
    }


def prepare(processor: SmallEProcessor, kind: str, material: Material) -> Voice | str:
    """The voice of a bad recording, or the reason why it is refused."""
    if kind == DEFAULT:
        return processor.get_voice(processor.default_voice)
    transcript = WRONG_TRANSCRIPT if kind == "wrong transcript" else None
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # of two minutes a part is heard; a transcript is not used
            samples = KINDS[kind](material).astype(np.float32)
            return processor.encode_voice(samples, transcript, sampling_rate=RATE)
    except ValueError as error:
        return str(error)


def speak(
    arguments: argparse.Namespace, materials: dict[str, Material]
) -> tuple[list[dict], dict[str, dict[str, str]]]:
    """Rows of the manifest of what is said in OUT, and for each kind the reasons of refusal by person."""
    processor = SmallEProcessor.from_pretrained(arguments.checkpoint)
    model = SmallEForTextToSpeech.from_pretrained(arguments.checkpoint).eval()
    texts = read_lines(arguments.sentences)[:: arguments.every][: arguments.count]
    codes = [model.generate(**processor(text), seed=number) for number, text in enumerate(texts)]
    rows, refusals = [], {}
    for kind in (DEFAULT, *arguments.kinds):
        folder = arguments.out / kind.replace(" ", "-")
        folder.mkdir(parents=True, exist_ok=True)
        voices = {name: prepare(processor, kind, material) for name, material in materials.items()}
        refusals[kind] = {name: voice for name, voice in voices.items() if isinstance(voice, str)}
        for number, (text, read) in enumerate(zip(texts, codes)):
            name = list(materials)[number % len(materials)]
            if name not in refusals[kind]:
                path = folder / f"{number:03}.wav"
                processor.save_audio(processor.decode(read, voice=voices[name]), path)
                rows.append({"audio": f"{folder.name}/{path.name}", "text": text, "kind": kind, "speaker": name})
        print(kind, refusals[kind] or "spoken", flush=True)
    return rows, refusals


def summarize(people: int, refusals: dict[str, dict[str, str]], scores: Sequence[dict]) -> dict[str, dict]:
    """For each kind how many people's recordings are refused and why, the word errors of the others, and whether it is
    as it should be: refused or read right."""
    spoken = collections.defaultdict(list)
    for row in scores:
        spoken[row["kind"]].append(row)
    kinds = {}
    for kind, reasons in refusals.items():
        wer = round(word_error_rate(spoken[kind]), 1) if spoken[kind] else None
        kinds[kind] = {
            "refused": len(reasons),
            "people": people,
            "wer": wer,
            "words": sum(row["words"] for row in spoken[kind]),
            "right": wer is None or wer <= MOST_ERRORS,
            "why": next(iter(reasons.values()), ""),
        }
    return kinds


def main(argv: Sequence[str] | None = None) -> dict[str, dict]:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint")
    parser.add_argument("out", type=Path)
    parser.add_argument("--corpus", type=Path, required=True)
    parser.add_argument("--sentences", type=Path, required=True, help="text file, one sentence a line")
    parser.add_argument("--group", help="of the speakers")
    parser.add_argument("--people", type=int, default=4, help="whose recordings are spoiled (default: %(default)s)")
    parser.add_argument("--kinds", nargs="+", default=list(KINDS), choices=KINDS, metavar="KIND", help="of recordings")
    parser.add_argument("--every", type=int, default=1, help="take every N-th sentence (default: %(default)s)")
    parser.add_argument("--count", type=int, default=16, help="sentences (default: %(default)s)")
    parser.add_argument("--note", help="a remark, kept in the row")
    add_scorer_options(parser, required=True, threads=1)
    arguments = parser.parse_args(argv)
    torch.set_num_threads(arguments.threads)
    materials = make_materials(arguments.corpus, arguments.group, arguments.people)
    rows, refusals = speak(arguments, materials)
    manifest = write_manifest(arguments.out, rows)
    scores = score(manifest, arguments.scorer, arguments.scorer_python, arguments.threads)["rows"] if rows else []
    kinds = summarize(len(materials), refusals, scores)
    write_json(arguments.out / "scores.json", scores)
    shown = markdown(("recording", *next(iter(kinds.values()))), [(kind, *row.values()) for kind, row in kinds.items()])
    write_text(arguments.out / "table.md", shown + "\n")
    print(shown)
    record("bad_recordings", arguments.note, group=arguments.group, sentences=arguments.count, kinds=kinds)
    return kinds


if __name__ == "__main__":
    main()
