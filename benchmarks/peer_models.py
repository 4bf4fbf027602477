"""Other synthesizers in their published sizes with random weights, which speak for a given time.

Speed does not depend on the weights, but length does: where a model decides when to end, the decision is computed and
ignored. Each class has `sampling_rate`, `parameters`, `rows` (whether it speaks several texts at once) and
`speak(seconds, rows)`: waveforms (L,) or (B, L), as soon as the model's own interface returns them.
"""

import importlib
import json
import pathlib
import tempfile

import torch
import transformers  # which loads a model's code when it is named

CHARACTERS, WORD_PIECES = 15, 4  # of text for a second of speech
VOICE = 5.0  # seconds of a recording to clone, where a model clones


def ids(rows, length, vocabulary):
    """Random tokens (rows, length) without the special ones."""
    return torch.randint(5, vocabulary, (rows, max(1, round(length))))


def count(*models):
    return sum(parameter.numel() for model in models for parameter in model.parameters())


class Vits:
    """VITS of facebook/mms-tts-eng: all at once."""

    rows = True

    def __init__(self):
        self.model = transformers.VitsModel(transformers.VitsConfig()).eval()
        self.parameters, self.sampling_rate = count(self.model), self.model.config.sampling_rate
        self.model.duration_predictor.register_forward_hook(lambda module, x, y: torch.full_like(y, 0.5))  # 2 frames

    @torch.inference_mode()
    def speak(self, seconds, rows=1):
        frames = seconds * self.sampling_rate / 256  # characters and the blanks between them: two frames each
        yield self.model(ids(rows, frames / 2, self.model.config.vocab_size)).waveform


class SpeechT5:
    """SpeechT5 of microsoft/speecht5_tts with its HiFi-GAN: a spectrogram frame by frame, then the sound."""

    rows, sampling_rate = True, 16000

    def __init__(self):
        self.model = transformers.SpeechT5ForTextToSpeech(transformers.SpeechT5Config()).eval()
        self.vocoder = transformers.SpeechT5HifiGan(transformers.SpeechT5HifiGanConfig()).eval()
        self.parameters = count(self.model, self.vocoder)

    @torch.inference_mode()
    def speak(self, seconds, rows=1):
        text = ids(rows, seconds * CHARACTERS, self.model.config.vocab_size)
        frames = seconds * self.sampling_rate / 256 / text.shape[1]
        yield self.model.generate_speech(
            text,
            torch.randn(rows, self.model.config.speaker_embedding_dim),
            vocoder=self.vocoder,
            threshold=self.model.config.reduction_factor + 1,
            minlenratio=frames,
            maxlenratio=frames,
        )


class FastSpeech2:
    """FastSpeech2Conformer of espnet/fastspeech2_conformer_with_hifigan: all at once."""

    rows, sampling_rate = True, 22050

    def __init__(self):
        config = transformers.FastSpeech2ConformerWithHifiGanConfig()
        self.model = transformers.FastSpeech2ConformerWithHifiGan(config).eval()
        self.parameters = count(self.model)
        self.model.model.duration_predictor.register_forward_hook(lambda module, x, y: torch.full_like(y, 7))

    @torch.inference_mode()
    def speak(self, seconds, rows=1):
        text = ids(rows, seconds * self.sampling_rate / 256 / 7, self.model.config.model_config.vocab_size)
        yield self.model(text, attention_mask=torch.ones_like(text)).waveform


class BarkSmall:
    """Bark of suno/bark-small: three language models one after the other, then EnCodec. A batch takes minutes."""

    rows, sampling_rate = False, 24000

    def __init__(self):
        shape = dict(hidden_size=768, num_layers=12, num_heads=12, bias=False)
        parts = {"semantic": (129600, 10048), "coarse_acoustics": (12096, 12096), "fine_acoustics": (1056, 1056)}
        sizes = {
            f"{name}_config": dict(input_vocab_size=before, output_vocab_size=after, **shape)
            for name, (before, after) in parts.items()
        }
        config = transformers.BarkConfig(**sizes, codec_config=transformers.EncodecConfig().to_dict())
        self.model = transformers.BarkModel(config).eval()
        way = importlib.import_module("transformers.models.bark.generation_configuration_bark").BarkGenerationConfig()
        for name in sizes:  # as a checkpoint has them
            setattr(way, name, getattr(way, name).to_dict())
        self.model.generation_config, self.parameters = way, count(self.model)

    def speak(self, seconds, rows=1):
        tokens = round(seconds * self.model.generation_config.semantic_config["semantic_rate_hz"])
        yield self.model.generate(
            ids(rows, 256, 10000), do_sample=True, semantic_min_new_tokens=tokens, semantic_max_new_tokens=tokens
        )


class PocketInTransformers:
    """pocket-tts of transformers in its English shape: all latents, then the sound of all."""

    rows, sampling_rate = True, 24000

    def __init__(self):
        self.model = transformers.PocketTTSForConditionalGeneration(transformers.PocketTTSConfig()).eval()
        config = transformers.PocketTTSAudioTokenizerConfig(encoder_config=None)
        self.codec = transformers.PocketTTSAudioTokenizerModel(config).eval()
        self.parameters = count(self.model, self.codec)

    @torch.inference_mode()
    def speak(self, seconds, rows=1):
        config = self.model.config
        voice = torch.randn(rows, round(VOICE * config.frame_rate), config.latent_dim)
        places = [config.audio_prompt_bos_token_id] + [config.audio_prompt_token_id] * voice.shape[1]
        text, end = ids(rows, seconds * WORD_PIECES, 4000), torch.full((rows, 1), config.audio_bos_token_id)
        prompt = torch.cat((torch.tensor([places] * rows), text, end), 1)
        latents = self.model.generate(
            prompt,
            attention_mask=torch.ones_like(prompt),
            audio_prompt_latents=voice,
            do_sample=True,
            temperature=0.3,
            audio_prompt_latents_mask=torch.ones(voice.shape[:2], dtype=torch.long),
            frames_after_eos=2,
            max_new_tokens=round(seconds * config.frame_rate),
            eos_threshold=float("inf"),
            return_dict_in_generate=True,
        ).audio_latents
        yield self.codec.decode(latents).audio_values


class PocketTTS:
    """The package pocket-tts in its English shape; the decoder runs in a thread beside the language model."""

    rows, int8 = False, False

    def __init__(self):
        import pocket_tts
        import yaml
        from pocket_tts import quantization

        shape = yaml.safe_load((pathlib.Path(pocket_tts.__file__).parent / "config" / "english.yaml").read_text())
        for name in ("weights_path", "weights_path_without_voice_cloning"):
            shape.pop(name)
        with tempfile.TemporaryDirectory() as work:
            table = shape["flow_lm"]["lookup_table"]
            table["tokenizer_path"] = str(self._tokenizer(pathlib.Path(work) / "tokenizer.json", table["n_bins"]))
            path = pathlib.Path(work) / "random.yaml"
            path.write_text(json.dumps(shape))  # JSON is YAML
            threads = torch.get_num_threads()
            self.model = pocket_tts.TTSModel.load_model(config=path, eos_threshold=float("inf"))
            torch.set_num_threads(threads)  # which the package sets to 1
        self.sampling_rate, self.parameters = self.model.sample_rate, count(self.model)
        if self.int8:
            quantization.apply_dynamic_int8(self.model.flow_lm, quantization.RECOMMENDED_CONFIG)
        self.voice = self.model.get_state_for_audio_prompt(torch.randn(1, int(VOICE * self.sampling_rate)))

    @staticmethod
    def _tokenizer(path, size):
        """A tokenizer with made-up words in the size of the published vocabulary."""
        from tokenizers import Tokenizer, models, pre_tokenizers

        words = Tokenizer(models.WordLevel({f"word{n}": n for n in range(size)}, unk_token="word0"))
        words.pre_tokenizer = pre_tokenizers.Whitespace()
        words.save(str(path))
        return path

    def speak(self, seconds, rows=1):
        frames = round(seconds * self.model.config.mimi.frame_rate)
        self.model._estimate_max_gen_len = lambda tokens: frames
        words = " ".join(f"word{n}" for n in range(round(seconds * WORD_PIECES)))
        yield from self.model.generate_audio_stream(self.voice, words)


class PocketTTSInt8(PocketTTS):
    """With the quantization of the package."""

    int8 = True


PEERS = {  # name: (class, package that it needs)
    "pocket-tts": (PocketTTS, "pocket_tts"),
    "pocket-tts, int8": (PocketTTSInt8, "pocket_tts"),
    "pocket-tts in transformers": (PocketInTransformers, None),
    "VITS": (Vits, None),
    "SpeechT5, HiFi-GAN": (SpeechT5, None),
    "FastSpeech2Conformer, HiFi-GAN": (FastSpeech2, None),
    "Bark small": (BarkSmall, None),
}
