"""The times of words that a corpus does not tell: a model that reads looks where it would read each recording.

usage: python -m smalle.train.data.align MODEL CODES.parquet OUT.parquet [--batch 32]

CODES may be shards, as for train.train. OUT has their rows, with `words` filled where they were empty; what is known
stays. A pause counts to the word before it. Prints how far the model's times lie from those that are known, so that one
sees what they are worth. With them smalle.train.model.trainer's loss on maps and its timed rows take these too.
"""

import argparse
import os
import re

import numpy as np
import pyarrow
import pyarrow.parquet
import torch
import tqdm
from transformers import AutoTokenizer

from smalle import SmallEForTextToSpeech
from smalle.alignment_smalle import monotonic_path, word_times

from .dataset import CodesDataset, Collator, heard_frames, shards


@torch.inference_mode()
def read_words(model, collator, samples):
    """Times (W, 2) in seconds of the words of each of smalle.train.data.dataset's samples, where the last map of the text reads."""
    batch = collator(samples)
    frames = batch["decoder_attention_mask"].sum(1) - model.config.num_codebooks  # the rest ends the codebooks
    inputs = {name: x for name, x in batch.items() if name not in ("labels", "token_windows")}
    maps = model(**inputs, output_attentions=True, use_cache=False).attentions[-1]
    times = []
    for (text, *_), attention, count in zip(samples, maps, frames.tolist()):
        offsets = collator.tokenizer(text, return_offsets_mapping=True)["offset_mapping"]
        path = monotonic_path(attention[:count, : len(offsets)].float().numpy())
        words = [match.span() for match in re.finditer(r"\S+", text)]
        times.append(np.array(word_times(path, offsets, words, model.config.frame_rate), np.float32))
    return times


def read_all(model, collator, data, wanted, size=32):
    """Yields each of the `wanted` utterances of a CodesDataset with its words' times; like lengths go together."""
    order = sorted(wanted, key=lambda n: data.lengths[n])
    batches = [order[start : start + size] for start in range(0, len(order), size)]
    for batch in tqdm.tqdm(batches, desc="reading", unit="batch"):
        yield from zip(batch, read_words(model, collator, [data[(n,)] for n in batch]))


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("codes")
    parser.add_argument("out")
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--check", type=int, default=500, help="rows with times to compare with")
    arguments = parser.parse_args()
    model = SmallEForTextToSpeech.from_pretrained(arguments.model, dtype=torch.float32).eval()
    shape = model.config.num_codebooks, model.config.frame_rate
    data = CodesDataset(arguments.codes, *shape, heard=heard_frames(model.config))
    collator = Collator(AutoTokenizer.from_pretrained(arguments.model), *shape)
    table = pyarrow.concat_tables(pyarrow.parquet.ParquetFile(part).read() for part in shards(arguments.codes))
    words = table.column("words").to_pylist()
    known = [n for n in range(len(data)) if words[n]]
    wanted = [n for n in range(len(data)) if not words[n]] + known[:: max(1, len(known) // arguments.check)]
    errors = []
    for n, times in read_all(model, collator, data, wanted, arguments.batch):
        if words[n]:
            errors.append(np.abs(times[:, 0] - words[n][::2]))
        else:
            words[n] = times.ravel().tolist()
    column = table.column_names.index("words")
    table = table.set_column(column, "words", pyarrow.array(words, table.schema.field("words").type))
    pyarrow.parquet.write_table(table, f"{arguments.out}.partial", row_group_size=1000)
    os.replace(f"{arguments.out}.partial", arguments.out)
    if errors:
        off = np.concatenate(errors)
        print(f"begin of words, known times: median {np.median(off):.3f} s off, {np.mean(off > 0.1):.0%} above 0.1 s")


if __name__ == "__main__":
    main()
