"""Joins chapters into one audiobook file (m4b: AAC in MP4, with chapter marks), with PyAV."""

import os
from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import soundfile

from ..saving_smalle import atomic_write


def write_m4b(
    path: str | os.PathLike,
    chapters: Sequence[tuple[str, Path]],
    title: str,
    author: str = "",
    bit_rate: int = 64_000,
) -> None:
    """Joins several sound files into one.

    Args:
        chapters: (title, mono sound file) of each chapter, all with the same sampling rate.
        bit_rate: bits per second of the AAC stream.

    Raises:
        ValueError: PyAV is not installed, or there are no chapters.
    """
    try:
        import av
    except ModuleNotFoundError as error:
        raise ValueError("m4b needs the package av: run pip install 'smalle[m4b]'.") from error
    if not chapters:
        raise ValueError(f"{path} would have no chapters: expected at least one.")
    rate = soundfile.info(chapters[0][1]).samplerate
    marks: list[Any] = []
    position = 0
    for number, (name, file) in enumerate(chapters):
        begin, position = position, position + soundfile.info(file).frames
        mark = {"id": number, "start": begin, "end": position, "time_base": Fraction(1, rate)}
        marks.append({**mark, "metadata": {"title": name}})
    with atomic_write(path) as temporary, av.open(str(temporary), "w", format="ipod") as container:
        container.metadata.update({"title": title, "album": title, "artist": author, "genre": "Audiobook"})
        container.set_chapters(marks)
        stream = container.add_stream("aac", rate=rate, layout="mono", bit_rate=bit_rate)
        position = 0
        for _, file in chapters:
            for block in soundfile.blocks(file, blocksize=rate, dtype="float32"):
                frame = av.AudioFrame.from_ndarray(block[None], format="fltp", layout="mono")
                frame.sample_rate, frame.pts, position = rate, position, position + len(block)
                container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
