"""A voice from one recording of 5 to 10 seconds: a whole checkpoint that speaks with it, in two minutes of a core.

usage: python -m smalle.train.adapt.clone RECORDING "What it says." BASE OUT [options] [key.subkey=value ...]

BASE: a checkpoint, folder or name; OUT: a folder that is not there, for the new one, whose default voice is this. First
the codec's decoder and refiner learn what its codes lose of the voice (train/recipes/finetune-codec.yaml), then the
model, from samples with the recording's words in other orders (train/recipes/finetune-recording.yaml, with what
`key.subkey=value` changes). Speak with a voice only if the person whose it is agrees. Needs praat-parselmouth.
"""

import argparse
import os
import pathlib
import shutil
import subprocess
import sys
import tempfile

from smalle import SmallEProcessor

from ..model.trainer import read_recipe
from .finetune import finetune, write_whole

ROOT = pathlib.Path(__file__).parents[2]
RECIPES = ROOT / "train" / "recipes"
BEST_OF = 4  # readings of a text, of which the steadiest is heard: one in forty ends at once


def run(module, *arguments):
    subprocess.run([sys.executable, "-m", module, *map(str, arguments)], check=True, cwd=ROOT)


def tune_codec(base, out, minutes):
    """OUT/codec: that of BASE with its decoder, and then its refiner, tuned to the folder OUT/recordings."""
    recipe = RECIPES / "finetune-codec.yaml"
    codec = SmallEProcessor.from_pretrained(base).codec
    if not (out / "codec").is_dir():
        codec.save_pretrained(out / "codec-base")
    stages = ["reconstruction"] if codec.refiner is None else ["reconstruction", "refiner"]
    folders = [out / "codec-base", *[out / "codec-decoder"] * (len(stages) - 1), out / "codec"]
    for stage, start, output in zip(stages, folders, folders[1:]):
        settings = [
            f"data.corpus=[{out}/recordings]",
            f"{stage}.start={start}",
            f"{stage}.output={output}",
            f"{stage}.minutes={minutes / len(stages)}",
        ]
        run("smalle.train.codec.main", recipe, "--stage", stage, *settings)


def clone(recording, text, base, out, name, codec_minutes=1.0, overrides=()):
    """Writes the checkpoint OUT. Raises ValueError for what is no recording, and where OUT is already there."""
    out = pathlib.Path(out)
    if out.exists():
        raise ValueError(f"{out} is there: name a folder that is not, or delete it.")
    if not pathlib.Path(recording).is_file() or not text.strip():
        raise ValueError(f"{recording!r}, {text!r}: expected a sound file and what it says.")
    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=out.parent, prefix=f".{out.name}-") as work:
        work = pathlib.Path(work).resolve()
        (work / "recordings").mkdir()
        shutil.copyfile(recording, work / "recordings" / f"1{pathlib.Path(recording).suffix}")
        (work / "recordings" / "1.txt").write_text(text, encoding="utf-8")
        if codec_minutes:
            tune_codec(base, work, codec_minutes)
        recipe = read_recipe(RECIPES / "finetune-recording.yaml", list(overrides))
        model, voice, _ = finetune(recipe, work / "recordings", base)
        model.generation_config.best_of = BEST_OF
        write_whole(model, voice, name, base, work / "whole", work / "codec" if codec_minutes else None, changed=True)
        os.replace(work / "whole", out)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for argument in ("recording", "text", "base", "out"):
        parser.add_argument(argument)
    parser.add_argument("overrides", nargs="*")
    parser.add_argument("--name", help="of the voice (default: the name of the folder OUT)")
    parser.add_argument("--codec-minutes", type=float, default=1.0, help="to tune the codec; 0: not at all")
    arguments = parser.parse_intermixed_args()
    name = arguments.name or pathlib.Path(arguments.out).resolve().name
    base = arguments.base
    base = str(pathlib.Path(base).resolve()) if pathlib.Path(base).is_dir() else base  # else a name on the Hub
    try:
        clone(
            arguments.recording, arguments.text, base, arguments.out, name, arguments.codec_minutes, arguments.overrides
        )
    except ValueError as error:
        parser.error(str(error))
    print(f"{arguments.out}: smalle say TEXT --model {arguments.out}")


if __name__ == "__main__":
    sys.exit(main())
