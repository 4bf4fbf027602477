"""Selects recordings of a corpus to train on: without held-out speakers, and not more hours than wanted.

  python -m smalle.train.data.select CORPUS OUT [--exclude SPEAKER ...] [--max-hours HOURS]

CORPUS is a folder of recordings in any layout that `smalle prepare` reads. Where its metadata has a column `group`, all
speakers of other groups than "train" are left out, too. OUT/metadata.jsonl lists the selected recordings in a random
order, so that OUT is a corpus; the recordings stay where they are.
"""

import random
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path

from smalle.cli.command import command_parser, run_command
from smalle.saving_smalle import write_jsonl

from .audio import Clip
from .corpora import SPEAKER_COLUMNS, corpus_clips, first_of, layout, metadata_rows

TRAINED = "train"  # the group of speakers to train on


def held_out_speakers(corpus: str | Path) -> set[str]:
    """Speakers of a corpus with a recording in another group than "train"."""
    rows = metadata_rows(corpus) if layout(corpus) == "recordings" else []
    return {str(first_of(row, SPEAKER_COLUMNS)) for row in rows if row.get("group") not in (None, "", TRAINED)}


def select(corpus: str | Path, exclude: Iterable[str], max_hours: float = float("inf"), seed: int = 0) -> list[dict]:
    """Rows of metadata of random clips, up to `max_hours` of them, without held-out and excluded speakers.

    Raises ValueError if no clip is left, and for clips in archives, which have no path of their own.
    """
    left_out = held_out_speakers(corpus).union(exclude)
    clips = [clip for clip in corpus_clips(corpus) if isinstance(clip, Clip) and clip.speaker not in left_out]
    if not clips:
        raise ValueError(f"{corpus} has no recordings with transcripts without the speakers {sorted(left_out)}.")
    rows, seconds = [], 0.0
    for clip in random.Random(seed).sample(clips, len(clips)):
        if clip.member or clip.row:
            raise ValueError(f"{clip.path} is an archive: expected a folder of recordings; unpack it first.")
        row: dict = {"file_name": str(Path(clip.path).resolve()), "text": clip.text, "speaker": clip.speaker}
        row |= {"start": clip.start, "duration": round(clip.seconds, 3)} if clip.duration else {}
        rows.append({**row, "words": clip.words} if clip.words else row)
        seconds += clip.seconds
        if seconds >= max_hours * 3600:
            break
    return rows


def main(argv: Sequence[str] | None = None) -> None:
    """Runs the command."""
    parser = command_parser("python -m smalle.train.data.select", __doc__)
    parser.add_argument("corpus", help="folder of recordings")
    parser.add_argument("out", type=Path, help="folder of the corpus to write")
    parser.add_argument("--exclude", nargs="*", default=[], metavar="SPEAKER", help="speakers to leave out")
    parser.add_argument("--max-hours", type=float, default=float("inf"), help="hours of recordings (default: all)")
    arguments = parser.parse_args(argv)
    rows = select(arguments.corpus, arguments.exclude, arguments.max_hours)
    arguments.out.mkdir(parents=True, exist_ok=True)
    write_jsonl(arguments.out / "metadata.jsonl", rows)
    print(f"{len(rows)} recordings of {len({row['speaker'] for row in rows})} speakers in {arguments.out}")


if __name__ == "__main__":
    sys.exit(run_command("select", main))
