"""Libri-light as it is laid out: subset/speaker/book/file.flac with file.json, as folders or as the .tar itself.

The .json holds speaker, snr (may be NaN), voice_activity ([[onset, offset], ...] in seconds) and book_meta. Transcripts
come from the cut manifests of Libriheavy; what these do not cover is cut by its voice activity and left to an ASR.
Formats: facebookresearch/libri-light, data_preparation; k2-fsa/libriheavy (arXiv 2309.08105).
"""

import gzip
import itertools
import json
import os
import pathlib
import tarfile

from .audio import Window
from .clips import Clip, Problem


def segments(voice_activity, max_seconds=25.0, max_pause=1.0, min_seconds=0.5):
    """Joins voiced stretches: [(start, end)] in seconds, none longer than `max_seconds`.

    Neighbours are joined over pauses of up to `max_pause`. A stretch that is too long alone is cut evenly; what is
    shorter than `min_seconds` in the end is dropped.
    """
    joined = []
    for start, end in sorted(voice_activity):
        count = max(1, -int(-(end - start) // max_seconds))
        for n in range(count):
            first, last = start + n * (end - start) / count, start + (n + 1) * (end - start) / count
            if joined and first - joined[-1][1] <= max_pause and last - joined[-1][0] <= max_seconds and count == 1:
                joined[-1][1] = max(last, joined[-1][1])
            else:
                joined.append([first, last])
    return [(start, end) for start, end in joined if end - start >= min_seconds]


def name_of(path):
    """subset/speaker/book/file, which is how Libriheavy names a recording."""
    return "/".join(pathlib.PurePosixPath(path).with_suffix("").parts[-4:])


class Files:
    """The .flac and .json of a Libri-light by name, in the order in which they lie there."""

    def __init__(self, path):
        self.path, self.flac, self.json, self.problems = pathlib.Path(path).resolve(), {}, {}, []
        if self.path.is_file():
            self._index_tar()
        else:
            self._index_folders()

    def _add(self, path, place):
        for suffix, files in ((".flac", self.flac), (".json", self.json)):
            if path.endswith(suffix):
                files[name_of(path)] = place

    def _index_tar(self):
        try:
            with tarfile.open(self.path, "r:") as archive:
                for member in archive:
                    if member.isfile():
                        self._add(member.name, (str(self.path), (member.offset_data, member.size)))
                    archive.members = []  # or the index of millions of files stays
        except tarfile.ReadError as error:
            if not self.flac:
                raise ValueError(
                    f"{self.path} cannot be read as a tar archive: {error}. Compressed ones have to be unpacked."
                ) from error
            self.problems.append(Problem(str(self.path), f"{error}: only the files before it are taken"))

    def _index_folders(self):
        for folder, subfolders, files in os.walk(self.path):
            subfolders.sort()
            for name in sorted(files):
                path = os.path.join(folder, name)
                self._add(path, (path, None))

    def describe(self, name):
        """The .json of a recording. Raises ValueError where it is missing or wrong."""
        if name not in self.json:
            raise ValueError("has no .json beside it")
        path, member = self.json[name]
        with Window(path, *member) if member else open(path, "rb") as file:
            description = json.loads(file.read())
        if not isinstance(description.get("voice_activity"), list):
            raise ValueError("its .json has no voice_activity")
        return description


def read_cuts(manifests):
    """(recording, id, start, duration, speaker, text) of each cut of Libriheavy's .jsonl.gz manifests."""
    for manifest in manifests:
        with (gzip.open if str(manifest).endswith(".gz") else open)(manifest, "rt", encoding="utf-8") as lines:
            for line in lines:
                cut = json.loads(line)
                spoken = cut["supervisions"][0]
                custom = spoken.get("custom") or {}
                text = custom["texts"][0] if custom.get("texts") else spoken.get("text", "")
                start = cut["start"] + spoken.get("start", 0)
                yield spoken["recording_id"], cut["id"], start, spoken["duration"], spoken.get("speaker"), text


def quiet_enough(files, name, min_snr):
    """Whether a recording's signal-to-noise ratio, in dB, is at least `min_snr`; NaN, nobody knows, is enough."""
    if min_snr is None:
        return True
    snr = files.describe(name).get("snr")
    return snr is None or not snr < min_snr


def librilight_clips(path, cuts=(), transcribe=False, min_snr=None, max_seconds=25.0):
    """Clips and Problems of a Libri-light folder or .tar.

    cuts: manifests of Libriheavy. transcribe: also take what they do not cover, without a text. min_snr: leave out
    recordings with less.
    """
    files, covered = Files(path), set()
    yield from files.problems
    for name, group in itertools.groupby(read_cuts(cuts), lambda cut: cut[0]):
        if name not in files.flac:
            continue  # of another subset
        covered.add(name)
        place, member = files.flac[name]
        try:
            if quiet_enough(files, name, min_snr):
                for _, source, start, duration, speaker, text in group:
                    yield Clip(
                        source,
                        place,
                        str(speaker or name.split("/")[1]),
                        " ".join(text.split()),
                        start,
                        duration,
                        member=member,
                    )
        except (OSError, ValueError) as error:
            yield Problem(name, str(error))
    for name, (place, member) in files.flac.items() if transcribe else ():
        if name in covered:
            continue
        try:
            description = files.describe(name)
            if quiet_enough(files, name, min_snr):
                speaker = str(description.get("speaker") or name.split("/")[1])
                for start, end in segments(description["voice_activity"], max_seconds):
                    source = f"{name}_{round(1000 * start)}"
                    yield Clip(source, place, speaker, None, start, end - start, member=member)
        except (OSError, ValueError, TypeError) as error:
            yield Problem(name, str(error))
