"""`smalle read` reads a book or an article aloud, chapter by chapter, with captions."""

import argparse
import re
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from ..checkpoint import load_checkpoint, quality_settings
from ..reading.documents import Document, read_document
from ..reading.m4b import write_m4b
from ..reading.soundfiles import FORMATS
from ..text_tables_smalle import read_lexicon
from .voice_options import add_voice_arguments, check_voice_arguments, chosen_voice


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="smalle read",
        description=f"{__doc__} Run the same command again to resume an interrupted reading.",
    )
    parser.add_argument("file", type=Path, help="the document: txt, md, html or epub")
    parser.add_argument(
        "-o", "--output", type=Path, help="output folder (default: the name of the file without suffix)"
    )
    parser.add_argument(
        "--format", choices=FORMATS, default="mp3", help="format of the sound files (default: %(default)s)"
    )
    parser.add_argument("--m4b", action="store_true", help="also join the chapters into one audiobook file")
    parser.add_argument("--list", action="store_true", help="list the chapters and exit")
    parser.add_argument("--chapters", metavar="1,3-5", help="read only these chapters")
    parser.add_argument("--textgrid", action="store_true", help="also write the word times as TextGrid for Praat")
    parser.add_argument("--speed", type=float, default=1.0, help="0.25 to 4 (default: %(default)s)")
    parser.add_argument(
        "--paragraph-pause",
        type=float,
        default=0.5,
        metavar="SECONDS",
        help="pause between paragraphs (default: 0.5)",
    )
    parser.add_argument("--lexicon", metavar="FILE", help="respellings of names: a line WORD = RESPELLING each")
    add_voice_arguments(parser)
    return parser.parse_args(argv)


def chapter_numbers(text: str | None, count: int) -> list[int]:
    """The chapter numbers in "1,3-5"; all chapters for None."""
    if text is None:
        return list(range(1, count + 1))
    numbers: list[int] = []
    for part in text.split(","):
        found = re.fullmatch(r"\s*(\d{1,5})(?:-(\d{1,5}))?\s*", part)
        if not found or not 1 <= int(found[1]) <= int(found[2] or found[1]) <= count:
            raise ValueError(f"--chapters {text}: expected numbers from 1 to {count}, such as 1,3-5.")
        numbers += range(int(found[1]), int(found[2] or found[1]) + 1)
    return sorted(set(numbers))


def print_chapters(document: Document) -> None:
    print(f"{document.title}{f', {document.author}' if document.author else ''}")
    for number, chapter in enumerate(document.chapters, 1):
        size = sum(len(paragraph.text) for paragraph in chapter.paragraphs)
        print(f"{number:4} {' '.join(chapter.title.split()) or '(no title)'} ({size:,} characters)")


def read(arguments: argparse.Namespace, document: Document) -> tuple[int, float]:
    """Reads the requested chapters; returns their number and the elapsed seconds."""
    from tqdm import tqdm

    from ..reading.audiobook import Reading, file_name, read_aloud  # imports torch, which takes seconds
    from ..streaming_smalle import TextToSpeechStreamer

    numbers = chapter_numbers(arguments.chapters, len(document.chapters))
    captions = ("srt", "vtt", "TextGrid") if arguments.textgrid else ("srt", "vtt")
    lexicon = read_lexicon(arguments.lexicon) if arguments.lexicon else {}
    processor, model = load_checkpoint(arguments.model)
    reading = Reading(
        format=arguments.format,
        captions=captions,
        voice=chosen_voice(arguments, processor),
        seed=arguments.seed,
        speed=arguments.speed,
        paragraph_pause=arguments.paragraph_pause,
        options={**quality_settings(model), "lexicon": lexicon},
    )
    begun, streamer = time.perf_counter(), TextToSpeechStreamer(model, processor)
    size = sum(len(paragraph.text) for number in numbers for paragraph in document.chapters[number - 1].paragraphs)
    layout = "{desc} {percentage:3.0f}%|{bar}| {elapsed}, {remaining} left"
    with tqdm(total=size, bar_format=layout, smoothing=0.1, file=sys.stderr) as bar:
        bar.set_description_str("reading")
        paths = []
        for path in read_aloud(document, streamer, arguments.output, reading, numbers, bar.update):
            bar.write(str(path), file=sys.stdout)
            paths.append(path)
    if arguments.m4b:
        titles = [document.chapters[number - 1].title for number in numbers]
        name = arguments.output / f"{file_name(document.title) or 'book'}.m4b"
        write_m4b(name, list(zip(titles, paths)), document.title, document.author)
        print(name)
    return len(numbers), time.perf_counter() - begun


def main(argv: Sequence[str] | None = None) -> int:
    """Runs `smalle read`. Raises ValueError for wrong input."""
    arguments = parse(argv)
    check_voice_arguments(arguments)
    document = read_document(arguments.file)
    if arguments.list:
        print_chapters(document)
        return 0
    arguments.output = arguments.output or arguments.file.with_suffix("")
    if arguments.output.exists() and not arguments.output.is_dir():
        raise ValueError(f"{arguments.output} is a file: name a folder with -o.")
    count, seconds = read(arguments, document)
    print(f"{arguments.output}: {count} chapters in {seconds / 60:.1f} minutes")
    return 0
