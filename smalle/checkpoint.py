"""Finding and loading checkpoints; embedded ones are found by name."""

import os
import pathlib
from typing import Any


def embedded_checkpoints() -> pathlib.Path:
    """The folder of the checkpoints that come with the package."""
    try:
        import smalle.checkpoints  # a folder without code; in a wheel it is part of the package

        folders = list(smalle.checkpoints.__path__)
    except ModuleNotFoundError:
        folders = [pathlib.Path(__file__).parents[1] / "checkpoints"]
    return pathlib.Path(folders[0])


def find_checkpoint(name: str) -> str:
    """The folder of an embedded checkpoint, such as smalle-mini, by its name. Other folders and Hub names are returned
    unchanged."""
    embedded = embedded_checkpoints() / name
    return str(embedded) if embedded.is_dir() and not os.path.exists(name) else name


def default_checkpoint() -> str:
    """Path or name of the default checkpoint: the environment variable SMALLE_MODEL, or else the embedded one."""
    return os.environ.get("SMALLE_MODEL") or find_checkpoint("smalle-mini")


def check_checkpoint(name: str) -> None:
    """Raises ValueError for a folder without a checkpoint. Accepts names that may be on the Hub."""
    path = pathlib.Path(name)
    looks_local = name.startswith((".", "/", "~")) or name.count("/") != 1 or path.parent.is_dir()
    if looks_local and not (path / "config.json").is_file():
        raise ValueError(f"There is no checkpoint at {name}: expected a folder with config.json, or a Hub name.")


def load_checkpoint(name: str):
    """(processor, model) of a checkpoint, by folder or Hub name. Raises ValueError if it cannot be loaded."""
    from safetensors import SafetensorError
    from transformers.utils import logging

    import smalle

    from .saving_smalle import errors_name_the_file
    from .validation_smalle import check_complete

    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        processor = smalle.SmallEProcessor.from_pretrained(name)
        with errors_name_the_file(name, "generation_config.json", {}):
            model, info = smalle.SmallEForTextToSpeech.from_pretrained(name, output_loading_info=True)
            check_complete(info)
            model.eval()._prepare_generation_config(None)
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        raise ValueError(f"The checkpoint {name} cannot be loaded: {str(error).splitlines()[0]}") from error
    logging.set_verbosity_warning()  # for the warning about a slow runtime
    return processor, model


def quality_settings(model) -> dict[str, Any]:
    """The checkpoint's settings for speech that is not played while it is generated: it may be read several times."""
    settings = {name: getattr(model.generation_config, name, None) for name in ("best_of", "max_retries")}
    return {name: value for name, value in settings.items() if value}
