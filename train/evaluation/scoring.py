"""Scores the recordings of a manifest with a program of the user's choice or a transformers speech recognizer.

A manifest is a file of JSON lines {"audio": a path relative to the manifest, "text", "reference"?: a recording of the
same speaker, "cut"?: whether the recording was cut off}. Scores are {"summary": {name: value}, "rows": the rows of the
manifest with their results, such as the recognized text "heard"}.
"""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
from tqdm import tqdm

from smalle.saving_smalle import write_jsonl

from ..data.audio import read_audio
from ..data.transcriber import Transcriber
from .word_errors import align, count_errors, runs_on, words


def read_jsonl(path: Path) -> list[dict]:
    """The rows of a file of JSON lines."""
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def write_manifest(folder: Path, rows: list[dict]) -> Path:
    """Writes manifest.jsonl into a folder; returns its path."""
    path = folder / "manifest.jsonl"
    write_jsonl(path, rows)
    return path


def score(manifest: Path, scorer: str | Path, python: str = sys.executable, threads: int = 1) -> dict:
    """Runs PYTHON SCORER MANIFEST --out FILE --threads N and returns its scores.

    Raises CalledProcessError if it fails.
    """
    out = manifest.with_name(".scores.json.partial")
    command = [python, str(scorer), str(manifest), "--out", str(out), "--threads", str(threads)]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    scores = json.loads(out.read_text(encoding="utf-8"))
    out.unlink()
    return scores


def recognize(manifest: Path, recognizer: str, device: str = "cpu") -> dict:
    """Counts word errors with a transformers speech recognizer: a folder or Hub name."""
    transcriber, rows = Transcriber(recognizer, device), read_jsonl(manifest)
    for row in tqdm(rows, desc="recognizing", unit="utterance"):
        wave = read_audio(manifest.parent / row["audio"], transcriber.sampling_rate)
        row["seconds"] = round(len(wave) / transcriber.sampling_rate, 3)
        (row["heard"],) = transcriber([wave], transcriber.sampling_rate) if np.abs(wave).max() > 1e-3 else ("",)
    return count_errors(rows)


def count_endings(recordings: list[dict], scored: list[dict]) -> dict[str, int | None]:
    """Counts utterances that were cut off, and utterances that continue after their text.

    Args:
        recordings: Rows of a manifest.
        scored: Rows of its scores. If rows lack "cut" or "heard", that count is None.
    """
    cut = run_on = None
    if all("cut" in row for row in recordings):
        cut = sum(row["cut"] for row in recordings)
    if scored and all("heard" in row for row in scored):
        run_on = sum(runs_on(align(words(row["text"]), words(row["heard"]))) for row in scored)
    return {"cut": cut, "run_on": run_on}
