"""Puts a trained converter into a checkpoint: measures the default voice that it converts, and names it.

  python -m smalle.train.conversion.assemble CONVERTER CHECKPOINT [--codec CODEC]

Writes CHECKPOINT/converter, in half precision, and "converter" in CHECKPOINT/processor_config.json. Before that CODEC,
the output of smalle.train.conversion.decoder, takes the place of the checkpoint's codec.
"""

import json
import sys
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from smalle import SmallEForTextToSpeech, SmallEProcessor
from smalle.cli.command import command_parser, run_command
from smalle.saving_smalle import atomic_folder, write_json
from smalle.voices_smalle import VoiceConverter

from ..assemble import save_half
from .pairs import load_own_codec
from .stage import measure_source

TEXTS = (
    "The weather was fine, and we walked along the river until it was dark.",
    "Would you mind telling me where the nearest station is?",
    "Nobody knew how the old clock worked, but it had never been wrong.",
    "Please leave the keys on the kitchen table when you go.",
)


@torch.no_grad()
def source_frames(converter: VoiceConverter, waveform: Tensor) -> Tensor:
    """Log-mel frames (1, T, 2 * num_mels) of the speech (L,) of the voice that is converted."""
    samples = waveform[None, : len(waveform) // converter.codec_config.hop_length * converter.codec_config.hop_length]
    return converter.analysis.features(converter.analysis.mel(samples.float()))


def take_codec(codec: str, checkpoint: str) -> None:
    """Puts a codec in the place of a checkpoint's. Raises ValueError if its codes are others."""
    processor, new = SmallEProcessor.from_pretrained(checkpoint), load_own_codec(codec)
    if new.identity != processor.codec.identity:
        raise ValueError(f"--codec {codec} has other codes than {checkpoint}: expected a codec that decodes the same.")
    with atomic_folder(Path(checkpoint, processor.codec_name)) as folder:
        save_half(new, folder)


def assemble(converter_folder: str, checkpoint: str, codec: str | None = None) -> None:
    """Writes the converter of a checkpoint; codec: a folder of the codec to take before."""
    if codec is not None:
        take_codec(codec, checkpoint)
    converter, processor = VoiceConverter.from_pretrained(converter_folder), SmallEProcessor.from_pretrained(checkpoint)
    model = SmallEForTextToSpeech.from_pretrained(checkpoint).eval()
    waves = [processor.decode(model.generate(**processor(text), seed=0))[0] for text in TEXTS]
    measure_source(converter, [source_frames(converter, wave) for wave in waves])
    with atomic_folder(Path(checkpoint, "converter")) as folder:
        save_half(converter, folder)
    path = Path(checkpoint, "processor_config.json")
    write_json(path, {**json.loads(path.read_text(encoding="utf-8")), "converter": "converter"})


def main(argv: Sequence[str] | None = None) -> None:
    """Runs the command."""
    parser = command_parser("python -m smalle.train.conversion.assemble", __doc__)
    parser.add_argument("converter", help="output folder of smalle.train.conversion.converter")
    parser.add_argument("checkpoint", help="folder of the checkpoint")
    parser.add_argument("--codec", help="output folder of smalle.train.conversion.decoder")
    arguments = parser.parse_args(argv)
    assemble(arguments.converter, arguments.checkpoint, arguments.codec)


if __name__ == "__main__":
    sys.exit(run_command("assemble", main))
