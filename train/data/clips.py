"""A clip is one utterance of a corpus: where its audio lies, what is said, and who says it."""

import dataclasses
import io
import itertools
import json

import pyarrow.parquet
import soundfile

from .audio import UNREADABLE, Window, read_audio, read_part


@dataclasses.dataclass(frozen=True, slots=True)
class Clip:
    """Seconds `start` to `start + duration` of a recording; without duration, to its end.

    source: its name, which no other clip has; text: None where nobody wrote it down; words: [start, end] in seconds of
    each word of text.split(), where known. The recording is the file `path`, or within it `member` (offset and size in
    bytes, of an uncompressed tar archive) or `row` (row group, row in it, of a parquet file). It is played `speed`
    times as fast as it is; start, duration and words are those of the recording.
    """

    source: str
    path: str
    speaker: str
    text: str | None = None
    start: float = 0.0
    duration: float | None = None
    words: tuple = ()
    member: tuple | None = None
    row: tuple | None = None
    speed: float = 1.0

    @property
    def seconds(self):
        """How long it plays, guessed from the text where that is not known."""
        duration = self.duration if self.duration is not None else max(1.0, len(self.text or "") / 15)
        return duration / self.speed

    def at_speed(self, speed):
        """The same, played faster or slower by resampling: higher or lower, and so another speaker's.

        Speed perturbation (Ko et al. 2015), each speed a speaker of its own (Yamamoto et al. 2019).
        """
        if speed == 1:
            return self
        names = {"source": f"{self.source} x{speed:g}", "speaker": f"{self.speaker} x{speed:g}"}
        return dataclasses.replace(self, **names, speed=speed)

    def to_json(self):
        return json.dumps({key: value for key, value in dataclasses.asdict(self).items() if value}, ensure_ascii=False)

    @classmethod
    def from_json(cls, line):
        return cls(**json.loads(line))


@dataclasses.dataclass(frozen=True, slots=True)
class Problem:
    """Something that cannot be used, and why."""

    source: str
    reason: str

    def to_json(self):
        return json.dumps(dataclasses.asdict(self), ensure_ascii=False)


def recordings(clips, most=16):
    """Groups of neighbouring clips that lie in one recording, or in one row group: up to `most` each."""
    for _, group in itertools.groupby(clips, lambda clip: (clip.path, clip.member, clip.row and clip.row[0])):
        while part := list(itertools.islice(group, most)):
            yield part


def read_clips(group, sampling_rate):
    """The waveforms float32 (L,) of clips of one recording (`recordings`), with a Problem where there is none."""
    first = group[0]
    try:
        if first.row:
            return read_rows(group, sampling_rate)
        with Window(first.path, *first.member) if first.member else open(first.path, "rb") as source:
            file = soundfile.SoundFile(source)
            return [
                attempt(clip, read_part, file, sampling_rate / clip.speed, clip.start, clip.duration) for clip in group
            ]
    except UNREADABLE as error:
        return [Problem(clip.source, str(error)) for clip in group]


def attempt(clip, read, *arguments):
    """What `read` gives, or a Problem."""
    try:
        return read(*arguments)
    except UNREADABLE as error:
        return Problem(clip.source, str(error))


def read_rows(group, sampling_rate):
    """`read_clips` of a parquet file, whose column audio holds {"bytes", "path"}."""
    with pyarrow.parquet.ParquetFile(group[0].path) as file:
        column = file.read_row_group(group[0].row[0], columns=["audio"]).column("audio")
    return [attempt(clip, read_bytes, column[clip.row[1]].as_py(), sampling_rate / clip.speed) for clip in group]


def read_bytes(audio, sampling_rate):
    """The waveform of {"bytes", "path"}: bytes where they are there, else the file."""
    if not audio or not (audio.get("bytes") or audio.get("path")):
        raise ValueError("its row holds no audio")
    return read_audio(io.BytesIO(audio["bytes"]) if audio.get("bytes") else audio["path"], sampling_rate)
