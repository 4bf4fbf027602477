"""Trains a codec, in three stages.

  python -m smalle.train.codec.train RECIPE [--stage STAGE] [--fresh] [KEY.SUBKEY=VALUE ...]

  reconstruction  fits principal components of log-mel frames and codebooks (residual k-means), unless the recipe names
                  a codec to start from; trains the decoder with a spectral distance; later stages keep the codes
  refiner         trains the refiner, which estimates the quantization error (codec.refiner_num_layers above 0)
  adversarial     trains the decoder, after the refiner, against discriminators

Run the stages in this order, with one command each. A stage runs for its `minutes` and resumes from its last checkpoint
if you start it again. KEY.SUBKEY=VALUE changes the recipe, for example reconstruction.minutes=5.
"""

import functools
import shutil
import sys
from collections.abc import Sequence

import torch
from torch import Tensor

from smalle.cli.command import command_parser, run_command
from smalle.codec_smalle import SmallECodec, SmallECodecConfig

from ..model.recipe import read_recipe
from .data import AudioPool, list_clips, load_audio
from .pitch import PitchTrack
from .quantizer import fit_codec
from .recipe import CodecRecipe, RefinerOptions, StageOptions
from .stages import STAGES, is_trained
from .timed_run import TimedRun


def load_pools(recipe: CodecRecipe, codec: SmallECodec, options: StageOptions) -> tuple[AudioPool, Tensor]:
    """The training pool, and held-out segments (B, L). A single file serves as both."""
    data, rate = recipe.data, codec.sampling_rate
    frames = options.frames if isinstance(options, RefinerOptions) else data.segment // codec.hop_length
    segment = frames * codec.hop_length
    if segment < 2048:
        raise ValueError(
            f"segments have {segment} samples; expected at least 2048: raise data.segment or refiner.frames"
        )
    clips = list_clips(data.corpus, data.exclude_speakers)
    audio = load_audio(clips, rate, data.max_hours, recipe.threads, recipe.seed, data.gate)
    left_out = min(data.validation_files, len(audio) - 1)
    held_out, trained = audio[: max(1, left_out)], audio[left_out:]
    validation = AudioPool(held_out, segment, codec.device, recipe.seed).draw(len(held_out)).waveform
    harmonic = codec.config.vocos_excitation == "harmonic" and not isinstance(options, RefinerOptions)
    pitch = PitchTrack(trained, rate, codec.device) if harmonic else None
    acoustics = functools.partial(data.acoustics, sampling_rate=rate)
    pool = AudioPool(trained, segment, codec.device, recipe.seed, acoustics, pitch)
    if codec.config.band_extension:
        pool.find_bands(codec.analysis)
    print(f"{len(audio)} recordings, {len(pool.samples) / rate / 3600:.2f} hours on {codec.device}", flush=True)
    return pool, validation


def train(recipe: CodecRecipe, stage: str, fresh: bool = False) -> None:
    """Runs a stage, which writes its codec to its `output`; `fresh`: does not resume from a checkpoint.

    Raises ValueError if the recipe lacks what the stage needs.
    """
    options = getattr(recipe, stage)
    if options is None:
        raise ValueError(f"the recipe has no part {stage}: add it, with {stage}.output and {stage}.minutes")
    torch.manual_seed(recipe.seed)
    torch.set_float32_matmul_precision("high")
    torch.backends.cudnn.allow_tf32 = torch.backends.cudnn.benchmark = True
    if options.start:
        codec = SmallECodec.from_pretrained(options.start, ignore_mismatched_sizes=True, **recipe.codec)
    else:
        codec = SmallECodec(SmallECodecConfig(**recipe.codec))
    if stage == "refiner" and codec.refiner is None:
        raise ValueError(f"the codec {options.start} has no refiner; set codec.refiner_num_layers, for example to 8")
    if stage != "reconstruction" and not options.start:
        raise ValueError(f"{stage}.start is not set; expected the folder of the previous stage's codec")
    if stage == "adversarial" and codec.refiner is not None and not is_trained(codec.refiner):
        raise ValueError(f"the refiner of {options.start} is not trained; run the stage refiner first")
    origin = {"stage": stage, "data": str(recipe.data), "codec": str(recipe.codec)}
    origin["start"] = codec.identity if options.start else "nothing"
    auto = "cuda" if torch.cuda.is_available() else "cpu"
    torch.nn.Module.to(codec, auto if recipe.device == "auto" else recipe.device)
    pool, validation = load_pools(recipe, codec, options)
    if not options.start:
        fit_codec(codec, pool, options.fitting_segments, options.kmeans_iterations)
    seconds = options.batch_size * validation.shape[1] / codec.sampling_rate
    run = TimedRun(STAGES[stage](codec, pool, validation, options), options, origin, seconds)
    if fresh:
        shutil.rmtree(run.folder, ignore_errors=True)
    run.resume()
    run.run()


def main(argv: Sequence[str] | None = None) -> None:
    """Runs the command. Raises ValueError or OSError for wrong input."""
    parser = command_parser("python -m smalle.train.codec.train", __doc__)
    parser.add_argument("recipe", help="YAML file, or the name of a recipe of this package, such as codec-mini")
    parser.add_argument("overrides", nargs="*", metavar="KEY.SUBKEY=VALUE", help="changes a value of the recipe")
    parser.add_argument(
        "--stage", choices=list(STAGES), default="reconstruction", help="the stage to run (default: reconstruction)"
    )
    parser.add_argument("--fresh", action="store_true", help="start again instead of resuming from the last checkpoint")
    arguments = parser.parse_intermixed_args(argv)
    train(read_recipe(CodecRecipe, arguments.recipe, arguments.overrides), arguments.stage, arguments.fresh)


if __name__ == "__main__":
    sys.exit(run_command("codec", main))
