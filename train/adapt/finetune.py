"""Teaches a checkpoint a new voice from a folder of recordings and what they say.

usage: python -m smalle.train.adapt.finetune RECIPE.yaml CORPUS BASE OUT [options] [key.subkey=value ...]

CORPUS: a folder with metadata.jsonl, or with NAME.wav and NAME.txt side by side. BASE: a checkpoint, folder or name.
The recipe is one of smalle.train.model.trainer without `model`; `data` is filled in here, and `adapter` says what is tuned: method
"state", the recurrent state in which speech begins; "lora", with `heads: true` of the heads too; and its rank; or
"full", the weights themselves that LoRA would change, and the heads. `adapter.scale` of what changed in the weights is
kept, which reads better than all of it (WiSE-FT, Wortsman et al. 2022, arXiv 2109.01903). One recording is enough where
`data.rearranged` makes so many samples of it (smalle.train.data.recombine). Where `objective` needs to know when each word is said,
BASE tells it (smalle.train.data.align).

OUT is small: voices/NAME.safetensors, a voice as any other, and with LoRA also the adapter in PEFT's form; its voice is
that speech begins with nothing. A model with a speaker encoder hears one of the recordings beside it. "full" is all in
the whole checkpoint. --whole FOLDER
gets a whole checkpoint, BASE with the adapter merged into it and NAME as its default voice; with --codec, BASE's codec
gives way to that one, whose decoder was tuned.
"""

import argparse
import pathlib
import random
import re
import sys
import tempfile

import numpy as np
import torch
from torch import nn

from smalle import SmallEForTextToSpeech, SmallEProcessor
from smalle.cache_smalle import InitialState
from smalle.codec_smalle import load_codec
from smalle.generation_smalle import delay
from smalle.processing_smalle import Voice, save_voice

from ..assemble import save_half
from ..data.align import align
from ..data.batching import Collator
from ..data.dataset import CodesDataset, speaker_frames
from ..data.prepare import encode_corpora, write_codes
from ..data.recombine import recombine
from ..model.trainer import build_trainer, read_recipe, write_recipe

HEARD = 6.0  # seconds of the recording that tells a model with a speaker encoder who speaks


class TunedState(nn.Module):
    """A frozen model whose speech begins in a state that is tuned."""

    def __init__(self, model, rank, example):
        super().__init__()
        if model.config.architecture == "decoder-only":
            raise ValueError("adapter.method=state: a decoder-only transformer has no recurrent state; choose lora.")
        self.config, self.model = model.config, model.requires_grad_(False)
        with torch.no_grad():
            read = model.eval()(**example, use_cache=True)
        self.state = InitialState(read.cache.recurrent, rank)

    def forward(self, input_ids, **inputs):
        rows = self.state().expand(len(input_ids), -1)
        return self.model(input_ids=input_ids, initial_state=rows, **inputs)


def adapt(model, example, method, rank=None, heads=False):
    """The model with what is to be tuned of it. example: inputs of one recording; heads: LoRA of the heads too."""
    if method == "state":
        return TunedState(model, rank, example)
    if method == "lora":
        if not isinstance(rank, int) or rank < 1:
            raise ValueError(f"adapter.rank={rank}: expected at least 1; 4 to 32 are usual.")
        from peft import LoraConfig, get_peft_model

        targets = rf"{model.lora_targets}|(.*\.)?head" if heads else model.lora_targets
        return get_peft_model(model, LoraConfig(r=rank, lora_alpha=2 * rank, target_modules=targets))
    if method == "full":
        tuned = re.compile(rf"({model.lora_targets}|(.*\.)?head)\.weight")
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(tuned.fullmatch(name) is not None)
        return model
    raise ValueError(f"adapter.method={method!r}: expected 'state', 'lora' or 'full'.")


@torch.no_grad()
def soften(model, before, scale):
    """Keeps `scale` of what was changed; before: parameters by name where they began, but LoRA's, which began at 0."""
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            parameter.mul_(scale)
        elif name in before:
            parameter.copy_(torch.lerp(before[name], parameter, scale))
    return model


def normalised(row, normalize):
    """A row of codes with its text as the processor gives texts to the model; word times only if they still fit."""
    text = normalize(row["text"])
    return {**row, "text": text, "words": row["words"] if len(row["words"]) == 2 * len(text.split()) else []}


def with_times(rows, base, tokenizer, folder):
    """Rows with the times of their words, as `base` reads them where the recordings do not tell."""
    model = SmallEForTextToSpeech.from_pretrained(base, dtype=torch.float32).eval()
    if model.config.architecture == "decoder-only":
        return rows
    shape = model.config.num_codebooks, model.config.frame_rate
    data = CodesDataset(write_codes(rows, f"{folder}/untimed.parquet"), *shape, speaker_frames=speaker_frames(model.config))
    untimed = [n for n, row in enumerate(rows) if not row["words"]]
    times = dict(align(model, Collator(tokenizer, *shape), data, untimed))
    return [{**row, "words": times[n].ravel() if n in times else row["words"]} for n, row in enumerate(rows)]


def split_rows(rows, count):
    """Rows to train on, and those of `count` texts, but at most a fifth of all, to evaluate on."""
    texts = sorted({row["text"] for row in rows})
    if len(texts) < 2:
        raise ValueError(f"{len(texts)} different texts: expected two or more, to train and to evaluate on.")
    random.Random(0).shuffle(texts)
    held_out = set(texts[: max(1, min(count, len(texts) // 5))])
    return [row for row in rows if row["text"] not in held_out], [row for row in rows if row["text"] in held_out]


def samples_of(rows, data, codec):
    """Rows to train on and rows to evaluate on, as `data`, of which this takes its keys, says."""
    count, eval_texts = data.pop("rearranged", None), data.pop("eval_texts", None)
    if count is None:
        return split_rows(rows, eval_texts)
    return recombine(rows, count, codec.frame_rate, codec.num_codebooks), rows


def row_of(rows, seconds):
    """The recording that is nearest to so many seconds."""
    return min(rows, key=lambda row: abs(row["duration"] - seconds))


def codes_of(row, processor):
    """The codes (P, Q) of a recording."""
    return torch.from_numpy(row["codes"].astype(np.int64)).view(-1, processor.codec.num_codebooks)


def example_of(rows, processor, seconds=4.0):
    """Inputs of the model for one recording, of about so many seconds."""
    row = row_of(rows, seconds)
    tokens = processor.tokenizer([row["text"]], return_tensors="pt")
    return {**tokens, "decoder_input_ids": delay(codes_of(row, processor))[None]}


def finetune(recipe, corpus, base, speaker=None, most=None):
    """Tunes; returns the model, adapted or not, its `Voice`, and the losses before and after on what was left out.

    speaker: the one of the corpus to learn from, where it has several; most: recordings to take, at random.
    """
    processor = SmallEProcessor.from_pretrained(base)
    with torch.inference_mode():
        rows = [normalised(row, processor.normalize) for row in encode_corpora([corpus], processor.codec, speaker, most)]
    given = recipe["data"]
    data = dict(given, tokenizer=base)
    with tempfile.TemporaryDirectory() as folder:
        if any(recipe["objective"].get(name) for name in ("alignment_weight", "forced_alignment_probability")):
            rows = with_times(rows, base, processor.tokenizer, folder)
        train, evaluation = samples_of(rows, data, processor.codec)
        data |= {"train": write_codes(train, f"{folder}/train.parquet"), "eval": write_codes(evaluation, f"{folder}/eval.parquet")}
        weights = {"codebook_weights": [0.65**q for q in range(processor.codec.num_codebooks)]}  # words first
        recipe = {**recipe, "init": base, "data": data, "objective": {**weights, **recipe["objective"]}}
        recipe["training"] = {**recipe["training"], "output_dir": folder, "save_strategy": "no"}
        example, adapter = example_of(train, processor), dict(recipe["adapter"])
        scale = adapter.pop("scale", 1.0)
        if not 0 < scale <= 1:
            raise ValueError(f"adapter.scale={scale}: expected more than 0 and up to 1; 0.5 is usual.")
        trainer = build_trainer(recipe, lambda model: adapt(model, example, **adapter))
        before = {
            name: x.detach().clone()
            for name, x in trainer.model.named_parameters()
            if x.requires_grad and adapter["method"] == "full"
        }
        losses = [trainer.evaluate()["eval_loss"]]
        trainer.train()
        model = trainer.model if adapter["method"] == "state" else soften(trainer.model, before, scale)
        losses.append(trainer.evaluate()["eval_loss"])
    tuned = model if isinstance(model, TunedState) else TunedState(model, 1, example)
    model = tuned.model.eval()
    recording = row_of(rows if "rearranged" in given else train, HEARD)
    heard = {"codes": codes_of(recording, processor), "codec": processor.codec.identity}
    return model, Voice(state=tuned.state.tensors, **(heard if model.config.speaker_layers else {})), losses


def write_adapter(model, voice, name, out):
    """The small folder: a voice, and with LoRA the adapter. Returns the voice's path."""
    path = pathlib.Path(out) / "voices" / f"{name}.safetensors"
    path.parent.mkdir(parents=True, exist_ok=True)
    if hasattr(model, "merge_and_unload"):
        model.save_pretrained(out)
    save_voice(path, *voice)
    return path


def tuned_codec(folder, processor):
    """A codec to take the place of the processor's: ValueError where its codes mean something else."""
    codec = load_codec(folder)
    if codec.identity != processor.codec.identity:
        raise ValueError(
            f"--codec {folder}: its codes are not those of the base; start smalle.train.codec.main from its codec/."
        )
    return codec


def write_whole(model, voice, name, base, folder, codec=None, changed=False):
    """A checkpoint that needs no other: BASE, merged with the adapter, with one more voice, which is the default.

    Tuned states of BASE are voices of its weights, and stay only where these do.
    codec: folder of one whose decoder was tuned, to take the place of BASE's; changed: the model's own weights were.
    """
    processor = SmallEProcessor.from_pretrained(base)
    if codec:
        processor._codec = tuned_codec(codec, processor)
    merged = model.merge_and_unload() if hasattr(model, "merge_and_unload") else model
    same = merged is model and not changed
    stay = [voice for voice in processor.voices if same or not processor._voice(voice).state]
    processor.voices = [*(voice for voice in stay if voice != name), name]
    processor.default_voice, processor._loaded_voices[name] = name, voice
    processor.save_pretrained(folder)
    if codec:
        save_half(processor.codec, pathlib.Path(folder) / "codec")
    save_half(merged, folder)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in ("recipe", "corpus", "base", "out"):
        parser.add_argument(name)
    parser.add_argument("overrides", nargs="*")
    parser.add_argument("--speaker", help="the one of the corpus to learn from, where it has several")
    parser.add_argument("--most", type=int, help="recordings to take, at random (default: all)")
    parser.add_argument("--name", help="of the voice (default: the speaker, or the name of the corpus folder)")
    parser.add_argument("--whole", metavar="FOLDER", help="also write a whole checkpoint")
    parser.add_argument(
        "--codec", metavar="FOLDER", help="its codec: that of BASE with a tuned decoder (smalle.train.codec.main)"
    )
    arguments = parser.parse_intermixed_args()
    if arguments.codec and not arguments.whole:
        parser.error("--codec goes into a whole checkpoint: name one with --whole")
    if arguments.codec:
        tuned_codec(arguments.codec, SmallEProcessor.from_pretrained(arguments.base))  # refused now, not at the end
    name = arguments.name or arguments.speaker or pathlib.Path(arguments.corpus).resolve().name
    recipe = read_recipe(arguments.recipe, arguments.overrides)
    if recipe.get("adapter", {}).get("method") == "full" and not arguments.whole:
        parser.error("adapter.method=full changes the weights: name a folder for them with --whole")
    model, voice, losses = finetune(recipe, arguments.corpus, arguments.base, arguments.speaker, arguments.most)
    path = write_adapter(model, voice, name, arguments.out)
    write_recipe(recipe, arguments.recipe, arguments.out)
    size = sum(file.stat().st_size for file in pathlib.Path(arguments.out).rglob("*") if file.is_file())
    of = "the recordings" if "rearranged" in recipe["data"] else "recordings left out"
    print(f"loss on {of}: {losses[0]:.3f} before, {losses[1]:.3f} after")
    print(f"{path}; {arguments.out}: {size / 1e6:.2f} MB")
    if arguments.whole:
        full = recipe["adapter"]["method"] == "full"
        write_whole(model, voice, name, arguments.base, arguments.whole, arguments.codec, changed=full)


if __name__ == "__main__":
    sys.exit(main())
