"""Trains the network of a voice converter: a speaker's frames of what is said, f0, and another recording.

  python -m smalle.train.conversion.converter PAIRS.safetensors ... --start CONTENT --speaker SPEAKER.safetensors \\
      --output OUT [--minutes 35]

CONTENT is the output of smalle.train.conversion.content of these pairs, beside CONTENT-readings.safetensors. The
content of most samples is that of the readings, of the others what the encoder takes from the recording, as in tuning.
SPEAKER is the output of smalle.train.conversion.speaker or the model.safetensors of a converter. The command resumes
when it is run again.
"""

import collections
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn.utils.parametrizations import weight_norm
from tqdm import tqdm

from smalle.cli.command import command_parser, run_command
from smalle.codec_smalle import MelAnalysis
from smalle.voices_smalle import (
    CENTROID,
    DEVIATION_CEPSTRA,
    MEAN_CEPSTRA,
    SPEAKER_SIZE,
    SPEAKER_WINDOW,
    SpeechStatistics,
    VoiceConverter,
    loud_frames,
)

from ..codec.recipe import StageOptions
from ..codec.stages import adamw
from .pairs import Pair, load_pairs
from .readings import load_readings
from .stage import ConversionStage, run_stage

FRAMES = 100  # of the codec, of a sample
CHANNEL = MEAN_CEPSTRA + DEVIATION_CEPSTRA
READING_SHARE = 0.6  # of samples whose content is that of the reading
CONTENT_NOISE = 0.2  # its largest deviation
BLUR_SHARE, SHRINK_SHARE = 0.4, 0.5  # of those; regression blurs contents and makes them smaller
BLUR, SHRINK = 0.6, 0.25  # at most
CHANNEL_DROPOUT = 0.15  # share of samples whose condition tells no channel
ADVERSARIAL_FROM = 0.25  # of the time
SPEAKER_WEIGHT, ADVERSARIAL_WEIGHT, MATCHING_WEIGHT = 1.5, 0.15, 1.0


def conditioned_latents(converter: VoiceConverter, inputs: Tensor, condition: Tensor) -> Tensor:
    """Latents (B, D, T) of inputs (B, C, T), each row by its condition (B, C'): `VoiceConverter.conditioned` in rows,
    with gradients."""
    network, blocks = converter.network, cast(list[Any], list(converter.network.blocks))
    _, x, _ = network.embed(inputs)
    for block, film in zip(blocks, converter.films):
        scale, shift = film(condition)[:, None].chunk(2, 2)
        x, y, _ = block.dwconv(x)
        y = F.layer_norm(y.transpose(1, 2), y.shape[1:2], eps=block.norm.eps) * (1 + scale) + shift
        x = x + (block.gamma * block.pwconv2(F.gelu(block.pwconv1(y)))).transpose(1, 2)
    latents = network.out(network.norm(x.transpose(1, 2))).transpose(1, 2).float()
    return latents * converter.latent_scale[:, None]


def imperfect(envelopes: Tensor, random: np.random.Generator) -> Tensor:
    """Envelopes (T, 48) as a regression would give them: in some samples blurred, in some smaller."""
    if random.random() < BLUR_SHARE:
        around = F.pad(envelopes.T[None], (1, 1), mode="replicate")[0].T
        envelopes = torch.lerp(envelopes, (around[:-2] + around[2:]) / 2, BLUR * random.random())
    if random.random() < SHRINK_SHARE:
        envelopes = envelopes * (1 - SHRINK * random.random())
    return envelopes


class FrameDiscriminator(nn.Module):
    """Judges frames, and whether they are those of a speaker (projection: Miyato and Koyama 2018, arXiv 1802.05637)."""

    def __init__(self, features: int, size: int = 192):
        super().__init__()
        layers = [nn.Conv1d(features, size, 5, padding=2)]
        layers += [nn.Conv1d(size, size, 5, 2, padding=2, groups=4) for _ in range(2)]
        layers += [nn.Conv1d(size, size, 3, padding=1)]
        self.layers = nn.ModuleList(weight_norm(layer) for layer in layers)
        self.out, self.project = nn.Conv1d(size, 1, 3, padding=1), nn.Linear(SPEAKER_SIZE + CHANNEL, size)

    def forward(self, frames: Tensor, speaker: Tensor) -> list[Tensor]:
        """Frames (B, T, F) and speakers (B, C) -> the output of each layer; the last one's are the scores."""
        x, outputs = frames.transpose(1, 2), []
        for layer in self.layers:
            x = F.leaky_relu(layer(x), 0.2)
            outputs.append(x)
        return [*outputs, self.out(x)[:, 0] + (x * self.project(speaker)[..., None]).mean(1)]


class Adversary:
    """A discriminator of frames, and its training.

    saved: what has a state to resume from.
    """

    def __init__(self, analysis: MelAnalysis):
        self.analysis, self.discriminator = analysis, FrameDiscriminator(2 * analysis.config.num_mels)
        self.optimizer = adamw(self.discriminator, 2e-4, (0.5, 0.98))
        self.saved = {"discriminator": self.discriminator, "discriminator_optimizer": self.optimizer}

    def compete(self, frames: Tensor, meant: Tensor, speaker: Tensor) -> Tensor:
        """Trains the discriminator by one step; its losses (2,), least squares and feature matching, of the frames."""
        made, true = ((x - self.analysis.mean) / self.analysis.scale / 3 for x in (frames, meant))
        self.discriminator.requires_grad_(True)
        scores = [self.discriminator(x.detach(), speaker)[-1] for x in (true, made)]
        self.optimizer.zero_grad()
        ((scores[0] - 1).square().mean() + scores[1].square().mean()).backward()
        nn.utils.clip_grad_norm_(self.discriminator.parameters(), 5.0)
        self.optimizer.step()
        self.discriminator.requires_grad_(False)
        *heard, score = self.discriminator(made, speaker)
        *wanted, _ = self.discriminator(true, speaker)
        matching = torch.stack([(a - b).abs().mean() for a, b in zip(heard, wanted)]).mean()
        return torch.stack(((score - 1).square().mean(), matching))


class ConverterStage(ConversionStage):
    """Trains condition, scales and shifts, and network: L1 of the frames, the speaker network, a discriminator."""

    betas = (0.8, 0.98)
    parts: tuple[str, ...] = ("condition", "films", "network")

    def __init__(
        self, converter: VoiceConverter, pairs: Sequence[Pair], readings: Sequence[Tensor], options: StageOptions
    ):
        super().__init__(converter, nn.ModuleDict({name: getattr(converter, name) for name in self.parts}), options)
        self.pairs, self.readings = pairs, readings
        self.adversary = Adversary(converter.analysis)
        self.saved |= self.adversary.saved
        self.speakers: dict[str, list[int]] = collections.defaultdict(list)
        for index, pair in enumerate(pairs):
            self.speakers[pair.speaker].append(index)
        described = [self.describe(pair) for pair in tqdm(pairs, "recordings", mininterval=2)]
        self.contents, self.embeddings, self.channels = zip(*described)
        self.moments = {speaker: self.pitch_moments(indices) for speaker, indices in self.speakers.items()}
        some = torch.cat([pair.mel for pair in pairs[:: 1 + len(pairs) // 500]]).float()
        latents = converter.analysis.project(some.reshape(1, -1, converter.codec_config.feature_size))
        converter.latent_scale.copy_(latents[0].std(1))

    @torch.no_grad()
    def describe(self, pair: Pair) -> tuple[Tensor, Tensor, Tensor]:
        """Content (50, T), as half, embedding (256,) and channel (30,) of a recording, as `analyze_recording`."""
        frames, converter = pair.mel.float(), self.converter
        speech, mel = frames[loud_frames(frames)], frames.view(1, -1, 2 * frames.shape[1])
        mean, deviation = converter.cepstrum @ speech.mean(0), converter.cepstrum @ speech.std(0, correction=0)
        content, _ = converter.recording_content(mel, SpeechStatistics.of(frames))
        channel = torch.cat((mean, deviation[:DEVIATION_CEPSTRA])) / 10
        return content[0].half(), converter.embed_speaker(frames), channel

    def pitch_moments(self, indices: Sequence[int]) -> Tensor:
        """Mean, around 5.1, and deviation (2,) of log f0 of recordings."""
        f0 = torch.cat([self.pairs[index].f0 for index in indices])
        log_f0 = f0[f0 > 0].log() if (f0 > 0).any() else torch.full((1,), 5.1)
        return torch.stack((log_f0.mean() - 5.1, log_f0.std(correction=0)))

    def sample(self, random: np.random.Generator) -> tuple[Tensor, ...]:
        """Content (50, T), f0 (T, 2), frames (T, F) and a mask (T,) of a recording; embedding, channel and moments of
        another one of the speaker; embedding of the recording. Recordings and speakers are drawn equally often."""
        index = int(random.integers(len(self.pairs)))
        if random.random() < 0.5:
            names = list(self.speakers)
            index = int(random.choice(self.speakers[names[random.integers(len(names))]]))
        pair = self.pairs[index]
        others = [n for n in self.speakers[pair.speaker] if n != index] or [index]
        other, count = others[random.integers(len(others))], len(pair.mel) // 2
        start = int(random.integers(max(1, count - FRAMES + 1)))
        end = min(count, start + FRAMES)
        part, missing = slice(2 * start, 2 * end), FRAMES - (end - start)
        frames = pair.mel[part].float().reshape(end - start, -1)
        content = self.contents[index][:, start:end].float()
        if random.random() < READING_SHARE:
            content[:CENTROID] = imperfect(self.readings[index][start:end].float(), random).T
        return (
            F.pad(content, (0, missing)),
            F.pad(pair.f0[part].view(-1, 2), (0, 0, 0, missing)),
            F.pad(frames, (0, 0, 0, missing), value=np.log(self.converter.codec_config.mel_floor)),
            F.pad(torch.ones(end - start), (0, missing)),
            torch.cat((4 * self.embeddings[other], self.channels[other])),
            self.moments[pair.speaker],
            self.embeddings[index],
        )

    def step(self, step: int, progress: float) -> dict[str, Tensor]:
        loss, values = self.reconstruct(self.begin(step), step, progress)
        self.update(loss, step, progress)
        return values

    def reconstruct(self, random: np.random.Generator, step: int, progress: float) -> tuple[Tensor, dict[str, Tensor]]:
        """The loss of recordings that are made of their contents, and scalars to log."""
        converter = self.converter
        samples = zip(*[self.sample(random) for _ in range(self.options.batch_size)])
        content, f0, mel, known, speaker, moments, embedding = (torch.stack(values) for values in samples)
        content = content + CONTENT_NOISE * torch.rand(len(content), 1, 1) * torch.randn_like(content)
        with torch.autocast("cpu", torch.bfloat16):
            condition = self.condition(speaker, moments)
            latents = conditioned_latents(converter, converter.inputs(content, f0), condition)
        frames = converter.analysis.restore(latents.float())
        meant = converter.analysis.restore(converter.analysis.project(mel))
        distance = ((frames - meant).abs().mean(2) * known).sum() / known.sum()
        loss, values = distance, {"l1": distance, "similarity": torch.zeros(())}
        if step % 2:  # of every second step, as it takes as long as all else
            half, start = max(1, len(frames) // 2), int(random.integers(FRAMES - SPEAKER_WINDOW // 2 + 1))
            similarity = self.similarity(frames[:half, start:], embedding[:half])
            loss, values["similarity"] = loss + SPEAKER_WEIGHT * (1 - similarity), 2 * similarity
        weight = min(1.0, max(0.0, 10 * (progress - ADVERSARIAL_FROM)))
        deceit = self.adversary.compete(frames, meant, speaker) if weight else torch.zeros(2)
        loss = loss + weight * (ADVERSARIAL_WEIGHT * deceit[0] + MATCHING_WEIGHT * deceit[1])
        return loss, {**values, "adversarial": deceit[0], "matching": deceit[1]}

    def condition(self, speaker: Tensor, moments: Tensor) -> Tensor:
        """Conditions (B, C') of embeddings with channels (B, 286), some without the channel, and moments of pitch."""
        told = torch.ones_like(speaker)
        told[:, SPEAKER_SIZE:] = (torch.rand(len(told), 1) > CHANNEL_DROPOUT).float()
        return self.converter.condition(torch.cat((speaker * told, moments), 1))

    def similarity(self, frames: Tensor, embedding: Tensor) -> Tensor:
        """Mean cosine () of the first window of frames (B, T, F) to embeddings (B, 256)."""
        windows = frames[:, : SPEAKER_WINDOW // 2].reshape(len(frames), SPEAKER_WINDOW, -1)
        return (self.converter.speaker(windows) * embedding).sum(1).mean()


def fill_speaker(converter: VoiceConverter, path: str) -> None:
    """Takes the speaker network of a file of `speaker.*`. Raises ValueError where it has none."""
    state = {
        name.removeprefix("speaker."): x.float() for name, x in load_file(path).items() if name.startswith("speaker.")
    }
    if not state:
        raise ValueError(f"{path} has no speaker network: expected the output of smalle.train.conversion.speaker.")
    converter.speaker.load_state_dict(state)


def train(pairs: Sequence[str], start: str, speaker: str, options: StageOptions) -> None:
    """Trains the network behind a trained encoder, or goes on with it."""
    torch.manual_seed(0)
    converter = VoiceConverter.from_pretrained(start)
    fill_speaker(converter, speaker)
    found = load_pairs(pairs)
    readings = load_readings(f"{Path(start)}-readings.safetensors", found)
    stage = ConverterStage(converter, found, readings, options)
    run_stage(stage, options, {"stage": "converter", "pairs": str(list(pairs)), "codec": start}, FRAMES)


def main(argv: Sequence[str] | None = None) -> None:
    """Runs the command."""
    parser = command_parser("python -m smalle.train.conversion.converter", __doc__)
    parser.add_argument("pairs", nargs="+", help="files of smalle.train.conversion.pairs")
    parser.add_argument("--start", required=True, help="output folder of smalle.train.conversion.content")
    parser.add_argument("--speaker", required=True, help="safetensors file of a speaker network")
    parser.add_argument("--output", required=True, help="folder of the converter to write")
    parser.add_argument("--minutes", type=float, default=35, help="training time (default: %(default)s)")
    arguments = parser.parse_args(argv)
    options = StageOptions(arguments.output, arguments.minutes, 16, 8e-4, 300, 0.998, checkpoint_seconds=180)
    train(arguments.pairs, arguments.start, arguments.speaker, options)


if __name__ == "__main__":
    sys.exit(run_command("converter", main))
