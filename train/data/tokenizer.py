"""Trains the text tokenizer: lower-cased byte-pair encoding with 256 entries, [PAD] 0, [BOS] 1, [EOS] 2.

  python -m smalle.train.data.tokenizer METADATA... --output FOLDER [--vocab-size 256]

METADATA: text files with one sentence per line, .jsonl files with "text" in each row, or shards of prepared codes.
"""

import json
import os
import pathlib
import sys
from collections.abc import Iterable, Iterator, Sequence

import pyarrow.parquet
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

from smalle.cli.command import command_parser, run_command

SPECIAL_TOKENS = ["[PAD]", "[BOS]", "[EOS]", "[UNK]"]


def read_texts(paths: Iterable[str | os.PathLike]) -> Iterator[str]:
    """The texts of all files."""
    for path in map(pathlib.Path, paths):
        if path.suffix == ".parquet":
            for batch in pyarrow.parquet.ParquetFile(path).iter_batches(columns=["text"]):
                yield from batch.column("text").to_pylist()
            continue
        with open(path, encoding="utf-8") as lines:
            for line in lines:
                if line.strip():
                    yield json.loads(line)["text"] if path.suffix == ".jsonl" else line.strip()


def wrap_tokenizer(tokenizer: Tokenizer, **special_tokens: str) -> PreTrainedTokenizerFast:
    """The tokenizer of a model: adds BOS and EOS to each text, and pads on the left, as generation requires."""
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[BOS] $A [EOS]", pair="[BOS] $A $B [EOS]", special_tokens=[("[BOS]", 1), ("[EOS]", 2)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="[PAD]",
        bos_token="[BOS]",
        eos_token="[EOS]",
        padding_side="left",
        model_input_names=["input_ids", "attention_mask"],
        **special_tokens,
    )


def train_tokenizer(texts: Iterable[str], vocab_size: int = 256) -> PreTrainedTokenizerFast:
    """Trains a tokenizer of `vocab_size` entries."""
    bpe = Tokenizer(models.BPE(unk_token="[UNK]"))
    bpe.normalizer = normalizers.Sequence(
        [
            normalizers.NFKC(),
            normalizers.Lowercase(),
            normalizers.Replace(Regex("[‘’ʼ]"), "'"),
            normalizers.Replace(Regex("[“”]"), '"'),
            normalizers.Replace(Regex("[–—]"), "-"),
            normalizers.Replace(Regex(r"\s+"), " "),
            normalizers.Strip(),
        ]
    )
    bpe.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Metaspace(), pre_tokenizers.Punctuation("isolated")])
    bpe.decoder = decoders.Metaspace()
    bpe.train_from_iterator(texts, trainers.BpeTrainer(vocab_size=vocab_size, special_tokens=SPECIAL_TOKENS))
    return wrap_tokenizer(bpe, unk_token="[UNK]")


def main(argv: Sequence[str] | None = None) -> None:
    parser = command_parser("python -m smalle.train.data.tokenizer", __doc__)
    parser.add_argument("metadata", nargs="+", help="files with texts to train on")
    parser.add_argument("--output", required=True, help="folder to write")
    parser.add_argument("--vocab-size", type=int, default=256, help="entries (default: %(default)s)")
    arguments = parser.parse_args(argv)
    tokenizer = train_tokenizer(read_texts(arguments.metadata), arguments.vocab_size)
    tokenizer.save_pretrained(arguments.output)
    print(f"{len(tokenizer)} entries in {arguments.output}")


if __name__ == "__main__":
    sys.exit(run_command("tokenizer", main))
