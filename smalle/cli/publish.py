"""`smalle publish` uploads a checkpoint to the Hugging Face Hub: weights, code, voices, codec, card and samples."""

import argparse
import re
import shutil
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ..checkpoint import check_checkpoint, default_checkpoint, load_checkpoint, quality_settings
from ..reading.soundfiles import write_sound
from ..saving_smalle import write_card, write_text

SAMPLE = "The sun had set behind the hills, and one by one the windows of the village were lit."
SAMPLES = "## Samples"


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="smalle publish", description=__doc__)
    parser.add_argument("name", help="name of the repository: OWNER/NAME")
    parser.add_argument(
        "--model",
        default=default_checkpoint(),
        help="checkpoint to publish: a folder (default: $SMALLE_MODEL, else the embedded one)",
    )
    parser.add_argument("--private", action="store_true", help="make a new repository private")
    parser.add_argument("--sample", default=SAMPLE, metavar="TEXT", help="text of the sample of each voice")
    parser.add_argument(
        "--to", type=Path, metavar="FOLDER", help="write the repository to a folder and do not upload it"
    )
    return parser.parse_args(argv)


def check(arguments: argparse.Namespace) -> None:
    """Checks the arguments before anything slow happens. Raises ValueError."""
    if not re.fullmatch(r"[\w.-]{1,96}/[\w.-]{1,96}", arguments.name):
        raise ValueError(f"The name {arguments.name!r}: expected OWNER/NAME.")
    if arguments.to is not None and arguments.to.exists() and any(arguments.to.iterdir()):
        raise ValueError(f"{arguments.to} is not empty: expected a new folder.")
    check_checkpoint(arguments.model)


def write_samples(folder: Path, processor: Any, model: Any, text: str) -> list[str]:
    """Writes samples/VOICE.mp3 for each preset voice, or one sample if there are no presets; returns the names."""
    folder.joinpath("samples").mkdir()
    names = []
    for voice in processor.voices or [None]:
        waves = processor.stream(model, text, voice=voice, seed=0, **quality_settings(model))
        names.append(f"samples/{voice or 'sample'}.mp3")
        write_sound(folder / names[-1], waves, processor.sampling_rate)
    return names


def card_with_samples(card: str, name: str, samples: Sequence[str]) -> str:
    """Adds the samples to a model card, unless it already has a section for them."""
    if SAMPLES in card:
        return card
    rows = [
        f'{Path(sample).stem}: <audio controls src="https://huggingface.co/{name}/resolve/main/{sample}"></audio>'
        for sample in samples
    ]
    return "\n\n".join([card.rstrip("\n"), SAMPLES, *rows]) + "\n"


def write_repository(folder: Path, name: str, source: str, text: str) -> None:
    """Writes the contents of the repository."""
    processor, model = load_checkpoint(source)
    card = Path(source, "README.md")
    if card.is_file():
        shutil.copyfile(card, folder / "README.md")
    else:
        write_card(folder, name)
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    samples = write_samples(folder, processor, model, text)
    card = folder / "README.md"
    write_text(card, card_with_samples(card.read_text(encoding="utf-8"), name, samples))


def upload(folder: Path, name: str, private: bool) -> str:
    """Uploads a folder as one commit; returns the address of the repository. An existing model card is kept."""
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError, LocalTokenNotFoundError

    api = HfApi()
    try:
        repository = api.create_repo(name, private=private, exist_ok=True)
        if api.file_exists(repository.repo_id, "README.md"):
            (folder / "README.md").unlink()
        api.upload_folder(
            repo_id=repository.repo_id, folder_path=folder, commit_message="Upload a checkpoint of Small-E"
        )
    except (HfHubHTTPError, LocalTokenNotFoundError) as error:
        reason = str(error).splitlines()[0]
        raise ValueError(f"{name} cannot be uploaded: {reason}. Log in with `hf auth login`.") from error
    return str(repository)


def main(argv: Sequence[str] | None = None) -> int:
    """Runs `smalle publish`. Raises ValueError for wrong input."""
    arguments = parse(argv)
    check(arguments)
    if arguments.to is not None:
        arguments.to.mkdir(parents=True, exist_ok=True)
        write_repository(arguments.to, arguments.name, arguments.model, arguments.sample)
        print(arguments.to)
        return 0
    with tempfile.TemporaryDirectory() as folder:
        print("writing the repository with a sample of each voice", file=sys.stderr)
        write_repository(Path(folder), arguments.name, arguments.model, arguments.sample)
        print(upload(Path(folder), arguments.name, arguments.private))
    return 0
