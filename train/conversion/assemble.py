"""Puts a trained converter into a checkpoint: measures the default voice that it converts, and names it.

  python -m smalle.train.conversion.assemble CONVERTER CHECKPOINT

Writes CHECKPOINT/converter, in half precision, and "converter" in CHECKPOINT/processor_config.json.
"""

import json
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path

import torch
from torch import Tensor

from smalle import SmallEForTextToSpeech, SmallEProcessor
from smalle.cli.command import command_parser, run_command
from smalle.saving_smalle import atomic_folder, write_json
from smalle.voices_smalle import SpeechStatistics, VoiceConverter

from ..assemble import save_half

TEXTS = (
    "The weather was fine, and we walked along the river until it was dark.",
    "Would you mind telling me where the nearest station is?",
    "Nobody knew how the old clock worked, but it had never been wrong.",
    "Please leave the keys on the kitchen table when you go.",
)


@torch.no_grad()
def measure_source(converter: VoiceConverter, waveforms: Iterable[Tensor]) -> None:
    """Sets what the converter knows of the voice that it converts, from its speech (L,): the mean frame, the loudness
    and the pitch."""
    analysis, hop, num_mels = converter.analysis, converter.codec_config.hop_length, converter.codec_config.num_mels
    mels = [analysis.features(analysis.mel(x[None, : len(x) // hop * hop].float())) for x in waveforms]
    found = [SpeechStatistics.of(mel.reshape(-1, num_mels)) for mel in mels]
    converter.source_mean.copy_(torch.stack([x.mean for x in found]).mean(0))
    converter.source_loudness.copy_(torch.stack([x.loudness for x in found]).mean())
    f0 = torch.cat([converter.encode_content(mel, converter.source, of_source=True)[1].flatten() for mel in mels])
    log_f0 = f0[f0 > 0].log()
    converter.config.source_pitch = [round(float(log_f0.median()), 4), round(float(log_f0.std()), 4)]


def assemble(converter_folder: str, checkpoint: str) -> None:
    """Writes the converter of a checkpoint."""
    converter, processor = VoiceConverter.from_pretrained(converter_folder), SmallEProcessor.from_pretrained(checkpoint)
    model = SmallEForTextToSpeech.from_pretrained(checkpoint).eval()
    measure_source(converter, [processor.decode(model.generate(**processor(text), seed=0))[0] for text in TEXTS])
    with atomic_folder(Path(checkpoint, "converter")) as folder:
        save_half(converter, folder)
    path = Path(checkpoint, "processor_config.json")
    write_json(path, {**json.loads(path.read_text(encoding="utf-8")), "converter": "converter"})


def main(argv: Sequence[str] | None = None) -> None:
    """Runs the command."""
    parser = command_parser("python -m smalle.train.conversion.assemble", __doc__)
    parser.add_argument("converter", help="output folder of smalle.train.conversion.converter")
    parser.add_argument("checkpoint", help="folder of the checkpoint")
    arguments = parser.parse_args(argv)
    assemble(arguments.converter, arguments.checkpoint)


if __name__ == "__main__":
    sys.exit(run_command("assemble", main))
