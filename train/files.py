"""Text files that are there whole or not at all."""

import json
import os
from pathlib import Path


def write_text(path, text: str) -> None:
    """Writes text under a temporary name, each process its own, then renames it."""
    part = Path(f"{path}.{os.getpid()}.partial")
    part.write_text(text, encoding="utf-8")
    part.replace(path)


def write_json(path, value) -> None:
    """As `write_text`, of a value."""
    write_text(path, json.dumps(value, indent=1, ensure_ascii=False) + "\n")


def write_lines(path, values) -> None:
    """As `write_text`, a value a line."""
    write_text(path, "".join(json.dumps(value, ensure_ascii=False) + "\n" for value in values))
