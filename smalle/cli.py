"""smalle say TEXT [-o FILE]: what a person types."""

import argparse
import os
import pathlib
import sys
import time

from .wav_smalle import write_wav

DEFAULT_MODEL = pathlib.Path(__file__).resolve().parent.parent / "checkpoints" / "smalle-mini"


def parse(arguments=None):
    parser = argparse.ArgumentParser(prog="smalle", description="Small-E: text to speech.")
    commands = parser.add_subparsers(dest="command", required=True)
    say = commands.add_parser("say", help="speak a text into a wav file")
    say.add_argument("text", help="what to say; - reads it from standard input")
    say.add_argument("-o", "--output", default="smalle.wav", help="wav file to write (default: %(default)s)")
    say.add_argument("--voice", help="a preset of the model, or a voice file")
    say.add_argument("--clone", metavar="AUDIO", help="recording of a voice to speak with, 3 to 10 seconds")
    say.add_argument("--clone-text", metavar="TEXT", help="what that recording says")
    say.add_argument("--model", default=os.environ.get("SMALLE_MODEL", str(DEFAULT_MODEL)), help="folder or Hub name")
    say.add_argument("--seed", type=int, default=0, help="another seed, another reading (default: %(default)s)")
    return parser.parse_args(arguments)


def check(arguments):
    """Refuses what cannot work before anything slow happens."""
    output = pathlib.Path(arguments.output)
    if output.is_dir() or not output.parent.is_dir() or not os.access(output.parent, os.W_OK):
        raise ValueError(f"{output} cannot be written: expected a file in a folder that exists and may be written.")
    if (arguments.clone is None) != (arguments.clone_text is None):
        raise ValueError("--clone and --clone-text go together: the recording and what it says.")
    if arguments.clone is not None and arguments.voice is not None:
        raise ValueError("--voice and --clone exclude each other: give one voice.")
    name, local = arguments.model, pathlib.Path(arguments.model)
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


def say(arguments):
    """Speaks; returns seconds of audio and of work."""
    check(arguments)
    text = sys.stdin.read() if arguments.text == "-" else arguments.text
    if not text.strip():
        raise ValueError("The text is empty: expected something to say.")
    from tqdm import tqdm

    processor, model = load(arguments.model)
    started = time.perf_counter()
    inputs = processor(text, voice=arguments.voice, audio=arguments.clone, audio_text=arguments.clone_text)
    expected = int(len(text) / 15 * model.config.frame_rate) + 1  # people speak about 15 characters a second
    longest = model.generation_config.max_new_tokens or int(60 * model.config.frame_rate)
    limit = min(4 * expected + int(2 * model.config.frame_rate), longest)
    with tqdm(total=expected, unit="frame", desc="speaking", file=sys.stderr, leave=False) as bar:
        def step(_):
            bar.total = max(bar.total, bar.n + 1)
            bar.update()

        output = model.generate(
            **inputs, seed=arguments.seed, max_new_tokens=limit, progress=step, return_dict_in_generate=True
        )
        bar.total, bar.leave = bar.n, True  # an error leaves its message alone
        bar.refresh()
    samples = processor.decode(output.sequences)[0]
    write_wav(arguments.output, samples, processor.sampling_rate)
    return len(samples) / processor.sampling_rate, time.perf_counter() - started


def main(arguments=None):
    started = time.perf_counter()
    arguments = parse(arguments)
    try:
        audio, work = say(arguments)
    except (ValueError, OSError) as error:
        print(f"smalle: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("smalle: stopped, nothing written.", file=sys.stderr)
        return 130
    total = time.perf_counter() - started
    print(f"{arguments.output}: {audio:.1f} s of speech in {work:.1f} s ({total:.1f} s with loading)")
    return 0


if __name__ == "__main__":
    sys.exit(main())
