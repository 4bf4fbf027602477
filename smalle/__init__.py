"""Small-E: a small codec language model that speaks.

The classes are imported when they are first used, and registered with transformers then, or at once where transformers
is there already: `smalle.lite` needs neither transformers nor PyTorch.
"""

import importlib
import sys
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .configuration_smalle import SmallEConfig as SmallEConfig
    from .modeling_smalle import SmallEForTextToSpeech as SmallEForTextToSpeech
    from .modeling_smalle import SmallEModel as SmallEModel
    from .processing_smalle import SmallEProcessor as SmallEProcessor

MODULES = {
    "SmallEConfig": "configuration_smalle",
    "SmallEModel": "modeling_smalle",
    "SmallEForTextToSpeech": "modeling_smalle",
    "SmallEProcessor": "processing_smalle",
}


def register() -> None:
    """Imports the classes and registers them with transformers' auto classes."""
    from transformers import AutoConfig, AutoModel, AutoModelForTextToWaveform, AutoProcessor

    for name, module in MODULES.items():
        globals()[name] = getattr(importlib.import_module(f".{module}", __name__), name)
    config = globals()["SmallEConfig"]
    AutoConfig.register("smalle", config, exist_ok=True)
    AutoModel.register(config, globals()["SmallEModel"], exist_ok=True)
    AutoModelForTextToWaveform.register(config, globals()["SmallEForTextToSpeech"], exist_ok=True)
    AutoProcessor.register(config, globals()["SmallEProcessor"], exist_ok=True)


def __getattr__(name: str) -> Any:
    if name not in MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    register()
    return globals()[name]


if "transformers" in sys.modules:
    register()
