"""Puts a checkpoint together in the form of a Hub repository: weights, code, codec, tokenizer, voices.

usage: python -m smalle.train.assemble MODEL CODEC VOICES.yaml OUT [--card CARD.md]

MODEL: output folder of smalle.train.model.trainer, or one of its checkpoints, whose averaged weights are taken. CODEC: folder of
train.codec. VOICES.yaml: default: NAME, voices: {NAME: {audio: recording, text: transcript}}, or lists of several,
without the text for models with a speaker encoder, or, of a voice that was tuned, {NAME: {file: voice}}, paths from
where the command runs, and generation: {...}, what generate() shall do by default. Weights are stored in half
precision and load as float32.
"""

import argparse
import json
import pathlib
import shutil

import torch
import yaml
from safetensors.torch import load_file
from transformers import AutoTokenizer, GenerationConfig

import smalle
from smalle.codec_smalle import load_codec
from smalle.hub_smalle import write_card
from smalle.processing_smalle import SmallEProcessor
from smalle.voices_smalle import join_voices, load_voice, save_voice

from .model.ema import EMACallback

GENERATION = {"do_sample": True, "top_k": 100, "temperature": 1.0, "max_seconds": 60}


def save_half(model, folder):
    """Weights in fp16, which halves the folder; the configuration says float32, so that they load as float32."""
    model.half().save_pretrained(folder)
    path = pathlib.Path(folder) / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "dtype": "float32"}, indent=2) + "\n")


def make_voice(name, voice, processor, config):
    """The `Voice` of an entry of VOICES.yaml. Raises ValueError for one that could not speak."""
    needed = {"audio"} if config.speaker_layers else {"audio", "text"}
    if "file" not in voice and not needed <= voice.keys() <= {"audio", "text"}:
        raise ValueError(f"voice {name}: {sorted(voice)}: expected file, or {' and '.join(sorted(needed))}.")
    if "file" in voice:
        return load_voice(voice["file"])
    audio, texts = (x if isinstance(x, list) else [x] for x in (voice["audio"], voice.get("text")))
    texts = texts if "text" in voice else [None] * len(audio)
    if len(audio) != len(texts):
        raise ValueError(f"voice {name}: {len(audio)} recordings, {len(texts)} texts: expected as many, or no text.")
    return join_voices([processor.encode_voice(*recording) for recording in zip(audio, texts)])


def assemble(model_folder, codec_folder, voices_file, out, card=None):
    """Writes OUT; returns its size in bytes."""
    partial = pathlib.Path(f"{out}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    (partial / "voices").mkdir(parents=True)
    recipe = yaml.safe_load(pathlib.Path(voices_file).read_text())
    settings = {**GENERATION, **recipe.get("generation", {})}
    model = smalle.SmallEForTextToSpeech.from_pretrained(model_folder, dtype=torch.float32)
    averaged = pathlib.Path(model_folder) / EMACallback.FILE
    if averaged.is_file():
        average = load_file(averaged)
        tied = {name: average[source] for name, source in model.all_tied_weights_keys.items()}
        model.load_state_dict({**average, **tied})
    config = model.config
    model.generation_config = GenerationConfig(
        max_new_tokens=int(settings.pop("max_seconds") * config.frame_rate),
        pad_token_id=config.pad_token_id,
        bos_token_id=config.bos_token_id,
        eos_token_id=config.eos_token_id,
        **settings,
    )
    write_card(partial, pathlib.Path(out).name)
    save_half(model, partial)
    processor = SmallEProcessor(
        AutoTokenizer.from_pretrained(model_folder),
        voices=sorted(recipe["voices"]),
        default_voice=recipe["default"],
        sampling_rate=config.sampling_rate,
    )
    processor._codec = load_codec(codec_folder)
    for name, voice in recipe["voices"].items():
        save_voice(partial / "voices" / f"{name}.safetensors", *make_voice(name, voice, processor, config))
    processor.source = str(partial)
    processor.save_pretrained(partial)
    save_half(processor.codec, partial / "codec")
    if card:
        shutil.copy(card, partial / "README.md")
    shutil.rmtree(out, ignore_errors=True)
    partial.rename(out)
    return sum(path.stat().st_size for path in pathlib.Path(out).rglob("*") if path.is_file())


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in ("model", "codec", "voices", "out"):
        parser.add_argument(name)
    parser.add_argument("--card")
    arguments = parser.parse_args()
    size = assemble(arguments.model, arguments.codec, arguments.voices, arguments.out, card=arguments.card)
    print(f"{arguments.out}: {size / 1e6:.1f} MB")


if __name__ == "__main__":
    main()
