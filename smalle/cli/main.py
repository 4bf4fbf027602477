"""The `smalle` command: `smalle say` speaks a text, the other commands train, adapt and measure checkpoints."""

import argparse
import functools
import importlib
import sys
from collections.abc import Sequence

from .command import run_command

COMMANDS = {  # name: (description, the module whose main(argv) runs it)
    "say": ("speak a text into a sound file, a pipe or a player", "smalle.cli.say"),
    "read": ("read a book or an article aloud, with captions", "smalle.cli.read"),
    "serve": ("serve OpenAI's speech API, a web page and Home Assistant", "smalle.cli.serve"),
    "prepare": ("encode recordings into training data", "smalle.train.data.prepare"),
    "train": ("train a model from a recipe", "smalle.train.model.trainer"),
    "finetune": ("teach a checkpoint a new voice from a folder of recordings", "smalle.train.adapt.finetune"),
    "clone": ("teach a checkpoint a new voice from one recording", "smalle.train.adapt.clone"),
    "publish": ("upload a checkpoint to the Hugging Face Hub", "smalle.cli.publish"),
    "evaluate": ("synthesize a list of texts and score the result", "smalle.train.evaluation.evaluate"),
}
PACKAGES = {"say": "smalle", "read": "smalle", "publish": "smalle", "serve": "smalle[serve]"}  # others: smalle[train]


def parser() -> argparse.ArgumentParser:
    """The parser for the name of the command; the arguments after the name are passed on."""
    rows = "\n".join(f"  {name:<10}{what}" for name, (what, _) in COMMANDS.items())
    parser = argparse.ArgumentParser(
        prog="smalle",
        description="Small-E: text to speech.",
        epilog=f"commands:\n{rows}\n\n`smalle COMMAND --help` describes a command.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        usage="smalle COMMAND ...",
    )
    parser.add_argument("command", choices=COMMANDS, metavar="COMMAND", help="one of the commands below")
    parser.add_argument("arguments", nargs=argparse.REMAINDER, help=argparse.SUPPRESS)
    return parser


def run(name: str, argv: Sequence[str]) -> int | None:
    """Runs a command. Raises ValueError if packages that it needs are not installed."""
    try:
        return importlib.import_module(COMMANDS[name][1]).main(argv)
    except ModuleNotFoundError as error:
        if (error.name or "").startswith("smalle"):
            raise
        package = PACKAGES.get(name, "smalle[train]")
        raise ValueError(
            f"`smalle {name}` needs the package {error.name} for this: run pip install '{package}'."
        ) from error


def main(argv: Sequence[str] | None = None) -> int:
    """Runs a command; returns its exit code: 0, 2 for wrong input, 130 if it was interrupted."""
    arguments = parser().parse_args(argv)
    return run_command("smalle", functools.partial(run, arguments.command), arguments.arguments)


if __name__ == "__main__":
    sys.exit(main())
