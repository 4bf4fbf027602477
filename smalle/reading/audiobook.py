"""Audiobooks: a sound file and captions for each chapter of a document. An interrupted reading can be resumed."""

import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import soundfile

from ..audio_smalle import write_wav
from ..saving_smalle import atomic_write, write_json, write_text
from ..streaming_smalle import TextToSpeechStreamer
from .captions import WRITERS, Word, written_words
from .documents import Chapter, Document, Paragraph
from .markup import MAX_PAUSE, Segment, check_rate, parse_plain
from .soundfiles import FORMATS, write_sound
from .speech import speak

HEADING_PAUSE = 1.0  # seconds after a heading
PARTS = ".parts"  # folder for the paragraphs of unfinished chapters


@dataclass(frozen=True)
class Reading:
    """Settings of a reading.

    Attributes:
        format: format of the sound files, one of `FORMATS`.
        captions: formats of the captions, from `captions.WRITERS`.
        voice: name of a preset, voice file or `Voice`; None: the default voice.
        seed: seed for each paragraph, so that a paragraph does not depend on earlier ones.
        speed: 0.25 to 4.
        paragraph_pause: seconds of silence after a paragraph.
        options: arguments of `streamer.stream` for all paragraphs.
    """

    format: str = "mp3"
    captions: Sequence[str] = ("srt", "vtt")
    voice: Any = None
    seed: int = 0
    speed: float = 1.0
    paragraph_pause: float = 0.5
    options: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self):
        if self.format not in FORMATS:
            raise ValueError(f"format={self.format!r}: expected one of {', '.join(FORMATS)}.")
        if unknown := set(self.captions) - set(WRITERS):
            raise ValueError(f"captions={sorted(unknown)}: expected some of {', '.join(WRITERS)}.")
        if not 0 <= self.paragraph_pause <= MAX_PAUSE:
            raise ValueError(f"paragraph_pause={self.paragraph_pause:g}: expected 0 to {MAX_PAUSE:g} seconds.")
        check_rate(self.speed)


def read_aloud(
    document: Document,
    streamer: TextToSpeechStreamer,
    folder: Path,
    reading: Reading = Reading(),
    chapters: Sequence[int] | None = None,
    progress: Callable[[int], Any] | None = None,
) -> Iterator[Path]:
    """Reads a document and yields the path of each chapter's sound file when it is complete.

    `folder` gets a sound file and captions for each chapter, and book.json, which lists them. Paragraphs that are
    already there for the same text, voice and settings are kept, so an interrupted reading continues where it stopped
    and gives the same files.

    Args:
        chapters: numbers of the chapters to read, starting from 1; None: all.
        progress: called after each paragraph with its number of characters.

    Raises:
        ValueError: a chapter does not exist or cannot be read, or there is neither a voice nor a default voice.
    """
    numbers = range(1, len(document.chapters) + 1) if chapters is None else chapters
    if wrong := [number for number in numbers if not 1 <= number <= len(document.chapters)]:
        raise ValueError(f"There is no chapter {wrong[0]}: expected 1 to {len(document.chapters)}.")
    voice = streamer.processor.prompts(1, reading.voice)[0]
    if voice.codes is None and not voice.state:
        raise ValueError("The checkpoint has no default voice: give a voice, so that all paragraphs have the same one.")
    folder.mkdir(parents=True, exist_ok=True)
    book = Book(document, folder, streamer, replace(reading, voice=voice))
    for number in numbers:
        yield book.read_chapter(number, progress or (lambda characters: None))


class Book:
    """A document and the folder into which it is read."""

    def __init__(self, document: Document, folder: Path, streamer: TextToSpeechStreamer, reading: Reading):
        self.document, self.folder, self.streamer, self.reading = document, folder, streamer, reading
        self.sampling_rate = streamer.processor.sampling_rate
        self.identity = identity(streamer.model, reading)
        self.parts, self.index = folder / PARTS, folder / "book.json"

    def read_chapter(self, number: int, progress: Callable[[int], Any]) -> Path:
        """Reads a chapter unless it is complete; returns the path of its sound file."""
        chapter = self.document.chapters[number - 1]
        stem = f"{number:0{len(str(len(self.document.chapters)))}} {file_name(chapter.title)}".strip()
        path = self.folder / f"{stem}.{self.reading.format}"
        captions = {suffix: self.folder / f"{stem}.{suffix}" for suffix in self.reading.captions}
        keys = [self.key(paragraph) for paragraph in chapter.paragraphs]
        chapters = self.read_index()
        entry = {"title": chapter.title, "file": path.name, "key": digest([*keys, self.reading.format])}
        known = chapters.get(str(number), {})
        complete = {**known, **entry} == known and all(file.is_file() for file in (path, *captions.values()))
        for key, paragraph in zip(keys, chapter.paragraphs):
            if not complete and not self.part(key).is_file():
                self.read_paragraph(key, paragraph)
            progress(len(paragraph.text))
        if not complete:
            words, samples = self.write_sound(path, number, chapter, keys)
            for suffix, file in captions.items():
                write_text(file, WRITERS[suffix](words, samples / self.sampling_rate))
            chapters[str(number)] = {**entry, "seconds": round(samples / self.sampling_rate, 3)}
            about = {"title": self.document.title, "author": self.document.author}
            write_json(self.index, {**about, "chapters": dict(sorted(chapters.items(), key=lambda x: int(x[0])))})
        self.delete_parts(keys)  # including those of a reading that was interrupted here
        return path

    def read_index(self) -> dict[str, Any]:
        """The chapters in book.json; {} if it is missing or damaged."""
        try:
            return dict(json.loads(self.index.read_text(encoding="utf-8"))["chapters"])
        except (OSError, ValueError, KeyError, TypeError):
            return {}

    # --- paragraphs

    def key(self, paragraph: Paragraph) -> str:
        """A key for the sound of a paragraph, which depends on everything that determines it."""
        spoken = self.streamer.processor.spell_out(paragraph.text)
        return digest([self.identity, paragraph.text, paragraph.heading, spoken])

    def part(self, key: str) -> Path:
        return self.parts / f"{key}.wav"

    def segments(self, paragraph: Paragraph) -> list[Segment]:
        """The segments of a paragraph and the pause after it. Text that cannot be spoken (ornaments) is removed."""
        spell, pause = self.streamer.processor.spell_out, self.reading.paragraph_pause
        segments = [
            segment if any(map(str.isalpha, spell(segment.text))) else replace(segment, text="")
            for segment in parse_plain(paragraph.text, pause)
        ]
        pause = max(pause, HEADING_PAUSE) if paragraph.heading else pause
        return [*segments[:-1], replace(segments[-1], pause=max(segments[-1].pause, pause))]

    def read_paragraph(self, key: str, paragraph: Paragraph) -> None:
        """Writes the two files of a paragraph, the sound file last."""
        self.parts.mkdir(exist_ok=True)
        reading, segments = self.reading, self.segments(paragraph)
        words: list[dict[str, Any]] = []

        def waves():
            spoken = speak(
                segments, self.streamer, voice=reading.voice, seed=reading.seed, speed=reading.speed, **reading.options
            )
            for speech in spoken:
                words.extend(speech.words)
                yield speech.waveform

        with atomic_write(self.part(key)) as temporary:
            write_wav(temporary, waves(), self.sampling_rate)
            written = written_words(" ".join(segment.text for segment in segments), words)
            write_json(self.part(key).with_suffix(".json"), written)

    def delete_parts(self, keys: Sequence[str]) -> None:
        for key in keys:
            self.part(key).unlink(missing_ok=True)
            self.part(key).with_suffix(".json").unlink(missing_ok=True)
        if self.parts.is_dir() and not any(self.parts.iterdir()):
            self.parts.rmdir()

    # --- chapters

    def write_sound(self, path: Path, number: int, chapter: Chapter, keys: Sequence[str]) -> tuple[list[Word], int]:
        """Joins the paragraphs of a chapter; returns the words with their times, and the number of samples."""
        words: list[Word] = []
        samples = 0

        def waves() -> Iterator[Any]:
            nonlocal samples
            for key in keys:
                start = samples / self.sampling_rate
                said = json.loads(self.part(key).with_suffix(".json").read_text(encoding="utf-8"))
                words.extend(Word(text, start + begin, start + end) for text, begin, end in said)
                for wave in soundfile.blocks(self.part(key), blocksize=self.sampling_rate, dtype="float32"):
                    samples += len(wave)
                    yield wave

        tags = {"title": chapter.title, "album": self.document.title, "artist": self.document.author}
        write_sound(path, waves(), self.sampling_rate, {**tags, "tracknumber": str(number)})
        return words, samples


def file_name(title: str) -> str:
    """A title as part of a file name: valid on all systems, at most 120 bytes."""
    plain = "".join(c if c.isprintable() and c not in '/\\:*?"<>|' else " " for c in title)
    return " ".join(plain.split())[:60].encode()[:120].decode(errors="ignore").strip(" .")


def digest(value: Any) -> str:
    """A short digest of a JSON value."""
    return hashlib.sha256(json.dumps(value, ensure_ascii=False).encode("utf-8", "surrogatepass")).hexdigest()[:24]


def identity(model: Any, reading: Reading) -> str:
    """A digest of everything that determines the speech: weights, voice and settings."""
    weights = hashlib.sha256()
    for tensor in model.state_dict().values():
        weights.update(tensor.detach().float().cpu().numpy().tobytes())
    voice = reading.voice
    for name, tensor in {**(voice.state or {}), **(voice.conversion or {})}.items():
        weights.update(name.encode())
        weights.update(tensor.float().cpu().numpy().tobytes())
    codes = None if voice.codes is None else voice.codes.tolist()
    settings = [reading.seed, reading.speed, reading.paragraph_pause, sorted(map(repr, reading.options.items()))]
    return digest([weights.hexdigest(), voice.text, codes, settings])
