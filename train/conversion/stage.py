"""What the stages of a converter's training share: a new converter, samples of frames, updates."""

import copy
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from smalle.codec_smalle import SmallECodec, SmallECodecConfig
from smalle.voices_smalle import (
    CENTROID,
    MEAN_CEPSTRA,
    SpeechStatistics,
    VoiceConverter,
    VoiceConverterConfig,
)

from ..codec.recipe import StageOptions
from ..codec.stages import adamw, learning_rate_factor
from ..codec.timed_run import TimedRun
from ..model.ema import MovingAverage
from .pairs import cosines

FRAMES = 150  # of the codec, of a sample


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
    """Envelopes (T / 2, 48) of log-mel frames (T, num_mels): the lower cepstra of two frames."""
    return (frames.float() @ cosines(CENTROID // 2, frames.shape[1]).T).view(-1, CENTROID)


def interpolate(values: Tensor, places: Tensor) -> Tensor:
    """Rows of values (S, C) at places (T,) with fractions."""
    places = places.clamp(0, len(values) - 1)
    low = places.long()
    return torch.lerp(values[low], values[(low + 1).clamp(max=len(values) - 1)], (places - low)[:, None])


def kl_divergence(heard: Tensor, meant: Tensor, known: Tensor | None = None) -> Tensor:
    """Kullback-Leibler divergence () from log-probabilities (B, K, T) that are meant, over known (B, T) frames."""
    found = (meant.exp() * (meant - heard)).sum(1)
    return found.mean() if known is None else (found * known).sum() / known.sum()


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
        """Descends by the gradients of a loss, and of those that went backward before, and averages the weights."""
        factor = learning_rate_factor(step, progress, self.options.warmup)
        self.optimizer.param_groups[0]["lr"] = factor * self.options.learning_rate
        loss.backward()
        nn.utils.clip_grad_norm_(self.trained.parameters(), self.options.clip)
        self.optimizer.step()
        self.optimizer.zero_grad()
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


def centred(frames: Tensor) -> Tensor:
    """Log-mel frames (T, num_mels) without their mean over speech."""
    return frames.float() - SpeechStatistics.of(frames.float()).mean


@torch.no_grad()
def measure_source(converter: VoiceConverter, mels: Sequence[Tensor]) -> None:
    """Sets what the converter knows of the voice that it converts: mean frame, loudness and pitch.

    mels: log-mel frames (1, T, 2 * num_mels) of its speech.
    """
    found = [SpeechStatistics.of(mel.reshape(-1, converter.codec_config.num_mels)) for mel in mels]
    converter.source_mean.copy_(torch.stack([x.mean for x in found]).mean(0))
    converter.source_loudness.copy_(torch.stack([x.loudness for x in found]).mean())
    f0 = torch.cat([converter.source_content(mel)[1].flatten() for mel in mels])
    log_f0 = f0[f0 > 0].log()
    converter.config.source_pitch = [round(float(log_f0.median()), 4), round(float(log_f0.std()), 4)]


def run_stage(stage: ConversionStage, options: StageOptions, origin: dict[str, str], frames: int = FRAMES) -> None:
    """Trains a stage, or goes on with it; frames: of a sample, for the log."""
    rate = stage.converter.codec_config.frame_rate
    run = TimedRun(stage, options, origin, options.batch_size * frames / rate)  # type: ignore[arg-type]
    run.resume()
    run.run()
