"""The stages of codec training: the parameters, loss and output of each."""

import copy
import math
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from smalle.codec_smalle import LatentRefiner, SmallECodec, mel_frequencies

from ..model.ema import MovingAverage
from .data import AudioPool, Segments
from .discriminators import Discriminators
from .losses import SpectralLoss, discriminator_loss, generator_loss, low_pass
from .recipe import AdversarialOptions, ReconstructionOptions, RefinerOptions, StageOptions


def learning_rate_factor(step: int, progress: float, warmup: int) -> float:
    """Factor of the learning rate: linear warm-up over steps, times a cosine over the time, down to 0.02."""
    return min(1, (step + 1) / max(1, warmup)) * (0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * min(1, progress))))


def adamw(module: nn.Module, learning_rate: float, betas: tuple[float, float]) -> torch.optim.AdamW:
    """AdamW; fused on a GPU."""
    parameters = list(module.parameters())
    return torch.optim.AdamW(parameters, learning_rate, betas, weight_decay=0.01, fused=parameters[0].is_cuda)


class Stage:
    """Trains one part of a codec. Validates and saves the average of its weights.

    Args:
        validation: waveform (B, L) of held-out segments.
    """

    trained, betas = "vocos", (0.8, 0.99)
    refined = False  # whether the decoder reads refined latents

    def __init__(self, codec: SmallECodec, pool: AudioPool, validation: Tensor, options: StageOptions):
        self.codec, self.pool, self.validation, self.options = codec.train(), pool, validation, options
        self.validation_bands: Tensor | None = None
        if codec.analysis.extension is not None:
            lengths = torch.full((len(validation),), validation.shape[1])
            self.validation_bands = codec.analysis.occupied_bands(codec.analysis.mel(validation), lengths)
        self.module: nn.Module = getattr(codec, self.trained)
        self.spectral = SpectralLoss(codec.sampling_rate)
        self.optimizer = adamw(self.module, options.learning_rate, self.betas)
        self.average = MovingAverage(dict(self.module.named_parameters()), options.ema_decay)
        self.saved: dict[str, Any] = {"codec": codec, "optimizer": self.optimizer}  # what has a state to resume from

    def step(self, step: int, progress: float) -> dict[str, Tensor]:
        """One update; `progress` is the elapsed fraction of the time. Returns scalars to log."""
        raise NotImplementedError

    def analyze(self, waveform: Tensor, bands: Tensor | None) -> Tensor:
        """Unquantized latents (B, D, T) of a waveform (B, L) with `bands` (B,) occupied mel bands."""
        analysis = self.codec.analysis
        return analysis.project(analysis.features(analysis.mel(waveform), bands))

    def quantize(self, latents: Tensor, num_codebooks: int | None = None) -> Tensor:
        """Latents (B, D, T) quantized with the first `codebooks`; default: all."""
        return self.codec.quantizer.decode(self.codec.quantizer.encode(latents)[:, :num_codebooks])

    @torch.no_grad()
    def draw_latents(self, segments: Segments) -> tuple[Tensor, Tensor]:
        """Latents (B, D, T) of segments before and after quantization with a random choice of options.codebooks.

        Analyses a share of the full-band segments as if they were band-limited, so that the decoder learns to extend
        the band.
        """
        bands, full = segments.bands, self.codec.config.num_mels
        if bands is not None:
            lower = torch.randint(round(0.74 * full), round(0.92 * full), bands.shape, device=bands.device)
            narrowed = torch.rand(bands.shape, device=bands.device) < self.options.narrowed_share
            bands = torch.where(narrowed & (bands == full), lower, bands)
        counts = self.options.codebooks or [self.codec.num_codebooks]
        latents = self.analyze(segments.waveform, bands)
        return latents, self.quantize(latents, counts[int(torch.randint(len(counts), ()))])

    def decoder_input(self, quantized: Tensor) -> Tensor:
        """The decoder's input for quantized latents.

        In `reconstruction` these are the quantized latents, even if a refiner is trained later: a decoder trained on
        unquantized latents sounded worse, with a refiner too.
        """
        return self.codec.refiner(quantized)[0] if self.refined and self.codec.refiner is not None else quantized

    def limit_band(self, waveform: Tensor, bands: Tensor | None) -> Tensor:
        """Low-pass filters a waveform (B, L) to its occupied mel bands (B,); there is no target above them."""
        if bands is None:
            return waveform
        config = self.codec.config
        centres = mel_frequencies(config.num_mels, config.sampling_rate)[1:-1].float().to(bands.device)
        cutoff = torch.where(bands == config.num_mels, config.sampling_rate, centres[(bands - 2).clamp(min=0)])
        return low_pass(waveform, cutoff, config.sampling_rate)

    def synthesize(self, segments: Segments) -> tuple[Tensor, Tensor]:
        """Decodes quantized segments. Returns the waveform in their bands, and the error of the predicted log f0.

        The excitation follows the f0 of the recordings, so that harmonics coincide with those of the target.
        """
        with torch.no_grad():
            latents = self.decoder_input(self.draw_latents(segments)[1])
        config = self.codec.vocos.config
        if self.pool.pitch is None:
            return self.limit_band(self.codec.vocos(latents), segments.bands), latents.new_zeros(())
        middles = torch.arange(latents.shape[2] * config.upsampling, device=latents.device) + 0.5
        samples = segments.start[:, None] + (middles * config.spectral_hop).long()
        f0, voiced = self.pool.pitch.at(segments.recording, samples)
        output, predicted = self.codec.vocos.synthesize(latents, f0=f0)
        error = ((predicted.log() - f0.log()).abs() * voiced).sum() / voiced.sum().clamp(min=1)
        return self.limit_band(output, segments.bands), error

    def update(self, loss: Tensor, step: int, progress: float) -> Tensor:
        """Updates the weights and their average; returns the norm of the gradient."""
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
        """Spectral distance on the validation segments, with the averaged weights."""
        self.codec.eval()
        with self.average.applied():
            quantized = self.quantize(self.analyze(self.validation, self.validation_bands))
            output = self.limit_band(self.codec.vocos(self.decoder_input(quantized)), self.validation_bands)
            target = self.limit_band(self.validation, self.validation_bands)
            log_term, linear_term = self.spectral(output, target)
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
    """Trains the decoder with the spectral distance."""

    options: ReconstructionOptions

    def step(self, step: int, progress: float) -> dict[str, Tensor]:
        segments = self.pool.draw(self.options.batch_size)
        output, pitch = self.synthesize(segments)
        log_term, linear_term = self.spectral(output, self.limit_band(segments.waveform, segments.bands))
        self.update(log_term + linear_term + pitch, step, progress)
        return {"log": log_term, "linear": linear_term, "pitch": pitch}


class AdversarialDecoder(Stage):
    """Trains the decoder, after the refiner, with spectral distance, discriminators and feature matching."""

    options: AdversarialOptions
    refined = True

    def __init__(self, codec: SmallECodec, pool: AudioPool, validation: Tensor, options: AdversarialOptions):
        super().__init__(codec, pool, validation, options)
        self.initial = copy.deepcopy(codec.vocos).requires_grad_(False)
        self.discriminators = Discriminators(options.windows, options.width)
        channels_last: Any = {"memory_format": torch.channels_last}  # missing in torch's annotations
        self.discriminators.to(codec.device).to(**channels_last)
        rate = options.discriminator_learning_rate
        self.discriminator_optimizer = adamw(self.discriminators, rate, (0.5, 0.9))
        for name in ("initial", "discriminators", "discriminator_optimizer"):
            self.saved[name] = getattr(self, name)

    @torch.no_grad()
    def save(self, folder: Path) -> None:
        """Writes the codec with weights interpolated between the initial and the averaged ones by initial_share.

        This keeps words clearer than the averaged weights alone.
        """
        initial = dict(self.initial.named_parameters())
        with self.average.applied():
            for name, parameter in self.module.named_parameters():
                parameter.lerp_(initial[name], self.options.initial_share)
            self.codec.save_pretrained(folder)

    def discriminate(self, real: Tensor, fake: Tensor) -> list[list[Tensor]]:
        """Feature maps of real and generated waveforms, concatenated to one batch."""
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
        target = self.limit_band(segments.waveform, segments.bands)
        factor = max(0.1, learning_rate_factor(step, progress, options.warmup // 8))
        discriminators = self.step_discriminators(target, output.detach(), factor)
        adversarial, matching = generator_loss(self.discriminate(target, output))
        log_term, linear_term = self.spectral(output, target)
        ramp = min(1, step / max(1, options.warmup))  # the discriminators learn first
        loss = options.spectral_weight * (log_term + linear_term) + 3 * pitch
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


def is_trained(refiner: LatentRefiner) -> bool:
    """Whether the stage `refiner` has trained this refiner."""
    return bool((refiner.rest_scale != 1).any())


class Refinement(Stage):
    """Trains the refiner with the square error of latents."""

    options: RefinerOptions
    trained, betas = "refiner", (0.9, 0.98)
    refined = True

    def __init__(self, codec: SmallECodec, pool: AudioPool, validation: Tensor, options: RefinerOptions):
        super().__init__(codec, pool, validation, options)
        assert codec.refiner is not None
        self.refiner = codec.refiner
        if not is_trained(self.refiner):
            latents, quantized = self.draw_latents(pool.draw(256))
            self.refiner.latent_scale.copy_(quantized.transpose(0, 1).flatten(1).std(1))
            self.refiner.rest_scale.copy_((latents - quantized).transpose(0, 1).flatten(1).std(1))

    def step(self, step: int, progress: float) -> dict[str, Tensor]:
        latents, quantized = self.draw_latents(self.pool.draw(self.options.batch_size))
        with torch.autocast(latents.device.type, torch.bfloat16, enabled=self.options.bf16):
            rest, _ = self.refiner.rest(quantized)
        loss = F.mse_loss(rest, (latents - quantized) / self.refiner.rest_scale[:, None])
        self.update(loss, step, progress)
        return {"rest": loss}


STAGES = {"reconstruction": Reconstruction, "adversarial": AdversarialDecoder, "refiner": Refinement}
