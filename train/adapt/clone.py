"""Makes a checkpoint that speaks with the voice of one recording of 5 to 10 seconds, in at most two minutes of a core.

  smalle clone RECORDING "Its transcript." BASE OUT [options] [KEY.SUBKEY=VALUE ...]

BASE is a checkpoint: a folder or Hub name. OUT is the folder of the new checkpoint, whose default voice is the new one.

The recipe finetune-codec tunes the codec's decoder and refiner to the recording. The recipe finetune-recording then
tunes the model on samples with the recording's words in other orders. KEY.SUBKEY=VALUE changes values of the latter.
Without a transcript, which is "" then, the voice converter of BASE is tuned, for more than twice as long as by
`say --clone`.

Use a voice only with the consent of its owner.
"""

import shutil
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from tqdm import tqdm

from smalle import SmallEForTextToSpeech, SmallEProcessor
from smalle.checkpoint import find_checkpoint
from smalle.cli.command import command_parser, run_command
from smalle.saving_smalle import atomic_folder

from ..codec.recipe import CodecRecipe
from ..codec.train import train as train_codec
from ..model.recipe import RECIPES, read_recipe
from .finetune import FinetuneRecipe, finetune, write_checkpoint

STEPS = 150  # of the converter: with more, words are lost
BEST_OF = 4  # candidates of generate(), which takes the most monotonic: one in forty ends at once


def tune_codec(base: str, folder: Path, minutes: float) -> Path:
    """Tunes the decoder and refiner of a checkpoint's codec to the recordings in FOLDER/recordings.

    An interrupted call continues. Returns the folder of the tuned codec, FOLDER/codec.
    """
    codec = SmallEProcessor.from_pretrained(base).codec
    if not (folder / "codec").is_dir():
        codec.save_pretrained(folder / "codec-base")
    stages = ["reconstruction"] if codec.refiner is None else ["reconstruction", "refiner"]
    folders = [folder / "codec-base", *[folder / "codec-decoder"] * (len(stages) - 1), folder / "codec"]
    for stage, start, output in zip(stages, folders, folders[1:]):
        recipe = read_recipe(CodecRecipe, RECIPES / "finetune-codec.yaml")
        recipe.data.corpus = [str(folder / "recordings")]
        options = getattr(recipe, stage)
        options.start, options.output, options.minutes = str(start), str(output), minutes / len(stages)
        train_codec(recipe, stage)
    return folder / "codec"


def clone_by_converter(recording: str | Path, processor: SmallEProcessor, base: str, out: Path, name: str) -> None:
    """Writes the checkpoint OUT, whose default voice is a conversion of the base's."""
    with tqdm(total=STEPS, unit="step", desc="tuning") as bar:
        voice = processor.encode_voice(str(recording), steps=STEPS, progress=lambda *_: bar.update())
    model = SmallEForTextToSpeech.from_pretrained(base)
    with atomic_folder(out) as folder:
        write_checkpoint(model, voice, name, base, folder)


def clone(
    recording: str | Path,
    text: str,
    base: str,
    out: str | Path,
    name: str,
    codec_minutes: float = 1.0,
    overrides: Sequence[str] = (),
) -> None:
    """Writes the checkpoint OUT with the voice `name`.

    Args:
        recording: Sound file of the voice.
        text: Its transcript; "": the converter is tuned.
        base: Folder or Hub name.
        codec_minutes: Time to tune the codec; 0 keeps the codec of the base.
        overrides: Changes of finetune-recording.yaml, `key.subkey=value`.

    Raises:
        ValueError: If OUT exists, or the recording or its transcript is missing.
    """
    out = Path(out)
    if out.exists():
        raise ValueError(f"{out} exists: name a new folder, or delete it.")
    processor = SmallEProcessor.from_pretrained(base)
    if not Path(recording).is_file() or not (text.strip() or processor.converter_name):
        raise ValueError(f"{str(recording)!r}, {text!r}: expected a sound file and its transcript.")
    if not text.strip():
        return clone_by_converter(recording, processor, base, out, name)
    recipe = read_recipe(FinetuneRecipe, RECIPES / "finetune-recording.yaml", overrides)
    with tempfile.TemporaryDirectory() as temporary:
        work = Path(temporary)
        (work / "recordings").mkdir()
        shutil.copyfile(recording, work / "recordings" / f"1{Path(recording).suffix}")
        (work / "recordings" / "1.txt").write_text(text, encoding="utf-8")
        codec = tune_codec(base, work, codec_minutes) if codec_minutes else None
        model, voice, _ = finetune(recipe, work / "recordings", base)
        model.generation_config.best_of = BEST_OF
        with atomic_folder(out) as folder:
            write_checkpoint(model, voice, name, base, folder, codec, weights_changed=True)


def main(argv: Sequence[str] | None = None) -> None:
    """Runs the command."""
    parser = command_parser("smalle clone", __doc__)
    parser.add_argument("recording", help="sound file of 5 to 10 seconds")
    parser.add_argument("text", help='its transcript; "": tune the voice converter instead')
    parser.add_argument("base", type=find_checkpoint, help="checkpoint: folder, Hub name or smalle-mini")
    parser.add_argument("out", help="folder of the new checkpoint")
    parser.add_argument(
        "overrides", nargs="*", metavar="KEY.SUBKEY=VALUE", help="changes a value of finetune-recording.yaml"
    )
    parser.add_argument("--name", help="name of the voice (default: the name of the folder OUT)")
    parser.add_argument(
        "--codec-minutes", type=float, default=1.0, help="time to tune the codec (default: 1); 0: keep the base's codec"
    )
    arguments = parser.parse_intermixed_args(argv)
    name = arguments.name or Path(arguments.out).resolve().name
    clone(
        arguments.recording,
        arguments.text,
        arguments.base,
        arguments.out,
        name,
        arguments.codec_minutes,
        arguments.overrides,
    )
    print(f"{arguments.out} speaks: smalle say TEXT --model {arguments.out}")


if __name__ == "__main__":
    sys.exit(run_command("smalle", main))
