"""Adapts a checkpoint to a new voice, from a folder of recordings with their transcripts.

  smalle finetune RECIPE CORPUS BASE OUT [options] [KEY.SUBKEY=VALUE ...]

CORPUS is a folder with metadata.jsonl, or with NAME.wav beside NAME.txt. BASE is a checkpoint: a folder, a Hub name, or
smalle-mini. RECIPE is a YAML file, or finetune-state, finetune-lora or finetune-recording. Its `adapter.method` is

  state  trains the initial state of the recurrent layers and freezes all weights
  lora   trains LoRA of the audio layers, and with `heads: true` of the heads
  full   trains the weights that LoRA would adapt, and the heads

OUT receives voices/NAME.safetensors, an ordinary voice file, and with LoRA the adapter in PEFT's format.
--save-checkpoint FOLDER also writes a complete checkpoint: BASE with the trained weights, and NAME as its default
voice. The method `full` needs it.

One recording is enough with `data.recombined`, the number of samples to make from it by reordering its words. If the
recipe needs word times and the recordings have none, BASE estimates them.
"""

import argparse
import random
import re
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase

from smalle import SmallEForTextToSpeech, SmallEProcessor
from smalle.cache_smalle import InitialState
from smalle.checkpoint import find_checkpoint
from smalle.cli.command import command_parser, run_command
from smalle.codec_smalle import load_codec
from smalle.generation_smalle import delay
from smalle.voices_smalle import Voice, save_voice

from ..assemble import folder_size, save_half
from ..data.align import align
from ..data.batching import Collator
from ..data.dataset import CodesDataset, speaker_frames
from ..data.prepare import encode_corpora, write_codes
from ..data.recombine import recombine
from ..model.recipe import DataOptions, Objective, Recipe, find_recipe, read_recipe, write_recipe
from ..model.trainer import build_trainer

METHODS = "state", "lora", "full"
SHARED_DATA_OPTIONS = "frames_per_batch", "max_seconds", "single_utterance_probability", "eval_batches"
AdaptedModel = Any  # a SmallEForTextToSpeech, or PEFT's model around one
REFERENCE_SECONDS = 6.0  # of the recording that becomes the voice's reference


@dataclass
class Adapter:
    """The part `adapter`: which parameters to train.

    Attributes:
        method: "state", "lora" or "full".
        rank: Rank of LoRA or of the state; None: a state of full rank.
        heads: Whether LoRA adapts the heads too.
        scale: Fraction of the change in the weights to keep. A part of it makes fewer word errors than all of it
            (WiSE-FT, Wortsman et al. 2022, arXiv 2109.01903).
    """

    method: str
    rank: int | None = None
    heads: bool = False
    scale: float = 1.0

    def __post_init__(self):
        if self.method not in METHODS:
            raise ValueError(f"adapter.method={self.method!r}: expected one of {', '.join(METHODS)}.")
        if self.method == "lora" and (self.rank or 0) < 1:
            raise ValueError(f"adapter.rank={self.rank}: expected at least 1; 4 to 32 are usual.")
        if not 0 < self.scale <= 1:
            raise ValueError(f"adapter.scale={self.scale}: expected more than 0 and up to 1; 0.5 is usual.")


@dataclass
class FinetuneData:
    """The part `data`; `DataOptions` explains the other keys.

    Attributes:
        eval_texts: Texts to hold out for the evaluation, at most a fifth of all.
        recombined: Number of samples to make by recombining the recordings, which then holds out no texts.
    """

    frames_per_batch: int
    max_seconds: float
    single_utterance_probability: float
    eval_batches: int
    eval_texts: int = 20
    recombined: int | None = None


@dataclass
class FinetuneRecipe:
    """A recipe of fine-tuning."""

    adapter: Adapter
    data: FinetuneData
    objective: Objective
    training: dict[str, Any]


class Finetuned(NamedTuple):
    """The adapted model, the new voice, and the losses on the evaluation data before and after."""

    model: AdaptedModel
    voice: Voice
    losses: tuple[float, float]


class TunedState(nn.Module):
    """A frozen model with a trainable initial state, scaled like the state after the recording `example`."""

    def __init__(self, model: AdaptedModel, rank: int | None, example: dict[str, Tensor]):
        super().__init__()
        if model.config.architecture == "decoder-only":
            raise ValueError("adapter.method=state: a decoder-only transformer has no recurrent state; choose lora.")
        self.config, self.model = model.config, model.requires_grad_(False)
        with torch.no_grad():
            cache = model.eval()(**example, use_cache=True).cache
        self.state = InitialState(cache.recurrent, rank)

    def forward(self, input_ids, **inputs):
        rows = self.state().expand(len(input_ids), -1)
        return self.model(input_ids=input_ids, initial_state=rows, **inputs)


def adapt(model: SmallEForTextToSpeech, adapter: Adapter, example: dict[str, Tensor] | None = None) -> nn.Module:
    """The module to train. `example`: inputs of one recording, for the method "state"."""
    if adapter.method == "state":
        return TunedState(model, adapter.rank, example or {})
    if adapter.method == "lora":
        from peft import LoraConfig, get_peft_model

        assert adapter.rank
        targets = rf"{model.lora_targets}|(.*\.)?head" if adapter.heads else model.lora_targets
        return get_peft_model(model, LoraConfig(r=adapter.rank, lora_alpha=2 * adapter.rank, target_modules=targets))
    trained = re.compile(rf"({model.lora_targets}|(.*\.)?head)\.weight")
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(trained.fullmatch(name) is not None)
    return model


@torch.no_grad()
def scale_change(model: nn.Module, before: dict[str, Tensor], scale: float) -> nn.Module:
    """Keeps `scale` of the change of the weights. `before`: changed parameters by name; LoRA starts from zero."""
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            parameter.mul_(scale)
        elif name in before:
            parameter.copy_(torch.lerp(before[name], parameter, scale))
    return model


def normalize_row(row: dict, processor: SmallEProcessor) -> dict:
    """A row of codes with the normalized text. Drops word times that do not match its words."""
    text = processor.normalize(row["text"])
    return {**row, "text": text, "words": row["words"] if len(row["words"]) == 2 * len(text.split()) else []}


def add_word_times(rows: list[dict], base: str, tokenizer: PreTrainedTokenizerBase, folder: str | Path) -> list[dict]:
    """Rows with word times; the base estimates those that are missing."""
    model = SmallEForTextToSpeech.from_pretrained(base, dtype=torch.float32).eval()
    if model.config.architecture == "decoder-only":
        return rows
    shape, reference = (model.config.num_codebooks, model.config.frame_rate), speaker_frames(model.config)
    data = CodesDataset(write_codes(rows, f"{folder}/untimed.parquet"), *shape, speaker_frames=reference)
    untimed = [n for n, row in enumerate(rows) if not row["words"]]
    times = dict(align(model, Collator(tokenizer, *shape), data, untimed))
    return [{**row, "words": times[n].ravel() if n in times else row["words"]} for n, row in enumerate(rows)]


def split_rows(rows: list[dict], count: int) -> tuple[list[dict], list[dict]]:
    """Splits rows into training rows and those of `count` held-out texts, at most a fifth of all."""
    texts = sorted({row["text"] for row in rows})
    if len(texts) < 2:
        raise ValueError(f"{len(texts)} different texts: expected two or more, to train and to evaluate on.")
    random.Random(0).shuffle(texts)
    held_out = set(texts[: max(1, min(count, len(texts) // 5))])
    return [row for row in rows if row["text"] not in held_out], [row for row in rows if row["text"] in held_out]


def nearest_row(rows: list[dict], seconds: float) -> dict:
    """The recording whose duration is nearest to `seconds`."""
    return min(rows, key=lambda row: abs(row["duration"] - seconds))


def codes_of(row: dict, num_codebooks: int) -> Tensor:
    """The codes (T, Q) of a recording."""
    return torch.from_numpy(row["codes"].astype(np.int64)).view(-1, num_codebooks)


def example_inputs(rows: list[dict], processor: SmallEProcessor, seconds: float = 4.0) -> dict[str, Tensor]:
    """The model's inputs for the recording that is nearest to `seconds`."""
    row = nearest_row(rows, seconds)
    tokens = processor.tokenizer([row["text"]], return_tensors="pt")
    return {**tokens, "decoder_input_ids": delay(codes_of(row, processor.codec.num_codebooks))[None]}


def training_recipe(recipe: FinetuneRecipe, base: str, num_codebooks: int, folder: str) -> Recipe:
    """The recipe of the Trainer, with the codes in a folder."""
    shared = {name: getattr(recipe.data, name) for name in SHARED_DATA_OPTIONS}
    objective = recipe.objective
    weights = objective.codebook_weights or [0.65**q for q in range(num_codebooks)]  # the first ones carry the words
    return Recipe(
        init=base,
        data=DataOptions(base, train=f"{folder}/train.parquet", eval=f"{folder}/eval.parquet", **shared),
        objective=replace(objective, codebook_weights=weights),
        training={**recipe.training, "output_dir": folder, "save_strategy": "no"},
    )


def finetune(
    recipe: FinetuneRecipe,
    corpus: str | Path,
    base: str,
    speaker: str | None = None,
    max_recordings: int | None = None,
) -> Finetuned:
    """Adapts a checkpoint to the recordings of a corpus.

    Args:
        base: Folder or Hub name.
        speaker: The speaker to learn from, if the corpus has several.
        max_recordings: Number of recordings to take, at random.
    """
    processor, adapter, objective = SmallEProcessor.from_pretrained(base), recipe.adapter, recipe.objective
    codec = processor.codec
    with torch.inference_mode():
        encoded = encode_corpora([corpus], codec, speaker, max_recordings)
        rows = [normalize_row(row, processor) for row in encoded]
    with tempfile.TemporaryDirectory() as folder:
        if objective.alignment_weight or objective.forced_alignment_probability:
            rows = add_word_times(rows, base, processor.tokenizer, folder)
        if recipe.data.recombined is None:
            train, evaluation = split_rows(rows, recipe.data.eval_texts)
        else:
            train = recombine(rows, recipe.data.recombined, codec.frame_rate, codec.num_codebooks)
            evaluation = rows
        write_codes(train, f"{folder}/train.parquet")
        write_codes(evaluation, f"{folder}/eval.parquet")
        example = example_inputs(train, processor)
        trainer = build_trainer(
            training_recipe(recipe, base, codec.num_codebooks, folder), lambda model: adapt(model, adapter, example)
        )
        before = {}
        if adapter.method == "full":
            parameters = trainer.model.named_parameters()
            before = {name: x.detach().clone() for name, x in parameters if x.requires_grad}
        loss_before = trainer.evaluate()["eval_loss"]
        trainer.train()
        model = trainer.model if adapter.method == "state" else scale_change(trainer.model, before, adapter.scale)
        losses = loss_before, trainer.evaluate()["eval_loss"]
    tuned = model if isinstance(model, TunedState) else TunedState(model, 1, example)
    model, reference = tuned.model.eval(), {}
    if model.config.speaker_layers:
        row = nearest_row(train if recipe.data.recombined is None else rows, REFERENCE_SECONDS)
        reference = {"codes": codes_of(row, codec.num_codebooks), "codec": codec.identity}
    return Finetuned(model, Voice(state=tuned.state.tensors, **reference), losses)


def write_adapter(model: AdaptedModel, voice: Voice, name: str, out: str | Path) -> Path:
    """Writes OUT/voices/NAME.safetensors, and with LoRA the adapter. Returns the path of the voice."""
    path = Path(out, "voices", f"{name}.safetensors")
    path.parent.mkdir(parents=True, exist_ok=True)
    if hasattr(model, "merge_and_unload"):
        model.save_pretrained(out)
    save_voice(path, *voice)
    return path


def load_tuned_codec(folder: str | Path, processor: SmallEProcessor) -> nn.Module:
    """Loads a codec to replace the processor's. Raises ValueError if its codes have another meaning."""
    codec = load_codec(str(folder))
    if codec.identity != processor.codec.identity:
        raise ValueError(f"--codec {folder}: its codes are not those of the base; train it from the base's codec.")
    return codec


def write_checkpoint(
    model: AdaptedModel,
    voice: Voice,
    name: str,
    base: str,
    folder: str | Path,
    codec: str | Path | None = None,
    weights_changed: bool = False,
) -> None:
    """Writes a complete checkpoint: the base with the adapter merged into it, and a new voice, which is its default.

    Args:
        codec: Folder of a codec whose decoder was tuned, to replace the base's.
        weights_changed: Whether the weights of the model differ from those of the base. If so, or with an adapter,
            voices with a tuned state are left out, because a state works only with the weights it was tuned for.
    """
    processor = SmallEProcessor.from_pretrained(base)
    if codec:
        processor.codec = load_tuned_codec(codec, processor)
    merged = model.merge_and_unload() if hasattr(model, "merge_and_unload") else model
    if merged is not model or weights_changed:
        processor.default_voice = None
        processor.voices = [kept for kept in processor.voices if not processor.get_voice(kept).state]
    processor.add_voice(name, voice)
    processor.default_voice = name
    processor.save_pretrained(folder)
    if codec:
        save_half(processor.codec, Path(folder, "codec"))
    save_half(merged, folder)


def parse(argv: Sequence[str] | None = None) -> argparse.Namespace:
    parser = command_parser("smalle finetune", __doc__)
    parser.add_argument("recipe", help="YAML file, or the name of a recipe of this package, such as finetune-lora")
    parser.add_argument("corpus", help="folder of recordings with their transcripts")
    parser.add_argument("base", type=find_checkpoint, help="checkpoint to start from: folder, Hub name or smalle-mini")
    parser.add_argument("out", help="folder for the new voice, and with LoRA for the adapter")
    parser.add_argument("overrides", nargs="*", metavar="KEY.SUBKEY=VALUE", help="changes a value of the recipe")
    parser.add_argument("--speaker", help="the speaker to learn from, if the corpus has several")
    parser.add_argument("--max-recordings", type=int, help="number of recordings to take, at random (default: all)")
    parser.add_argument("--name", help="name of the voice (default: the speaker, or the name of the folder CORPUS)")
    parser.add_argument("--save-checkpoint", metavar="FOLDER", help="also write a complete checkpoint")
    parser.add_argument(
        "--codec", metavar="FOLDER", help="codec of that checkpoint: BASE's, tuned with finetune-codec.yaml"
    )
    arguments = parser.parse_intermixed_args(argv)
    if arguments.codec and not arguments.save_checkpoint:
        parser.error("--codec is for a complete checkpoint: name its folder with --save-checkpoint")
    return arguments


def main(argv: Sequence[str] | None = None) -> None:
    """Runs the command."""
    arguments = parse(argv)
    recipe = read_recipe(FinetuneRecipe, arguments.recipe, arguments.overrides)
    if recipe.adapter.method == "full" and not arguments.save_checkpoint:
        raise ValueError("adapter.method=full changes the weights: name a folder for them with --save-checkpoint")
    if arguments.codec:  # to fail now and not after the training
        load_tuned_codec(arguments.codec, SmallEProcessor.from_pretrained(arguments.base))
    name = arguments.name or arguments.speaker or Path(arguments.corpus).resolve().name
    base, out = arguments.base, arguments.out
    model, voice, losses = finetune(recipe, arguments.corpus, base, arguments.speaker, arguments.max_recordings)
    path = write_adapter(model, voice, name, out)
    write_recipe(recipe, Path(out, find_recipe(arguments.recipe).name))
    data = "held-out recordings" if recipe.data.recombined is None else "the recordings"
    print(f"loss on {data}: {losses[0]:.3f} before, {losses[1]:.3f} after")
    print(f"{path}; {out}: {folder_size(out) / 1e6:.2f} MB")
    if arguments.save_checkpoint:
        changed = recipe.adapter.method == "full"
        write_checkpoint(model, voice, name, base, arguments.save_checkpoint, arguments.codec, weights_changed=changed)


if __name__ == "__main__":
    sys.exit(run_command("smalle", main))
