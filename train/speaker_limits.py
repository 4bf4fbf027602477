"""Measures the range of the voices that a model was trained on, and writes it to the config of a checkpoint.

  python -m smalle.train.speaker_limits CHECKPOINT CODES.parquet

CODES are the prepared codes of all speakers of its training. The configuration receives their `speaker_center` and
`speaker_limits`: a recording further from the center than 1.25 times the 90 % quantile of the speakers is moved to four
fifths of their median distance. Nearer to the center, a model makes fewer word errors; further from it, its voice is
more similar to the recording's.
"""

import json
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow.parquet
import torch
from torch import Tensor

from smalle import SmallEForTextToSpeech
from smalle.cli.command import command_parser, run_command
from smalle.saving_smalle import write_text

from .data.dataset import shards

CLIPS, FRAMES = 3, 800  # most of a speaker
MARGIN, DRAWN = 1.25, 0.8  # of the 90 % quantile; of the median


def references(codes: str | Path, num_codebooks: int) -> dict[str, Tensor]:
    """Codes (P, Q) of the first clips of each speaker."""
    clips: dict[str, list[np.ndarray]] = {}
    for shard in shards(codes):
        for row in pyarrow.parquet.read_table(shard, columns=["speaker", "codes"]).to_pylist():
            found = clips.setdefault(row["speaker"], [])
            if len(found) < CLIPS:
                found.append(np.array(row["codes"], np.int64).reshape(-1, num_codebooks))
    return {speaker: torch.from_numpy(np.concatenate(found)[:FRAMES]) for speaker, found in clips.items()}


@torch.no_grad()
def find_limits(model: SmallEForTextToSpeech, recordings: Sequence[Tensor]) -> tuple[Tensor, list[float]]:
    """`speaker_center` (D,) and `speaker_limits` of a model, from recordings (P, Q) of its training speakers."""
    model.config.speaker_limits = None
    embeddings = torch.stack([model.model.encode_speaker(codes[None])[0] for codes in recordings])
    center = embeddings.mean(0)
    distances = (embeddings - center).norm(dim=1)
    furthest, typical = MARGIN * float(distances.quantile(0.9)), DRAWN * float(distances.median())
    return center, [round(furthest, 2), round(typical, 2)]


def main(argv: Sequence[str] | None = None) -> None:
    """Runs the command."""
    parser = command_parser("python -m smalle.train.speaker_limits", __doc__)
    parser.add_argument("checkpoint", type=Path, help="folder whose config.json to change")
    parser.add_argument("codes", help="prepared codes: file or shards")
    arguments = parser.parse_args(argv)
    model = SmallEForTextToSpeech.from_pretrained(arguments.checkpoint, dtype=torch.float32).eval()
    recordings = references(arguments.codes, model.config.num_codebooks)
    center, limits = find_limits(model, list(recordings.values()))
    path = arguments.checkpoint / "config.json"
    config = json.loads(path.read_text(encoding="utf-8"))
    config |= {"speaker_center": [round(x, 4) for x in center.tolist()], "speaker_limits": limits}
    write_text(path, json.dumps(config, indent=2, sort_keys=True) + "\n")
    print(f"{len(recordings)} speakers; distances above {limits[0]} become {limits[1]}")


if __name__ == "__main__":
    sys.exit(run_command("speaker_limits", main))
