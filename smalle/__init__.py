"""Small-E: a small codec language model that speaks.

The classes are registered with transformers when both packages have been imported, in any order, or on first use.
Nothing is imported before, because `smalle.lite` needs neither transformers nor PyTorch.
"""

import contextlib
import importlib
import importlib.abc
import importlib.util
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


class RegisterWithTransformers(importlib.abc.MetaPathFinder):
    """Registers the classes as soon as transformers is imported, so that the order of imports does not matter."""

    def find_spec(self, fullname, path=None, target=None):
        if fullname != "transformers":
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(fullname)
        if spec is not None and spec.loader is not None:
            load = spec.loader.exec_module

            def load_and_register(module):
                load(module)
                with contextlib.suppress(ImportError):  # without PyTorch
                    register()

            spec.loader.exec_module = load_and_register  # type: ignore[method-assign]
        return spec


if "transformers" in sys.modules:
    register()
else:
    sys.meta_path.insert(0, RegisterWithTransformers())
