"""Text and voices to tensors; codes to audio."""

import os
import pathlib
import re
import unicodedata

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from transformers import BatchFeature, ProcessorMixin
from transformers.utils import cached_file

from .alignment_smalle import monotonic_path, word_times
from .codec_smalle import load_codec
from .streaming_smalle import LONGEST, in_threads, sentences, stream_audio, stream_codes
from .wav_smalle import write_wav

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
WORD = re.compile(r"\w+(?:['-]\w+)*")
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

    def __call__(self, text=None, voice=None, audio=None, audio_text=None, sampling_rate=None, unprompted=False,
                 return_tensors="pt", **kwargs):  # fmt: skip
        """Inputs of `generate()` for a text or a list of texts.

        Args:
            text: what to say, one string or a list.
            voice: name of a preset, or path of a voice file; or a list with one for each text.
            audio, audio_text, sampling_rate: a voice to clone: waveform (L,) or (channels, L), or the path of a
                recording; what it says; samples a second of a waveform.
            unprompted: also return unprompted_input_ids, unprompted_attention_mask (B, M), the texts alone, which
                `generate(voice_guidance_scale=...)` needs.

        Returns:
            input_ids, attention_mask (B, N), left-padded; with a voice also audio_codes (B, P, Q), undelayed, and
            audio_attention_mask (B, P).
        """
        if return_tensors != "pt" or kwargs:
            raise ValueError(f"return_tensors={return_tensors!r}, {kwargs}: this processor returns 'pt', nothing else.")
        texts = self._texts(text)
        prompts = self._prompts(len(texts), voice, audio, audio_text, sampling_rate)
        return self.prompted([self.normalize(t) for t in texts], prompts, unprompted)

    def _prompts(self, count, voice, audio, audio_text, sampling_rate):
        """(codes, transcript) of the prompt of each of `count` texts."""
        if audio is None:
            return self._voices(voice, count)
        if voice is not None:
            raise ValueError("Give either voice (a preset) or audio (a recording to clone), not both.")
        return [self.encode_voice(audio, audio_text, sampling_rate)] * count

    def prompted(self, texts, prompts, unprompted=False):
        """As the call: of normalised texts, and prompts (codes (P, Q), transcript); (None, "") is none."""
        data = self._tokens([" ".join(filter(None, (said, t))) for (_, said), t in zip(prompts, texts)])
        if any(codes is not None for codes, _ in prompts):
            data.update(self._pad_prompts([codes for codes, _ in prompts]))
        if unprompted:
            data.update({f"unprompted_{name}": tensor for name, tensor in self._tokens(texts).items()})
        return BatchFeature(data)

    def stream(self, model, text, voice=None, audio=None, audio_text=None, sampling_rate=None, chunk_frames=16,
               seed=None, longest=LONGEST, **settings):  # fmt: skip
        """Speaks a text of any length: a generator of waveforms (L,) float32 on the CPU, as soon as they are certain.

        Joined they are the same whatever the chunks. A long text is read sentence by sentence, in the same voice and as
        one sound, in memory that does not grow; each piece starts from the prompt, so that nothing drifts. The model
        works when the next chunk is asked for; who leaves the loop has stopped it.

        Args:
            model: what generates, `SmallEForTextToSpeech`.
            text: a string. voice, audio, audio_text, sampling_rate: as in the call. Without any, the first piece's
                speech is the voice of the others.
            chunk_frames: frames that are written before audio is made of them.
            seed: makes the same speech again.
            longest: characters of a piece, where a sentence allows it.
            **settings: of `generate()`, except what needs the whole (num_return_sequences, best_of, max_time);
                max_new_tokens is that of one piece.
        """
        (text,) = self._texts(text) if isinstance(text, str) else [None]
        if text is None or longest < 1:
            raise ValueError(f"text={text!r}, longest={longest}: a stream takes one string, in pieces of 1 or more.")
        (prompt,) = self._prompts(1, voice, audio, audio_text, sampling_rate)

        def fits(piece):
            if len(piece) > longest:
                return False
            tokens = self.tokenizer(" ".join(filter(None, (prompt[1], piece))))["input_ids"]
            return len(tokens) <= model.config.max_text_tokens

        settings = {**settings, "chunk_frames": chunk_frames}
        codes = stream_codes(model, self, sentences(self, text, fits), prompt, seed, settings)
        return stream_audio(self.codec, codes)

    def astream(self, *args, **kwargs):
        """`stream` for an event loop: `async for wave in processor.astream(model, text)`. Work is done in threads."""
        return in_threads(self.stream(*args, **kwargs))

    def _texts(self, text):
        """One text or several as a list."""
        texts = [text] if isinstance(text, str) else text
        if not isinstance(texts, (list, tuple)) or not texts or not all(isinstance(t, str) for t in texts):
            raise ValueError(f"text={text!r}: expected a string or a list of strings.")
        return list(texts)

    def _tokens(self, texts):
        """input_ids and attention_mask (B, N), left-padded."""
        tokens = self.tokenizer(texts, padding=True, padding_side="left", return_tensors="pt")
        return {"input_ids": tokens["input_ids"], "attention_mask": tokens["attention_mask"]}

    def _voices(self, voice, count):
        """(codes, transcript) of the prompt of each text."""
        voices = voice if isinstance(voice, (list, tuple)) else [voice or self.default_voice] * count
        if len(voices) != count:
            raise ValueError(f"{len(voices)} voices for {count} texts: expected one voice or one for each text.")
        return [self._voice(name) for name in voices]

    def spell(self, text):
        """Text as the tokenizer knows it: numbers in words, accents and unknown characters removed, a final mark."""
        text = NUMBER.sub(spell_number, NUMBER_EDGE.sub(" ", text))
        text = unicodedata.normalize("NFKD", text.replace("&", " and ").replace("%", " percent"))
        text = text.translate(str.maketrans("‘’ʼ“”–—…", "'''\"\"--."))
        known = {c for token in self.tokenizer.get_vocab() if not token.startswith("[") for c in token}
        text = " ".join("".join(c for c in text if c.isspace() or c.lower() in known).split())
        return text + "." if text[-1:].isalpha() else text

    def normalize(self, text):
        """As `spell`; ValueError where nothing is left to speak."""
        text = self.spell(text)
        if not any(c.isalpha() for c in text):
            raise ValueError(
                f"text={text!r} has nothing to speak: expected at least one letter or digit that the tokenizer knows."
            )
        return text

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
            wave, _ = self.codec.decode_chunk(row.T[None], last=True)  # the same samples as in a stream
            waves.append(wave[0].float().cpu())
        return waves

    batch_decode = decode

    def timestamps(self, output, text, voice=None, audio_text=None):
        """When each word was said.

        Args:
            output: of `generate(..., output_alignments=True, return_dict_in_generate=True)`, or its alignments
                (B, T, N) if no row ended early.
            text, voice, audio_text: as the processor was given them. With num_return_sequences, one text for each
                group of rows.

        Returns:
            for each row, {"word", "start", "end"} of the words of the normalised text, in seconds from the start of the
            new speech; in order, not overlapping, inside the audio. A word that was not read starts where it ends.
        """
        maps = output if torch.is_tensor(output) else output.alignments
        if maps is None or maps.ndim != 3:
            raise ValueError("No alignments (B, T, N): call generate with output_alignments=True.")
        lengths = [maps.shape[1]] * len(maps) if torch.is_tensor(output) else output.lengths.tolist()
        texts = [self.normalize(t) for t in self._texts(text)]
        clone = [(None, self.normalize(audio_text))] * len(texts) if audio_text else None
        prompts = clone or self._voices(voice, len(texts))
        if len(maps) % len(texts):
            raise ValueError(f"{len(maps)} rows of alignments for {len(texts)} texts: give what was spoken.")
        each = len(maps) // len(texts)
        return [
            self._word_times(maps[row, :length].float().cpu().numpy(), prompts[row // each][1], texts[row // each])
            for row, length in enumerate(lengths)
        ]

    def _word_times(self, alignment, said, text):
        """Words with their times, of one alignment (T, N), left-padded: the columns from the text's first token on."""
        joined = " ".join(filter(None, (said, text)))
        tokens = self.tokenizer(joined, return_offsets_mapping=True)
        offsets, begin = tokens["offset_mapping"], len(joined) - len(text)
        if len(offsets) > alignment.shape[1]:
            raise ValueError(
                f"The alignments are of {alignment.shape[1]} tokens, text and prompt have {len(offsets)}: give the "
                "same text and voice as to the processor."
            )
        first = next(n for n, (_, end) in enumerate(offsets) if end > begin)
        path = monotonic_path(alignment[:, alignment.shape[1] - len(offsets) + first :])
        words = [(match.start() + begin, match.end() + begin) for match in WORD.finditer(text)]
        times = word_times(path, offsets[first:], words, self.codec.frame_rate)
        return [
            {"word": joined[slice(*word)], "start": start, "end": end}
            for word, (start, end) in zip(words, times)
        ]

    def save_audio(self, audio, saving_path):
        """Writes 16-bit wav files, each complete or not at all; returns their paths.

        Args:
            audio: waveform (L,) or a list of them, as `decode` gives them.
            saving_path: a file for each waveform (one path, or a list), or a folder, which is made if need be and gets
                0.wav, 1.wav...
        """
        waves = [audio] if getattr(audio, "ndim", 0) == 1 else list(audio)
        if isinstance(saving_path, (list, tuple)):
            paths = list(map(pathlib.Path, saving_path))
        elif pathlib.Path(saving_path).suffix == ".wav":
            paths = [pathlib.Path(saving_path)]
        else:
            folder = pathlib.Path(saving_path)
            folder.mkdir(parents=True, exist_ok=True)
            paths = [folder / f"{index}.wav" for index in range(len(waves))]
        if len(paths) != len(waves):
            raise ValueError(f"saving_path names {len(paths)} files for {len(waves)} waveforms: name a folder or each.")
        for path, wave in zip(paths, waves):
            write_wav(path, torch.as_tensor(wave).float().cpu(), self.sampling_rate)
        return paths

    def save_pretrained(self, save_directory, **kwargs):
        """Also saves the voices and, where it is one of ours or loaded, the codec."""
        files = super().save_pretrained(save_directory, **kwargs)
        os.makedirs(os.path.join(save_directory, "voices"), exist_ok=True)
        for name in self.voices:
            save_voice(os.path.join(save_directory, "voices", f"{name}.safetensors"), *self._voice(name))
        if "/" not in self.codec_name and self.codec_name != "encodec" and (self._codec or self.source):
            self.codec.save_pretrained(os.path.join(save_directory, self.codec_name))
        return files
