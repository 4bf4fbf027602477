"""Trains the embedded codec.

usage: python -m train.codec RECIPE [--stage reconstruction|decoder] [--fresh] [KEY=VALUE ...]

Stage `reconstruction`: features are projected on their principal components and quantized by residual k-means; from
there encoder, codebooks and decoder learn together. Stage `decoder`: encoder and codebooks stay as they are, so that
codes keep their meaning, and the decoder learns against discriminators. Each ends by its time limit and takes up its
last checkpoint when it is started again; --fresh starts anew. KEY=VALUE sets recipe entries: reconstruction.minutes=5.
"""

import argparse
import copy
import math
import shutil
import sys

import torch
import torch.nn.functional as F
import yaml
from torch import nn

from smalle.codec_smalle import SmallECodec, SmallECodecConfig, codebook_usage
from train.audio_pool import AudioPool, load_corpus
from train.discriminators import Discriminators, discriminator_loss, generator_loss
from train.pitch import PitchTrack
from train.residual_kmeans import principal_components, residual_kmeans
from train.spectral_loss import SpectralLoss
from train.timed_run import TimedRun


def cosine(step, fraction, warmup):
    """Factor of the learning rate: linear warm-up by steps, cosine to 0.02 by the share of time spent."""
    return min(1, (step + 1) / max(1, warmup)) * (0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * min(1, fraction))))


def optimizer(parameters, learning_rate, betas):
    """AdamW for parameter groups; fused on a GPU."""
    fused = next(iter(parameters[0]["params"])).is_cuda
    return torch.optim.AdamW(parameters, learning_rate, betas=betas, weight_decay=0.01, fused=fused)


class AveragedDecoder:
    """The decoder that is saved: an exponential average of the one that learns."""

    def __init__(self, codec, decay):
        self.source, self.decay = codec.vocos, decay
        self.module = copy.deepcopy(codec.vocos).requires_grad_(False).eval()

    @torch.no_grad()
    def update(self, step):
        decay = min(self.decay, (1 + step) / (10 + step))
        torch._foreach_lerp_(list(self.module.parameters()), list(self.source.parameters()), 1 - decay)

    def save(self, codec, folder):
        """Writes the codec with this decoder in place of its own."""
        whole = copy.deepcopy(codec)
        whole.vocos.load_state_dict(self.module.state_dict())
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


@torch.no_grad()
def start_from_kmeans(codec, pool, pieces, iterations, gain_db=(0, 0)):
    """Sets statistics, projection and codebooks of the codec; gives the matrix from latents back to features."""
    features = [codec.analyse(pool.pieces(min(256, pieces - i), gain_db)) for i in range(0, pieces, 256)]
    features = torch.cat([part.transpose(1, 2).flatten(0, 1) for part in features])
    mean = features.mean(0)
    scale = (features - mean).square().mean().sqrt()
    codec.feature_mean.copy_(mean)
    codec.feature_scale.fill_(scale)
    features = (features - mean) / scale
    _, basis, deviations = principal_components(features, codec.config.latent_size)
    latent_scale = deviations.square().mean().sqrt()
    codec.encoder.projection.weight.copy_(basis / latent_scale)
    latents = features @ (basis.T / latent_scale)
    books, rest = residual_kmeans(latents, codec.num_codebooks, codec.codebook_size, iterations)
    codec.quantizer.codebooks.copy_(books)
    dropped = (features.square().sum(1).mean() - deviations.square().sum()).clamp(min=0)
    errors = [(((r * latent_scale) ** 2 + dropped) / len(mean)).sqrt() * scale for r in rest]
    print(f"{len(features)} frames; nepers of a log-mel value: standard deviation {scale:.3f}, lost by the projection "
          f"{(dropped / len(mean)).sqrt() * scale:.3f}, rms error after each codebook "
          + " ".join(f"{error:.3f}" for error in errors), flush=True)  # fmt: skip
    return basis.T * latent_scale


class Stage:
    """What both stages share: codec, pieces of audio, the averaged decoder, validation and saving."""

    def __init__(self, codec, pool, validation, options, gain_db):
        self.codec, self.pool, self.options, self.gain_db = codec.train(), pool, options, tuple(gain_db)
        self.validation = validation
        self.spectral = SpectralLoss(codec.sampling_rate)
        self.average = AveragedDecoder(codec, options["average"])

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

    @torch.no_grad()
    def validate(self):
        """Losses of the averaged decoder on pieces that are not trained on, and the use of the codebooks."""
        codes = self.codec.quantizer.encode(self.codec.encoder(self.codec.analyse(self.validation)))
        output = self.average.module(self.codec.quantizer.decode(codes))
        log_term, linear_term = self.spectral(output, self.validation)
        used, perplexity = codebook_usage(codes, self.codec.codebook_size)
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
            "log": log_term, "linear": linear_term, "pitch": pitch, "commitment": commitment, "mel_error": mel_error,
        }  # fmt: skip


class AdversarialDecoder(Stage):
    """The decoder alone, by spectral distance, discriminators and feature matching."""

    def __init__(self, codec, pool, validation, options, gain_db):
        super().__init__(codec, pool, validation, options, gain_db)
        device = pool.samples.device
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
            "discriminators": self.discriminators,
            "optimizer": self.optimizer,
            "judges": self.judges,
        }

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
            codes = self.codec.quantizer.encode(self.codec.encoder(self.codec.analyse(target)))
            latents = self.codec.quantizer.decode(codes)
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


def read_recipe(path, settings):
    """The recipe with KEY=VALUE settings applied; ValueError on keys that it does not have."""
    with open(path, encoding="utf-8") as file:
        recipe = yaml.safe_load(file)
    for setting in settings:
        key, equals, value = setting.partition("=")
        *parents, last = key.split(".")
        entry = recipe
        for parent in parents:
            entry = entry.get(parent) if isinstance(entry, dict) else None
        if not equals or not isinstance(entry, dict) or (last not in entry and parents != ["codec"]):
            raise ValueError(f"{setting!r} sets nothing in {path}; expected a known KEY=VALUE, as data.max_hours=5")
        entry[last] = yaml.safe_load(value)
    return recipe


def load_pools(recipe, config, device):
    """Training pieces, and one fixed batch of pieces from files that are left out."""
    data, seed = recipe["data"], recipe["seed"]
    audio = load_corpus(
        data["corpus"], config.sampling_rate, data["exclude_speakers"], data["max_hours"], recipe["threads"], seed
    )
    left_out = min(data["validation_files"], len(audio) - 1)
    if left_out < 1:
        raise ValueError(f"data.corpus holds {len(audio)} usable files; expected at least 2")
    segment = data["segment"] - data["segment"] % config.hop_length
    if segment < 2048:
        raise ValueError(f"data.segment is {data['segment']}; expected at least 2048 samples")
    held = AudioPool(audio[:left_out], segment, device, seed).pieces(left_out)
    pool = AudioPool(audio[left_out:], segment, device, seed)
    if config.vocos_excitation == "harmonic":
        pool.pitch = PitchTrack(audio[left_out:], config.sampling_rate, device)
    print(f"{len(audio)} files, {len(pool) / config.sampling_rate / 3600:.2f} hours on {device}", flush=True)
    return pool, held


def train(recipe, stage, fresh=False):
    """Runs one stage of a recipe (as a dict); the codec lies in its `output` afterwards."""
    torch.manual_seed(recipe["seed"])
    device = recipe["device"]
    device = torch.device(("cuda" if torch.cuda.is_available() else "cpu") if device == "auto" else device)
    torch.set_float32_matmul_precision("high")
    torch.backends.cudnn.allow_tf32 = torch.backends.cudnn.benchmark = True
    options = recipe[stage]
    if options["start"]:  # what does not fit another shape of the decoder starts anew
        codec = SmallECodec.from_pretrained(options["start"], ignore_mismatched_sizes=True, **recipe["codec"])
    else:
        codec = SmallECodec(SmallECodecConfig(**recipe["codec"]))
    codec.to(device)
    pool, held = load_pools(recipe, codec.config, device)
    if stage == "reconstruction":
        gain = recipe["data"]["gain_db"]
        if options["start"]:
            anchor = torch.linalg.pinv(codec.encoder.projection.weight.detach())
        else:
            anchor = start_from_kmeans(codec, pool, options["start_pieces"], options["kmeans_iterations"], gain)
        learner = Reconstruction(codec, pool, held, options, recipe["data"]["gain_db"], anchor)
    else:
        learner = AdversarialDecoder(codec, pool, held, options, recipe["data"]["gain_db"])
    seconds = options["batch_size"] * held.shape[1] / codec.sampling_rate
    run = TimedRun(
        learner, options["output"], options["minutes"], seconds, options["log_seconds"], options["checkpoint_seconds"]
    )
    if fresh:
        shutil.rmtree(run.folder, ignore_errors=True)
    run.resume()
    run.run()


def main(arguments=None):
    parser = argparse.ArgumentParser(description="Trains the embedded codec.")
    parser.add_argument("recipe")
    parser.add_argument("settings", nargs="*", metavar="KEY=VALUE", help="recipe entries to change")
    parser.add_argument("--stage", choices=("reconstruction", "decoder"), default="reconstruction")
    parser.add_argument("--fresh", action="store_true", help="start anew instead of from the last checkpoint")
    options = parser.parse_intermixed_args(arguments)
    try:
        train(read_recipe(options.recipe, options.settings), options.stage, options.fresh)
    except (ValueError, OSError) as error:
        print(f"train.codec: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
