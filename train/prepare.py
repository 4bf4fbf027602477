"""Corpus folders -> codes: OUT/train.parquet and OUT/eval.parquet, which `datasets` reads.

usage: python -m train.prepare CORPUS... --codec FOLDER --out OUT [--device cuda] [--exclude SPEAKER...] [--eval 600]

Columns: text, speaker, duration (s), words (start and end of each word of text.split() in seconds, one after the
other; empty where the corpus does not say), codes (uint16, frames after each other, num_codebooks values a frame).
"""

import argparse
import concurrent.futures
import os
import random

import datasets
import numpy as np
import pyarrow.parquet
import torch
import tqdm

from smalle.codec_smalle import load_codec

from .audio import read_audio, read_metadata

FEATURES = datasets.Features({
    "text": datasets.Value("string"), "speaker": datasets.Value("string"), "duration": datasets.Value("float32"),
    "words": datasets.List(datasets.Value("float32")),
    "codes": datasets.List(datasets.Value("uint16")),
})  # fmt: skip


def encode(codec, waves):
    """Waveforms of different lengths -> list of codes (T, Q), one batch."""
    lengths = torch.tensor([len(wave) for wave in waves])
    batch = torch.zeros(len(waves), int(lengths.max()))
    for row, wave in zip(batch, waves):
        row[: len(wave)] = torch.from_numpy(wave)
    device = next(codec.parameters()).device
    codes = codec.encode(batch.to(device), lengths.to(device)).transpose(1, 2).cpu()
    frames = (lengths + codec.hop_length - 1) // codec.hop_length
    return [row[:count] for row, count in zip(codes, frames.tolist())]


def rows_of(corpora, exclude=()):
    """Metadata of all corpora without the excluded speakers, shortest first."""
    rows = [row for corpus in corpora for row in read_metadata(corpus)]
    rows = [row for row in rows if row["speaker"] not in set(exclude)]
    return sorted(rows, key=lambda row: row["duration"])


def prepare(corpora, codec, exclude=(), batch_seconds=400, threads=8):
    """Yields a row of codes for each recording."""
    rows, batches = rows_of(corpora, exclude), [[]]
    for row in rows:
        if batches[-1] and row["duration"] * (len(batches[-1]) + 1) > batch_seconds:
            batches.append([])
        batches[-1].append(row)
    with concurrent.futures.ThreadPoolExecutor(threads) as pool, tqdm.tqdm(total=len(rows), unit="file") as bar:
        ahead = []
        for batch in batches + [None] * 4:  # read four batches ahead of the codec
            if batch is not None:
                read = [pool.submit(read_audio, row["path"], codec.sampling_rate) for row in batch]
                ahead.append((batch, read))
            if ahead and (batch is None or len(ahead) > 4):
                done, read = ahead.pop(0)
                for row, codes in zip(done, encode(codec, [future.result() for future in read])):
                    yield {"text": row["text"], "speaker": row["speaker"], "duration": row["duration"],
                           "words": [time for word in row.get("words") or [] for time in word],
                           "codes": codes.numpy().astype(np.uint16).ravel()}  # fmt: skip
                bar.update(len(done))


def write(rows, path):
    """One parquet file, complete or not at all."""
    table = pyarrow.table({name: [row[name] for row in rows] for name in FEATURES}, schema=FEATURES.arrow_schema)
    pyarrow.parquet.write_table(table, f"{path}.partial", row_group_size=1000)
    os.replace(f"{path}.partial", path)
    return path


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("corpora", nargs="+")
    parser.add_argument("--codec", required=True)
    parser.add_argument("--out", required=True)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--exclude", nargs="*", default=[], help="speakers to leave out")
    parser.add_argument("--eval", type=int, default=600, help="recordings kept for evaluation (default: %(default)s)")
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    arguments = parser.parse_args()
    codec = load_codec(arguments.codec).to(arguments.device).eval()
    with torch.inference_mode():
        rows = list(prepare(arguments.corpora, codec, arguments.exclude, threads=arguments.threads))
    random.Random(0).shuffle(rows)
    os.makedirs(arguments.out, exist_ok=True)
    for name, part in (("eval", rows[: arguments.eval]), ("train", rows[arguments.eval :])):
        path = write(part, os.path.join(arguments.out, f"{name}.parquet"))
        print(f"{len(part)} recordings, {sum(row['duration'] for row in part) / 3600:.1f} hours in {path}")


if __name__ == "__main__":
    main()
