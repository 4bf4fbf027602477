"""Copy synthesis: speech through a codec and back, to be listened to and judged.

usage: python -m smalle.train.codec.copy_synthesis CODEC MANIFEST OUT [--count N]

MANIFEST has one JSON object a line with `file_name` (a corpus' metadata.jsonl) or `audio`, relative to its folder, and
`text`. Writes OUT/*.wav and OUT/manifest.jsonl: {"audio", "text", "reference"}, where reference is the source.
"""

import argparse
import json
import os
import pathlib
import sys

import torch
from tqdm import tqdm

from smalle.audio_smalle import write_wav
from smalle.codec_smalle import load_codec
from smalle.hub_smalle import write_jsonl

from ..data.audio import read_audio


def copy_synthesis(codec, manifest, out, count=None):
    """Writes the copies of the first `count` rows of the manifest (a path) and their manifest; gives its path."""
    manifest, out = pathlib.Path(manifest), pathlib.Path(out)
    rows = [json.loads(line) for line in manifest.read_text(encoding="utf-8").splitlines() if line.strip()][:count]
    if not rows:
        raise ValueError(f"{manifest} has no rows; expected one JSON object a line")
    out.mkdir(parents=True, exist_ok=True)
    copies = []
    for row in tqdm(rows, desc="copying", unit="file"):
        name = row.get("file_name") or row.get("audio")
        if not name:
            raise ValueError(f"a row of {manifest} has neither file_name nor audio: {row}")
        source = manifest.parent / name
        samples = read_audio(source, codec.sampling_rate)
        waveform = torch.from_numpy(samples)[None].to(next(codec.parameters()).device)
        copy = codec.decode(codec.encode(waveform))[0, : len(samples)].cpu().numpy()
        path = out / (str(pathlib.PurePath(name).with_suffix("")).strip("/").replace("/", "_") + ".wav")
        write_wav(path, copy, codec.sampling_rate)
        reference = os.path.relpath(source, out)
        copies.append({"audio": path.name, "text": row.get("text", ""), "reference": reference})
    write_jsonl(out / "manifest.jsonl", copies)
    return out / "manifest.jsonl"


def main(arguments=None):
    parser = argparse.ArgumentParser(description="Copy synthesis through a codec.")
    parser.add_argument("codec", help="folder, Hub name, or 'encodec'")
    parser.add_argument("manifest")
    parser.add_argument("out")
    parser.add_argument("--count", type=int, help="only the first N rows")
    options = parser.parse_args(arguments)
    try:
        codec = load_codec(options.codec).to("cuda" if torch.cuda.is_available() else "cpu")
        print(copy_synthesis(codec, options.manifest, options.out, options.count))
    except (ValueError, OSError) as error:
        print(f"train.codec.copy_synthesis: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
