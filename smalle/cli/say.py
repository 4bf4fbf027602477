"""`smalle say`: speaks a text into a wav file, a pipe or a player."""

import argparse
import contextlib
import os
import pathlib
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from typing import IO

from ..audio_smalle import pcm16, streaming_wav_header, write_wav
from .checkpoint import check_checkpoint, default_checkpoint, load_checkpoint

PLAYERS = (  # commands that play a wav from standard input
    ["aplay", "-q"],
    ["ffplay", "-nodisp", "-autoexit", "-loglevel", "error", "-i", "-"],
    ["play", "-q", "-t", "wav", "-"],
)


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="smalle say", description=__doc__)
    parser.add_argument("text", help="the text to speak; - reads it from standard input")
    parser.add_argument("-o", "--output", help="wav file to write (default: smalle.wav)")
    parser.add_argument(
        "--stream", action="store_true", help="write the wav to standard output as it is made; in a terminal, play it"
    )
    parser.add_argument("--voice", help="name of a preset voice, or path of a voice file")
    parser.add_argument("--clone", metavar="AUDIO", help="recording of the voice to speak with, 3 to 10 seconds")
    parser.add_argument(
        "--clone-text", metavar="TEXT", help="transcript of that recording; without it only the voice is taken"
    )
    parser.add_argument(
        "--model",
        default=default_checkpoint(),
        help="checkpoint: folder or Hub name (default: $SMALLE_MODEL, else the embedded one)",
    )
    parser.add_argument("--seed", type=int, default=0, help="seed of the sampling (default: %(default)s)")
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
    special = output.exists() and not output.is_file()  # a folder, or a device that a file would replace
    if special or not output.parent.is_dir() or not os.access(output.parent, os.W_OK):
        raise ValueError(
            f"{output} cannot be written: expected a file in an existing, writable folder. To write into a pipe, use "
            "--stream."
        )


def check(arguments: argparse.Namespace) -> None:
    """Raises ValueError for arguments that cannot work, before anything slow happens."""
    if not arguments.stream:
        check_output(arguments.output)
    elif arguments.output is not None:
        raise ValueError("--stream and -o exclude each other: a stream goes to standard output or to a player.")
    elif sys.stdout.isatty() and player() is None:
        names = ", ".join(name for name, *_ in PLAYERS)
        raise ValueError(f"--stream found no player ({names}): pipe the output into one, or write a file with -o.")
    if arguments.clone is None and arguments.clone_text is not None:
        raise ValueError("--clone-text is the transcript of a recording: name the recording with --clone.")
    if arguments.clone is not None and arguments.voice is not None:
        raise ValueError("--voice and --clone exclude each other: give one of them.")
    check_checkpoint(arguments.model)


@contextlib.contextmanager
def stream_target() -> Iterator[IO[bytes]]:
    """The file that a stream is written to: standard output, or a player where that is a terminal."""
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
        with contextlib.suppress(OSError):  # or Python complains when it flushes standard output at exit
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return size


def synthesize(arguments: argparse.Namespace) -> tuple[float, float]:
    """Speaks; returns the seconds of audio and the seconds that it took, without loading."""
    from tqdm import tqdm

    from ..streaming_smalle import expected_frames

    check(arguments)
    text = sys.stdin.read() if arguments.text == "-" else arguments.text
    if not text.strip():
        raise ValueError("The text is empty: expected at least one word.")
    processor, model = load_checkpoint(arguments.model)
    if arguments.clone and arguments.clone_text is None and not model.config.speaker_layers:
        raise ValueError("This model has no speaker encoder: give the transcript of the recording with --clone-text.")
    begun = time.perf_counter()

    def advance(_):
        bar.total = max(bar.total, bar.n + 1)
        bar.update()

    best_of = 1 if arguments.stream else getattr(model.generation_config, "best_of", None) or 1
    waves = processor.stream(
        model,
        text,
        voice=arguments.voice,
        audio=arguments.clone,
        audio_text=arguments.clone_text,
        seed=arguments.seed,
        progress=advance,
        best_of=best_of,
    )
    expected = expected_frames(text, model.config.frame_rate)
    with tqdm(total=expected, unit="frame", desc="speaking", file=sys.stderr, leave=False) as bar:
        if arguments.stream:
            samples = write_stream(waves, processor.sampling_rate)
        else:
            samples = write_wav(arguments.output, waves, processor.sampling_rate)
        bar.total, bar.leave = bar.n, True  # after an error only its message stays
        bar.refresh()
    return samples / processor.sampling_rate, time.perf_counter() - begun


def main(argv: Sequence[str] | None = None) -> int:
    """Runs `smalle say`. Raises ValueError for wrong input."""
    begun = time.perf_counter()
    arguments = parse(argv)
    audio, work = synthesize(arguments)
    total = time.perf_counter() - begun
    name, file = ("stream", sys.stderr) if arguments.stream else (arguments.output, sys.stdout)
    print(f"{name}: {audio:.1f} s of speech in {work:.1f} s ({total:.1f} s with loading)", file=file)
    return 0
