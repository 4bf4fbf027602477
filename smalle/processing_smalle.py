"""The processor: texts and voices to model inputs, recordings to training batches, codes to audio."""

import copy
import functools
import os
import re
import warnings
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from transformers import BatchFeature, ProcessorMixin
from transformers.processing_utils import ProcessingKwargs, TextKwargs
from transformers.utils import cached_file

from .alignment_smalle import piecewise_path, word_times
from .audio_smalle import clean_reference, cut_prompt, is_one_recording, load_waveform, write_wav
from .cache_smalle import join_state
from .codec_smalle import load_codec
from .configuration_smalle import AUDIO_EOS, AUDIO_PAD
from .generation_smalle import delay
from .runtime_smalle import FewThreads
from .saving_smalle import (
    HubMixin,
    check_default_voice,
    check_file_name,
    check_processor_settings,
    errors_name_the_file,
    readable_weights,
    source_options,
)
from .streaming_smalle import MAX_CHARACTERS, PARAGRAPH, TextToSpeechStreamer, split_text
from .text_normalization_smalle import normalize
from .text_tables_smalle import Lexicon, name_emoji, respell
from .validation_smalle import INTEGERS, as_tensor
from .voices_smalle import ConvertingCodec, Voice, VoiceConverter, load_voice, save_voice

WORD = re.compile(r"\w+(?:['-]\w+)*")
ENCODEC = "encodec"  # EnCodec from the Hub, not a folder of the checkpoint
OTHER_SOUND_FILES = {".mp3", ".flac", ".ogg", ".opus", ".m4a", ".aac"}
TOKENIZER_SETTINGS = {"padding": True, "padding_side": "left"}
Texts = str | Sequence[str] | None
Transcripts = str | Sequence[str | None] | None
VoiceNames = str | os.PathLike | Sequence | None


class SmallETextKwargs(TextKwargs, total=False):
    """Settings of the tokenizer, and

    normalize_text: normalize texts as English (`text_normalization_smalle`).
    emoji: say the names of emoji, which are otherwise left out.
    lexicon: pronunciations, as {word: respelling} or the path of a file with lines "word = respelling".
    """

    normalize_text: bool | None
    emoji: bool | None
    lexicon: Lexicon


class SmallEProcessorKwargs(ProcessingKwargs, total=False):
    """Settings of a call, flat or as text_kwargs= and audio_kwargs=."""

    text_kwargs: SmallETextKwargs
    _defaults = {
        "text_kwargs": {**TOKENIZER_SETTINGS, "normalize_text": True, "emoji": False, "lexicon": None},
        "common_kwargs": {"return_tensors": "pt"},
    }


CALL_SETTINGS = {"sampling_rate", "text_kwargs", "audio_kwargs", "common_kwargs", *SmallETextKwargs.__annotations__}


def teacher_forcing(codes: Sequence[Tensor], context: Sequence[Tensor] | None = None) -> dict[str, Tensor]:
    """Decoder inputs and labels for training, in the delay pattern and padded on the right.

    Args:
        codes: undelayed codes (T, Q) of each recording.
        context: codes of the same shapes that the decoder gets as input instead of `codes`.

    Returns:
        decoder_input_ids (B, S, Q), decoder_attention_mask (B, S) and labels (B, S, Q) of S = max(T) + Q steps. Labels
        are -100 on padding and where the delay pattern prescribes BOS.
    """

    def grids(rows: Sequence[Tensor], padding: int) -> Tensor:
        ended = [F.pad(delay(row), (0, 0, 0, 1), value=AUDIO_EOS) for row in rows]
        return pad_sequence(ended, batch_first=True, padding_value=padding)

    inputs, labels = grids(codes if context is None else context, AUDIO_PAD), grids(codes, -100)
    for q in range(1, labels.shape[2]):
        labels[:, : q + 1, q] = -100
    mask = (labels[:, 1:, 0] != -100).long()
    return {"decoder_input_ids": inputs[:, :-1], "decoder_attention_mask": mask, "labels": labels[:, 1:]}


def as_list(value: Any) -> list:
    """A list or tuple as a list, and anything else as a list of one."""
    return list(value) if isinstance(value, (list, tuple)) else [value]


def check_transcript(text: Any, used: bool) -> None:
    """Raises ValueError unless `text` is None or a possible transcript of a recording; warns if it is not `used`."""
    if text is not None and (not isinstance(text, str) or not text):
        raise ValueError(
            f"audio_text={text!r}: expected the transcript of the recording, or None to use its speaker embedding only."
        )
    if text and not used:
        warnings.warn("audio_text is ignored: this checkpoint clones from the audio alone. Leave it out.", stacklevel=2)


def named_texts(text: Any, emoji: bool | None = False, lexicon: Lexicon = None) -> list[tuple[str, str]]:
    """(name in errors, text) of each text, after applying the settings of a call that change its words."""
    if not isinstance(text, str) and (
        not isinstance(text, (list, tuple)) or not text or not all(isinstance(one, str) for one in text)
    ):
        raise ValueError(f"text={text!r}: expected a string or a list of strings.")
    named = [("text", text)] if isinstance(text, str) else [(f"text[{n}]", one) for n, one in enumerate(text)]
    return [(name, respell(name_emoji(one) if emoji else one, lexicon)) for name, one in named]


@functools.lru_cache(maxsize=4)
def characters_of(tokenizer, size: int) -> frozenset[str]:
    """The characters that a tokenizer of `size` tokens knows, without those of its special tokens."""
    return frozenset(c for token in tokenizer.get_vocab() if not token.startswith("[") for c in token)


class SmallEProcessor(HubMixin, ProcessorMixin):
    """The tokenizer, the voices and the codec of a checkpoint.

    Args:
        tokenizer: tokenizer of lower-cased text.
        codec: folder of the codec in the checkpoint, or its name on the Hub ("owner/name", or "encodec"). It is loaded
            on first use.
        voices: names of the preset voices, each a file voices/NAME.safetensors of the checkpoint.
        default_voice: the preset that is used if a call names no voice; None: no prompt.
        sampling_rate: sampling rate of the audio, Hz.
        codec_id: identity of the codec (`codec_smalle.identity_of`), to check that a voice belongs to it without
            loading it; None if unknown.
        clones_by_reference: how recordings are cloned. True: the recording is cleaned (`clean_recording`) and used as
            a reference for the speaker encoder, and a transcript is ignored. False: a recording with a transcript is
            a prompt that the model continues.
        converter: folder of the `VoiceConverter` in the checkpoint, which `encode_voice` uses; None: there is none.
    """

    _auto_class: Any = "AutoProcessor"
    valid_processor_kwargs: Any = SmallEProcessorKwargs
    model_input_names = ["input_ids", "attention_mask", "piece_ids", "audio_codes", "audio_attention_mask"]

    def __init__(
        self,
        tokenizer,
        codec: str = "codec",
        voices: Sequence[str] | None = None,
        default_voice: str | None = None,
        sampling_rate: int = 24000,
        codec_id: str | None = None,
        clones_by_reference: bool = False,
        converter: str | None = None,
    ):
        super().__init__(tokenizer)
        check_processor_settings(codec, voices, default_voice, sampling_rate, codec_id, clones_by_reference, converter)
        self.converter_name = converter
        self.codec_name, self.codec_id, self.sampling_rate = codec, codec_id, sampling_rate
        self.clones_by_reference = clones_by_reference
        self.voices = list(voices or [])
        self.source: str | None = None
        self._source_options: dict[str, Any] = {}
        self._loaded_voices: dict[str, Voice] = {}
        self._codec = None
        self._converter: VoiceConverter | None = None
        self._converted = False  # whether the last call was for a voice that needs the converter
        self.default_voice = default_voice

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: str | os.PathLike, **kwargs) -> "SmallEProcessor":
        """Loads the processor of a checkpoint: a folder or a name on the Hub."""
        source = os.fspath(pretrained_model_name_or_path)
        with errors_name_the_file(source, "processor_config.json", kwargs):
            processor = super().from_pretrained(source, **kwargs)
        processor.source = os.path.abspath(source) if os.path.isdir(source) else source
        processor._source_options = source_options(kwargs)
        return processor

    def to_dict(self) -> dict[str, Any]:
        return {
            "processor_class": type(self).__name__,
            "auto_map": {"AutoProcessor": "processing_smalle.SmallEProcessor"},
            "codec": self.codec_name,
            "codec_id": self.codec_id,
            "voices": self.voices,
            "default_voice": self.default_voice,
            "sampling_rate": self.sampling_rate,
            "clones_by_reference": self.clones_by_reference,
            "converter": self.converter_name,
        }

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_codec": None, "_converter": None}  # a codec cannot be pickled; both are loaded again

    # --- codec and voices

    @property
    def _codec_inside(self) -> bool:
        """Whether the codec is a folder of the checkpoint."""
        return "/" not in self.codec_name and self.codec_name != ENCODEC

    @property
    def codec(self):
        """The codec, loaded on first use. Assign another codec to save it with the checkpoint."""
        if self._codec is None:
            if self._codec_inside and self.source is not None:
                options = dict(self._source_options)
                folder = os.path.join(options.pop("subfolder", ""), self.codec_name)
                self._codec = load_codec(self.source, folder, **options)
            else:
                self._codec = load_codec(self.codec_name)
            self.codec_id = self._codec.identity
        return self._codec

    @codec.setter
    def codec(self, codec):
        if getattr(codec, "sampling_rate", None) != self.sampling_rate or not hasattr(codec, "decode_chunk"):
            raise ValueError(
                f"codec is {type(codec).__name__}: expected a codec of {self.sampling_rate} Hz, as load_codec gives it."
            )
        self._codec, self.codec_id = codec, codec.identity
        if not self._codec_inside:
            self.codec_name = "codec"

    @property
    def converter(self) -> VoiceConverter:
        """The converter of voices, loaded on first use. Raises ValueError where the checkpoint has none."""
        if self._converter is None:
            if self.converter_name is None or self.source is None:
                raise ValueError("This checkpoint has no voice converter: pass the recording as audio= to a call.")
            options = dict(self._source_options)
            folder = os.path.join(options.pop("subfolder", ""), self.converter_name)
            with errors_name_the_file(self.source, os.path.join(folder, "config.json"), options):
                self._converter = VoiceConverter.from_pretrained(self.source, subfolder=folder, **options)
        return self._converter

    def decoder(self, voice: Voice) -> Any:
        """The decoder for a voice: the codec, followed by the converter if the voice has a `conversion`."""
        if voice.conversion is None:
            return self.codec
        return ConvertingCodec(self.codec, self.converter, voice.conversion)

    @property
    def default_voice(self) -> str | None:
        return self._default_voice

    @default_voice.setter
    def default_voice(self, name: str | None):
        check_default_voice(name, self.voices)
        self._default_voice = name

    def add_voice(self, name: str, voice: Voice) -> None:
        """Adds a preset voice, or replaces the one with that name. `save_pretrained` saves it."""
        check_file_name(name, "The name of the voice")
        self._check_voice(name, voice)
        self._loaded_voices[name] = voice
        if name not in self.voices:
            self.voices.append(name)

    def get_voice(self, name: str | os.PathLike | Voice | None) -> Voice:
        """The preset with that name, or the voice in that file. None gives an empty voice, a `Voice` itself."""
        if name is None:
            return Voice()
        if isinstance(name, Voice):
            self._check_voice("Voice(...)", name)
            return name
        if not isinstance(name, (str, os.PathLike)):
            raise ValueError(f"voice={name!r}: expected the name of a preset, one of {self.voices}, or a voice file.")
        preset = name in self.voices
        if preset and name in self._loaded_voices:
            voice = self._loaded_voices[name]
        elif preset and self.source is not None:
            path = cached_file(self.source, f"voices/{name}.safetensors", **self._source_options)
            voice = self._loaded_voices[str(name)] = load_voice(str(path))
        elif os.path.isfile(name):
            voice = load_voice(name)
        else:
            raise ValueError(f"voice={name!r} is not known: expected one of {self.voices} or a voice file.")
        self._check_voice(name, voice)
        return voice

    def _check_voice(self, name: str | os.PathLike, voice: Voice) -> None:
        if voice.codec and self.codec_id and voice.codec != self.codec_id:
            raise ValueError(
                f"voice={name!r} was made with the codec {voice.codec}, but this checkpoint has the codec "
                f"{self.codec_id}: make the voice again from its recording (audio=, audio_text=)."
            )

    def encode_voice(
        self,
        audio: Any,
        audio_text: str | None = None,
        sampling_rate: float | None = None,
        normalize_text: bool = True,
        progress: Callable[[int, int], Any] | None = None,
        steps: int | None = None,
    ) -> Voice:
        """The `Voice` of a recording. Arguments as in `__call__`.

        With a converter: the model reads the text in its default voice, and the converter turns the speech into that
        of the recorded person. This method tunes the converter to the recording, which takes 10 to 14 s on one core
        (Xeon with AMX) and needs no transcript. Pass the result as `voice` to the call and to `decode()`.

        Without a converter: the same as `reference_voice`.

        progress: called before each step of the tuning, with the number of finished steps and of all steps. An
        exception that it raises ends the tuning. steps: of the tuning, 60 by default; with more, the voice resembles
        the recording more and loses words.

        Raises ValueError if `audio` is not a recording of speech.
        """
        if self.converter_name is None:
            return self.reference_voice(audio, audio_text, sampling_rate, normalize_text)
        check_transcript(audio_text, used=False)
        base, waveform = self.get_voice(self.default_voice), self.clean_recording(audio, sampling_rate)
        with FewThreads():
            conversion = self.converter.prepare(torch.from_numpy(waveform), steps, progress=progress)
        return base._replace(conversion=conversion)

    def reference_voice(
        self, audio: Any, audio_text: str | None = None, sampling_rate: float | None = None, normalize_text: bool = True
    ) -> Voice:
        """The `Voice` of a recording for the model itself, without a converter. Arguments as in `__call__`."""
        check_transcript(audio_text, used=not self.clones_by_reference)
        if self.clones_by_reference:
            waveform = torch.from_numpy(self.clean_recording(audio, sampling_rate))
            return Voice(self.codec.encode(waveform[None])[0].T.cpu(), codec=self.codec_id)
        samples, text = load_waveform(audio, sampling_rate, self.sampling_rate), ""
        if audio_text is not None:
            text = self.prepare_text(audio_text, normalize_text, "audio_text")
            samples, text = cut_prompt(samples, text, self.sampling_rate)
        return Voice(self._encode(samples, self.sampling_rate), text, codec=self.codec_id)

    def clean_recording(self, audio: Any, sampling_rate: float | None = None) -> np.ndarray:
        """A recording (as in `__call__`) prepared for the speaker encoder: (L,) float32 at the processor's sampling
        rate, without offset, without silence at its ends, at a fixed level, at most 20 s long.

        Raises ValueError if it is not a recording of speech (`audio_smalle.clean_reference`).
        """
        return clean_reference(load_waveform(audio, sampling_rate, self.sampling_rate), self.sampling_rate)

    def _encode(self, audio: Any, sampling_rate: float | None) -> Tensor:
        """Codes (T, Q) of one recording."""
        waveform = load_waveform(audio, sampling_rate, self.sampling_rate)
        return self.codec.encode(torch.from_numpy(waveform)[None])[0].T.cpu()

    # --- texts

    def spell_out(self, text: str, name: str = "text") -> str:
        """Normalized English text in the characters that the tokenizer knows. name: name of the text in warnings."""
        return normalize(text, characters_of(self.tokenizer, len(self.tokenizer)), name)

    def normalize(self, text: str, name: str = "text") -> str:
        """As `spell_out`. Raises ValueError, which calls the text `name`, if there is nothing left to speak."""
        spelled = self.spell_out(text, name)
        if not any(c.isalpha() for c in spelled):
            raise ValueError(
                f"{name}={text!r} has nothing to speak: expected at least one letter or digit that the tokenizer knows."
            )
        return spelled

    def prepare_text(self, text: str, normalize_text: bool = True, name: str = "text") -> str:
        """A text for the tokenizer: normalized, or checked and unchanged."""
        if normalize_text:
            return self.normalize(text, name)
        if re.search("[\ud800-\udfff]", text):
            raise ValueError(f"{name}={text!r} contains unpaired surrogates: expected valid Unicode text; remove them.")
        ids, empty = (self.tokenizer(x)["input_ids"] for x in (text, ""))
        if len(ids) <= len(empty) or sum(i in self.tokenizer.all_special_ids for i in ids) > len(empty):
            unknown = [c for c in text if self.tokenizer.unk_token_id in self.tokenizer(c)["input_ids"]]
            raise ValueError(
                f"{name}={text!r} with normalize_text=False: expected something to speak, without special tokens and "
                f"without unknown characters (here {unknown}). Spell it out, or leave normalize_text on."
            )
        return text

    def split_text(
        self,
        text: str,
        prompt: Voice,
        normalize_text: bool = True,
        name: str = "text",
        max_characters: int = MAX_CHARACTERS,
        max_tokens: int | None = None,
    ) -> list[str]:
        """Splits a text into pieces for the tokenizer, at the ends of sentences if possible.

        Args:
            prompt: the voice; each piece is read after its transcript.
            name: name of the text in errors.
            max_characters: limit for a piece.
            max_tokens: limit for the transcript and a piece together; None: the tokenizer's own limit.
        """
        limit = self.tokenizer.model_max_length if max_tokens is None else max_tokens

        def fits(piece: str) -> bool:
            joined = self.prompted_text(prompt, piece)
            short = len(joined) + 3 <= limit  # with the special tokens
            return len(piece) <= max_characters and (short or len(self.tokenizer(joined)["input_ids"]) <= limit)

        if not normalize_text:
            paragraphs = PARAGRAPH.split(self.prepare_text(text, False, name))
        elif fits(spelled := self.spell_out(text, name)) or not PARAGRAPH.search(text):
            paragraphs = [spelled]
        else:
            paragraphs = [self.spell_out(paragraph, name) for paragraph in PARAGRAPH.split(text)]
        pieces = [piece for paragraph in paragraphs for piece in split_text(paragraph, fits)]
        pieces = [piece for piece in pieces if any(map(str.isalpha, piece))]
        return pieces or [self.normalize(text, name)]  # which raises the error

    # --- model inputs

    def __call__(
        self,
        text: Texts = None,
        voice: VoiceNames = None,
        audio: Any = None,
        audio_text: Transcripts = None,
        output_labels: bool | None = None,
        **kwargs,
    ) -> BatchFeature:
        """Inputs of `generate()`, or with `output_labels` of `forward()`, for a text or a list of texts.

        Args:
            text: what to say, one string or a list.
            voice: name of a preset voice, path of a voice file, or a `Voice`; or a list with one for each text.
            audio: recording of a voice to clone: samples (L,) or (channels, L), path or bytes of a sound file, or a row
                of a data set (`audio_smalle.read_recording`); or a list with one for each text. The model uses it as a
                reference directly; `encode_voice` takes longer and makes a voice that is more similar.
            audio_text: transcript of `audio`, if the model is to continue the recording; None: use only the speaker
                embedding (models with a speaker encoder). One, or one for each recording.
            output_labels: return a training batch; `audio` is then the recording of each text.
            **kwargs: sampling_rate of samples in `audio`, Hz; normalize_text=False for texts that are already spelled
                out or in another language; emoji=True to say the names of emoji; lexicon, pronunciations (`respell`);
                settings of the tokenizer. Flat, or in text_kwargs and audio_kwargs.

        Returns:
            input_ids, attention_mask (B, N), padded on the left; piece_ids (B, N), the piece of the text that each
            token belongs to (`split_text`), 0 for other tokens. Depending on the voice also: audio_codes (B, P, Q) and
            audio_attention_mask (B, P), the undelayed codes of a recording with a transcript; speaker_codes (B, P, Q)
            and speaker_attention_mask (B, P), those of a recording without one; initial_state (B, S) of a tuned voice,
            zeros for other rows.
            With output_labels: input_ids, attention_mask and the result of `teacher_forcing`.
        """
        settings = self._settings(kwargs)
        normalize_text, *wording = (
            settings["text_kwargs"].pop(name) for name in ("normalize_text", "emoji", "lexicon")
        )
        named = named_texts(text, *wording)
        sampling_rate = settings["audio_kwargs"].get("sampling_rate")
        if output_labels:
            texts = [self.prepare_text(one, normalize_text, name) for name, one in named]
            if voice is not None or audio_text is not None:
                raise ValueError("output_labels does not take voice or audio_text: give text and its recording, audio.")
            recordings = [audio] if is_one_recording(audio) else audio
            if audio is None or len(recordings) != len(texts):
                raise ValueError(f"{len(texts)} texts with output_labels: expected audio, one recording for each text.")
            codes = [self._encode(one, sampling_rate) for one in recordings]
            return BatchFeature({**self._tokens(texts, settings["text_kwargs"]), **teacher_forcing(codes)})
        prompts = self.prompts(len(named), voice, audio, audio_text, sampling_rate, normalize_text, convert=False)
        self._converted = any(prompt.conversion is not None for prompt in prompts)
        pieces = [self.split_text(one, prompt, normalize_text, name) for (name, one), prompt in zip(named, prompts)]
        return self.model_inputs(pieces, prompts, **settings["text_kwargs"])

    def _settings(self, kwargs: dict[str, Any]) -> dict[str, dict[str, Any]]:
        """The settings of a call, sorted into text_kwargs and audio_kwargs."""
        unknown = sorted(kwargs.keys() - CALL_SETTINGS)
        if unknown:
            raise ValueError(
                f"The processor has no argument {', '.join(unknown)}: help(SmallEProcessor.__call__) lists them."
            )
        settings = self._merge_kwargs(self.valid_processor_kwargs, **kwargs)
        wanted = settings["text_kwargs"]["return_tensors"]
        if wanted != "pt":
            raise ValueError(f"return_tensors={wanted!r}: expected 'pt', PyTorch tensors.")
        return settings

    def prompts(
        self,
        count: int,
        voice: VoiceNames = None,
        audio: Any = None,
        audio_text: Transcripts = None,
        sampling_rate: float | None = None,
        normalize_text: bool = True,
        convert: bool = True,
    ) -> list[Voice]:
        """The `Voice` of each of `count` texts. Arguments as in `__call__`. convert: make voices of recordings by
        `encode_voice`; otherwise by `reference_voice`."""
        encode = self.encode_voice if convert else self.reference_voice
        if audio is None:
            if isinstance(voice, Voice):  # a named tuple, not a list of voices
                voice = [voice] * count
            names = as_list(self.default_voice if voice is None else voice)
            names = names if isinstance(voice, (list, tuple)) else names * count
            if len(names) != count:
                raise ValueError(f"{len(names)} voices for {count} texts: expected one voice or one for each text.")
            return [self.get_voice(name) for name in names]
        if voice is not None:
            raise ValueError("Give either voice (a preset) or audio (a recording to clone), not both.")
        if is_one_recording(audio):
            transcript: Any = audio_text  # encode_voice() refuses a list
            return [encode(audio, transcript, sampling_rate, normalize_text)] * count
        said = [None] * len(audio) if audio_text is None else as_list(audio_text)
        if not len(audio) == len(said) == count:
            raise ValueError(
                f"{len(audio)} recordings (audio) and {len(said)} transcripts (audio_text) for {count} texts: expected "
                "one of each for all texts, or one for each text."
            )
        return [encode(one, text, sampling_rate, normalize_text) for one, text in zip(audio, said)]

    @staticmethod
    def prompted_text(prompt: Voice, text: str) -> str:
        """What the model reads: the transcript of the prompt, then the text."""
        return " ".join(filter(None, (prompt.text, text)))

    def model_inputs(
        self, texts: Sequence[str | Sequence[str]], prompts: Sequence[Voice], **text_kwargs
    ) -> BatchFeature:
        """What `__call__` returns for prepared texts, each a string or a list of pieces, and the `Voice` of each."""
        pieces = [as_list(text) for text in texts]
        joined = [self.prompted_text(prompt, " ".join(text)) for prompt, text in zip(prompts, pieces)]
        details = {"return_offsets_mapping": True, "return_special_tokens_mask": True}
        data = self._tokens(joined, {**text_kwargs, **details})
        lasts = (data.pop("offset_mapping")[..., 1] - 1).clamp(min=0)  # the last character of each token
        data["piece_ids"] = torch.zeros_like(data["input_ids"])
        for ids, last, text, whole in zip(data["piece_ids"], lasts, pieces, joined):
            sizes = torch.tensor([len(piece) + 1 for piece in text])  # with the space before it
            begins = (len(whole) - sizes.flip(0).cumsum(0).flip(0)).clamp(min=0)
            ids[:] = torch.searchsorted(begins, last, right=True)
        data["piece_ids"] *= 1 - data.pop("special_tokens_mask")
        for name, with_text in {"audio": True, "speaker": False}.items():
            recordings = [voice.codes if bool(voice.text) == with_text else None for voice in prompts]
            if any(codes is not None for codes in recordings):
                data.update(self._pad_recordings(recordings, name))
        if any(prompt.state for prompt in prompts):
            data["initial_state"] = self._initial_states([prompt.state for prompt in prompts])
        return BatchFeature(data)

    def _tokens(self, texts: Sequence[str], settings: dict[str, Any]) -> dict[str, Tensor]:
        """input_ids and attention_mask (B, N)."""
        return dict(self.tokenizer(texts, **{**TOKENIZER_SETTINGS, "return_tensors": "pt", **settings}))

    def _initial_states(self, states: Sequence[dict | None]) -> Tensor:
        """Initial states (B, S), zeros for rows without one."""
        rows = [None if state is None else join_state(state).float() for state in states]
        sizes = {len(row) for row in rows if row is not None}
        if len(sizes) > 1:
            raise ValueError(f"The voices' states have {sorted(sizes)} numbers: they were tuned for different models.")
        return torch.stack([torch.zeros(*sizes) if row is None else row for row in rows])

    def _pad_recordings(self, recordings: Sequence[Tensor | None], name: str) -> dict[str, Tensor]:
        """NAME_codes (B, P, Q) and NAME_attention_mask (B, P) of recordings (P, Q), padded on the right."""
        width, *others = {codes.shape[1] for codes in recordings if codes is not None}
        if others:
            raise ValueError(f"The voices have {[width, *others]} codebooks: they were made with different codecs.")
        rows = [torch.empty(0, width, dtype=torch.long) if codes is None else codes for codes in recordings]
        lengths = torch.tensor([len(codes) for codes in rows])
        padded = pad_sequence(rows, batch_first=True)
        mask = (torch.arange(padded.shape[1]) < lengths[:, None]).long()
        return {f"{name}_codes": padded, f"{name}_attention_mask": mask}

    # --- audio

    @torch.no_grad()
    def decode(self, codes: Any, voice: VoiceNames = None, **kwargs) -> list[Tensor]:
        """Waveforms (L,) float32 on the CPU, from codes (B, T, Q) or (T, Q) that are negative after the end of a row,
        or from the output of `generate(return_dict_in_generate=True)`.

        voice: the voice of the call, if a converter makes it (voices of `encode_voice`, presets of people); one, or one
        for each row. Without it the default voice is heard, with a warning.
        """
        codes = as_tensor("codes", getattr(codes, "sequences", codes))
        if codes.ndim not in (2, 3) or codes.dtype not in INTEGERS:
            raise ValueError(
                f"codes are {codes.dtype} of shape {tuple(codes.shape)}: expected integers (batch, frames, codebooks), "
                "the sequences of generate()."
            )
        if voice is None and self._converted:
            warnings.warn(
                "The texts are for a voice that the converter makes, and decode() does not know it: the default voice "
                "is heard. Pass voice= to decode(), too.",
                stacklevel=2,
            )
        rows, waves = codes[None] if codes.ndim == 2 else codes, []
        for row, of in zip(rows, self.prompts(len(rows), voice)):
            row = row[(row >= 0).all(-1)]
            with FewThreads():  # by decode_chunk, so that the samples equal those of a stream
                wave = self.decoder(of).decode_chunk(row.T[None], last=True)[0][0] if len(row) else torch.zeros(0)
            waves.append(wave.float().cpu())
        return waves

    batch_decode = decode

    def save_audio(self, audio: Any, saving_path: str | os.PathLike | Sequence) -> list[Path]:
        """Writes waveforms to 16-bit wav files and returns the paths.

        Args:
            audio: a waveform (L,) or a list of them, as `decode` gives them.
            saving_path: a .wav path for one waveform, a list of paths, or a folder, which gets 0.wav, 1.wav and so on.
        """
        several = isinstance(audio, (list, tuple)) or getattr(audio, "ndim", 1) == 2
        waves = [as_tensor("audio", wave) for wave in (audio if several else [audio])]
        if not waves or any(wave.ndim != 1 or not wave.is_floating_point() for wave in waves):
            raise ValueError(
                f"audio holds {[(str(wave.dtype), tuple(wave.shape)) for wave in waves]}: expected waveforms (L,) of "
                "floats in -1..1, as decode() gives them."
            )
        paths = [Path(path) for path in as_list(saving_path)]
        for path in paths:
            if path.suffix.lower() in OTHER_SOUND_FILES:
                raise ValueError(f"saving_path={str(path)!r}: only wav can be written; expected .wav or a folder.")
        if not isinstance(saving_path, (list, tuple)) and paths[0].suffix != ".wav":
            paths[0].mkdir(parents=True, exist_ok=True)
            paths = [paths[0] / f"{index}.wav" for index in range(len(waves))]
        if len(paths) != len(waves):
            raise ValueError(
                f"saving_path names {len(paths)} files for {len(waves)} waveforms: name one each, or a folder."
            )
        for path, wave in zip(paths, waves):
            write_wav(path, wave.detach().float().cpu(), self.sampling_rate)
        return paths

    # --- streaming

    def stream(self, model: Any, text: str, **options) -> Iterator[Tensor]:
        """Yields waveforms (L,) of a text of any length while it is generated.

        **options: those of `TextToSpeechStreamer` and of its `stream`, and emoji and lexicon as in the call.
        """
        streamer, options = self._streamer(model, options)
        return streamer.stream(self._reworded(text, options), **options)

    def astream(self, model: Any, text: str, **options) -> AsyncIterator[Tensor]:
        """`stream` for an event loop: `async for wave in processor.astream(model, text)`."""
        streamer, options = self._streamer(model, options)
        return streamer.astream(self._reworded(text, options), **options)

    @staticmethod
    def _reworded(text: str, options: dict[str, Any]) -> str:
        """The text of a stream, after applying the options that change its words; removes them from `options`."""
        wording = [options.pop(name, default) for name, default in (("emoji", False), ("lexicon", None))]
        return named_texts(text, *wording)[0][1] if isinstance(text, str) else text

    def _streamer(self, model: Any, options: dict[str, Any]) -> tuple[TextToSpeechStreamer, dict[str, Any]]:
        own = {name: options.pop(name) for name in ("chunk_frames", "max_characters") if name in options}
        return TextToSpeechStreamer(model, self, **own), options

    # --- word times

    def timestamps(
        self,
        output: Any,
        text: Texts,
        voice: VoiceNames = None,
        audio_text: Transcripts = None,
        normalize_text: bool = True,
        emoji: bool = False,
        lexicon: Lexicon = None,
    ) -> list[list[dict[str, Any]]]:
        """When each word was said.

        Args:
            output: of `generate(..., output_alignments=True, return_dict_in_generate=True)`, or its alignments
                (B, T, N) if all rows have the same length.
            text, voice, audio_text, normalize_text, emoji, lexicon: as in the call; audio_text is "" for a
                recording without transcript. With num_return_sequences, one text for each group of rows.

        Returns:
            for each row, {"word", "start", "end"} of the words of the normalized text, in seconds from the start of the
            new speech, in order and without overlap. A word that was skipped has equal start and end.
        """
        alignments = output if torch.is_tensor(output) else getattr(output, "alignments", None)
        if alignments is None or alignments.ndim != 3:
            raise ValueError(
                f"output={type(output).__name__} has no alignments (B, T, N): pass the output of generate() with "
                "output_alignments=True and return_dict_in_generate=True."
            )
        batch, steps, _ = alignments.shape
        lengths = [steps] * batch if torch.is_tensor(output) else output.lengths.tolist()
        texts = named_texts(text, emoji, lexicon)
        if audio_text is None:
            said = [prompt.text for prompt in self.prompts(len(texts), voice)]
        else:
            given = as_list(audio_text)
            given = [None if self.clones_by_reference else one for one in given]  # the recording is not a prompt
            said = [self.prepare_text(one, normalize_text, "audio_text") if one else "" for one in given]
            said = said * len(texts) if len(said) == 1 else said
        if len(said) != len(texts):
            raise ValueError(
                f"{len(said)} transcripts (audio_text) for {len(texts)} texts: expected one, or one per text."
            )
        if not batch or batch % len(texts):
            raise ValueError(f"{batch} rows of alignments for {len(texts)} texts: pass the texts that were spoken.")
        pairs = [
            (words, self.split_text(one, Voice(text=words), normalize_text, name))
            for words, (name, one) in zip(said, texts)
        ]
        return [
            self._word_times(alignments[row, :length].float().cpu().numpy(), *pairs[row * len(texts) // batch])
            for row, length in enumerate(lengths)
        ]

    def _word_times(self, alignment, said: str, pieces: list[str]) -> list[dict[str, Any]]:
        """The words of a text in pieces with their times; alignment (T, N) is of `said` and it, padded on the left."""
        text = " ".join(pieces)
        joined = self.prompted_text(Voice(text=said), text)
        tokens = self.tokenizer(joined, return_offsets_mapping=True)
        offsets, begin = tokens["offset_mapping"], len(joined) - len(text)
        padding = alignment.shape[1] - len(offsets)
        if padding < 0 or alignment[:, :padding].any():
            raise ValueError(
                f"The alignments have {alignment.shape[1]} tokens, but text and prompt have {len(offsets)}: pass the "
                "same text and voice as to the processor."
            )
        begins = [begin + len(" ".join(pieces[:n])) for n in range(len(pieces))]
        first, *others = (next(n for n, (_, end) in enumerate(offsets) if end > start) for start in begins)
        columns = alignment[:, padding + first :]
        path = piecewise_path(columns, [0, *(start - first for start in others)])
        words = [(match.start() + begin, match.end() + begin) for match in WORD.finditer(text)]
        times = word_times(path, offsets[first:], words, self.codec.frame_rate)
        return [{"word": joined[slice(*word)], "start": start, "end": end} for word, (start, end) in zip(words, times)]

    def save_pretrained(
        self, save_directory: str | os.PathLike, *args, push_to_hub: bool = False, **kwargs
    ) -> list[str]:
        """Also saves the voices and, if it is a folder of the checkpoint, the codec."""
        codec = self.codec if self._codec_inside and (self._codec or self.source) else None
        converter = self.converter if self.converter_name and self.source else None
        voices = {name: self.get_voice(name) for name in self.voices}  # before `save_directory` could replace them
        files = super().save_pretrained(save_directory, *args, push_to_hub=push_to_hub, **kwargs)
        folder = Path(save_directory, "voices")
        if voices:
            folder.mkdir(exist_ok=True)
        for name, voice in voices.items():
            save_voice(folder / f"{name}.safetensors", *voice)
        if codec is not None:
            with readable_weights(save_directory):
                codec.save_pretrained(os.path.join(save_directory, self.codec_name))
        if converter is not None:
            with readable_weights(save_directory):
                copy.deepcopy(converter).half().save_pretrained(Path(save_directory, str(self.converter_name)))
        return files
