"""Trains the encoder of a voice converter: what is said in anybody's speech, as the envelope of one voice, and f0.

  python -m smalle.train.conversion.content PAIRS.safetensors ... --codec CODEC --output OUT [--minutes 12]

OUT is the folder of a converter whose network is not trained yet. The command resumes when it is run again.
"""

import copy
import math
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from smalle.cli.command import command_parser, run_command
from smalle.codec_smalle import SmallECodec, SmallECodecConfig
from smalle.voices_smalle import CONTENT, MEAN_CEPSTRA, VoiceConverter, VoiceConverterConfig, loud_frames

from ..codec.recipe import StageOptions
from ..codec.stages import adamw, learning_rate_factor
from ..codec.timed_run import TimedRun
from ..model.ema import MovingAverage
from .pairs import Pair, cosines, load_own_codec, load_pairs

FRAMES = 150  # of the codec, of a sample
BEST = 0.85  # share of the pairs, by the cost of their alignments
OWN_SHARE = 0.1  # of samples that are the reading voice itself
STRAIGHT_SHARE = 0.4  # of the samples of recordings that are not warped, from which f0 is learnt


def new_converter(codec: SmallECodec, **sizes: Any) -> VoiceConverter:
    """An untrained converter for a codec, with its analysis and its decoder."""
    values = codec.config.to_dict()
    kept = {name: values[name] for name in SmallECodecConfig.__annotations__ if name in values}
    converter = VoiceConverter(VoiceConverterConfig(codec={**kept, "refiner_num_layers": 0}, **sizes))
    converter.analysis.load_state_dict(codec.analysis.state_dict())
    converter.vocos.load_state_dict(codec.vocos.state_dict())
    converter.cepstrum.copy_(cosines(MEAN_CEPSTRA, codec.config.num_mels))
    return converter


def smooth_envelope(frames: Tensor) -> Tensor:
    """Content (T / 2, 48) of log-mel frames (T, num_mels): the lower cepstra of two frames."""
    return (frames.float() @ cosines(CONTENT // 2, frames.shape[1]).T).view(-1, CONTENT)


def interpolate(values: Tensor, places: Tensor) -> Tensor:
    """Rows of values (S, C) at places (T,) with fractions."""
    places = places.clamp(0, len(values) - 1)
    low = places.long()
    return torch.lerp(values[low], values[(low + 1).clamp(max=len(values) - 1)], (places - low)[:, None])


class ConversionStage:
    """What `TimedRun` trains: some parts of a converter, by AdamW, with averaged weights.

    `random` follows from the number of the step, so that a resumed run goes on with other samples.
    """

    betas = (0.9, 0.98)

    def __init__(self, converter: VoiceConverter, trained: nn.ModuleDict, options: StageOptions):
        self.converter, self.trained, self.options = converter.requires_grad_(False), trained, options
        self.optimizer = adamw(trained.requires_grad_(True), options.learning_rate, self.betas)
        self.average = MovingAverage(dict(trained.named_parameters()), options.ema_decay)
        self.saved: dict[str, Any] = {"trained": trained, "optimizer": self.optimizer}

    def begin(self, step: int) -> np.random.Generator:
        """Seeds the step's random numbers."""
        torch.manual_seed(step)
        return np.random.default_rng(step)

    def step(self, step: int, progress: float) -> dict[str, Tensor]:
        """One update; `progress` is the fraction of the time that has passed. Returns scalars to log."""
        raise NotImplementedError

    def update(self, loss: Tensor, step: int, progress: float) -> None:
        """Descends, and averages the weights."""
        factor = learning_rate_factor(step, progress, self.options.warmup)
        self.optimizer.param_groups[0]["lr"] = factor * self.options.learning_rate
        self.optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(self.trained.parameters(), self.options.clip)
        self.optimizer.step()
        self.average.update(step + 1)

    def validate(self) -> dict[str, Tensor]:
        """Nothing: what is trained is judged by ear and by `benchmarks`."""
        return {}

    def save(self, folder: Path) -> None:
        """Writes the converter with the averaged weights."""
        with self.average.applied():
            copy.deepcopy(self.converter).save_pretrained(folder)

    def state_dict(self) -> dict[str, Any]:
        return {"average": self.average.average, **{name: part.state_dict() for name, part in self.saved.items()}}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.average.load(state["average"])
        for name, part in self.saved.items():
            part.load_state_dict(state[name])


def warp(frames: Tensor, factor: float) -> Tensor:
    """Frames (T, num_mels) stretched along the mel axis, as by another length of the vocal tract."""
    return interpolate(frames.T, torch.arange(frames.shape[1]) * factor).T


def disguise(frames: Tensor, random: np.random.Generator) -> Tensor:
    """Frames (T, num_mels) with the tilt of another channel and with noise, each in some of the samples."""
    bands = torch.linspace(0, 1, frames.shape[1])
    if random.random() < 0.5:
        frames = frames + sum(random.normal(0, 0.3 / n) * torch.cos(math.pi * n * bands) for n in (1, 2, 3))
    if random.random() < 0.3:
        noise = random.normal(-5.5, 1.0) + random.normal() * (2 * bands - 1)
        frames = torch.logaddexp(frames, noise.float().expand_as(frames))
    return frames


class ContentStage(ConversionStage):
    """Trains the encoder: the envelope (smooth L1), and of recordings that are not warped, f0 and voicing."""

    def __init__(self, converter: VoiceConverter, pairs: Sequence[Pair], options: StageOptions):
        super().__init__(converter, nn.ModuleDict({"encoder": converter.encoder}), options)
        self.pairs = pairs
        sources = torch.cat([pair.source for pair in pairs[:: 1 + len(pairs) // 2000]])
        self.source_mean, content = sources[loud_frames(sources)].float().mean(0), smooth_envelope(sources)
        self.mean, self.scale = content.mean(0), content.std(0) + 1e-3
        converter.source_mean.copy_(self.source_mean)

    def sample(self, random: np.random.Generator) -> tuple[Tensor, ...]:
        """Frames (150, 2 * num_mels), content (150, 48), f0 (150, 2), and masks (150,) of frames and of known f0."""
        pair = self.pairs[int(random.integers(len(self.pairs)))]
        content, own = (smooth_envelope(pair.source) - self.mean) / self.scale, random.random() < OWN_SHARE
        if own:
            frames, f0 = pair.source.float() - self.source_mean, torch.zeros(len(pair.source))
        else:
            content, f0 = interpolate(content, pair.places), pair.f0
            frames = pair.mel.float() - pair.mel[loud_frames(pair.mel)].float().mean(0)
        straight = not own and random.random() < STRAIGHT_SHARE
        start = int(random.integers(max(1, len(content) - FRAMES + 1)))
        part = slice(2 * start, 2 * (start + FRAMES))
        frames = frames[part] if straight else warp(frames[part], math.exp(random.normal(0, 0.06)))
        frames = disguise(frames, random).reshape(-1, 2 * frames.shape[1])
        known = torch.ones(len(frames))
        rows = frames, content[start : start + FRAMES], f0[part].view(-1, 2), known, known * straight
        return tuple(F.pad(x, (0, 0) * (x.dim() - 1) + (0, FRAMES - len(x))) for x in rows)

    def step(self, step: int, progress: float) -> dict[str, Tensor]:
        random = self.begin(step)
        samples = zip(*[self.sample(random) for _ in range(self.options.batch_size)])
        frames, content, f0, known, straight = (torch.stack(values) for values in samples)
        with torch.autocast("cpu", torch.bfloat16):
            output = self.converter.encoder.apply_blocks(frames.transpose(1, 2))[0]
        heard, pitch, voicing = output.float().transpose(1, 2).split((CONTENT, 2, 2), 2)
        voiced = (f0 > 0).float()
        error = F.smooth_l1_loss(heard, content, reduction="none", beta=0.5).mean(2)
        said = (error * known).sum() / known.sum()
        weights = voiced * straight[..., None]
        tone = ((pitch - (f0.clamp(min=50) / 180).log()).abs() * weights).sum() / weights.sum().clamp(min=1)
        decision = F.binary_cross_entropy_with_logits(voicing, voiced, reduction="none").mean(2)
        decision = (decision * straight).sum() / straight.sum().clamp(min=1)
        self.update(said + tone + 0.2 * decision, step, progress)
        return {"content": said, "f0": tone, "voicing": decision}


def train(pairs: Sequence[str], codec: str, options: StageOptions, **sizes: Any) -> None:
    """Trains an encoder, or goes on with it; sizes: of `VoiceConverterConfig`."""
    torch.manual_seed(0)
    stage = ContentStage(new_converter(load_own_codec(codec), **sizes), load_pairs(pairs, BEST), options)
    origin = {"stage": "content", "pairs": str(list(pairs)), "codec": codec}
    run = TimedRun(stage, options, origin, options.batch_size * FRAMES / stage.converter.codec_config.frame_rate)  # type: ignore[arg-type]
    run.resume()
    run.run()


def main(argv: Sequence[str] | None = None) -> None:
    """Runs the command."""
    parser = command_parser("python -m smalle.train.conversion.content", __doc__)
    parser.add_argument("pairs", nargs="+", help="files of smalle.train.conversion.pairs")
    parser.add_argument("--codec", required=True, help="folder of the codec of the pairs")
    parser.add_argument("--output", required=True, help="folder of the converter to write")
    parser.add_argument("--minutes", type=float, default=12, help="training time (default: %(default)s)")
    arguments = parser.parse_args(argv)
    options = StageOptions(arguments.output, arguments.minutes, 16, 1.2e-3, 200, 0.998, checkpoint_seconds=180)
    train(arguments.pairs, arguments.codec, options)


if __name__ == "__main__":
    sys.exit(run_command("content", main))
