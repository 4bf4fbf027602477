"""An HTML page with every utterance of an evaluation, and pictures of alignments."""

import html
import os
import struct
import urllib.parse
import zlib
from pathlib import Path

import numpy as np

from .word_errors import align, words

STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto; color-scheme: light dark }
table { border-collapse: collapse } td, th { padding: .1rem .8rem .1rem 0; text-align: left }
section { border-top: 1px solid #8888; padding: 1rem 0 } img { max-width: 100%; display: block; margin-top: .5rem }
del { color: #c33 } ins { color: #b60 } .numbers { opacity: .7 } audio { height: 2rem; vertical-align: middle }
"""
BACKGROUND, FOREGROUND = np.array([255, 255, 255.0]), np.array([23, 45, 110.0])


def alignment_picture(alignment: np.ndarray, width: int = 600, height: int = 200) -> np.ndarray:
    """A picture uint8 (H, W, 3) of an alignment (T, N) with weights of 0 to 1: time to the right, text upwards.

    All cells have the same size, and the picture has at least the requested size.
    """
    cells = np.sqrt(np.clip(np.asarray(alignment, np.float64), 0, 1)).T[::-1]  # the root makes small weights visible
    rows, columns = (max(1, -(-size // count)) for size, count in zip((height, width), np.maximum(1, cells.shape)))
    shades = np.kron(cells, np.ones((rows, columns)))[..., None]
    return (BACKGROUND + shades * (FOREGROUND - BACKGROUND)).round().astype(np.uint8)


def png(picture: np.ndarray) -> bytes:
    """Encodes a picture uint8 (H, W, 3) as PNG."""
    height, width, _ = picture.shape

    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    lines = np.concatenate([np.zeros((height, 1), np.uint8), picture.reshape(height, -1)], 1)  # 0: no filter
    header = struct.pack(">2I5B", width, height, 8, 2, 0, 0, 0)  # 8 bits, red green blue
    data = chunk(b"IHDR", header), chunk(b"IDAT", zlib.compress(lines.tobytes())), chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + b"".join(data)


def mark_errors(text: str, heard: str) -> tuple[str, str]:
    """Both texts as HTML, with <del> around words that were not recognized and <ins> around wrong ones."""
    reference: list[str] = []
    recognized: list[str] = []
    for wanted, got in align(words(text), words(heard)):
        for word, tag, out in (wanted, "del", reference), (got, "ins", recognized):
            if word is not None:
                out.append(html.escape(word) if wanted == got else f"<{tag}>{html.escape(word)}</{tag}>")
    return " ".join(reference), " ".join(recognized)


def _player(path: str, folder: Path) -> str:
    source = urllib.parse.quote(os.path.relpath(os.path.join(folder, path), folder))
    return f'<audio controls preload="none" src="{source}"></audio>'


def _table(values: dict) -> str:
    cells = "".join(
        f"<tr><th>{html.escape(str(name))}</th><td>{html.escape(str(value))}</td></tr>"
        for name, value in values.items()
        if value not in (None, {})
    )
    return f"<table>{cells}</table>"


def _section(number: int, row: dict, folder: Path) -> str:
    parts = [f"<p>{number}. {html.escape(row['text'])}</p>", _player(row["audio"], folder)]
    if row.get("reference"):
        parts.append(f" the speaker: {_player(row['reference'], folder)}")
    if "heard" in row:
        reference, recognized = mark_errors(row["text"], row["heard"])
        parts.append(f"<p>text: {reference}<br>recognized: {recognized or '<ins>nothing</ins>'}</p>")
    known = {key: value for key, value in row.items() if key not in ("text", "audio", "reference", "heard")}
    numbers = ", ".join(f"{key} {value}" for key, value in known.items() if value not in (None, False))
    parts.append(f'<p class="numbers">{html.escape(numbers)}</p>')
    picture = os.path.splitext(row["audio"])[0] + ".png"
    if os.path.isfile(os.path.join(folder, picture)):
        parts.append(f'<img src="{urllib.parse.quote(picture)}" alt="alignment of frames and tokens">')
    return f"<section>{''.join(parts)}</section>"


def results_page(folder: Path, rows: list[dict], report: dict) -> str:
    """A page with a summary and the utterances, those with most errors first.

    Args:
        folder: The folder of the page and the recordings.
        rows: Rows of the scores, or of the manifest if there are no scores.
        report: The content of report.json: "summary", "timing", "settings", "scorer".
    """
    order = sorted(enumerate(rows, 1), key=lambda pair: -(pair[1].get("wer") or 0))
    summary = {**report.get("summary", {}), **report.get("timing", {})}
    settings = {**report.get("settings", {}), "scorer": report.get("scorer")}
    name = html.escape(os.path.basename(os.path.abspath(folder)))
    body = "\n".join(_section(number, row, folder) for number, row in order)
    return (
        '<!doctype html>\n<html lang="en">\n<meta charset="utf-8">\n'
        f"<title>{name}</title>\n<style>{STYLE}</style>\n"
        f"<h1>{name}</h1>\n{_table(summary)}\n<details><summary>settings</summary>{_table(settings)}</details>\n"
        f"{body}\n</html>\n"
    )
