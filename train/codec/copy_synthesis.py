"""Copy synthesis: encodes and decodes speech with a codec, to listen to the result and to score it.

  python -m smalle.train.codec.copy_synthesis CODEC MANIFEST OUT [--count N]

Each line of MANIFEST is a JSON object with `text` and with `file_name` (as in the metadata.jsonl of a corpus) or
`audio`, relative to its folder. Writes OUT/*.wav and OUT/manifest.jsonl, {"audio", "text", "reference"}; the reference
is the source.
"""

import os
import sys
from collections.abc import Sequence
from pathlib import Path, PurePath

import torch
from tqdm import tqdm

from smalle.audio_smalle import write_wav
from smalle.cli.command import command_parser, run_command
from smalle.saving_smalle import write_jsonl

from ..data.audio import read_audio
from ..data.corpora import read_json_lines
from ..data.prepare import Codec, load_codec_on


def copy_synthesis(codec: Codec, manifest: str | Path, out: str | Path, count: int | None = None) -> Path:
    """Writes copies of the first `count` rows of a manifest, and a manifest of them. Returns its path."""
    manifest, out = Path(manifest), Path(out)
    rows = list(read_json_lines(manifest))[:count]
    if not rows:
        raise ValueError(f"{manifest} has no rows; expected one JSON object per line")
    out.mkdir(parents=True, exist_ok=True)
    device, copies = next(codec.parameters()).device, []
    for row in tqdm(rows, desc="copying", unit="file"):
        name = row.get("file_name") or row.get("audio")
        if not name:
            raise ValueError(f"a row of {manifest} has neither file_name nor audio: {row}")
        source = manifest.parent / name
        samples = read_audio(source, codec.sampling_rate)
        copy = codec.decode(codec.encode(torch.from_numpy(samples)[None].to(device)))[0, : len(samples)]
        path = out / (str(PurePath(name).with_suffix("")).strip("/").replace("/", "_") + ".wav")
        write_wav(path, copy.cpu().numpy(), codec.sampling_rate)
        copies.append({"audio": path.name, "text": row.get("text", ""), "reference": os.path.relpath(source, out)})
    write_jsonl(out / "manifest.jsonl", copies)
    return out / "manifest.jsonl"


def main(argv: Sequence[str] | None = None) -> None:
    """Runs the command. Raises ValueError or OSError for wrong input."""
    parser = command_parser("python -m smalle.train.codec.copy_synthesis", __doc__)
    parser.add_argument("codec", help="folder, Hub name, or 'encodec'")
    parser.add_argument("manifest", help="recordings to copy, .jsonl")
    parser.add_argument("out", help="folder of the copies")
    parser.add_argument("--count", type=int, metavar="N", help="copy only the first N rows")
    arguments = parser.parse_args(argv)
    codec = load_codec_on(arguments.codec, "cuda" if torch.cuda.is_available() else "cpu")
    print(copy_synthesis(codec, arguments.manifest, arguments.out, arguments.count))


if __name__ == "__main__":
    sys.exit(run_command("copy_synthesis", main))
