"""`smalle say` speaks a text into a sound file, a pipe or a player."""

import argparse
import contextlib
import functools
import logging
import logging.handlers
import os
import pathlib
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from typing import IO, Any

from ..audio_smalle import pcm16, streaming_wav_header
from ..checkpoint import load_checkpoint, quality_settings
from ..reading.captions import WRITERS, written_words
from ..reading.markup import Segment
from ..reading.markup import parse as parse_text
from ..reading.soundfiles import format_of, write_sound
from ..saving_smalle import write_text
from ..text_tables_smalle import expected_frames, read_lexicon
from .voice_options import add_voice_arguments, check_voice_arguments, chosen_voice

PLAYERS = (  # commands that play a wav file from standard input
    ["aplay", "-q"],
    ["ffplay", "-nodisp", "-autoexit", "-loglevel", "error", "-i", "-"],
    ["play", "-q", "-t", "wav", "-"],
)


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="smalle say", description=__doc__)
    parser.add_argument("text", help="the text to speak; - reads it from standard input")
    parser.add_argument("-o", "--output", help="wav, flac, mp3 or opus file to write (default: smalle.wav)")
    parser.add_argument(
        "--stream",
        action="store_true",
        help="write a wav to standard output while it is generated; in a terminal, play it",
    )
    for suffix, what in {"srt": "SRT", "vtt": "WebVTT", "TextGrid": "Praat"}.items():
        parser.add_argument(
            f"--{suffix.lower()}",
            dest="captions",
            action="append_const",
            const=suffix,
            default=[],
            help=f"also write captions for {what} beside the sound file",
        )
    parser.add_argument(
        "--ssml",
        nargs="?",
        const="refuse",
        choices=("refuse", "plain"),
        help="the text is SSML; refuse unsupported markup (default), or read its content as plain text",
    )
    parser.add_argument("--lexicon", metavar="FILE", help="respellings of names: a line WORD = RESPELLING each")
    parser.add_argument("--speed", type=float, default=1.0, help="0.25 to 4 (default: %(default)s)")
    add_voice_arguments(parser)
    arguments = parser.parse_args(argv)
    if arguments.output is None and not arguments.stream:
        arguments.output = "smalle.wav"
    return arguments


def player() -> list[str] | None:
    """The command of an installed player, or None."""
    return next((command for command in PLAYERS if shutil.which(command[0])), None)


def check_output(path: str) -> None:
    """Raises ValueError unless a sound file can be written there."""
    output = pathlib.Path(path)
    format_of(output)
    special = output.exists() and not output.is_file()  # a folder or a device
    if special or not output.parent.is_dir() or not os.access(output.parent, os.W_OK):
        raise ValueError(
            f"{output} cannot be written: expected a file in an existing, writable folder. Use --stream to write to "
            "a pipe."
        )


def check(arguments: argparse.Namespace) -> None:
    """Checks the arguments before anything slow happens. Raises ValueError."""
    if not arguments.stream:
        check_output(arguments.output)
    elif arguments.output is not None:
        raise ValueError("--stream and -o cannot be combined: a stream goes to standard output or to a player.")
    elif sys.stdout.isatty() and player() is None:
        names = ", ".join(name for name, *_ in PLAYERS)
        raise ValueError(f"--stream found no player ({names}): pipe the output into one, or write a file with -o.")
    if arguments.stream and arguments.captions:
        raise ValueError("--stream cannot write captions: use -o instead.")
    check_voice_arguments(arguments)


@contextlib.contextmanager
def stream_target() -> Iterator[IO[bytes]]:
    """The file to write a stream to: standard output, or a player if standard output is a terminal."""
    command = player() if sys.stdout.isatty() else None
    if command is None:
        yield sys.stdout.buffer
        return
    with subprocess.Popen(command, stdin=subprocess.PIPE) as process:
        assert process.stdin is not None
        yield process.stdin


def write_stream(waves, sampling_rate: int) -> int:
    """Writes waveforms (L,) as they come; returns the number of samples. A closed pipe ends the synthesis."""
    size = 0
    try:
        with stream_target() as file:
            file.write(streaming_wav_header(sampling_rate))
            for wave in waves:
                file.write(pcm16(wave))
                file.flush()
                size += len(wave)
    except BrokenPipeError:
        waves.close()
        with contextlib.suppress(OSError):  # or Python fails to flush standard output at exit
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return size


def read_text(arguments: argparse.Namespace) -> str:
    """The text of the command line or of standard input."""
    text = sys.stdin.read() if arguments.text == "-" else arguments.text
    if not text.strip():
        raise ValueError("The text is empty: expected at least one word.")
    return text


Speech = tuple[int, float, Callable[[Callable], Any]]  # Hz; frames a second; a function of `progress` -> waveforms


def lite_speech(arguments: argparse.Namespace, segments: list[Segment]) -> Speech | None:
    """Speech with `smalle.lite`, which starts faster and gives the same samples; None if the call is not supported."""
    special = arguments.clone or arguments.captions or arguments.lexicon or arguments.speed != 1
    if special or any(segment.voice is not None or segment.rate != 1 for segment in segments):
        return None
    try:
        from ..lite import TextToSpeech
        from ..lite.tensors import NeedsPyTorch

        speaker = TextToSpeech.load(arguments.model)
    except (ImportError, ValueError):  # if PyTorch fails as well, it reports the error
        return None
    try:
        speaker.get_voice(arguments.voice or speaker.default_voice)
    except NeedsPyTorch:
        return None
    options = dict(voice=arguments.voice, seed=arguments.seed, retry_first=not arguments.stream)
    speak = functools.partial(speaker.stream_segments, segments, **options)
    return speaker.sampling_rate, speaker.model.config.frame_rate, lambda progress: speak(progress=progress)


def pytorch_speech(arguments: argparse.Namespace, segments: list[Segment], words: list[dict[str, Any]]) -> Speech:
    """Speech with PyTorch; appends its words to `words`."""
    from ..reading.speech import speak
    from ..streaming_smalle import TextToSpeechStreamer

    lexicon = read_lexicon(arguments.lexicon) if arguments.lexicon else None
    processor, model = load_checkpoint(arguments.model)
    if arguments.clone and arguments.clone_text is None and not model.config.speaker_layers:
        raise ValueError("This model has no speaker encoder: give the transcript of the recording with --clone-text.")
    call = functools.partial(
        speak,
        segments,
        TextToSpeechStreamer(model, processor),
        voice=chosen_voice(arguments, processor),
        seed=arguments.seed,
        speed=arguments.speed,
        lexicon=lexicon,
        output_timestamps=bool(arguments.captions),
        **({} if arguments.stream else quality_settings(model)),
    )
    rates = processor.sampling_rate, model.config.frame_rate
    return *rates, lambda progress: waveforms(call(progress=progress), words)


@contextlib.contextmanager
def warnings_at_the_end() -> Iterator[None]:
    """Delays warnings of `smalle.lite` until the progress bar is complete."""
    logger = logging.getLogger("smalle.lite")
    held = logging.handlers.MemoryHandler(1000, logging.CRITICAL + 1, logging.StreamHandler())
    logger.addHandler(held)
    try:
        yield
    finally:
        logger.removeHandler(held)
        held.close()  # emits them


def synthesize(arguments: argparse.Namespace) -> tuple[float, float]:
    """Speaks the text; returns the seconds of audio and the elapsed seconds, without loading."""
    from tqdm import tqdm

    check(arguments)
    segments = parse_text(read_text(arguments), True if arguments.ssml else None, arguments.ssml or "refuse")
    words: list[dict[str, Any]] = []
    found = lite_speech(arguments, segments) or pytorch_speech(arguments, segments, words)
    sampling_rate, frame_rate, speech = found
    begun = time.perf_counter()

    def advance(*_):
        bar.total = max(bar.total, bar.n + 1)
        bar.update()

    waves = speech(advance)
    expected = sum(expected_frames(segment.text, frame_rate) for segment in segments)
    with (
        warnings_at_the_end(),
        tqdm(total=expected, unit="frame", desc="speaking", file=sys.stderr, leave=False) as bar,
    ):
        if arguments.stream:
            samples = write_stream(waves, sampling_rate)
        else:
            samples = write_sound(arguments.output, waves, sampling_rate)
        bar.total, bar.leave = bar.n, True  # after an error, the bar disappears
        bar.refresh()
    seconds = samples / sampling_rate
    written = written_words(" ".join(segment.text for segment in segments), words)
    for suffix in arguments.captions:
        write_text(pathlib.Path(arguments.output).with_suffix(f".{suffix}"), WRITERS[suffix](written, seconds))
    return seconds, time.perf_counter() - begun


def waveforms(speech, words: list[dict[str, Any]]):
    """Yields the waveforms (L,) of a speech and appends its words to `words`."""
    with contextlib.closing(speech):
        for part in speech:
            words += part.words
            yield part.waveform


def main(argv: Sequence[str] | None = None) -> int:
    """Runs `smalle say`. Raises ValueError for wrong input."""
    begun = time.perf_counter()
    arguments = parse(argv)
    audio, work = synthesize(arguments)
    total = time.perf_counter() - begun
    name, file = ("stream", sys.stderr) if arguments.stream else (arguments.output, sys.stdout)
    print(f"{name}: {audio:.1f} s of speech in {work:.1f} s ({total:.1f} s with loading)", file=file)
    return 0
