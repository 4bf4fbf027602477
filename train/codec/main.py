"""Trains the embedded codec.

usage: python -m smalle.train.codec.main RECIPE [--stage reconstruction|decoder|refiner] [--fresh] [KEY=VALUE ...]

Stage `reconstruction`: features are projected on their principal components and quantized by residual k-means; from
there encoder, codebooks and decoder learn together. Encoder and codebooks stay as they are from then on, so that codes
keep their meaning. Stage `decoder`: the decoder learns against discriminators. Stage `refiner` (where
`refiner_num_layers` > 0): it learns what quantization takes from latents, to stand before the decoder. Each ends by its
time limit and takes up its last checkpoint when it is started again; --fresh starts anew. KEY=VALUE sets recipe
entries: reconstruction.minutes=5.
"""

import argparse
import shutil
import sys

import torch
import yaml

from smalle.codec_smalle import SmallECodec, SmallECodecConfig

from .audio_pool import AudioPool, load_corpus
from .pitch import PitchTrack
from .residual_kmeans import principal_components, residual_kmeans
from .stages import AdversarialDecoder, Reconstruction, Refinement
from .timed_run import TimedRun


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
    print(
        f"{len(features)} frames; nepers of a log-mel value: standard deviation {scale:.3f}, lost by the projection "
        f"{(dropped / len(mean)).sqrt() * scale:.3f}, rms error after each codebook "
        + " ".join(f"{error:.3f}" for error in errors),
        flush=True,
    )
    return basis.T * latent_scale


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


def load_pools(recipe, config, device, pitch):
    """Training pieces, and one batch of pieces of files that are left out; of the only file, where there is one."""
    data, seed = recipe["data"], recipe["seed"]
    audio = load_corpus(
        data["corpus"], config.sampling_rate, data["exclude_speakers"], data["max_hours"], recipe["threads"], seed
    )
    if not audio:
        raise ValueError("data.corpus holds no usable file; expected at least 1")
    left_out = min(data["validation_files"], len(audio) - 1)
    segment = data["segment"] - data["segment"] % config.hop_length
    if segment < 2048:
        raise ValueError(f"data.segment is {data['segment']}; expected at least 2048 samples")
    held = AudioPool(audio[: max(1, left_out)], segment, device, seed).pieces(max(1, left_out))
    pool = AudioPool(audio[left_out:], segment, device, seed)
    if pitch:
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
    if stage == "refiner" and codec.refiner is None:
        raise ValueError(f"the codec of {options['start']} has no refiner; set codec.refiner_num_layers, as to 8")
    begun = codec.identity if options["start"] else "nothing"
    codec.to(device)
    pitch = codec.config.vocos_excitation == "harmonic" and stage != "refiner"
    pool, held = load_pools(recipe, codec.config, device, pitch)
    gain = recipe["data"]["gain_db"]
    if stage == "reconstruction":
        if options["start"]:
            anchor = torch.linalg.pinv(codec.encoder.projection.weight.detach())
        else:
            anchor = start_from_kmeans(codec, pool, options["start_pieces"], options["kmeans_iterations"], gain)
        learner = Reconstruction(codec, pool, held, options, gain, anchor)
    else:
        learner = {"refiner": Refinement, "decoder": AdversarialDecoder}[stage](codec, pool, held, options, gain)
    frames = options.get("frames", held.shape[1] // codec.hop_length)
    seconds = options["batch_size"] * frames / codec.frame_rate
    made_of = {"stage": stage, "data": str(recipe["data"]), "codec": str(recipe["codec"]), "start": begun}
    run = TimedRun(
        learner,
        options["output"],
        options["minutes"],
        seconds,
        options["log_seconds"],
        options["checkpoint_seconds"],
        made_of,
    )
    if fresh:
        shutil.rmtree(run.folder, ignore_errors=True)
    run.resume()
    run.run()


def main(arguments=None):
    parser = argparse.ArgumentParser(description="Trains the embedded codec.")
    parser.add_argument("recipe")
    parser.add_argument("settings", nargs="*", metavar="KEY=VALUE", help="recipe entries to change")
    parser.add_argument("--stage", choices=("reconstruction", "decoder", "refiner"), default="reconstruction")
    parser.add_argument("--fresh", action="store_true", help="start anew instead of from the last checkpoint")
    options = parser.parse_intermixed_args(arguments)
    try:
        train(read_recipe(options.recipe, options.settings), options.stage, options.fresh)
    except (ValueError, OSError) as error:
        print(f"train.codec.main: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
