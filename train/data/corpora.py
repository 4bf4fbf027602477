"""Speech corpora as a `datasets.Dataset` or `IterableDataset` (`load_corpus`), and their clips.

Columns: id (unique in its corpus), audio ({"bytes", "path"}, undecoded: `soundfile.read(io.BytesIO(bytes) if bytes else
path)`), text (None without transcript), speaker, duration (s), words ([start, end] in seconds of each word of
text.split(); empty if unknown). Training prepares codes from the same clips (smalle.train.data.prepare).
"""

import csv
import io
import itertools
import json
import logging
import os
import pathlib
from collections.abc import Iterable, Iterator
from typing import IO, Any, TypeAlias

import datasets
import numpy as np
import pyarrow.parquet
import soundfile

from .audio import Clip, Problem, group_by_file, read_clips, read_samples
from .librilight import librilight_clips

logger = logging.getLogger(__name__)
AUDIO_SUFFIXES = (".wav", ".flac", ".ogg", ".opus", ".mp3")
TEXT_COLUMNS = ("text", "transcription", "sentence", "normalized_text", "text_normalized")
SPEAKER_COLUMNS = ("speaker", "speaker_id", "client_id")
Corpus: TypeAlias = datasets.Dataset | datasets.IterableDataset
FEATURES = datasets.Features(
    {
        "id": datasets.Value("string"),
        "audio": datasets.Audio(decode=False),
        "text": datasets.Value("string"),
        "speaker": datasets.Value("string"),
        "duration": datasets.Value("float64"),
        "words": datasets.List(datasets.List(datasets.Value("float64"))),
    }
)


def load_corpus(path: str | os.PathLike, streaming: bool = False, num_shards: int = 64, **options) -> Corpus:
    """Loads a corpus of any `layout` as a dataset. See the module for its columns.

    Args:
        streaming: Return an IterableDataset that reads audio during iteration; otherwise a Dataset, for which
            `datasets` stores the audio on disk.
        num_shards: Number of shards of the IterableDataset, fewer for small corpora. It should be a multiple of the
            number of nodes, so that `datasets.distributed.split_dataset_by_node` does not read data twice.
        **options: As for `corpus_clips`; clips without transcript are included by default.

    Unusable clips are skipped with a warning. Raises ValueError if there are no clips, and for an unknown layout.
    """
    lines, problems = [], 0
    for clip in corpus_clips(path, **{"untranscribed": True, **options}):
        if isinstance(clip, Problem):
            problems += 1
            logger.warning("%s left out: %s", clip.id, clip.reason)
        else:
            lines.append(clip.to_json())
    if not lines:
        raise ValueError(f"{path} has no usable clips ({problems} unusable ones): expected at least one")
    dataset = datasets.Dataset.from_dict({"clip": lines})
    if streaming:
        dataset = dataset.to_iterable_dataset(min(num_shards, len(lines)))
    return dataset.map(read_rows, batched=True, batch_size=16, remove_columns=["clip"], features=FEATURES)


def read_rows(batch: dict[str, list]) -> dict[str, list]:
    """The columns of FEATURES for a batch {"clip": lines of JSON}; skips clips that cannot be read with a warning."""
    columns: dict[str, list] = {name: [] for name in FEATURES}
    groups = group_by_file(map(Clip.from_json, batch["clip"]))
    for row in itertools.chain.from_iterable(read_clips(group, read_row) for group in groups):
        if isinstance(row, Problem):
            logger.warning("%s left out: %s", row.id, row.reason)
            continue
        for name, column in columns.items():
            column.append(row[name])
    return columns


def read_row(file: IO[bytes], clip: Clip) -> dict:
    """One row of FEATURES. Whole files are kept unchanged; parts of files are converted to 16-bit FLAC."""
    with soundfile.SoundFile(file) as sound:
        duration = sound.frames / sound.samplerate
        whole = clip.start == 0 and (clip.duration is None or abs(duration - clip.duration) < 0.1)
        if not whole:
            samples, content = read_samples(sound, clip.start, clip.duration), io.BytesIO()
            soundfile.write(content, samples, sound.samplerate, format="FLAC", subtype="PCM_16")
            duration = len(samples) / sound.samplerate
    audio: dict[str, bytes | str | None]
    if not whole:
        audio = {"bytes": content.getvalue(), "path": None}
    elif clip.row is None and clip.member is None:
        audio = {"bytes": None, "path": clip.path}
    else:
        file.seek(0)
        audio = {"bytes": file.read(), "path": None}
    return {
        "id": clip.id,
        "audio": audio,
        "text": clip.text,
        "speaker": clip.speaker,
        "duration": duration,
        "words": [list(word) for word in clip.words],
    }


def read_json_lines(path: pathlib.Path) -> Iterator[Any]:
    """Yields the values of a JSON Lines file. Raises ValueError for a line that is not JSON."""
    with open(path, encoding="utf-8") as lines:
        for number, line in enumerate(lines, 1):
            try:
                if line.strip():
                    yield json.loads(line)
            except ValueError as error:
                raise ValueError(f"{path}:{number}: {error}; expected one JSON object per line") from None


def metadata_rows(folder: str | os.PathLike) -> list[dict]:
    """Rows of metadata.jsonl or metadata.csv, or else of text files next to recordings of the same name; may be empty.

    Raises ValueError for a row without file_name."""
    folder = pathlib.Path(folder)
    if (path := folder / "metadata.jsonl").is_file():
        rows = list(read_json_lines(path))
    elif (path := folder / "metadata.csv").is_file():
        with open(path, encoding="utf-8", newline="") as file:
            rows = list(csv.DictReader(file))
    else:
        rows = [
            {"file_name": path.name, "text": path.with_suffix(".txt").read_text(encoding="utf-8").strip()}
            for path in sorted(folder.glob("*"))
            if path.suffix in AUDIO_SUFFIXES and path.with_suffix(".txt").is_file()
        ]
    for row in rows:
        if not isinstance(row, dict) or not row.get("file_name"):
            raise ValueError(f"{path} has the row {row!r}: expected file_name, text and speaker")
    return rows


def read_metadata(folder: str | os.PathLike) -> list[dict]:
    """`metadata_rows` with path, speaker (default: the name of the folder) and duration (default: of the file) added.

    Raises ValueError for a folder without recordings.
    """
    folder = pathlib.Path(folder)
    rows = [
        {"speaker": folder.resolve().name, **row, "path": str(folder / row["file_name"])}
        for row in metadata_rows(folder)
    ]
    if not rows:
        raise ValueError(
            f"{folder} has no recordings: expected metadata.jsonl (file_name, text) or NAME.wav with NAME.txt."
        )
    return [row if "duration" in row else {**row, "duration": soundfile.info(row["path"]).duration} for row in rows]


def first_of(row: dict, columns: Iterable[str]) -> str | None:
    """The value of the first of these columns that is not empty."""
    return next((row[name] for name in columns if row.get(name) not in (None, "")), None)


def check(clip: Clip, untranscribed: bool) -> Clip | Problem:
    """The clip, or a Problem if it has no text and needs one."""
    if clip.text or untranscribed:
        return clip
    return Problem(clip.id, "has no text: expected a transcript; `smalle prepare --asr` makes one with a recognizer")


def recording_clips(folder: str | os.PathLike, untranscribed: bool = False) -> Iterator[Clip | Problem]:
    """Clips of a folder of recordings (`metadata_rows`)."""
    folder = pathlib.Path(folder).resolve()
    for row in metadata_rows(folder):
        name, text, words = f"{folder.name}/{row['file_name']}", first_of(row, TEXT_COLUMNS), row.get("words") or ()
        speaker = str(first_of(row, SPEAKER_COLUMNS) or folder.name)
        try:
            start, duration = float(row.get("start") or 0), float(row["duration"]) if row.get("duration") else None
            if words and np.shape(words) != (len((text or "").split()), 2):
                raise ValueError(
                    f"words has the shape {np.shape(words)}: expected [start, end] of each word of its text"
                )
        except (TypeError, ValueError) as error:
            yield Problem(name, str(error))
            continue
        name += f"@{start:g}" if start else ""
        clip = Clip(name, str(folder / row["file_name"]), speaker, text, start, duration, words)
        yield check(clip, untranscribed)


def libritts_clips(folder: str | os.PathLike, untranscribed: bool = False) -> Iterator[Clip | Problem]:
    """Clips in the layout of LibriTTS; the speaker is the second parent folder of a recording."""
    for path in sorted(pathlib.Path(folder).rglob("*.wav")):
        transcript = path.with_suffix(".normalized.txt")
        text = " ".join(transcript.read_text(encoding="utf-8").split()) if transcript.is_file() else None
        yield check(Clip("/".join(path.with_suffix("").parts[-4:]), str(path), path.parts[-3], text), untranscribed)


def parquet_clips(path: str | os.PathLike, untranscribed: bool = False) -> Iterator[Clip | Problem]:
    """Clips of a parquet file, or of all parquet files in a folder."""
    path = pathlib.Path(path)
    for file in [path] if path.is_file() else sorted(path.rglob("*.parquet")):
        with pyarrow.parquet.ParquetFile(file) as table:
            known = set(table.schema_arrow.names)
            if "audio" not in known:
                raise ValueError(f"{file} has the columns {sorted(known)}: expected audio, text and speaker")
            columns = [name for name in (*TEXT_COLUMNS, *SPEAKER_COLUMNS) if name in known]
            for group in range(table.num_row_groups):
                rows = table.read_row_group(group, columns=columns).to_pylist() if columns else ()
                for index in range(table.metadata.row_group(group).num_rows):
                    row = rows[index] if columns else {}
                    speaker = str(first_of(row, SPEAKER_COLUMNS) or path.name)
                    name = f"{path.name}/{file.stem}/{group}/{index}"
                    clip = Clip(name, str(file), speaker, first_of(row, TEXT_COLUMNS), row=(group, index))
                    yield check(clip, untranscribed)


def layout(path: str | os.PathLike) -> str:
    """The layout of a corpus: "recordings", "parquet", "librilight" or "libritts". Raises ValueError for others."""
    path = pathlib.Path(path)
    if path.is_file():
        kind = {".tar": "librilight", ".parquet": "parquet"}.get(path.suffix)
        if kind:
            return kind
    elif path.is_dir() and metadata_rows(path):
        return "recordings"
    for folder, _, names in os.walk(path):
        for suffix, kind in ((".parquet", "parquet"), (".normalized.txt", "libritts"), (".flac", "librilight")):
            if any(name.endswith(suffix) for name in names):
                return kind
        if len(pathlib.Path(folder).relative_to(path).parts) > 4:
            break
    raise ValueError(
        f"{path} is not a corpus: expected Libri-light (folder or .tar), LibriTTS, parquet files, or a folder with "
        "metadata.jsonl or metadata.csv, or with NAME.txt next to each NAME.wav."
    )


def corpus_clips(
    path: str | os.PathLike,
    cuts: Iterable[str | os.PathLike] = (),
    untranscribed: bool = False,
    min_snr: float | None = None,
    max_seconds: float = 25.0,
) -> Iterator[Clip | Problem]:
    """Clips of a corpus of any layout, and a Problem for each unusable one.

    The options are those of `librilight_clips`. Other layouts only support `untranscribed`: include clips without a
    transcript.
    """
    kind = layout(path)
    if kind == "librilight":
        return librilight_clips(path, cuts, untranscribed, min_snr, max_seconds)
    clips = {"recordings": recording_clips, "parquet": parquet_clips, "libritts": libritts_clips}[kind]
    return clips(path, untranscribed)
