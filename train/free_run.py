"""What a model says itself at the times of its recordings, to train on: it then meets its own mistakes, not only truth.

usage: python -m train.free_run MODEL CODES.parquet OUT.parquet [--share 0.5] [--temperature 0.7] [--given 1.0]

Of each utterance whose words are timed the first second is given, the rest the model says by itself, while the words'
times tell it where to read. So its codes and the recording's lie at the same times, and the recording's remain what
should follow (learning from one's own path: DAgger, Ross et al. 2011). OUT has CODES' rows and a column `free_run`,
empty where nothing was said. train.train takes from it what `objective.free_run` asks for (train.corruption).
"""

import argparse
import os
import random

import pyarrow
import pyarrow.parquet
import torch
import tqdm
from transformers import AutoTokenizer

from smalle import SmallEForTextToSpeech
from smalle.configuration_smalle import AUDIO_HEAD, AUDIO_PAD, AUDIO_TAIL, NUM_AUDIO_SPECIALS
from smalle.delay_smalle import undelay
from smalle.sampling_smalle import GREEDY, SamplingSettings, draw

from .alignment import timed_maps
from .data import CodesDataset, Collator


@torch.inference_mode()
def free_run(model, batch, given, temperature, generator=None):
    """The delayed codes (B, T, Q) of a batch of train.data's Collator, from step `given` on the model's own."""
    truth, mask = batch["audio_codes"], batch["audio_attention_mask"]
    maps = timed_maps(batch["token_windows"], truth.shape[1])
    settings = [SamplingSettings(100, temperature)] + [GREEDY] * (truth.shape[2] - 1)
    state = model.model.encode_text(batch["input_ids"], batch["attention_mask"])
    said = list(truth[:, :given].unbind(1))
    read = truth[:, :given]
    for t in range(given, truth.shape[1]):
        first = t - read.shape[1]
        out = model(audio_codes=read, audio_attention_mask=mask[:, first:t], text_maps=maps[:, first:t],
                    past_key_values=state, use_cache=True)  # fmt: skip
        state, logits = out.past_key_values, out.logits[:, -1].float()
        logits[..., [AUDIO_PAD, AUDIO_HEAD, AUDIO_TAIL]] = -torch.inf  # these stay where the recording has them
        own = truth[:, t] >= NUM_AUDIO_SPECIALS
        said.append(torch.where(own, draw(logits, settings, generator)[0], truth[:, t]))
        read = said[-1][:, None]
    return torch.stack(said, 1)


def say(model, collator, data, utterances, given, temperature):
    """What the model says of some utterances: a list of codes (T, Q)."""
    batch = collator([data[(utterance,)] for utterance in utterances])
    tail = torch.nn.functional.pad
    batch["audio_codes"] = tail(batch["audio_codes"], (0, 0, 0, 1), value=AUDIO_TAIL)  # the grid's last step
    batch["audio_attention_mask"] = tail(batch["audio_attention_mask"], (0, 1), value=1)
    codes = undelay(free_run(model, batch, given, temperature))
    return [row[: int(data.lengths[utterance])] for row, utterance in zip(codes, utterances)]


def timed_batches(data, size, longest, shortest):
    """Batches of utterances of similar length whose words are timed, in random order."""
    fitting = (n for n in range(len(data)) if shortest < data.lengths[n] <= longest and len(data.words[n]))
    order = sorted(fitting, key=lambda n: data.lengths[n])
    batches = [order[start : start + size] for start in range(0, len(order), size)]
    random.shuffle(batches)
    return batches


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("codes")
    parser.add_argument("out")
    parser.add_argument("--share", type=float, default=1.0, help="of the utterances (default: all)")
    parser.add_argument("--temperature", type=float, default=0.7)
    parser.add_argument("--given", type=float, default=1.0, help="seconds of each recording that are given")
    parser.add_argument("--batch", type=int, default=96)
    parser.add_argument("--longest", type=float, default=10.0, help="seconds")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    torch.manual_seed(arguments.seed)
    random.seed(arguments.seed)
    model = SmallEForTextToSpeech.from_pretrained(arguments.model, dtype=torch.float32).eval()
    config = model.config
    given, longest = (round(seconds * config.frame_rate) for seconds in (arguments.given, arguments.longest))
    data = CodesDataset(arguments.codes, config.num_codebooks, config.frame_rate)
    collator = Collator(AutoTokenizer.from_pretrained(arguments.model), config.num_codebooks, config.frame_rate)
    batches = timed_batches(data, arguments.batch, longest, given)
    said = [None] * len(data)
    for utterances in tqdm.tqdm(batches[: max(1, round(arguments.share * len(batches)))], unit="batch"):
        for utterance, codes in zip(utterances, say(model, collator, data, utterances, given, arguments.temperature)):
            said[utterance] = codes.numpy().astype("uint16").ravel()
    with open(arguments.codes, "rb") as file:
        table = pyarrow.parquet.ParquetFile(file).read()
    table = table.append_column("free_run", pyarrow.array(said, table.schema.field("codes").type))
    pyarrow.parquet.write_table(table, f"{arguments.out}.partial", row_group_size=1000)
    os.replace(f"{arguments.out}.partial", arguments.out)
    print(f"{sum(one is not None for one in said)} of {len(said)} utterances said")


if __name__ == "__main__":
    main()
