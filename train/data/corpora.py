"""Finds out how a corpus is laid out and lists its clips.

Known are: Libri-light (folders or .tar), LibriTTS and LibriTTS-R (subset/speaker/chapter/*.wav with *.normalized.txt),
a folder with metadata.jsonl or metadata.csv (file_name, text, speaker: an `audiofolder` of datasets) or with NAME.txt
beside each NAME.wav, and parquet files with the columns audio, text and speaker.
"""

import os
import pathlib

import pyarrow.parquet

from .audio import metadata_rows
from .clips import Clip, Problem
from .librilight import librilight_clips

TEXT = ("text", "transcription", "sentence", "normalized_text", "text_normalized")
SPEAKER = ("speaker", "speaker_id", "client_id")


def first_of(row, names):
    """The first of the columns that a row has; None where it has none."""
    return next((row[name] for name in names if row.get(name) not in (None, "")), None)


def check(clip, transcribe):
    """The clip, or a Problem where it has no text and nobody writes it down."""
    return clip if clip.text or transcribe else Problem(clip.source, "has no text: give --asr to have it transcribed")


def metadata_clips(folder, transcribe=False):
    """Clips of a folder with metadata.jsonl or metadata.csv, or with a text file beside each recording."""
    folder = pathlib.Path(folder).resolve()
    for row in metadata_rows(folder):
        duration = row.get("duration")
        yield check(
            Clip(
                f"{folder.name}/{row['file_name']}",
                str(folder / row["file_name"]),
                str(first_of(row, SPEAKER) or folder.name),
                first_of(row, TEXT),
                duration=float(duration) if duration else None,
                words=row.get("words") or (),
            ),
            transcribe,
        )


def libritts_clips(folder, transcribe=False):
    """Clips of LibriTTS's layout; the speaker is the folder two above the recording."""
    for path in sorted(pathlib.Path(folder).rglob("*.wav")):
        text = path.with_suffix(".normalized.txt")
        source = "/".join(path.with_suffix("").parts[-4:])
        said = " ".join(text.read_text(encoding="utf-8").split()) if text.is_file() else None
        yield check(Clip(source, str(path), path.parts[-3], said), transcribe)


def parquet_clips(path, transcribe=False):
    """Clips of a parquet file, or of all in a folder."""
    path = pathlib.Path(path)
    for file in [path] if path.is_file() else sorted(path.rglob("*.parquet")):
        with pyarrow.parquet.ParquetFile(file) as table:
            known = set(table.schema_arrow.names)
            if "audio" not in known:
                raise ValueError(f"{file} has the columns {sorted(known)}: expected audio, text and speaker")
            columns = [name for name in (*TEXT, *SPEAKER) if name in known]
            for group in range(table.num_row_groups):
                rows = table.read_row_group(group, columns=columns).to_pylist() if columns else ()
                for index in range(table.metadata.row_group(group).num_rows):
                    row = rows[index] if columns else {}
                    source, speaker = f"{path.name}/{file.stem}/{group}/{index}", first_of(row, SPEAKER) or path.name
                    clip = Clip(source, str(file), str(speaker), first_of(row, TEXT), row=(group, index))
                    yield check(clip, transcribe)


def layout(path):
    """Which layout a corpus has: "metadata", "parquet", "libri-light" or "libritts". ValueError for any other."""
    path = pathlib.Path(path)
    if path.is_file():
        kind = {".tar": "libri-light", ".parquet": "parquet"}.get(path.suffix)
        if kind:
            return kind
    elif path.is_dir() and metadata_rows(path):
        return "metadata"
    for folder, _, names in os.walk(path):
        if any(name.endswith(".parquet") for name in names):
            return "parquet"
        if any(name.endswith(".normalized.txt") for name in names):
            return "libritts"
        if any(name.endswith(".flac") for name in names):
            return "libri-light"
        if len(pathlib.Path(folder).relative_to(path).parts) > 4:
            break
    raise ValueError(
        f"{path} is no corpus: expected Libri-light (folder or .tar), LibriTTS, parquet files, or a folder with "
        "metadata.jsonl or metadata.csv, or with NAME.txt beside each NAME.wav."
    )


def corpus_clips(path, cuts=(), transcribe=False, min_snr=None, max_seconds=25.0):
    """Clips and Problems of a corpus of any layout; the options are those of `librilight_clips`."""
    kind = layout(path)
    if kind == "libri-light":
        return librilight_clips(path, cuts, transcribe, min_snr, max_seconds)
    return {"metadata": metadata_clips, "parquet": parquet_clips, "libritts": libritts_clips}[kind](path, transcribe)
