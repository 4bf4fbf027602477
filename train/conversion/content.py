"""Trains the encoder of a voice converter: the content of anybody's speech, that of the converted voice, and f0.

  python -m smalle.train.conversion.content PAIRS.safetensors ... --source SOURCE.safetensors --codec CODEC \\
      --output OUT [--minutes 45]

SOURCE: pairs of the voice that is converted (smalle.train.conversion.source). For a third of the minutes a network
learns the phones of the reading voice, whose times are known, and then those of the recordings that it aligned
(OUT-phones-1, -2). The voice then reads all texts again in the times of the recordings (OUT-readings.safetensors): the
envelopes of that are the content. OUT is the folder of a converter whose network is not trained yet. The command
resumes when it is run again.
"""

import math
import sys
from collections.abc import Collection, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from tqdm import tqdm

from smalle.cli.command import command_parser, run_command
from smalle.codec_smalle import FrameNetwork
from smalle.voices_smalle import CENTROID, SpeechStatistics, VoiceConverter

from ..codec.recipe import StageOptions
from .classes import Aligned, Classes, PhoneStage, align_pair, fit_classes, phone_network
from .pairs import load_own_codec, load_pairs
from .phones import NUM_PHONES, SILENCE, corresponding
from .readings import make_readings
from .stage import FRAMES, ConversionStage, centred, disguise, new_converter, run_stage, smooth_envelope, warp

BEST = 0.94  # share of the recordings, by how well their phones fit
SOURCE_SHARE, READING_SHARE = 0.44, 0.06  # of samples that are the converted voice, and the reading voice itself
OTHERS_WEIGHT = 0.4  # of the regression of other voices than the converted one
SHARES = [SOURCE_SHARE, READING_SHARE, 1 - SOURCE_SHARE - READING_SHARE]
STRAIGHT_SHARE = 0.4  # of the samples of recordings that are not warped, from which f0 is learnt
PHONE_SHARE = 1 / 3  # of the time


class ContentStage(ConversionStage):
    """Trains the encoder: classes and their phones (cross entropy), envelopes by the classes and by regression (smooth
    L1), and of recordings that are not warped, f0 and voicing.

    envelopes (T, 48): standardized, of each recording, as `readings` makes them. sources: numbers of the rows of the
    converted voice.
    """

    def __init__(
        self,
        converter: VoiceConverter,
        rows: Sequence[Aligned],
        envelopes: Sequence[Tensor],
        sources: Collection[int],
        classes: Classes,
        options: StageOptions,
    ):
        parts = {"encoder": converter.encoder, "centroids": converter.centroids}
        super().__init__(converter, nn.ModuleDict(parts), options)
        limit = np.quantile([row.fit for row in rows], 1 - BEST, method="lower")  # some are -inf
        self.sources = [n for n in sources if rows[n].fit >= limit]
        self.others = [n for n, row in enumerate(rows) if row.fit >= limit and n not in sources]
        self.aligned, self.envelopes, self.classes = rows, envelopes, classes
        self.groups = F.one_hot(classes.phones, NUM_PHONES).float()
        self.source_mean = torch.stack([speech_mean(rows[n].pair.mel) for n in self.sources]).mean(0)
        with torch.no_grad():
            converter.centroids.weight.copy_(classes.centroids.T)

    def targets(self, index: int, reading: bool) -> tuple[Tensor, Tensor]:
        """Classes (T,) and standardized envelopes (T, 48) of the codec frames of a recording or of its reading."""
        row, labels = self.aligned[index], self.classes.labels[index]
        if reading:
            moments = self.classes.moments
            return labels, (smooth_envelope(row.pair.source) - moments[0]) / moments[1]
        places = torch.from_numpy(corresponding(row.recorded, row.read)).round().long()
        silent = row.pair.phones[torch.from_numpy(row.recorded)] == SILENCE
        return labels[places].masked_fill(silent, 0), self.envelopes[index].float()

    def frames(self, index: int, kind: str, straight: bool, random: np.random.Generator) -> Tensor:
        """Log-mel frames (T, num_mels) of a "source", of a "reading" or of another recording, as the encoder hears
        them, but for its disguise."""
        pair = self.aligned[index].pair
        if kind == "source":
            return pair.mel.float() - self.source_mean
        frames = centred(pair.source if kind == "reading" else pair.mel)
        return disguise(frames if straight else warp(frames, math.exp(random.normal(0, 0.07))), random)

    def sample(self, random: np.random.Generator) -> tuple[Tensor, ...]:
        """Frames (150, 2 * num_mels), classes (150,), -1 where there is none, envelopes (150, 48), f0 (150, 2), and
        masks (150,) of known f0 and of the converted voice."""
        kind = str(random.choice(["source", "reading", "other"], p=SHARES))
        rows = self.sources if kind == "source" else self.others
        index, straight = rows[int(random.integers(len(rows)))], kind == "other" and random.random() < STRAIGHT_SHARE
        labels, envelopes = self.targets(index, kind == "reading")
        start = int(random.integers(max(1, len(labels) - FRAMES + 1)))
        part = slice(2 * start, 2 * (start + FRAMES))
        frames = self.frames(index, kind, straight, random)[part]
        f0 = torch.zeros(len(frames)) if kind == "reading" else self.aligned[index].pair.f0[part]
        frames, labels = frames.reshape(-1, 2 * frames.shape[1]), labels[start : start + FRAMES]
        missing, ones = FRAMES - len(frames), torch.ones(len(frames))
        columns = frames, envelopes[start : start + FRAMES], f0.view(-1, 2), ones * straight, ones * (kind == "source")
        frames, envelopes, f0, known, source = (F.pad(x, (0, 0) * (x.dim() - 1) + (0, missing)) for x in columns)
        return frames, F.pad(labels, (0, missing), value=-1), envelopes, f0, known, source

    def step(self, step: int, progress: float) -> dict[str, Tensor]:
        random = self.begin(step)
        samples = zip(*[self.sample(random) for _ in range(self.options.batch_size)])
        frames, labels, envelopes, f0, known, source = (torch.stack(values) for values in samples)
        with torch.autocast("cpu", torch.bfloat16):
            output = self.converter.encoder.apply_blocks(frames.transpose(1, 2))[0]
        sizes = (len(self.groups), 2, 2, CENTROID)
        logits, pitch, voicing, regressed = output.float().transpose(1, 2).split(sizes, 2)
        there = labels >= 0
        labels, probabilities, envelopes = labels[there], logits[there].softmax(1), envelopes[there]
        said = F.nll_loss((probabilities + 1e-8).log(), labels)
        phones = F.nll_loss((probabilities @ self.groups + 1e-8).log(), self.classes.phones[labels])
        envelope = F.smooth_l1_loss(self.converter.centroids(probabilities), envelopes, beta=0.5)
        distance = F.smooth_l1_loss(regressed[there], envelopes, beta=0.3, reduction="none").mean(1)
        weights = OTHERS_WEIGHT + (1 - OTHERS_WEIGHT) * source[there]
        own = (distance * weights).sum() / weights.sum()
        tone, decision = pitch_losses(pitch, voicing, f0, known)
        self.update(0.5 * (said + phones) + envelope + 2 * own + tone + 0.2 * decision, step, progress)
        losses = {"classes": said, "phones": phones, "envelope": envelope, "regression": own}
        return {**losses, "f0": tone, "voicing": decision}


def speech_mean(mel: Tensor) -> Tensor:
    """Mean log-mel frame (num_mels,) of the speech in frames (T, num_mels)."""
    return SpeechStatistics.of(mel.float()).mean


def pitch_losses(pitch: Tensor, voicing: Tensor, f0: Tensor, known: Tensor) -> tuple[Tensor, Tensor]:
    """Losses of log pitch around 180 Hz and of voicing (B, T, 2), where f0 (B, T, 2) is known (B, T)."""
    voiced = (f0 > 0).float()
    weights = voiced * known[..., None]
    tone = ((pitch - (f0.clamp(min=50) / 180).log()).abs() * weights).sum() / weights.sum().clamp(min=1)
    decision = F.binary_cross_entropy_with_logits(voicing, voiced, reduction="none").mean(2)
    return tone, (decision * known).sum() / known.sum().clamp(min=1)


def start_encoder(encoder: FrameNetwork, phones: FrameNetwork, groups: Tensor) -> None:
    """Takes the weights of a trained network of phones; classes begin as their phones."""
    state = {name: x for name, x in phones.state_dict().items() if not name.startswith("out.")}
    encoder.load_state_dict(state, strict=False)
    with torch.no_grad():
        count, sizes = len(groups), groups.sum(0).clamp(min=1)
        weights = groups @ phones.out.weight
        encoder.out.weight[:count] = weights + 0.02 * torch.randn(weights.shape)
        encoder.out.bias[:count] = groups @ (phones.out.bias - sizes.log())


def train(
    pairs: Sequence[str], source: str, codec: str, options: StageOptions, num_classes: int = 256, **sizes: Any
) -> None:
    """Trains an encoder, or goes on with it; sizes: of `VoiceConverterConfig`."""
    torch.manual_seed(0)
    own, own_codec = load_pairs([source]), load_own_codec(codec)
    found = [*own, *load_pairs(pairs)]
    converter = new_converter(own_codec, **sizes)
    network, aligned = phone_network(converter), list[Aligned]()
    for number in (1, 2):  # by the readings, then by the recordings that it aligns
        part = replace(options, output=f"{options.output}-phones-{number}", minutes=options.minutes * PHONE_SHARE / 2)
        stage = PhoneStage(converter, network, found, aligned, part)
        run_stage(stage, part, {"stage": "phones", "pairs": str(list(pairs)), "codec": codec})
        stage.average.copy_to_parameters()
        aligned = [align_pair(network, pair) for pair in tqdm(found, "alignments", mininterval=2)]
    classes = fit_classes(aligned, num_classes)
    path = f"{options.output}-readings.safetensors"
    envelopes = make_readings(path, converter.analysis, aligned, classes.moments)
    converter = new_converter(own_codec, num_content_classes=len(classes.phones), **sizes)
    start_encoder(converter.encoder, network, F.one_hot(classes.phones, NUM_PHONES).float())
    second = replace(options, minutes=options.minutes * (1 - PHONE_SHARE))
    content = ContentStage(converter, aligned, envelopes, range(len(own)), classes, second)
    run_stage(content, second, {"stage": "content", "pairs": str(list(pairs)), "codec": codec})


def main(argv: Sequence[str] | None = None) -> None:
    """Runs the command."""
    parser = command_parser("python -m smalle.train.conversion.content", __doc__)
    parser.add_argument("pairs", nargs="+", help="files of smalle.train.conversion.pairs")
    parser.add_argument("--source", required=True, help="pairs of the voice that is converted")
    parser.add_argument("--codec", required=True, help="folder of the codec of the pairs")
    parser.add_argument("--output", required=True, help="folder of the converter to write")
    parser.add_argument("--minutes", type=float, default=45, help="training time (default: %(default)s)")
    arguments = parser.parse_args(argv)
    options = StageOptions(arguments.output, arguments.minutes, 16, 1.2e-3, 200, 0.998, checkpoint_seconds=180)
    train(arguments.pairs, arguments.source, arguments.codec, options)


if __name__ == "__main__":
    sys.exit(run_command("content", main))
