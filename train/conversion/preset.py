"""Adds a preset voice to a checkpoint with a converter, from recordings of one speaker.

  python -m smalle.train.conversion.preset CHECKPOINT NAME RECORDING ... [--steps 200]
  python -m smalle.train.conversion.preset CHECKPOINT NAME --corpus CORPUS     # recordings of the speaker NAME

Only scales, shifts and biases of the converter's network are tuned, so that the preset takes 40 kB. A speaker that the
converter was trained with needs no tuning (--steps 0). Add a person's voice only with that person's consent, and name
the licence of the recordings in the model card.
"""

import itertools
import json
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

from smalle import SmallEProcessor
from smalle.cli.command import command_parser, run_command
from smalle.saving_smalle import write_json
from smalle.voices_smalle import save_voice

from ..codec.data import list_clips

MOST = 8  # recordings of a corpus


def recordings_of(speaker: str, corpus: str) -> list[str]:
    """Files of the first recordings of a speaker of a corpus. Raises ValueError if there are none."""
    paths: Iterator[str] = (clip.path for clip in list_clips([corpus]) if clip.speaker == speaker)
    found = list(itertools.islice(paths, MOST))
    if not found:
        raise ValueError(f"{corpus} has no recordings of {speaker!r}: expected the name of one of its speakers.")
    return found


def add_preset(checkpoint: str, name: str, recordings: Sequence[str], steps: int, unchecked: bool = False) -> None:
    """Writes CHECKPOINT/voices/NAME.safetensors, and the name in processor_config.json. Raises ValueError where a
    recording is no speech; unchecked: not where only the converter does not hear it as such."""
    processor = SmallEProcessor.from_pretrained(checkpoint)
    if unchecked:
        processor.converter.check_recording = lambda recording: None  # type: ignore[method-assign]
    joined = np.concatenate([processor.clean_recording(path) for path in recordings])
    with tqdm(total=steps, unit="step") as bar:
        conversion = processor.converter.prepare(
            torch.from_numpy(joined), steps, progress=lambda *_: bar.update(), only_vectors=True
        )
    voice = processor.get_voice(processor.default_voice)._replace(conversion=conversion)
    processor.add_voice(name, voice)
    save_voice(Path(checkpoint, "voices", f"{name}.safetensors"), *voice)
    path = Path(checkpoint, "processor_config.json")
    write_json(path, {**json.loads(path.read_text(encoding="utf-8")), "voices": sorted(processor.voices)})


def main(argv: Sequence[str] | None = None) -> None:
    """Runs the command."""
    parser = command_parser("python -m smalle.train.conversion.preset", __doc__)
    parser.add_argument("checkpoint", help="folder of the checkpoint")
    parser.add_argument("name", help="name of the preset")
    parser.add_argument("recordings", nargs="*", help="sound files of one speaker")
    parser.add_argument("--corpus", help="corpus with recordings of a speaker NAME, in place of RECORDING")
    parser.add_argument("--steps", type=int, default=200, help="steps of tuning (default: %(default)s)")
    parser.add_argument(
        "--unchecked",
        action="store_true",
        help="accept recordings that the converter does not hear as speech of one person: limits are chosen for the "
        "default checkpoint's, and a converter that was trained for less time hears less",
    )
    arguments = parser.parse_args(argv)
    if bool(arguments.recordings) == bool(arguments.corpus):
        parser.error("expected either recordings or --corpus")
    recordings = arguments.recordings or recordings_of(arguments.name, arguments.corpus)
    add_preset(arguments.checkpoint, arguments.name, recordings, arguments.steps, arguments.unchecked)


if __name__ == "__main__":
    sys.exit(run_command("preset", main))
