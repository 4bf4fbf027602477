"""Does a model read? Loss of the first codebook with the right text and with another one's: equal means it does not.

usage: python -m train.text_use MODEL EVAL.parquet [--speaker NAME] [--count 12]
"""

import argparse

import numpy as np
import torch
import torch.nn.functional as F
from transformers import AutoTokenizer

from smalle import SmallEForTextToSpeech

from .data import CodesDataset, Collator, heard_frames


@torch.no_grad()
def first_codebook_loss(model, collator, text, codes, heard=()):
    """Mean cross-entropy in nats of the first of codes (T, Q); heard: of their speaker, as `CodesDataset` gives it."""
    batch = collator([(text, codes, np.full((len(text.split()), 2), np.nan), *heard)])
    labels, _ = batch.pop("labels"), batch.pop("token_windows")
    return F.cross_entropy(model(**batch).logits[0, :, 0], labels[0, :, 0]).item()


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("data")
    parser.add_argument("--speaker", help="only this speaker's utterances")
    parser.add_argument("--count", type=int, default=12)
    arguments = parser.parse_args()
    model = SmallEForTextToSpeech.from_pretrained(arguments.model, dtype=torch.float32).eval()
    shape = model.config.num_codebooks, model.config.frame_rate
    collator = Collator(AutoTokenizer.from_pretrained(arguments.model), *shape)
    data = CodesDataset(arguments.data, *shape, heard=heard_frames(model.config))
    wanted = [i for i in range(len(data)) if arguments.speaker in (None, data.speakers[i])]
    chosen = [i for i in wanted if 120 < data.lengths[i] < 220]
    chosen = chosen[: arguments.count]
    for name, shift in (("right", 0), ("wrong", 1)):
        texts = [data[(chosen[k - shift],)][0] for k in range(len(chosen))]
        spoken = [data[(i,)] for i in chosen]
        losses = [first_codebook_loss(model, collator, text, codes, heard)
                  for text, (_, codes, _, *heard) in zip(texts, spoken)]  # fmt: skip
        print(f"{name} text: {sum(losses) / len(losses):.4f} nats over {len(losses)} utterances")


if __name__ == "__main__":
    main()
