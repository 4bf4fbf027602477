"""How well a converter tells speech from other sounds, and one speaker from two: what its limits are chosen from.

  python benchmarks/recording_checks.py CHECKPOINT --corpus FOLDER [--group train] [--people N]

Prints quantiles of `speech_scores` and `speaker_unity` (smalle/voices_smalle.py) for recordings of people, for the same
spoiled, for music-like sounds and for two people, and which share of each is refused by the limits there.
"""

import argparse
import itertools
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).parents[1]))
from benchmarks.bad_recordings import KINDS, RATE, Material, make_materials  # noqa: E402
from benchmarks.timing import markdown  # noqa: E402
from smalle import SmallEProcessor  # noqa: E402
from smalle.voices_smalle import LEAST_SPEECH, ONE_SPEAKER  # noqa: E402

QUANTILES = 0.0, 0.05, 0.5, 0.95, 1.0
MUSIC = "chord", "pulsing chord", "arpeggio", "beat"
SPOILED = "good", "8 kHz", "fan in a room", "two people"


def recordings(materials: Sequence[Material], tunes: int = 5) -> Iterator[tuple[str, np.ndarray]]:
    """(kind, samples (L,)) of people, of their spoiled recordings, and of so many pieces of each kind of music."""
    for material in materials:
        yield from ((kind, KINDS[kind](material)) for kind in SPOILED)
        yield "3 s", material.speech[: 3 * RATE]
        noise = material.random.standard_normal(len(material.speech))
        yield "noise, -10 dB", material.speech + 10**-0.5 * material.speech.std() * noise
    for seed in range(tunes):
        material = Material(*[np.zeros(0)] * 3, np.random.default_rng(seed))
        made = {kind: KINDS[kind](material) for kind in MUSIC}
        yield from (("music", samples) for samples in made.values())
        yield from (("music", one + other) for one, other in itertools.combinations(list(made.values())[1:], 2))


@torch.no_grad()
def measure(processor: SmallEProcessor, samples: np.ndarray) -> tuple[float, ...]:
    """(both speech scores, speaker unity) of a recording (L,); NaN where it is refused before."""
    converter = processor.converter
    try:
        cleaned = processor.clean_recording(samples.astype(np.float32), RATE)
        recording = converter.analyze_recording(torch.from_numpy(cleaned))
    except ValueError:
        return (float("nan"),) * 3
    return *converter.speech_scores(recording), converter.speaker_unity(recording)


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint")
    parser.add_argument("--corpus", type=Path, required=True)
    parser.add_argument("--group", help="of the speakers")
    parser.add_argument("--people", type=int, default=12, help="whose recordings are taken (default: %(default)s)")
    arguments = parser.parse_args(argv)
    torch.set_num_threads(1)
    processor, found = SmallEProcessor.from_pretrained(arguments.checkpoint), {}
    materials = make_materials(arguments.corpus, arguments.group, arguments.people)
    for kind, samples in recordings(list(materials.values())):
        found.setdefault(kind, []).append(measure(processor, samples))
    rows = []
    for kind, values in found.items():
        known = np.array([row for row in values if not np.isnan(row[0])]).reshape(-1, 3)
        for name, column, limit in zip(("speech", "likeness", "one speaker"), known.T, (*LEAST_SPEECH, ONE_SPEAKER)):
            shown = [f"{x:.2f}" for x in np.quantile(column, QUANTILES)] if len(column) else []
            rows.append((kind, len(column), name, *shown, f"{np.mean(column < limit):.0%}" if len(column) else ""))
    print(markdown(("recordings", "number", "measure", *(f"{q:.0%}" for q in QUANTILES), "refused"), rows))


if __name__ == "__main__":
    main()
