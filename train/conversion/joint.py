"""Trains encoder and network of a voice converter together: the speech of the converted voice in other voices.

  python -m smalle.train.conversion.joint PAIRS.safetensors ... --source SOURCE.safetensors --start CONVERTER \\
      --readings CONTENT-readings.safetensors --output OUT [--minutes 80]

CONVERTER is the output of smalle.train.conversion.converter of these pairs, SOURCE and CONTENT are those of
smalle.train.conversion.content. There is no recording of what a conversion should be. The encoder, as it was before,
has to hear the same sounds in a conversion as in the speech that is converted; the speaker network has to hear the
speaker, and the discriminator a recording. The command resumes when it is run again.
"""

import copy
import sys
from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from smalle.cli.command import command_parser, run_command
from smalle.codec_smalle import FrameNetwork
from smalle.voices_smalle import CENTROID, VoiceConverter, speech_means

from ..codec.recipe import StageOptions
from .converter import ADVERSARIAL_WEIGHT, FRAMES, ConverterStage, conditioned_latents
from .pairs import Pair, load_pairs
from .readings import load_readings
from .stage import kl_divergence, measure_source, run_stage

OWN = 2  # samples of a step that are converted to the voice itself
SOUNDS_WEIGHT, CONVERTED_WEIGHT, OWN_WEIGHT, READING_WEIGHT, KEPT_WEIGHT = 0.5, 0.5, 0.3, 1.0, 0.5


class JointStage(ConverterStage):
    """Trains encoder, condition, scales and shifts, and network.

    Recordings are made of their contents, as in `ConverterStage`. The speech of the source is converted to the voices
    of recordings, and to its own. The encoder goes on to regress the source's readings, and to hear the classes of
    recordings as it did.
    """

    parts = *ConverterStage.parts, "encoder"

    def __init__(
        self,
        converter: VoiceConverter,
        pairs: Sequence[Pair],
        readings: Sequence[Tensor],
        sources: Sequence[Pair],
        source_readings: Sequence[Tensor],
        options: StageOptions,
    ):
        super().__init__(converter, pairs, readings, options)
        self.sources, self.source_readings = sources, source_readings
        measure_source(converter, [pair.mel.float().view(1, -1, 2 * pair.mel.shape[1]) for pair in sources[:40]])
        self.judge = copy.deepcopy(converter.encoder).requires_grad_(False)
        described = [self.describe(pair) for pair in sources[:40]]
        embedding = F.normalize(torch.stack([x for _, x, _ in described]).mean(0), dim=0)
        channel = torch.stack([x for *_, x in described]).mean(0)
        f0 = torch.cat([pair.f0 for pair in sources[:40]])
        log_f0 = f0[f0 > 0].log()
        self.own = torch.cat((4 * embedding, channel)), torch.stack((log_f0.mean() - 5.1, log_f0.std(correction=0)))

    def source_sample(self, random: np.random.Generator) -> tuple[Tensor, Tensor, Tensor]:
        """Frames (T, F), reading (T, 48) and a mask (T,) of the speech of the source."""
        index = int(random.integers(len(self.sources)))
        mel = self.sources[index].mel.float()
        frames, reading = mel.view(-1, 2 * mel.shape[1]), self.source_readings[index].float()
        start = int(random.integers(max(1, len(frames) - FRAMES + 1)))
        frames, reading = frames[start : start + FRAMES], reading[start : start + FRAMES]
        missing = FRAMES - len(frames)
        floor = float(np.log(self.converter.codec_config.mel_floor))
        padded = F.pad(frames, (0, 0, 0, missing), value=floor), F.pad(reading, (0, 0, 0, missing))
        return *padded, F.pad(torch.ones(len(frames)), (0, missing))

    def step(self, step: int, progress: float) -> dict[str, Tensor]:
        random = self.begin(step)
        loss, values = self.reconstruct(random, step, progress)
        loss.backward()  # before the discriminator changes once more
        loss, more = self.convert(random)
        kept = self.keep_classes(random)
        self.update(loss + KEPT_WEIGHT * kept, step, progress)
        return {**values, **more, "kept": kept}

    def convert(self, random: np.random.Generator) -> tuple[Tensor, dict[str, Tensor]]:
        """The loss of the source's speech in the voices of recordings, and in its own, and scalars to log."""
        converter, count = self.converter, self.options.batch_size // 2
        drawn = zip(*[self.sample(random) for _ in range(count)])
        *_, mel, _, speaker, moments, embedding = (torch.stack(values) for values in drawn)
        samples = zip(*[self.source_sample(random) for _ in range(count + OWN)])
        frames, reading, known = (torch.stack(values) for values in samples)
        speakers = torch.cat((speaker, self.own[0].expand(OWN, -1)))
        pitches = torch.cat((moments, self.own[1].expand(OWN, -1)))
        content, f0 = converter.source_content(frames)
        moved = [converter.move_pitch(x, y) for x, y in zip(f0.detach(), pitches + torch.tensor([5.1, 0.0]))]
        with torch.autocast("cpu", torch.bfloat16):
            condition = self.condition(speakers, pitches)
            latents = conditioned_latents(converter, converter.inputs(content, torch.stack(moved)), condition)
        made = converter.analysis.restore(latents.float())
        heard, _ = self.hear(self.judge, made[:count])
        with torch.no_grad():
            meant, _ = self.hear(self.judge, frames[:count])
            real = converter.analysis.restore(converter.analysis.project(mel))
            own = converter.analysis.restore(converter.analysis.project(frames[count:]))
        sounds = kl_divergence(heard, meant, known[:count])
        similarity = self.similarity(made[:count], embedding)
        deceit, _ = self.adversary.compete(made[:count], real, speaker)
        distance = ((made[count:] - own).abs().mean(2) * known[count:]).sum() / known[count:].sum()
        gaps = F.smooth_l1_loss(content[:, :CENTROID].transpose(1, 2), reading, beta=0.3, reduction="none").mean(2)
        regression = (gaps * known).sum() / known.sum()
        loss = SOUNDS_WEIGHT * sounds + ADVERSARIAL_WEIGHT * deceit + CONVERTED_WEIGHT * (1 - similarity)
        loss = loss + OWN_WEIGHT * distance + READING_WEIGHT * regression
        return loss, {"sounds": sounds, "converted": similarity, "own": distance, "regression": regression}

    def hear(self, encoder: FrameNetwork, frames: Tensor) -> tuple[Tensor, Tensor]:
        """Log-probabilities (B, K, T) of classes and pitch with voicing (B, 4, T) of frames (B, T, F) of anybody."""
        with torch.autocast("cpu", torch.bfloat16):
            output = encoder.apply_blocks((frames - speech_means(frames)).transpose(1, 2))[0].float()
        classes = self.converter.config.num_content_classes
        return output[:, :classes].log_softmax(1), output[:, classes:-CENTROID]

    def keep_classes(self, random: np.random.Generator) -> Tensor:
        """How much the encoder hears other classes and f0 in recordings than it did."""
        samples = zip(*[self.sample(random) for _ in range(self.options.batch_size // 2)])
        _, _, mel, known, *_ = (torch.stack(values) for values in samples)
        (now, tones), (before, previous) = (self.hear(x, mel) for x in (self.converter.encoder, self.judge))
        return kl_divergence(now, before, known) + (tones - previous).abs().mean()


def train(pairs: Sequence[str], source: str, start: str, readings: str, options: StageOptions) -> None:
    """Trains a converter further, or goes on with it."""
    torch.manual_seed(0)
    converter = VoiceConverter.from_pretrained(start)
    own, found = load_pairs([source]), load_pairs(pairs)
    envelopes = load_readings(readings, [*own, *found])
    stage = JointStage(converter, found, envelopes[len(own) :], own, envelopes[: len(own)], options)
    run_stage(stage, options, {"stage": "joint", "pairs": str(list(pairs)), "codec": start}, FRAMES)


def main(argv: Sequence[str] | None = None) -> None:
    """Runs the command."""
    parser = command_parser("python -m smalle.train.conversion.joint", __doc__)
    parser.add_argument("pairs", nargs="+", help="files of smalle.train.conversion.pairs")
    parser.add_argument("--source", required=True, help="pairs of the voice that is converted")
    parser.add_argument("--start", required=True, help="output folder of smalle.train.conversion.converter")
    parser.add_argument("--readings", required=True, help="readings that smalle.train.conversion.content wrote")
    parser.add_argument("--output", required=True, help="folder of the converter to write")
    parser.add_argument("--minutes", type=float, default=80, help="training time (default: %(default)s)")
    arguments = parser.parse_args(argv)
    options = StageOptions(arguments.output, arguments.minutes, 12, 5e-4, 60, 0.997, checkpoint_seconds=240)
    train(arguments.pairs, arguments.source, arguments.start, arguments.readings, options)


if __name__ == "__main__":
    sys.exit(run_command("joint", main))
