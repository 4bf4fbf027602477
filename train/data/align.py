"""Estimates missing word times in prepared codes, with the alignment of a trained model.

  python -m smalle.train.data.align MODEL CODES.parquet OUT.parquet [--batch-size 32]

CODES is a parquet file that `smalle prepare` wrote, or the common name of its shards (train.parquet for
train-00000.parquet and so on). OUT has the same rows, with empty `words` filled in. A pause belongs to the word before
it. Prints the error of the model's times on rows with known times. Training uses the times for the alignment loss and
for forced_alignment_probability.
"""

import re
import sys
from collections.abc import Iterator, Sequence

import numpy as np
import pyarrow
import pyarrow.parquet
import torch
import tqdm
from transformers import AutoTokenizer

from smalle import SmallEForTextToSpeech
from smalle.alignment_smalle import monotonic_path, word_times
from smalle.cli.command import command_parser, run_command
from smalle.saving_smalle import atomic_write

from .batching import Collator
from .dataset import CodesDataset, Sample, shards, speaker_frames


@torch.inference_mode()
def find_times(model: SmallEForTextToSpeech, collator: Collator, samples: Sequence[Sample]) -> list[np.ndarray]:
    """Word times (W, 2) in seconds of each sample, from the model's last alignment."""
    batch = collator(samples)
    frames = (
        batch["decoder_attention_mask"].sum(1) - model.config.num_codebooks
    )  # without the last steps of the delay pattern
    inputs = {name: x for name, x in batch.items() if name not in ("labels", "token_windows")}
    alignments = model(**inputs, output_attentions=True, use_cache=False).attentions[-1]
    times = []
    for sample, alignment, count in zip(samples, alignments, frames.tolist()):
        offsets = collator.tokenizer(sample.text, return_offsets_mapping=True)["offset_mapping"]
        path = monotonic_path(alignment[:count, : len(offsets)].float().numpy())
        words = [match.span() for match in re.finditer(r"\S+", sample.text)]
        times.append(np.array(word_times(path, offsets, words, model.config.frame_rate), np.float32))
    return times


def align(
    model: SmallEForTextToSpeech, collator: Collator, data: CodesDataset, indices: Sequence[int], batch_size: int = 32
) -> Iterator[tuple[int, np.ndarray]]:
    """Yields (index, word times (W, 2)) of utterances, in batches of similar length."""
    order = sorted(indices, key=lambda n: data.lengths[n])
    batches = [order[start : start + batch_size] for start in range(0, len(order), batch_size)]
    for batch in tqdm.tqdm(batches, desc="aligning", unit="batch"):
        yield from zip(batch, find_times(model, collator, [data[(n,)] for n in batch]))


def main(argv: Sequence[str] | None = None) -> None:
    parser = command_parser("python -m smalle.train.data.align", __doc__)
    parser.add_argument("model", help="checkpoint: folder or Hub name")
    parser.add_argument("codes", help="prepared codes: file or shards")
    parser.add_argument("out", help="parquet file to write")
    parser.add_argument("--batch-size", type=int, default=32, help="utterances aligned at once (default: %(default)s)")
    parser.add_argument(
        "--check", type=int, default=500, help="rows with known times to measure the error on (default: %(default)s)"
    )
    arguments = parser.parse_args(argv)
    model = SmallEForTextToSpeech.from_pretrained(arguments.model, dtype=torch.float32).eval()
    shape = model.config.num_codebooks, model.config.frame_rate
    data = CodesDataset(arguments.codes, *shape, speaker_frames=speaker_frames(model.config))
    collator = Collator(AutoTokenizer.from_pretrained(arguments.model), *shape)
    table = pyarrow.concat_tables(pyarrow.parquet.ParquetFile(part).read() for part in shards(arguments.codes))
    words = table.column("words").to_pylist()
    known = [n for n in range(len(data)) if words[n]]
    wanted = [n for n in range(len(data)) if not words[n]] + known[:: max(1, len(known) // arguments.check)]
    errors = []
    for n, times in align(model, collator, data, wanted, arguments.batch_size):
        if words[n]:
            errors.append(np.abs(times[:, 0] - words[n][::2]))
        else:
            words[n] = times.ravel().tolist()
    column = table.column_names.index("words")
    table = table.set_column(column, "words", pyarrow.array(words, table.schema.field("words").type))
    with atomic_write(arguments.out) as temporary:
        pyarrow.parquet.write_table(table, temporary, row_group_size=1000)
    if errors:
        off = np.concatenate(errors)
        print(
            f"starts of words with known times: median error {np.median(off):.3f} s, {np.mean(off > 0.1):.0%} > 0.1 s"
        )


if __name__ == "__main__":
    sys.exit(run_command("align", main))
