"""Text and voices to tensors; codes to audio."""

import os
import re
import unicodedata

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from transformers import BatchFeature, ProcessorMixin
from transformers.utils import cached_file

from .codec_smalle import load_codec

try:
    from num2words import num2words
except ImportError:
    num2words = None

try:
    import soundfile
except (ImportError, OSError):
    soundfile = None

try:
    import soxr
except ImportError:
    soxr = None

NUMBER = re.compile(r"(\d+(?:,\d{3}(?!\d))*(?:\.\d+)?)(?:(st|nd|rd|th)\b)?", re.IGNORECASE)
NUMBER_EDGE = re.compile(r"(?<=[^\W\d_])(?=\d)|(?<=\d)(?!(?:st|nd|rd|th)\b)(?=[^\W\d_])", re.IGNORECASE)  # A4, 5kg
DIGITS = "zero one two three four five six seven eight nine".split()


def save_voice(path, codes, text):
    """A voice is a named prompt: codes (P, Q) of a recording and what it says, in one safetensors file."""
    partial = f"{path}.partial"
    save_file({"codes": codes.to(torch.int16).contiguous()}, partial, metadata={"text": text})
    os.replace(partial, path)


def load_voice(path):
    """Codes (P, Q) int64 and transcript of a voice file."""
    try:
        with safe_open(path, "pt") as file:
            return file.get_tensor("codes").long(), file.metadata()["text"]
    except (SafetensorError, KeyError, TypeError) as error:
        raise ValueError(f"{path} is not a voice file: expected codes and a text as save_voice writes them") from error


def read_recording(path):
    """Waveform (channels, L) float32 and sampling rate of an audio file."""
    if soundfile is None:
        raise ValueError("Reading a file needs soundfile: install it, or give the waveform as an array.")
    if not os.path.isfile(path):
        raise ValueError(f"audio={str(path)!r}: there is no such file.")
    try:
        audio, sampling_rate = soundfile.read(path, dtype="float32", always_2d=True)
    except soundfile.SoundFileError as error:
        raise ValueError(f"audio={str(path)!r} is not a recording: expected wav, flac, ogg or mp3.") from error
    return audio.T, sampling_rate


def spell_number(match):
    """Digits as words; one by one where there are too many for a number, or num2words is not installed."""
    digits, ordinal = match[1].replace(",", ""), match[2]
    if num2words is None or len(digits) > 15:
        return " ".join("point" if c == "." else DIGITS[int(c)] for c in digits)
    number = float(digits) if "." in digits else int(digits)
    kind = "ordinal" if ordinal and "." not in digits else "cardinal"
    return num2words(number, to=kind).replace(",", "")


class SmallEProcessor(ProcessorMixin):
    """Bundles the tokenizer, the voices and the codec of a checkpoint.

    Args:
        tokenizer: lower-cased BPE.
        codec: folder inside the checkpoint, or name, of the codec; loaded when first needed.
        voices: names of the presets, each a file voices/NAME.safetensors.
        default_voice: the preset that speaks when nothing else is asked for; None: no prompt at all.
        sampling_rate: of the audio, Hz.
    """

    def __init__(self, tokenizer, codec="codec", voices=None, default_voice=None, sampling_rate=24000, chat_template=None):
        super().__init__(tokenizer, chat_template=chat_template)
        self.codec_name, self.default_voice = codec, default_voice
        self.voices, self.sampling_rate = list(voices or []), sampling_rate
        self.source, self._codec, self._loaded_voices = None, None, {}
        if default_voice is not None and default_voice not in self.voices:
            raise ValueError(f"default_voice={default_voice!r} is not one of the voices {self.voices}.")

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path, **kwargs):
        processor = super().from_pretrained(pretrained_model_name_or_path, **kwargs)
        processor.source = str(pretrained_model_name_or_path)
        return processor

    def to_dict(self):
        extra = {"codec": self.codec_name, "auto_map": {"AutoProcessor": "processing_smalle.SmallEProcessor"}}
        return {**ProcessorMixin.to_dict(self._without_codec()), **extra}

    def _without_codec(self):
        bare = object.__new__(type(self))
        bare.__dict__.update(self.__dict__, _codec=None, _loaded_voices={}, source=None)
        return bare

    def __getstate__(self):
        return self._without_codec().__dict__ | {"source": self.source}

    @property
    def codec(self):
        """The codec, loaded on first use."""
        if self._codec is None:
            inside = self.source is not None and "/" not in self.codec_name and self.codec_name != "encodec"
            self._codec = load_codec(self.source, self.codec_name) if inside else load_codec(self.codec_name)
        return self._codec

    @property
    def model_input_names(self):
        return ["input_ids", "attention_mask", "audio_codes", "audio_attention_mask"]

    def __call__(self, text=None, voice=None, audio=None, audio_text=None, sampling_rate=None, return_tensors="pt", **kwargs):
        """Inputs of `generate()` for a text or a list of texts.

        Args:
            text: what to say, one string or a list.
            voice: name of a preset, or path of a voice file; or a list with one for each text.
            audio, audio_text, sampling_rate: a voice to clone: waveform (L,) or (channels, L), or the path of a
                recording; what it says; samples a second of a waveform.

        Returns:
            input_ids, attention_mask (B, N), left-padded; with a voice also audio_codes (B, P, Q), undelayed, and
            audio_attention_mask (B, P).
        """
        if return_tensors != "pt" or kwargs:
            raise ValueError(f"return_tensors={return_tensors!r}, {kwargs}: this processor returns 'pt', nothing else.")
        texts = [text] if isinstance(text, str) else text
        if not isinstance(texts, (list, tuple)) or not texts or not all(isinstance(t, str) for t in texts):
            raise ValueError(f"text={text!r}: expected a string or a list of strings.")
        if audio is not None:
            if voice is not None:
                raise ValueError("Give either voice (a preset) or audio (a recording to clone), not both.")
            prompts = [self.encode_voice(audio, audio_text, sampling_rate)] * len(texts)
        else:
            voices = voice if isinstance(voice, (list, tuple)) else [voice or self.default_voice] * len(texts)
            if len(voices) != len(texts):
                raise ValueError(f"{len(voices)} voices for {len(texts)} texts: expected one voice or one for each text.")
            prompts = [self._voice(name) for name in voices]
        joined = [" ".join(filter(None, (said, self.normalize(t)))) for (_, said), t in zip(prompts, texts)]
        tokens = self.tokenizer(joined, padding=True, padding_side="left", return_tensors="pt")
        data = {"input_ids": tokens["input_ids"], "attention_mask": tokens["attention_mask"]}
        if any(codes is not None for codes, _ in prompts):
            data.update(self._pad_prompts([codes for codes, _ in prompts]))
        return BatchFeature(data)

    def normalize(self, text):
        """Text as the tokenizer knows it: numbers in words, accents and unknown characters removed, a final mark."""
        text = NUMBER.sub(spell_number, NUMBER_EDGE.sub(" ", text))
        text = unicodedata.normalize("NFKD", text.replace("&", " and ").replace("%", " percent"))
        text = text.translate(str.maketrans("‘’ʼ“”–—…", "'''\"\"--."))
        known = {c for token in self.tokenizer.get_vocab() if not token.startswith("[") for c in token}
        text = " ".join("".join(c for c in text if c.isspace() or c.lower() in known).split())
        if not any(c.isalpha() for c in text):
            raise ValueError(
                f"text={text!r} has nothing to speak: expected at least one letter or digit that the tokenizer knows."
            )
        return text + "." if text[-1].isalpha() else text

    def _voice(self, name):
        """Codes (P, Q) and transcript of a preset or a voice file; (None, "") for no voice."""
        if name is None:
            return None, ""
        if name not in self._loaded_voices:
            if name in self.voices and self.source is not None:
                path = cached_file(self.source, f"voices/{name}.safetensors")
            elif os.path.isfile(name):
                path = name
            else:
                raise ValueError(f"voice={name!r} is not known; expected one of {self.voices} or a voice file.")
            self._loaded_voices[name] = load_voice(path)
        return self._loaded_voices[name]

    def encode_voice(self, audio, audio_text, sampling_rate=None):
        """Codes (P, Q) and transcript of a recording: a voice. See `__call__`."""
        if not audio_text:
            raise ValueError("audio= needs audio_text=, what the recording says: the model goes on from both.")
        if isinstance(audio, (str, os.PathLike)):
            audio, sampling_rate = read_recording(audio)
        audio = np.asarray(audio)
        if audio.dtype.kind != "f":
            raise ValueError(f"audio holds {audio.dtype}: expected floats in -1..1; divide 16-bit audio by 32768.")
        if audio.ndim not in (1, 2) or audio.ndim == 2 and audio.shape[0] > audio.shape[1]:
            raise ValueError(f"audio has shape {audio.shape}: expected (L,) or (channels, L).")
        if sampling_rate is None or sampling_rate <= 0:
            raise ValueError(f"sampling_rate={sampling_rate}: say how many samples a second the waveform has.")
        audio = audio.astype(np.float32) if audio.ndim == 1 else audio.astype(np.float32).mean(0)
        if sampling_rate != self.sampling_rate:
            if soxr is None:
                raise ValueError(f"The waveform has {sampling_rate} Hz; expected {self.sampling_rate}, or install soxr.")
            audio = soxr.resample(audio, sampling_rate, self.sampling_rate)
        codes = self.codec.encode(torch.from_numpy(audio)[None])[0].T.cpu()
        return codes, self.normalize(audio_text)

    def _pad_prompts(self, prompts):
        """Right-pads prompts (P, Q) of different lengths."""
        longest = max(0 if codes is None else len(codes) for codes in prompts)
        width = next(codes.shape[1] for codes in prompts if codes is not None)
        padded = torch.zeros(len(prompts), longest, width, dtype=torch.long)
        mask = torch.zeros(len(prompts), longest, dtype=torch.long)
        for row, codes in enumerate(prompts):
            if codes is not None:
                padded[row, : len(codes)] = codes
                mask[row, : len(codes)] = 1
        return {"audio_codes": padded, "audio_attention_mask": mask}

    @torch.no_grad()
    def decode(self, codes, **kwargs):
        """Codes (B, T, Q) or (T, Q), negative after a row's end -> list of float32 waveforms (L,) on the CPU."""
        rows = codes[None] if codes.ndim == 2 else codes
        waves = []
        for row in rows:
            row = row[(row >= 0).all(-1)]
            if not len(row):
                waves.append(torch.zeros(0))
                continue
            wave = self.codec.decode(row.T[None].to(next(self.codec.parameters()).device))
            waves.append(wave[0].float().cpu())
        return waves

    batch_decode = decode

    def save_pretrained(self, save_directory, **kwargs):
        """Also saves the voices and, where it is one of ours or loaded, the codec."""
        files = super().save_pretrained(save_directory, **kwargs)
        os.makedirs(os.path.join(save_directory, "voices"), exist_ok=True)
        for name in self.voices:
            save_voice(os.path.join(save_directory, "voices", f"{name}.safetensors"), *self._voice(name))
        if "/" not in self.codec_name and self.codec_name != "encodec" and (self._codec or self.source):
            self.codec.save_pretrained(os.path.join(save_directory, self.codec_name))
        return files
