"""A document read aloud: a sound file and captions for each chapter, resumed where a reading was stopped."""

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

HEADING_PAUSE = 1.0  # seconds behind a heading
PARTS = ".parts"  # folder of the paragraphs of unfinished chapters


@dataclass(frozen=True)
class Reading:
    """How a document is read.

    Attributes:
        format: of the sound files, one of `FORMATS`.
        captions: suffixes of the captions, of `captions.WRITERS`.
        voice: name of a preset, voice file or `Voice`; None: the default voice.
        seed: of each paragraph, so that it does not depend on those before it.
        speed: 0.25 to 4.
        paragraph_pause: seconds of silence behind a paragraph.
        options: of `streamer.stream`, for all paragraphs.
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
    """Reads a document and yields the sound file of each chapter when it is complete.

    `folder` gets a sound file and captions for each chapter and book.json, which lists them. What is complete there for
    the same text, voice and settings is kept: paragraph by paragraph, so that a reading that was stopped goes on where
    it stopped, and gives the same files.

    Args:
        chapters: numbers of those to read, from 1; None: all.
        progress: called with the number of characters that are done, paragraph by paragraph.

    Raises:
        ValueError: a chapter cannot be read, or there is none of that number; the checkpoint has no default voice and
            none is given.
    """
    numbers = range(1, len(document.chapters) + 1) if chapters is None else chapters
    if wrong := [number for number in numbers if not 1 <= number <= len(document.chapters)]:
        raise ValueError(f"There is no chapter {wrong[0]}: expected 1 to {len(document.chapters)}.")
    voice = streamer.processor.prompts(1, reading.voice)[0]
    if voice.codes is None and not voice.state:
        raise ValueError("The checkpoint has no default voice: name one, so that all paragraphs have the same.")
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
        """Reads a chapter unless it is there, and returns its sound file."""
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
        self.delete_parts(keys)  # also those that a reading left which was stopped here
        return path

    def read_index(self) -> dict[str, Any]:
        """What book.json says of the chapters; nothing where it is missing or damaged."""
        try:
            return dict(json.loads(self.index.read_text(encoding="utf-8"))["chapters"])
        except (OSError, ValueError, KeyError, TypeError):
            return {}

    # --- paragraphs

    def key(self, paragraph: Paragraph) -> str:
        """A name for the sound of a paragraph, which tells whether it is the one that is wanted."""
        spoken = self.streamer.processor.spell_out(paragraph.text)
        return digest([self.identity, paragraph.text, paragraph.heading, spoken])

    def part(self, key: str) -> Path:
        return self.parts / f"{key}.wav"

    def segments(self, paragraph: Paragraph) -> list[Segment]:
        """The segments of a paragraph and the pause behind it; nothing for what cannot be spoken, such as ornaments."""
        spell, pause = self.streamer.processor.spell_out, self.reading.paragraph_pause
        segments = [
            segment if any(map(str.isalpha, spell(segment.text))) else replace(segment, text="")
            for segment in parse_plain(paragraph.text, pause)
        ]
        pause = max(pause, HEADING_PAUSE) if paragraph.heading else pause
        return [*segments[:-1], replace(segments[-1], pause=max(segments[-1].pause, pause))]

    def read_paragraph(self, key: str, paragraph: Paragraph) -> None:
        """Speaks a paragraph into its two files, of which the sound is there last."""
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
        """Puts the paragraphs of a chapter together; returns the words with their times and the number of samples."""
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
    """A title as a part of a file's name on any system, of at most 120 bytes."""
    plain = "".join(c if c.isprintable() and c not in '/\\:*?"<>|' else " " for c in title)
    return " ".join(plain.split())[:60].encode()[:120].decode(errors="ignore").strip(" .")


def digest(value: Any) -> str:
    """A short name for a value of JSON."""
    return hashlib.sha256(json.dumps(value, ensure_ascii=False).encode("utf-8", "surrogatepass")).hexdigest()[:24]


def identity(model: Any, reading: Reading) -> str:
    """Names what speaks: the weights, the voice and the settings."""
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
