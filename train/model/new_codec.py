"""Starts a model for a new codec from one for another codec of the same frames a second.

  python -m smalle.train.model.new_codec MODEL OLD_CODEC NEW_CODEC OUT --corpus FOLDER ... [--clips 1500]

The corpus is encoded with both codecs. The new embeddings are those whose sums come nearest to the sums of the old ones
(least squares, one codebook after the other); the new heads are means of the old ones over the old codes that occur
with a new code. All other weights stay.
"""

import sys
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor
from transformers import AutoTokenizer

from smalle import SmallEForTextToSpeech
from smalle.cli.command import command_parser, run_command
from smalle.codec_smalle import load_codec
from smalle.configuration_smalle import NUM_AUDIO_SPECIALS

from ..data.audio import QualityGate
from ..data.prepare import encode_corpora


def paired_codes(old, new, corpora: Sequence[str], clips: int, codebooks: int) -> list[tuple[Tensor, Tensor]]:
    """Codes (T, Q) of the same clips with two codecs."""
    rows = []
    for codec in (old, new):
        encoded = encode_corpora(corpora, codec, None, clips, batch_seconds=200, threads=1, gate=QualityGate())
        rows.append({row["id"]: row["codes"].reshape(-1, codec.num_codebooks)[:, :codebooks] for row in encoded})
    return [
        (torch.from_numpy(rows[0][name].astype(np.int64)), torch.from_numpy(codes.astype(np.int64)))
        for name, codes in rows[1].items()
        if name in rows[0] and len(rows[0][name]) == len(codes)
    ]


def delayed(codes: Tensor) -> Tensor:
    """Codes (T, Q) as the model reads them in a step, code q from q steps before; only complete steps."""
    length, books = len(codes) - codes.shape[1] + 1, codes.shape[1]
    return torch.stack([codes[books - 1 - q : books - 1 - q + length, q] for q in range(books)], 1)


def fit_embeddings(old_table: Tensor, old: Tensor, new: Tensor, rounds: int = 12) -> Tensor:
    """Embeddings (Q, V, D) of new codes (N, Q) whose sums approximate those of old ones, old_table (Q, V, D)."""
    wanted = torch.stack([old_table[q][old[:, q]] for q in range(old.shape[1])]).sum(0)
    table, mean = torch.zeros_like(old_table), wanted.mean(0)
    left = wanted - mean
    for _ in range(rounds):
        for q in range(new.shape[1]):
            index = new[:, q]
            left += table[q][index]
            sums = torch.zeros_like(table[q]).index_add_(0, index, left)
            counts = torch.bincount(index, minlength=len(sums))[:, None]
            table[q] = sums / (counts + 3.0)  # rare codes stay near the mean
            left -= table[q][index]
    error = left.square().mean() / (wanted - mean).square().mean()
    print(f"embeddings: {1 - float(error):.0%} of the variance explained, {len(new)} frames")
    return table + mean / new.shape[1]


def mean_heads(old_heads: Tensor, old: Tensor, new: Tensor) -> Tensor:
    """Heads (Q, V, D) of new codes (N, Q): means of the old ones over the old codes that occur with them."""
    heads = []
    for q in range(new.shape[1]):
        rows = old_heads[q][old[:, q]]
        counts = torch.bincount(new[:, q], minlength=old_heads.shape[1])[:, None]
        sums = torch.zeros_like(old_heads[q]).index_add_(0, new[:, q], rows)
        heads.append((sums + old_heads[q].mean(0)) / (counts + 1.0))
    return torch.stack(heads)


@torch.no_grad()
def transfer(model: SmallEForTextToSpeech, pairs: Sequence[tuple[Tensor, Tensor]]) -> None:
    """Replaces the embeddings and heads of a model, in place, by those for the new codes of pairs (old, new)."""
    config = model.config
    shape = config.num_codebooks, config.audio_vocab_size, -1
    embedding = model.model.audio_embedding.weight
    table = embedding.view(shape)[:, NUM_AUDIO_SPECIALS:].clone()
    plain = [torch.cat(side) for side in zip(*pairs)]
    steps = [torch.cat([delayed(one) for one in side]) for side in zip(*pairs)]
    # the decoder reads steps, the speaker encoder frames
    old, new = (torch.cat((one, two)) for one, two in zip(steps, plain))
    embedding.view(shape)[:, NUM_AUDIO_SPECIALS:] = fit_embeddings(table, old, new)
    head = model.head.weight.view(shape)
    head[:, NUM_AUDIO_SPECIALS:] = mean_heads(head[:, NUM_AUDIO_SPECIALS:].clone(), *plain)


def main(argv: Sequence[str] | None = None) -> None:
    parser = command_parser("python -m smalle.train.model.new_codec", __doc__)
    parser.add_argument("model", help="checkpoint: folder or Hub name")
    parser.add_argument("old_codec", help="its codec")
    parser.add_argument("new_codec", help="the other codec")
    parser.add_argument("out", help="folder for the new checkpoint")
    parser.add_argument("--corpus", nargs="+", required=True, help="recordings, as for `smalle prepare`")
    parser.add_argument("--clips", type=int, default=1500, help="clips to encode (default: %(default)s)")
    arguments = parser.parse_args(argv)
    model = SmallEForTextToSpeech.from_pretrained(arguments.model, dtype=torch.float32)
    codecs = load_codec(arguments.old_codec), load_codec(arguments.new_codec)
    transfer(model, paired_codes(*codecs, arguments.corpus, arguments.clips, model.config.num_codebooks))
    model.save_pretrained(arguments.out)
    AutoTokenizer.from_pretrained(arguments.model).save_pretrained(arguments.out)


if __name__ == "__main__":
    sys.exit(run_command("new_codec", main))
