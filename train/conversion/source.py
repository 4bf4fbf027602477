"""Synthesizes a corpus in a checkpoint's default voice, which a converter learns to convert.

  python -m smalle.train.conversion.source CHECKPOINT PLAN.jsonl OUT [--hours 4] [--batch-size 8]

Rows of PLAN need "id" and "text" (smalle.corpus.texts). OUT is a folder of recordings with metadata.jsonl.
"""

import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
from tqdm import tqdm

from smalle import SmallEForTextToSpeech, SmallEProcessor
from smalle.audio_smalle import write_wav
from smalle.cli.command import command_parser, run_command
from smalle.saving_smalle import write_jsonl

from ..data.corpora import read_json_lines

LONGEST = 200  # characters of a text


@torch.no_grad()
def speak(checkpoint: str, plan: Sequence[dict], out: Path, hours: float, batch_size: int) -> Iterator[dict]:
    """Synthesizes rows of a plan in batches of similar length, up to `hours`; yields rows of metadata."""
    processor = SmallEProcessor.from_pretrained(checkpoint)
    model = SmallEForTextToSpeech.from_pretrained(checkpoint).eval()
    rate, seconds = processor.sampling_rate, 0.0
    with tqdm(total=hours, unit="h", mininterval=2) as bar:
        for first in range(0, len(plan), batch_size):
            rows = plan[first : first + batch_size]
            inputs = processor([row["text"] for row in rows], return_tensors="pt", padding=True)
            output = model.generate(**inputs, return_dict_in_generate=True, seed=first)
            for row, wave in zip(rows, processor.decode(output.sequences)):
                name = f"{row['id']}.wav"
                duration = write_wav(out / name, wave.float().numpy(), rate) / rate
                yield {"file_name": name, "text": row["text"], "speaker": processor.default_voice}
                seconds += duration
                bar.update(duration / 3600)
            if seconds > hours * 3600:
                return


def main(argv: Sequence[str] | None = None) -> None:
    """Runs the command."""
    parser = command_parser("python -m smalle.train.conversion.source", __doc__)
    parser.add_argument("checkpoint", help="folder of the checkpoint")
    parser.add_argument("plan", type=Path, help="rows with id and text, as python -m smalle.corpus.texts writes them")
    parser.add_argument("out", type=Path, help="folder of the corpus to write")
    parser.add_argument("--hours", type=float, default=4, help="hours of speech to make (default: %(default)s)")
    parser.add_argument("--batch-size", type=int, default=8, help="texts per batch (default: %(default)s)")
    arguments = parser.parse_args(argv)
    plan = [row for row in read_json_lines(arguments.plan) if len(row["text"]) <= LONGEST]
    arguments.out.mkdir(parents=True, exist_ok=True)
    made = speak(arguments.checkpoint, plan, arguments.out, arguments.hours, arguments.batch_size)
    write_jsonl(arguments.out / "metadata.jsonl", made)


if __name__ == "__main__":
    sys.exit(run_command("source", main))
