"""Speech without PyTorch: NumPy, the C library, safetensors and tokenizers.

from smalle.lite import TextToSpeech

speech = TextToSpeech.load().speak("Hello.", seed=0)  # float32 samples at 24 kHz
"""

from .speech import TextToSpeech as TextToSpeech
