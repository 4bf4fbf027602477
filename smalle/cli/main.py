"""What a person types: smalle say TEXT [-o FILE | --stream], smalle export."""

import argparse
import contextlib
import os
import pathlib
import shutil
import subprocess
import sys
import time

from ..audio_smalle import endless_header, pcm16, write_wav

DEFAULT_MODEL = pathlib.Path(__file__).resolve().parents[2] / "checkpoints" / "smalle-mini"
PLAYERS = (  # of a wav on standard input
    ["aplay", "-q"],
    ["ffplay", "-nodisp", "-autoexit", "-loglevel", "error", "-i", "-"],
    ["play", "-q", "-t", "wav", "-"],
)


def parse(arguments=None):
    parser = argparse.ArgumentParser(prog="smalle", description="Small-E: text to speech.")
    commands = parser.add_subparsers(dest="command", required=True)
    say = commands.add_parser("say", help="speak a text into a wav file, a pipe or a player")
    say.add_argument("text", help="what to say; - reads it from standard input")
    say.add_argument("-o", "--output", help="wav file to write (default: smalle.wav)")
    say.add_argument(
        "--stream", action="store_true", help="speak at once: wav to standard output; on a terminal, to a player"
    )
    say.add_argument("--voice", help="a preset of the model, or a voice file")
    say.add_argument("--clone", metavar="AUDIO", help="recording of a voice to speak with, 3 to 10 seconds")
    say.add_argument(
        "--clone-text",
        metavar="TEXT",
        help="what that recording says, to go on from it; without, it is heard for its voice alone",
    )
    default = os.environ.get("SMALLE_MODEL", str(DEFAULT_MODEL))
    say.add_argument("--model", default=default, help="folder or Hub name")
    say.add_argument("--seed", type=int, default=0, help="another seed, another reading (default: %(default)s)")
    export = commands.add_parser("export", help="make a checkpoint speak faster on a CPU, in 8 bits")
    export.add_argument("model", nargs="?", default=default, help="folder (default: %(default)s)")
    export.add_argument(
        "--runtime",
        choices=["native", "int8", "float"],
        help="native: C, compiled for this processor; int8, float: ONNX Runtime, in 8 bits or single "
        "precision (default: the fastest that is here)",
    )
    arguments = parser.parse_args(arguments)
    if arguments.command == "export":
        return arguments
    if arguments.output is None and not arguments.stream:
        arguments.output = "smalle.wav"
    return arguments


def check_listener(output):
    """Refuses a stream that also goes to a file, or that nobody would hear."""
    if output is not None:
        raise ValueError("--stream and -o exclude each other: a stream goes to standard output, or to a player.")
    if sys.stdout.isatty() and player() is None:
        raise ValueError(
            f"--stream found none of {', '.join(name for name, *_ in PLAYERS)} to play with: pipe it into a player of "
            "wav, or name a file with -o."
        )


def check(arguments):
    """Refuses what cannot work before anything slow happens."""
    if arguments.stream:
        check_listener(arguments.output)
    else:
        output = pathlib.Path(arguments.output)
        odd = output.exists() and not output.is_file()  # a folder; a device or a pipe, which a file would replace
        if odd or not output.parent.is_dir() or not os.access(output.parent, os.W_OK):
            raise ValueError(
                f"{output} cannot be written: expected a file in a folder that exists and may be written; "
                "--stream writes into a pipe."
            )
    if arguments.clone is None and arguments.clone_text is not None:
        raise ValueError("--clone-text is what a recording says: name that with --clone.")
    if arguments.clone is not None and arguments.voice is not None:
        raise ValueError("--voice and --clone exclude each other: give one voice.")
    check_model(arguments.model)


def check_model(name):
    """Refuses a folder without a checkpoint; what may be a Hub name passes."""
    local = pathlib.Path(name)
    looks_local = name.startswith((".", "/", "~")) or name.count("/") != 1 or local.parent.is_dir()
    if looks_local and not (local / "config.json").is_file():
        raise ValueError(f"There is no checkpoint at {name}: expected a folder with config.json, or a Hub name.")


def load(name):
    """Processor and model of a checkpoint, local or on the Hub."""
    from safetensors import SafetensorError
    from transformers.utils import logging

    import smalle

    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        processor = smalle.SmallEProcessor.from_pretrained(name)
        return processor, smalle.SmallEForTextToSpeech.from_pretrained(name).eval()
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        raise ValueError(f"The checkpoint {name} cannot be loaded: {str(error).splitlines()[0]}") from error


def player():
    """The command line of a player that is installed, or None."""
    return next((command for command in PLAYERS if shutil.which(command[0])), None)


@contextlib.contextmanager
def listener():
    """Where a stream goes to: a file of bytes."""
    if not sys.stdout.isatty():
        yield sys.stdout.buffer
        return
    with subprocess.Popen(player(), stdin=subprocess.PIPE) as process:
        yield process.stdin


def stream(chunks, sampling_rate):
    """Sends chunks to the listener as they come; returns the samples' number. Who stops listening stops the work."""
    size = 0
    try:
        with listener() as file:
            file.write(endless_header(sampling_rate))
            for chunk in chunks:
                file.write(pcm16(chunk))
                file.flush()
                size += len(chunk)
    except BrokenPipeError:
        chunks.close()
        with contextlib.suppress(OSError):  # or Python complains when it flushes standard output at the end
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return size


def say(arguments):
    """Speaks; returns seconds of audio and of work."""
    check(arguments)
    text = sys.stdin.read() if arguments.text == "-" else arguments.text
    if not text.strip():
        raise ValueError("The text is empty: expected something to say.")
    from tqdm import tqdm

    processor, model = load(arguments.model)
    if arguments.clone and arguments.clone_text is None and not model.config.speaker_layers:
        raise ValueError(
            "--clone without --clone-text: this model has no speaker encoder and goes on from a recording "
            "whose words it knows; say what it says."
        )
    started = time.perf_counter()
    expected = int(len(text) / 15 * model.config.frame_rate) + 1  # people speak about 15 characters a second

    def step(_):
        bar.total = max(bar.total, bar.n + 1)
        bar.update()

    best_of = 1 if arguments.stream else getattr(model.generation_config, "best_of", None) or 1
    chunks = processor.stream(
        model,
        text,
        voice=arguments.voice,
        audio=arguments.clone,
        audio_text=arguments.clone_text,
        seed=arguments.seed,
        progress=step,
        best_of=best_of,
    )
    with tqdm(total=expected, unit="frame", desc="speaking", file=sys.stderr, leave=False) as bar:
        if arguments.stream:
            samples = stream(chunks, processor.sampling_rate)
        else:
            samples = write_wav(arguments.output, chunks, processor.sampling_rate)
        bar.total, bar.leave = bar.n, True  # an error leaves its message alone
        bar.refresh()
    return samples / processor.sampling_rate, time.perf_counter() - started


def export(arguments):
    """Exports the step of a checkpoint; returns the file."""
    from transformers.utils import logging

    from ..export import export

    logging.disable_progress_bar()
    if not (pathlib.Path(arguments.model) / "config.json").is_file():
        raise ValueError(f"There is no checkpoint at {arguments.model}: expected a folder with config.json.")
    return export(arguments.model, arguments.runtime)


def main(arguments=None):
    started = time.perf_counter()
    arguments = parse(arguments)
    try:
        if arguments.command == "export":
            path = export(arguments)
            print(f"{path}: {path.stat().st_size / 1e6:.1f} MB; generate() takes it on a CPU from now on")
            return 0
        audio, work = say(arguments)
    except (ValueError, OSError) as error:
        print(f"smalle: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("smalle: stopped, nothing written.", file=sys.stderr)
        return 130
    total = time.perf_counter() - started
    what, report = ("stream", sys.stderr) if arguments.stream else (arguments.output, sys.stdout)
    print(f"{what}: {audio:.1f} s of speech in {work:.1f} s ({total:.1f} s with loading)", file=report)
    return 0


if __name__ == "__main__":
    sys.exit(main())
