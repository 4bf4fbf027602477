"""What LoRA adapts by default. PEFT knows targets for the architectures of transformers alone."""

import sys

# All projections of the audio side, in every mixer and in the decoder-only transformer. The text encoder, the
# cross-attention and the heads stay: they read, and a voice does not change that.
LORA_TARGETS = r"(.*\.)?(audio_encoder|audio_decoder|transformer)\..*\.(q|k|v|g|r|o|in|gate|up|down)_proj"


def register_lora_targets(model_type="smalle"):
    """Enters the targets into PEFT's own table if PEFT (0.19 or later) is in use; `LoraConfig()` then needs none."""
    constants = sys.modules.get("peft.utils.constants")
    table = getattr(constants, "TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING", {})
    table.setdefault(model_type, LORA_TARGETS)
