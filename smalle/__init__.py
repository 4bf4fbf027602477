"""Small-E: a small codec language model that speaks. Importing the package registers its classes with transformers."""

from transformers import AutoConfig, AutoModel, AutoModelForTextToWaveform, AutoProcessor

from .configuration_smalle import SmallEConfig
from .modeling_smalle import SmallEForTextToSpeech, SmallEModel
from .processing_smalle import SmallEProcessor

AutoConfig.register("smalle", SmallEConfig, exist_ok=True)
AutoModel.register(SmallEConfig, SmallEModel, exist_ok=True)
AutoModelForTextToWaveform.register(SmallEConfig, SmallEForTextToSpeech, exist_ok=True)
AutoProcessor.register(SmallEConfig, SmallEProcessor, exist_ok=True)
