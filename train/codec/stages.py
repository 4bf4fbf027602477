"""The stages in which the embedded codec learns: what each does in one step, what it saves."""

import copy
import math

import torch
import torch.nn.functional as F
from torch import nn

from smalle.codec_smalle import codebook_usage

from .discriminators import Discriminators, discriminator_loss, generator_loss
from .latent_pool import LatentPool
from .losses import SpectralLoss


def cosine(step, fraction, warmup):
    """Factor of the learning rate: linear warm-up by steps, cosine to 0.02 by the share of time spent."""
    return min(1, (step + 1) / max(1, warmup)) * (0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * min(1, fraction))))


def optimizer(parameters, learning_rate, betas):
    """AdamW for parameter groups; fused on a GPU."""
    fused = next(iter(parameters[0]["params"])).is_cuda
    return torch.optim.AdamW(parameters, learning_rate, betas=betas, weight_decay=0.01, fused=fused)


class Averaged:
    """The part of a codec that is saved: an exponential average of the one that learns."""

    def __init__(self, codec, name, decay):
        self.name, self.source, self.decay = name, getattr(codec, name), decay
        self.module = copy.deepcopy(self.source).requires_grad_(False).eval()

    @torch.no_grad()
    def update(self, step):
        decay = min(self.decay, (1 + step) / (10 + step))
        torch._foreach_lerp_(list(self.module.parameters()), list(self.source.parameters()), 1 - decay)

    def save(self, codec, folder, weights=None):
        """Writes the codec with this part, or one of other weights, in place of its own."""
        whole = copy.deepcopy(codec)
        getattr(whole, self.name).load_state_dict(weights or self.module.state_dict())
        whole.save_pretrained(folder)


class CodebookLearner:
    """Moves each code towards the mean of what it is chosen for, and codes that nobody chooses to new places.

    `memory`: frames over which the mean is taken, as an exponential average.
    """

    def __init__(self, quantizer, memory):
        self.quantizer, self.memory = quantizer, memory
        books, size, _ = quantizer.codebooks.shape
        self.counts = torch.ones(books, size, device=quantizer.codebooks.device)
        self.sums = quantizer.codebooks.clone()

    @torch.no_grad()
    def update(self, codes, residuals, restart):
        """Codes (Q, N) and the vectors (Q, N, D) that they stand for, from `ResidualQuantizer.quantize`."""
        books, size, width = self.sums.shape
        flat = (codes + size * torch.arange(books, device=codes.device)[:, None]).flatten()
        counts = torch.zeros(books * size, device=flat.device).index_add_(0, flat, torch.ones_like(flat).float())
        sums = torch.zeros(books * size, width, device=flat.device).index_add_(0, flat, residuals.flatten(0, 1))
        # counts are in units of what a code gets on average, so that 1 is where they start
        unit, weight = size / codes.shape[1], min(1.0, codes.shape[1] / self.memory)
        self.counts.lerp_(counts.view(books, size) * unit, weight)
        self.sums.lerp_(sums.view(books, size, width) * unit, weight)
        if restart:
            chosen = torch.randint(residuals.shape[1], (books, size), device=flat.device)
            fresh = residuals.gather(1, chosen[..., None].expand(-1, -1, width))
            dead = self.counts < 0.02
            self.counts.masked_fill_(dead, 1)
            self.sums.copy_(torch.where(dead[..., None], fresh, self.sums))
        self.quantizer.codebooks.copy_(self.sums / self.counts.clamp(min=1e-3)[..., None])

    def state_dict(self):
        return {"counts": self.counts, "sums": self.sums}

    def load_state_dict(self, state):
        self.counts.copy_(state["counts"])
        self.sums.copy_(state["sums"])


class Stage:
    """What all stages share: codec, pieces of audio, the averaged part that learns, validation and saving."""

    learns = "vocos"

    def __init__(self, codec, pool, validation, options, gain_db):
        self.codec, self.pool, self.options, self.gain_db = codec.train(), pool, options, tuple(gain_db)
        self.validation = validation
        self.spectral = SpectralLoss(codec.sampling_rate)
        self.average = Averaged(codec, self.learns, options["average"])

    def pieces(self):
        return self.pool.located_pieces(self.options["batch_size"], self.gain_db)

    def synthesize(self, latents, file, start):
        """Waveform of latents (B, D, T), and how far the predicted log f0 is off the pool's where there is a voice.

        Pulses follow the pool's f0, so that harmonics lie where the target's are. file, start: see `AudioPool`.
        """
        if self.pool.pitch is None:
            return self.codec.vocos(latents), latents.new_zeros(())
        config = self.codec.vocos.config
        middles = torch.arange(latents.shape[2] * config.upsampling, device=latents.device) + 0.5
        f0, voiced = self.pool.pitch.at(file, start[:, None] + (middles * config.spectral_hop).long())
        output, predicted = self.codec.vocos.synthesize(latents, f0=f0)
        error = ((predicted.log() - f0.log()).abs() * voiced).sum() / voiced.sum().clamp(min=1)
        return output, error

    def read(self, latents):
        """What the decoder learns to read: quantized latents, though a refiner may come between later. One
        that learned from latents before quantization sounded worse with a refiner too (docs/training-log.md)."""
        return self.codec.quantizer.decode(self.codec.quantizer.encode(latents))

    def decode(self, latents):
        """Waveform of latents by the averaged part and the others."""
        return self.average.module(self.read(latents))

    @torch.no_grad()
    def validate(self):
        """Losses of the averaged part on pieces that are not trained on, and the use of the codebooks."""
        latents = self.codec.encoder(self.codec.analyse(self.validation))
        log_term, linear_term = self.spectral(self.decode(latents), self.validation)
        used, perplexity = codebook_usage(self.codec.quantizer.encode(latents), self.codec.codebook_size)
        return {
            "validation_log": log_term.item(),
            "validation_linear": linear_term.item(),
            **{f"perplexity_{i}": value for i, value in enumerate(perplexity.tolist())},
        }

    def save(self, folder):
        self.average.save(self.codec, folder)

    def parts(self):
        """Name -> object with state_dict and load_state_dict."""
        raise NotImplementedError

    def state_dict(self):
        return {name: part.state_dict() for name, part in self.parts().items()}

    def load_state_dict(self, state):
        for name, part in self.parts().items():
            part.load_state_dict(state[name])


class Reconstruction(Stage):
    """Encoder, codebooks and decoder by spectral distance; the encoder only in the middle of the time."""

    def __init__(self, codec, pool, validation, options, gain_db, anchor):
        super().__init__(codec, pool, validation, options, gain_db)
        self.books = CodebookLearner(codec.quantizer, options["codebook_memory"])
        self.anchor = nn.Linear(*anchor.T.shape, bias=False, device=anchor.device)
        self.anchor.weight.data.copy_(anchor)
        self.encoder_parameters = [*codec.encoder.parameters(), *self.anchor.parameters()]
        groups = [{"params": list(codec.vocos.parameters())}, {"params": self.encoder_parameters}]
        self.optimizer = optimizer(groups, options["learning_rate"], (0.8, 0.99))

    def parts(self):
        return {
            "codec": self.codec,
            "average": self.average.module,
            "anchor": self.anchor,
            "books": self.books,
            "optimizer": self.optimizer,
        }

    def encoder_rate(self, fraction):
        """Learning rate of the encoder: half a sine between the ends of its span, 0 outside."""
        begin, end = self.options["encoder_span"]
        inside = (fraction - begin) / (end - begin)
        return self.options["encoder_learning_rate"] * math.sin(math.pi * inside) if 0 < inside < 1 else 0.0

    def quantize(self, features, learn, step):
        """Quantized latents with a straight-through gradient, and the commitment loss."""
        latents = self.codec.encoder(features)
        flat = latents.transpose(1, 2).flatten(0, 1)
        quantizer = self.codec.quantizer
        with torch.no_grad():
            codes, residuals = quantizer.quantize(flat)
            chosen = quantizer.codebooks.gather(1, codes[..., None].expand_as(residuals))
            quantized = chosen.sum(0)
            left = residuals - chosen
        if not learn:
            return quantized.view(len(latents), -1, flat.shape[1]).transpose(1, 2), flat.new_zeros(())
        self.books.update(codes, residuals, restart=step % self.options["restart_every"] == 0)
        # each level's rest is the latent minus constants: one difference carries the gradient of all of them
        commitment = (left + (flat - flat.detach())).square().mean()
        through = flat + (quantized - flat).detach()
        return through.view(len(latents), -1, flat.shape[1]).transpose(1, 2), commitment

    def step(self, step, fraction):
        options, rate = self.options, self.encoder_rate(fraction)
        learn = rate > 0
        factor = cosine(step, fraction, options["warmup"])
        self.optimizer.param_groups[0]["lr"] = options["learning_rate"] * factor
        self.optimizer.param_groups[1]["lr"] = rate
        target, *place = self.pieces()
        features = self.codec.analyse(target)
        with torch.set_grad_enabled(learn):
            latents, commitment = self.quantize(features, learn, step)
            anchor = F.mse_loss(self.anchor(latents.transpose(1, 2)), features.transpose(1, 2))
        output, pitch = self.synthesize(latents, *place)
        log_term, linear_term = self.spectral(output, target)
        loss = log_term + linear_term + pitch + options["commitment"] * commitment + options["anchor"] * anchor
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(self.codec.vocos.parameters(), options["clip"])
        if learn:
            nn.utils.clip_grad_norm_(self.encoder_parameters, options["clip"])
        self.optimizer.step()
        self.average.update(step)
        mel_error = anchor.sqrt() * self.codec.feature_scale[0]
        return {
            "log": log_term,
            "linear": linear_term,
            "pitch": pitch,
            "commitment": commitment,
            "mel_error": mel_error,
        }


class Refinement(Stage):
    """The refiner alone, by the square error of latents."""

    learns = "refiner"

    def __init__(self, codec, pool, validation, options, gain_db):
        super().__init__(codec, pool, validation, options, gain_db)
        self.latents = LatentPool(codec, pool, options["frames"], gain_db)
        if (codec.refiner.rest_scale == 1).all():  # as it was made
            latents, codes = self.latents.pieces(256)
            quantized = codec.quantizer.decode(codes)
            for buffer, values in (("latent_scale", quantized), ("rest_scale", latents - quantized)):
                getattr(codec.refiner, buffer).copy_(values.transpose(0, 1).flatten(1).std(1))
                getattr(self.average.module, buffer).copy_(getattr(codec.refiner, buffer))
        parameters = [{"params": list(codec.refiner.parameters())}]
        self.optimizer = optimizer(parameters, options["learning_rate"], (0.9, 0.98))

    def decode(self, latents):
        return self.codec.vocos(self.average.module(self.read(latents))[0])

    def parts(self):
        return {"refiner": self.codec.refiner, "average": self.average.module, "optimizer": self.optimizer}

    def step(self, step, fraction):
        options = self.options
        self.optimizer.param_groups[0]["lr"] = options["learning_rate"] * cosine(step, fraction, options["warmup"])
        refiner = self.codec.refiner
        latents, codes = self.latents.pieces(options["batch_size"])
        quantized = self.codec.quantizer.decode(codes)
        with torch.autocast(latents.device.type, torch.bfloat16, enabled=options["bf16"]):
            rest, _ = refiner.rest(quantized)
        loss = F.mse_loss(rest, (latents - quantized) / refiner.rest_scale[:, None])
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(refiner.parameters(), options["clip"])
        self.optimizer.step()
        self.average.update(step)
        return {"rest": loss}


class AdversarialDecoder(Stage):
    """The decoder alone, by spectral distance, discriminators and feature matching."""

    def __init__(self, codec, pool, validation, options, gain_db):
        super().__init__(codec, pool, validation, options, gain_db)
        device = pool.samples.device
        self.before = copy.deepcopy(codec.vocos).requires_grad_(False)
        self.discriminators = Discriminators(options["periods"], options["windows"], options["width"]).to(device)
        self.discriminators.to(memory_format=torch.channels_last)
        codec.encoder.requires_grad_(False)
        betas = (0.8, 0.99)
        self.optimizer = optimizer([{"params": list(codec.vocos.parameters())}], options["learning_rate"], betas)
        self.judges = optimizer(
            [{"params": list(self.discriminators.parameters())}], options["discriminator_learning_rate"], betas
        )

    def parts(self):
        return {
            "codec": self.codec,
            "average": self.average.module,
            "before": self.before,
            "discriminators": self.discriminators,
            "optimizer": self.optimizer,
            "judges": self.judges,
        }

    def save(self, folder):
        """Writes the codec with the decoder between what it was (`keep`) and what it became: words stay clearer."""
        became, keep = self.average.module.state_dict(), self.options["keep"]
        kept = {name: torch.lerp(became[name], x, keep) for name, x in self.before.state_dict().items()}
        self.average.save(self.codec, folder, kept)

    def judge(self, real, fake):
        with torch.autocast(real.device.type, torch.bfloat16, enabled=self.options["bf16"]):
            return self.discriminators(torch.cat([real, fake]))

    def step(self, step, fraction):
        options = self.options
        factor = cosine(step, fraction, options["warmup"])
        self.optimizer.param_groups[0]["lr"] = options["learning_rate"] * factor
        self.judges.param_groups[0]["lr"] = options["discriminator_learning_rate"] * factor
        target, *place = self.pieces()
        with torch.no_grad():
            latents = self.read(self.codec.encoder(self.codec.analyse(target)))
        output, pitch = self.synthesize(latents, *place)

        self.discriminators.requires_grad_(True)
        judged = discriminator_loss(self.judge(target, output.detach()))
        self.judges.zero_grad(set_to_none=True)
        judged.backward()
        self.judges.step()

        self.discriminators.requires_grad_(False)
        adversarial, matching = generator_loss(self.judge(target, output))
        log_term, linear_term = self.spectral(output, target)
        ramp = min(1, step / max(1, options["warmup"]))  # the discriminators learn first
        loss = options["spectral"] * (log_term + linear_term) + pitch
        loss = loss + ramp * (options["adversarial"] * adversarial + options["matching"] * matching)
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        norm = nn.utils.clip_grad_norm_(self.codec.vocos.parameters(), options["clip"])
        self.optimizer.step()
        self.average.update(step)
        return {
            "log": log_term,
            "linear": linear_term,
            "pitch": pitch,
            "adversarial": adversarial,
            "matching": matching,
            "discriminators": judged,
            "norm": norm,
        }
