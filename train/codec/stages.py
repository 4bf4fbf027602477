"""The stages of a codec's training: what each trains, its loss, and what it saves."""

import copy
import math
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from smalle.codec_smalle import SmallECodec

from ..model.ema import MovingAverage
from .data import AudioPool, LatentPool, Segments
from .discriminators import Discriminators
from .losses import SpectralLoss, discriminator_loss, generator_loss
from .recipe import AdversarialOptions, ReconstructionOptions, RefinerOptions, StageOptions


def learning_rate_factor(step: int, progress: float, warmup: int) -> float:
    """Linear warm-up over steps, times a cosine over the progress of the time that falls to 0.02."""
    return min(1, (step + 1) / max(1, warmup)) * (0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * min(1, progress))))


def adamw(module: nn.Module, learning_rate: float, betas: tuple[float, float]) -> torch.optim.AdamW:
    """AdamW; fused on a GPU."""
    parameters = list(module.parameters())
    return torch.optim.AdamW(parameters, learning_rate, betas, weight_decay=0.01, fused=parameters[0].is_cuda)


class Stage:
    """Trains one part of a codec; its averaged weights are validated and saved.

    Args:
        validation: waveform (B, L) of segments that are not trained on.
    """

    trained, betas = "vocos", (0.8, 0.99)

    def __init__(self, codec: SmallECodec, pool: AudioPool, validation: Tensor, options: StageOptions):
        self.codec, self.pool, self.validation, self.options = codec.train(), pool, validation, options
        self.module: nn.Module = getattr(codec, self.trained)
        self.spectral = SpectralLoss(codec.sampling_rate)
        self.optimizer = adamw(self.module, options.learning_rate, self.betas)
        self.average = MovingAverage(dict(self.module.named_parameters()), options.ema_decay)
        self.saved: dict[str, Any] = {"codec": codec, "optimizer": self.optimizer}  # what has a state to resume from

    def step(self, step: int, progress: float) -> dict[str, Tensor]:
        """One update; `progress` is the fraction of the time that has passed. Returns scalars to log."""
        raise NotImplementedError

    @torch.no_grad()
    def quantize(self, waveform: Tensor) -> Tensor:
        """Quantized latents (B, D, T) of a waveform (B, L).

        The decoder learns from these, though a refiner may follow: trained on latents before quantization it sounded
        worse with a refiner, too.
        """
        return self.codec.quantizer.decode(self.codec.quantizer.encode(self.codec.analysis(waveform)))

    def decode(self, latents: Tensor) -> Tensor:
        """Waveform of quantized latents, for validation."""
        return self.codec.vocos(latents)

    def synthesize(self, segments: Segments) -> tuple[Tensor, Tensor]:
        """Waveform of the quantized segments, and the error of the predicted log f0 where they are voiced.

        Pulses follow the f0 of the recordings, so that harmonics lie where those of the target are.
        """
        latents, config = self.quantize(segments.waveform), self.codec.vocos.config
        if self.pool.pitch is None:
            return self.codec.vocos(latents), latents.new_zeros(())
        middles = torch.arange(latents.shape[2] * config.upsampling, device=latents.device) + 0.5
        samples = segments.start[:, None] + (middles * config.spectral_hop).long()
        f0, voiced = self.pool.pitch.at(segments.recording, samples)
        output, predicted = self.codec.vocos.synthesize(latents, f0=f0)
        return output, ((predicted.log() - f0.log()).abs() * voiced).sum() / voiced.sum().clamp(min=1)

    def update(self, loss: Tensor, step: int, progress: float) -> Tensor:
        """Updates the module and the average by a loss; returns the norm of the gradient."""
        options = self.options
        factor = learning_rate_factor(step, progress, options.warmup)
        self.optimizer.param_groups[0]["lr"] = options.learning_rate * factor
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        norm = nn.utils.clip_grad_norm_(self.module.parameters(), options.clip)
        self.optimizer.step()
        self.average.update(step)
        return norm

    @torch.no_grad()
    def validate(self) -> dict[str, float]:
        """Spectral distance of the validation segments with the averaged weights."""
        self.codec.eval()
        with self.average.applied():
            log_term, linear_term = self.spectral(self.decode(self.quantize(self.validation)), self.validation)
        self.codec.train()
        return {"validation_log": log_term.item(), "validation_linear": linear_term.item()}

    def save(self, folder: Path) -> None:
        """Writes the codec with the averaged weights."""
        with self.average.applied():
            self.codec.save_pretrained(folder)

    def state_dict(self) -> dict[str, Any]:
        return {"average": self.average.average, **{name: part.state_dict() for name, part in self.saved.items()}}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.average.load(state["average"])
        for name, part in self.saved.items():
            part.load_state_dict(state[name])


class Reconstruction(Stage):
    """Trains the decoder by spectral distance."""

    options: ReconstructionOptions

    def step(self, step: int, progress: float) -> dict[str, Tensor]:
        segments = self.pool.draw(self.options.batch_size)
        output, pitch = self.synthesize(segments)
        log_term, linear_term = self.spectral(output, segments.waveform)
        self.update(log_term + linear_term + pitch, step, progress)
        return {"log": log_term, "linear": linear_term, "pitch": pitch}


class AdversarialDecoder(Stage):
    """Trains the decoder by spectral distance, discriminators and feature matching."""

    options: AdversarialOptions

    def __init__(self, codec: SmallECodec, pool: AudioPool, validation: Tensor, options: AdversarialOptions):
        super().__init__(codec, pool, validation, options)
        self.initial = copy.deepcopy(codec.vocos).requires_grad_(False)
        self.discriminators = Discriminators(options.periods, options.windows, options.width)
        self.discriminators.to(codec.device).to(memory_format=torch.channels_last)
        rate = options.discriminator_learning_rate
        self.discriminator_optimizer = adamw(self.discriminators, rate, self.betas)
        for name in ("initial", "discriminators", "discriminator_optimizer"):
            self.saved[name] = getattr(self, name)

    @torch.no_grad()
    def save(self, folder: Path) -> None:
        """Writes the codec with weights between the initial and the averaged ones, by initial_share: words stay
        clearer."""
        initial = dict(self.initial.named_parameters())
        with self.average.applied():
            for name, parameter in self.module.named_parameters():
                parameter.lerp_(initial[name], self.options.initial_share)
            self.codec.save_pretrained(folder)

    def discriminate(self, real: Tensor, fake: Tensor) -> list[list[Tensor]]:
        """Feature maps of real and generated waveforms, one batch."""
        with torch.autocast(real.device.type, torch.bfloat16, enabled=self.options.bf16):
            return self.discriminators(torch.cat([real, fake]))

    def step_discriminators(self, real: Tensor, fake: Tensor, factor: float) -> Tensor:
        """One update of the discriminators; their loss."""
        self.discriminators.requires_grad_(True)
        loss = discriminator_loss(self.discriminate(real, fake))
        self.discriminator_optimizer.param_groups[0]["lr"] = self.options.discriminator_learning_rate * factor
        self.discriminator_optimizer.zero_grad(set_to_none=True)
        loss.backward()
        self.discriminator_optimizer.step()
        self.discriminators.requires_grad_(False)
        return loss

    def step(self, step: int, progress: float) -> dict[str, Tensor]:
        options = self.options
        segments = self.pool.draw(options.batch_size)
        output, pitch = self.synthesize(segments)
        factor = learning_rate_factor(step, progress, options.warmup)
        discriminators = self.step_discriminators(segments.waveform, output.detach(), factor)
        adversarial, matching = generator_loss(self.discriminate(segments.waveform, output))
        log_term, linear_term = self.spectral(output, segments.waveform)
        ramp = min(1, step / max(1, options.warmup))  # the discriminators learn first
        loss = options.spectral_weight * (log_term + linear_term) + pitch
        loss = loss + ramp * (options.adversarial_weight * adversarial + options.matching_weight * matching)
        return {
            "log": log_term,
            "linear": linear_term,
            "pitch": pitch,
            "adversarial": adversarial,
            "matching": matching,
            "discriminators": discriminators,
            "norm": self.update(loss, step, progress),
        }


class Refinement(Stage):
    """Trains the refiner by the square error of latents."""

    options: RefinerOptions
    trained, betas = "refiner", (0.9, 0.98)

    def __init__(self, codec: SmallECodec, pool: AudioPool, validation: Tensor, options: RefinerOptions):
        super().__init__(codec, pool, validation, options)
        self.latents = LatentPool(codec, pool, options.frames)
        if (codec.refiner.rest_scale == 1).all():  # a new refiner
            latents, codes = self.latents.draw(256)
            quantized = codec.quantizer.decode(codes)
            codec.refiner.latent_scale.copy_(quantized.transpose(0, 1).flatten(1).std(1))
            codec.refiner.rest_scale.copy_((latents - quantized).transpose(0, 1).flatten(1).std(1))

    def decode(self, latents: Tensor) -> Tensor:
        return self.codec.vocos(self.codec.refiner(latents)[0])

    def step(self, step: int, progress: float) -> dict[str, Tensor]:
        latents, codes = self.latents.draw(self.options.batch_size)
        quantized = self.codec.quantizer.decode(codes)
        with torch.autocast(latents.device.type, torch.bfloat16, enabled=self.options.bf16):
            rest, _ = self.codec.refiner.rest(quantized)
        loss = F.mse_loss(rest, (latents - quantized) / self.codec.refiner.rest_scale[:, None])
        self.update(loss, step, progress)
        return {"rest": loss}


STAGES = {"reconstruction": Reconstruction, "adversarial": AdversarialDecoder, "refiner": Refinement}
