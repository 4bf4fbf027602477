"""Creates the model to train, with random weights or from a checkpoint, optionally with more layers."""

import os
from typing import Any

import torch

from smalle import SmallEConfig, SmallEForTextToSpeech

from .recipe import Recipe, check_keys

LAYER_COUNTS = {"text_layers", "audio_encoder_layers", "audio_decoder_layers", "decoder_layers", "speaker_layers"}
FREE_FIELDS = {
    "dropout",
    "max_text_tokens",
    "max_audio_frames",
    "mixer_kernel",
    "use_cache",
}  # weights do not depend on them


def grow(checkpoint: str | os.PathLike, changes: dict[str, Any]) -> SmallEForTextToSpeech:
    """Loads a checkpoint and adds layers with zero output projections, so that the outputs of the model do not change.

    Args:
        checkpoint: Folder or Hub name.
        changes: Changed fields of its configuration: larger numbers of layers, or fields that do not affect weights.

    Raises:
        ValueError: For any other change.
    """
    check_keys(changes, SmallEConfig.__annotations__, "model")
    trained = SmallEForTextToSpeech.from_pretrained(checkpoint, dtype=torch.float32)
    config = SmallEConfig(**{**SmallEConfig.from_pretrained(checkpoint).to_dict(), **changes})
    changed = {name for name in changes if getattr(config, name) != getattr(trained.config, name)}
    if not changed:  # keep the loaded model: it knows its path, which adapters refer to
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
