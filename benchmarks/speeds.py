"""What faster and slower speech costs: the word error rate of a paragraph at several speeds.

  python benchmarks/speeds.py [CHECKPOINT] [--speeds 0.5 1 2]

The paragraph is spoken once and stretched (smalle/reading/stretching.py); Whisper base (tests/recognizer.py) hears it.
Prints a table and appends a row for each speed to benchmarks/results.jsonl.
"""

import argparse
import sys
from pathlib import Path

import numpy as np
import soxr
import torch

sys.path.insert(0, str(Path(__file__).parents[1]))
from benchmarks.timing import markdown, record  # noqa: E402
from smalle.checkpoint import default_checkpoint, load_checkpoint, quality_settings  # noqa: E402
from smalle.reading.stretching import TimeStretcher  # noqa: E402
from tests.recognizer import SAMPLING_RATE, recognizer, word_error_rate  # noqa: E402

TEXT = Path(__file__).with_name("texts") / "paragraph.txt"


def hear(wave: np.ndarray, sampling_rate: int) -> str:
    """What the recognizer hears in speech (L,)."""
    wave = soxr.resample(wave, sampling_rate, SAMPLING_RATE)
    segments, _ = recognizer().transcribe(wave, language="en", condition_on_previous_text=False)
    return "".join(segment.text for segment in segments)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", nargs="?", default=default_checkpoint())
    parser.add_argument("--speeds", type=float, nargs="+", default=[0.25, 0.5, 0.75, 1.0, 1.25, 1.5, 2.0, 3.0, 4.0])
    arguments = parser.parse_args()
    processor, model = load_checkpoint(arguments.checkpoint)
    text = TEXT.read_text(encoding="utf-8")
    waves = list(processor.stream(model, text, seed=0, **quality_settings(model)))
    wave, rows = torch.cat(waves).numpy(), []
    for speed in arguments.speeds:
        stretcher = TimeStretcher(speed, processor.sampling_rate)
        stretched = np.concatenate((stretcher.stretch(wave), stretcher.finish()))
        errors = round(word_error_rate(text, hear(stretched, processor.sampling_rate)), 3)
        rows.append(
            {"speed": speed, "seconds": round(len(stretched) / processor.sampling_rate, 1), "wer": round(errors, 3)}
        )
        record("speeds", checkpoint=Path(arguments.checkpoint).name, **rows[-1])
    print(markdown(["speed", "seconds", "word error rate"], [[*row.values()] for row in rows]))


if __name__ == "__main__":
    main()
