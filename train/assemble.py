"""Assembles a checkpoint in the form of a Hub repository: weights, remote code, codec, tokenizer and voices.

  python -m smalle.train.assemble MODEL CODEC VOICES.yaml OUT [--card CARD.md]

MODEL is the output folder of `smalle train`, or one of the checkpoints in it, whose averaged weights are used. CODEC is
the output folder of the training of a codec. VOICES.yaml (such as train/recipes/voices-mini.yaml) has the keys

  default: NAME
  voices: {NAME: {audio: RECORDING, text: TRANSCRIPT}, ...}
  generation: default options of generate()
  clones_by_reference: whether to level and clean recordings, here and when the checkpoint clones

`audio` and `text` may be lists. A model with a speaker encoder does not need `text`. {file: VOICE} names a voice file
instead. Weights are stored in half precision and loaded in single precision.
"""

import json
import os
import shutil
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from transformers import AutoTokenizer, GenerationConfig, PreTrainedModel

from smalle import SmallEConfig, SmallEForTextToSpeech, SmallEProcessor
from smalle.cli.command import command_parser, run_command
from smalle.codec_smalle import SmallECodec, load_codec
from smalle.saving_smalle import atomic_folder, write_card, write_text
from smalle.voices_smalle import Voice, join_voices, load_voice

from .model.ema import EMACallback
from .model.recipe import make_dataclass, read_recipe

GENERATION = {"temperature": 1.0, "max_retries": 2}


@dataclass
class VoiceSource:
    """Recordings with or without transcripts, or a voice file."""

    audio: str | list[str] | None = None
    text: str | list[str] | None = None
    file: str | None = None


@dataclass
class VoicesRecipe:
    """VOICES.yaml: the voices of a checkpoint, by name, its default options of generate(), and how it clones."""

    default: str
    voices: dict[str, dict[str, Any]]
    generation: dict[str, Any] = field(default_factory=dict)
    clones_by_reference: bool = False


def save_half(model: PreTrainedModel, folder: str | os.PathLike) -> None:
    """Saves a model in float16 with float32 in its config.json, so that it loads in float32."""
    model.half().save_pretrained(folder)
    path = Path(folder, "config.json")
    config = {**json.loads(path.read_text(encoding="utf-8")), "dtype": "float32"}
    write_text(path, json.dumps(config, indent=2) + "\n")


def folder_size(folder: str | os.PathLike) -> int:
    """Bytes of all files in a folder."""
    return sum(path.stat().st_size for path in Path(folder).rglob("*") if path.is_file())


def keep_codebooks(codec: SmallECodec, count: int) -> SmallECodec:
    """The codec with only its first `count` codebooks."""
    codec.quantizer.codebooks = codec.quantizer.codebooks[:count].clone()
    codec.config.num_codebooks = count
    return codec


def make_voice(
    name: str, source: VoiceSource, processor: SmallEProcessor, config: SmallEConfig, clean: bool = False
) -> Voice:
    """Makes a voice of VOICES.yaml; `clean`: cleans its recordings. Raises ValueError if the model cannot use it."""
    if source.file:
        return load_voice(source.file)
    if not source.audio or not (source.text or config.speaker_layers):
        raise ValueError(f"voice {name}: expected `file`, or `audio` and its transcript `text`.")
    audio = source.audio if isinstance(source.audio, list) else [source.audio]
    texts = source.text if isinstance(source.text, list) else [source.text] if source.text else [None] * len(audio)
    if len(audio) != len(texts):
        raise ValueError(f"voice {name}: {len(audio)} recordings and {len(texts)} texts: expected as many, or no text.")
    rate = None
    if clean:
        audio, rate = [processor.clean_recording(one) for one in audio], processor.sampling_rate
    return join_voices([processor.reference_voice(one, text, rate) for one, text in zip(audio, texts)])


def generation_config(config: SmallEConfig, max_seconds: float = 60, **settings) -> GenerationConfig:
    """Default options of generate()."""
    return GenerationConfig(
        max_new_tokens=int(max_seconds * config.frame_rate),
        pad_token_id=config.pad_token_id,
        bos_token_id=config.bos_token_id,
        eos_token_id=config.eos_token_id,
        **{"do_sample": True, "top_k": 100, **settings},
    )


def load_model(folder: str | os.PathLike) -> SmallEForTextToSpeech:
    """Loads the output of a training, or one of its checkpoints with the averaged weights."""
    model = SmallEForTextToSpeech.from_pretrained(folder, dtype=torch.float32)
    averaged = Path(folder, EMACallback.FILE)
    if averaged.is_file():
        average = load_file(averaged)
        tied = {name: average[source] for name, source in model.all_tied_weights_keys.items()}
        model.load_state_dict({**average, **tied})
    return model


def assemble(
    model_folder: str | os.PathLike,
    codec_folder: str | os.PathLike,
    voices_file: str | os.PathLike,
    out: str | os.PathLike,
    card: str | os.PathLike | None = None,
) -> int:
    """Writes the checkpoint OUT; returns its size in bytes."""
    recipe, model = read_recipe(VoicesRecipe, voices_file), load_model(model_folder)
    config = model.config
    model.generation_config = generation_config(config, **{**GENERATION, **recipe.generation})
    processor = SmallEProcessor(AutoTokenizer.from_pretrained(model_folder), sampling_rate=config.sampling_rate)
    codec = load_codec(str(codec_folder))
    processor.codec = keep_codebooks(codec, config.num_codebooks) if isinstance(codec, SmallECodec) else codec
    for name, values in sorted(recipe.voices.items()):
        source = make_dataclass(VoiceSource, values, f"voices.{name}")
        processor.add_voice(name, make_voice(name, source, processor, config, recipe.clones_by_reference))
    processor.default_voice, processor.clones_by_reference = recipe.default, recipe.clones_by_reference
    with atomic_folder(out) as folder:
        if card:
            shutil.copy(card, folder / "README.md")
        write_card(folder, Path(out).name)
        save_half(model, folder)
        processor.save_pretrained(folder)
        save_half(processor.codec, folder / "codec")
    return folder_size(out)


def main(argv: Sequence[str] | None = None) -> None:
    """Runs the command."""
    parser = command_parser("python -m smalle.train.assemble", __doc__)
    parser.add_argument("model", help="output folder of `smalle train`, or a checkpoint in it")
    parser.add_argument("codec", help="folder of the codec")
    parser.add_argument("voices", help="YAML file of the voices")
    parser.add_argument("out", help="folder of the checkpoint to write")
    parser.add_argument("--card", help="model card to copy to README.md (default: a template)")
    arguments = parser.parse_args(argv)
    size = assemble(arguments.model, arguments.codec, arguments.voices, arguments.out, arguments.card)
    print(f"{arguments.out}: {size / 1e6:.1f} MB")


if __name__ == "__main__":
    sys.exit(run_command("assemble", main))
