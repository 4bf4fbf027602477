"""Command-line options for the checkpoint and the voice."""

import argparse
import sys
from typing import Any

from ..checkpoint import check_checkpoint, default_checkpoint, find_checkpoint


def add_voice_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the options for the checkpoint and the voice."""
    parser.add_argument("--voice", help="name of a preset voice, or path of a voice file")
    parser.add_argument("--clone", metavar="AUDIO", help="recording of a voice to clone; 5 to 10 seconds are best")
    parser.add_argument(
        "--clone-text",
        metavar="TEXT",
        help="transcript of that recording, for checkpoints that need it; the default checkpoint ignores it",
    )
    parser.add_argument(
        "--model",
        type=find_checkpoint,
        default=default_checkpoint(),
        help="checkpoint: folder or Hub name (default: $SMALLE_MODEL, else the embedded one)",
    )
    parser.add_argument("--seed", type=int, default=0, help="seed of the sampling (default: %(default)s)")


def check_voice_arguments(arguments: argparse.Namespace) -> None:
    """Raises ValueError for options that contradict each other."""
    if arguments.clone is None and arguments.clone_text is not None:
        raise ValueError("--clone-text is the transcript of a recording: add --clone with the recording.")
    if arguments.clone is not None and arguments.voice is not None:
        raise ValueError("--voice and --clone cannot be combined: use one of them.")
    check_checkpoint(arguments.model)


def chosen_voice(arguments: argparse.Namespace, processor: Any) -> Any:
    """The voice of `--voice`, or of the recording of `--clone`, which is prepared with a progress bar."""
    from tqdm import tqdm

    if arguments.clone is None:
        return arguments.voice

    def advance(done: int, steps: int):
        bar.total = steps
        bar.update(done - bar.n)

    with tqdm(desc="preparing the voice", unit="step", file=sys.stderr, leave=False) as bar:
        return processor.encode_voice(arguments.clone, arguments.clone_text, progress=advance)
