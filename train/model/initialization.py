"""The model that a recipe trains: with random weights, or a checkpoint, which may get more layers."""

import os
from typing import Any

import torch

from smalle import SmallEConfig, SmallEForTextToSpeech

from .recipe import Recipe, check_keys

LAYER_COUNTS = {"text_layers", "audio_encoder_layers", "audio_decoder_layers", "decoder_layers", "speaker_layers"}
FREE_FIELDS = {"dropout", "max_text_tokens", "max_audio_frames", "mixer_kernel", "use_cache"}  # trained weights fit any


def grow(checkpoint: str | os.PathLike, changes: dict[str, Any]) -> SmallEForTextToSpeech:
    """Loads a checkpoint and adds layers, whose output projections are zero: the model computes what it did before.

    Args:
        checkpoint: Folder or Hub name.
        changes: Fields of its configuration: larger numbers of layers, or fields that no weight depends on.

    Raises:
        ValueError: For other changes.
    """
    check_keys(changes, SmallEConfig.__annotations__, "model")
    trained = SmallEForTextToSpeech.from_pretrained(checkpoint, dtype=torch.float32)
    config = SmallEConfig(**{**SmallEConfig.from_pretrained(checkpoint).to_dict(), **changes})
    changed = {name for name in changes if getattr(config, name) != getattr(trained.config, name)}
    if not changed:  # the loaded model knows its path, which an adapter names as its base
        return trained
    for name in sorted(changed - FREE_FIELDS):
        new, old = getattr(config, name), getattr(trained.config, name)
        if name not in LAYER_COUNTS or new < old:
            raise ValueError(f"model.{name}={new!r}: {checkpoint} has {old!r}; expected that, or more layers.")
    model = SmallEForTextToSpeech(config)
    model.generation_config = trained.generation_config
    missing = model.load_state_dict(trained.state_dict(), strict=False).missing_keys
    for name, module in model.named_modules():
        if hasattr(module, "residual_branches") and f"{name}.weight" in missing:
            torch.nn.init.zeros_(module.weight)
    return model


def build_model(recipe: Recipe, vocab_size: int) -> SmallEForTextToSpeech:
    """The model of a recipe before training."""
    if recipe.init:
        return grow(recipe.init, recipe.model)
    check_keys(recipe.model, SmallEConfig.__annotations__, "model")
    return SmallEForTextToSpeech(SmallEConfig(vocab_size=vocab_size, **recipe.model))
