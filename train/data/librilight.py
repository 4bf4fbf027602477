"""Libri-light: subset/speaker/book/file.flac with file.json, in folders or in an uncompressed .tar.

The .json holds speaker, snr (may be NaN), voice_activity ([[onset, offset], ...] in seconds) and book_meta. Transcripts
come from Libriheavy's cut manifests. Recordings without cuts are split by their voice activity, and have no text.
Formats: facebookresearch/libri-light, data_preparation; k2-fsa/libriheavy (arXiv 2309.08105).
"""

import gzip
import itertools
import json
import os
import pathlib
import tarfile
from collections.abc import Iterable, Iterator

from .audio import Clip, Problem, open_file

Place = tuple[str, tuple[int, int] | None]  # a path, and (offset, size) of a member of a tar archive


def join_segments(
    voice_activity: Iterable[tuple[float, float]],
    max_seconds: float = 25.0,
    max_pause: float = 1.0,
    min_seconds: float = 0.5,
) -> list[tuple[float, float]]:
    """Joins voiced segments (start, end) in seconds over pauses of up to `max_pause`, to `max_seconds` at most.

    Longer segments are split evenly; results shorter than `min_seconds` are dropped.
    """
    joined: list[list[float]] = []
    for start, end in sorted(voice_activity):
        count = max(1, -int(-(end - start) // max_seconds))
        for n in range(count):
            first, last = start + n * (end - start) / count, start + (n + 1) * (end - start) / count
            if joined and first - joined[-1][1] <= max_pause and last - joined[-1][0] <= max_seconds and count == 1:
                joined[-1][1] = max(last, joined[-1][1])
            else:
                joined.append([first, last])
    return [(start, end) for start, end in joined if end - start >= min_seconds]


class LibriLightFiles:
    """The .flac and .json files of a folder or .tar, by name (subset/speaker/book/file), in the order of storage."""

    def __init__(self, path: str | os.PathLike):
        self.path = pathlib.Path(path).resolve()
        self.flac: dict[str, Place] = {}
        self.json: dict[str, Place] = {}
        self.problems: list[Problem] = []
        if self.path.is_file():
            self._index_tar()
        else:
            self._index_folders()

    def _add(self, path: str, place: Place) -> None:
        for suffix, files in ((".flac", self.flac), (".json", self.json)):
            if path.endswith(suffix):
                files["/".join(pathlib.PurePosixPath(path).with_suffix("").parts[-4:])] = place

    def _index_tar(self) -> None:
        try:
            with tarfile.open(self.path, "r:") as archive:
                for member in archive:
                    if member.isfile():
                        self._add(member.name, (str(self.path), (member.offset_data, member.size)))
                    vars(archive)["members"] = []  # drops tarfile's own index: archives hold millions of files
        except tarfile.ReadError as error:
            if not self.flac:
                raise ValueError(
                    f"{self.path} cannot be read as a tar archive: {error}. Unpack compressed archives."
                ) from error
            self.flac.popitem()  # it may be truncated
            self.problems.append(Problem(str(self.path), f"{error}: only the files before this point are used"))

    def _index_folders(self) -> None:
        for folder, subfolders, files in os.walk(self.path):
            subfolders.sort()
            for name in sorted(files):
                path = os.path.join(folder, name)
                self._add(path, (path, None))

    def describe(self, name: str) -> dict:
        """The .json of a recording. Raises ValueError if it is missing or has no voice_activity."""
        if name not in self.json:
            raise ValueError("has no .json file")
        with open_file(*self.json[name]) as file:
            description = json.loads(file.read())
        if not isinstance(description.get("voice_activity"), list):
            raise ValueError("its .json has no voice_activity")
        return description

    def has_snr(self, name: str, min_snr: float | None) -> bool:
        """Whether a recording's signal-to-noise ratio is at least `min_snr` dB, or unknown (NaN)."""
        if min_snr is None:
            return True
        snr = self.describe(name).get("snr")
        return snr is None or not snr < min_snr


def read_cuts(manifests: Iterable[str | os.PathLike]) -> Iterator[tuple[str, str, float, float, str | None, str]]:
    """(recording, id, start, duration, speaker, text) of each cut of Libriheavy's .jsonl.gz manifests.

    Raises ValueError for a malformed line."""
    for manifest in manifests:
        with (gzip.open if str(manifest).endswith(".gz") else open)(manifest, "rt", encoding="utf-8") as lines:
            for number, line in enumerate(lines, 1):
                try:
                    cut = json.loads(line)
                    supervision = cut["supervisions"][0]
                    texts = (supervision.get("custom") or {}).get("texts")
                    text = " ".join((texts[0] if texts else supervision.get("text", "")).split())
                    start = cut["start"] + supervision.get("start", 0)
                    recording, duration = supervision["recording_id"], supervision["duration"]
                    yield recording, cut["id"], start, duration, supervision.get("speaker"), text
                except (KeyError, IndexError, TypeError, AttributeError, ValueError) as error:
                    raise ValueError(f"{manifest}:{number} is not a cut of Libriheavy: {error!r}") from error


def librilight_clips(
    path: str | os.PathLike,
    cuts: Iterable[str | os.PathLike] = (),
    untranscribed: bool = False,
    min_snr: float | None = None,
    max_seconds: float = 25.0,
) -> Iterator[Clip | Problem]:
    """Clips of a Libri-light folder or .tar, and a Problem for each unusable recording.

    cuts: manifests of Libriheavy. untranscribed: also yield clips without text, of at most `max_seconds`, from
    recordings that the manifests do not cover. min_snr: skip recordings with a lower signal-to-noise ratio in dB.
    """
    files, covered = LibriLightFiles(path), set()
    yield from files.problems
    for name, group in itertools.groupby(read_cuts(cuts), lambda cut: cut[0]):
        if name not in files.flac:
            continue  # it belongs to another subset
        covered.add(name)
        file, member = files.flac[name]
        try:
            wanted = files.has_snr(name, min_snr)
        except (OSError, ValueError) as error:
            yield Problem(name, str(error))
            continue
        for _, cut, start, duration, speaker, text in group if wanted else ():
            yield Clip(cut, file, str(speaker or name.split("/")[1]), text, start, duration, member=member)
    for name, (file, member) in files.flac.items() if untranscribed else ():
        if name in covered:
            continue
        try:
            if files.has_snr(name, min_snr):
                description = files.describe(name)
                speaker = str(description.get("speaker") or name.split("/")[1])
                for start, end in join_segments(description["voice_activity"], max_seconds):
                    yield Clip(f"{name}_{round(1000 * start)}", file, speaker, None, start, end - start, member=member)
        except (OSError, ValueError, TypeError) as error:
            yield Problem(name, str(error))
