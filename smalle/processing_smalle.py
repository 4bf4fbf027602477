"""Text and voices to tensors; codes to audio."""

import os
import pathlib
import re
import threading

import torch
from transformers import BatchFeature, ProcessorMixin
from transformers.processing_utils import ProcessingKwargs, TextKwargs
from transformers.utils import cached_file

from .alignment_smalle import monotonic_path, word_times
from .audio_smalle import is_one_recording, load_waveform, write_wav
from .cache_smalle import join_state
from .codec_smalle import load_codec
from .hub_smalle import HubMixin
from .streaming_smalle import LONGEST, in_threads, sentences, stream_audio, stream_codes, until_left
from .text_normalization_smalle import normalize
from .validation_smalle import INTEGERS, as_tensor
from .vocos_smalle import block_sizes
from .voices_smalle import Voice, load_voice, save_voice

WORD = re.compile(r"\w+(?:['-]\w+)*")


class SmallETextKwargs(TextKwargs, total=False):
    """Settings of the tokenizer's call, and normalize_text: read texts as English (`text_normalization_smalle`)."""

    normalize_text: bool | None


class SmallEProcessorKwargs(ProcessingKwargs, total=False):
    """What a call may set beside texts and voices: flat, or as text_kwargs= and audio_kwargs=."""

    text_kwargs: SmallETextKwargs
    _defaults = {
        "text_kwargs": {"padding": True, "padding_side": "left", "normalize_text": True},
        "common_kwargs": {"return_tensors": "pt"},
    }


SOURCE_OPTIONS = ("revision", "token", "cache_dir", "local_files_only", "subfolder")  # of from_pretrained
CALL_SETTINGS = {"sampling_rate", "text_kwargs", "audio_kwargs", "common_kwargs", *SmallETextKwargs.__annotations__}


class SmallEProcessor(HubMixin, ProcessorMixin):
    """Bundles the tokenizer, the voices and the codec of a checkpoint.

    Args:
        tokenizer: lower-cased BPE.
        codec: folder inside the checkpoint, or name, of the codec; loaded when first needed.
        voices: names of the presets, each a file voices/NAME.safetensors.
        default_voice: the preset that speaks when nothing else is asked for; None: no prompt at all.
        sampling_rate: of the audio, Hz.
        codec_id: identity of that codec (`codec_smalle.identity_of`), so that a voice made with another is refused
            without loading it; None: not known.
    """

    _auto_class = "AutoProcessor"
    valid_processor_kwargs = SmallEProcessorKwargs

    def __init__(self, tokenizer, codec="codec", voices=None, default_voice=None, sampling_rate=24000, codec_id=None):
        super().__init__(tokenizer)
        self.codec_name, self.default_voice = codec, default_voice
        self.voices, self.sampling_rate = list(voices or []), sampling_rate
        self.source, self._source_options, self._loaded_voices = None, {}, {}
        self._codec, self._codec_id = None, codec_id
        if not isinstance(codec, str):
            raise ValueError(f"codec={codec!r}: expected the name of a folder of the checkpoint, or of a codec.")
        if default_voice is not None and default_voice not in self.voices:
            raise ValueError(f"default_voice={default_voice!r} is not one of the voices {self.voices}.")

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path, **kwargs):
        processor = super().from_pretrained(pretrained_model_name_or_path, **kwargs)
        processor.source = str(pretrained_model_name_or_path)
        processor._source_options = {name: kwargs[name] for name in SOURCE_OPTIONS if name in kwargs}
        return processor

    def to_dict(self):
        extra = {"codec": self.codec_name, "codec_id": self.codec_id}
        auto_map = {"AutoProcessor": "processing_smalle.SmallEProcessor"}
        return {**ProcessorMixin.to_dict(self._without_codec()), **extra, "auto_map": auto_map}

    def _without_codec(self):
        bare = object.__new__(type(self))
        bare.__dict__.update(self.__dict__, _codec=None, _loaded_voices={}, source=None)
        return bare

    def __getstate__(self):
        return self._without_codec().__dict__ | {"source": self.source}

    @property
    def _codec_inside(self):
        """Whether the codec is a folder of the checkpoint."""
        return "/" not in self.codec_name and self.codec_name != "encodec"

    @property
    def codec(self):
        """The codec, loaded on first use."""
        if self._codec is None:
            if self._codec_inside and self.source is not None:
                options = dict(self._source_options)
                folder = os.path.join(options.pop("subfolder", ""), self.codec_name)
                self._codec = load_codec(self.source, folder, **options)
            else:
                self._codec = load_codec(self.codec_name)
        return self._codec

    @property
    def codec_id(self):
        """Identity of the codec, as far as it is known without loading it."""
        return self._codec_id if self._codec is None else self._codec.identity

    @property
    def model_input_names(self):
        return ["input_ids", "attention_mask", "audio_codes", "audio_attention_mask"]

    def __call__(self, text=None, voice=None, audio=None, audio_text=None, **kwargs):
        """Inputs of `generate()` for a text or a list of texts.

        Args:
            text: what to say, one string or a list.
            voice: name of a preset, or path of a voice file, which is any `Voice`; or a list with one for each text.
            audio, audio_text, sampling_rate: a voice to clone: samples (L,) or (channels, L), path or bytes of a
                recording, or a row of a data set (`voices_smalle.open_recording`); what it says, so that the model goes
                on from it, or None, so that it hears who speaks and no more (models with a speaker encoder); samples a
                second of a waveform. Audio and text may be lists with one for each text.
            normalize_text: False leaves text and audio_text as they are, for texts that are spelled out already or in
                another language; by default they are read as English (`text_normalization_smalle`).
            **kwargs: also settings of the tokenizer's call; all of them flat, or in text_kwargs and audio_kwargs.

        Returns:
            input_ids, attention_mask (B, N), left-padded; with a voice also audio_codes (B, P, Q), undelayed, and
            audio_attention_mask (B, P), or where it is a tuned state initial_state (B, S), zeros for other rows, or
            where it is a recording without its text speaker_codes (B, P, Q) and speaker_attention_mask (B, P).
        """
        settings = self._settings(kwargs)
        normalize_text = settings["text_kwargs"].pop("normalize_text")
        texts = [self.read(t, normalize_text) for t in self._texts(text)]
        prompts = self._prompts(len(texts), voice, audio, audio_text, settings, normalize_text)
        return self._inputs(texts, prompts, settings)

    def _prompts(self, count, voice, audio, audio_text, settings, normalize_text):
        """The `Voice` of each of `count` texts."""
        if audio is None:
            return self._voices(voice, count)
        if voice is not None:
            raise ValueError("Give either voice (a preset) or audio (a recording to clone), not both.")
        rate = settings["audio_kwargs"].get("sampling_rate")
        return self._recorded_voices(audio, audio_text, rate, count, normalize_text)

    def _joined(self, prompt, text):
        """What the model reads: what a prompt says, then the text."""
        return " ".join(filter(None, (prompt.text, text)))

    def _inputs(self, texts, prompts, settings):
        """What `__call__` returns for texts as the tokenizer gets them and the `Voice` of each."""
        data = self._tokens([self._joined(*pair) for pair in zip(prompts, texts)], settings["text_kwargs"])
        for name, with_text in {"audio": True, "speaker": False}.items():
            recordings = [voice.codes if bool(voice.text) == with_text else None for voice in prompts]
            if any(codes is not None for codes in recordings):
                data.update(self._pad_recordings(recordings, name))
        if any(prompt.state for prompt in prompts):
            data["initial_state"] = self._states([prompt.state for prompt in prompts])
        return BatchFeature(data)

    def stream(
        self,
        model,
        text,
        voice=None,
        audio=None,
        audio_text=None,
        sampling_rate=None,
        chunk_frames=None,
        seed=None,
        longest=LONGEST,
        normalize_text=True,
        **settings,
    ):
        """Speaks a text of any length: a generator of waveforms (L,) float32 on the CPU, as soon as they are certain.

        Joined they are the same whatever the chunks. A long text is read sentence by sentence, in the same voice and as
        one sound, in memory that does not grow; each piece starts from the prompt, so that nothing drifts. The model
        works one chunk ahead, beside the codec; who leaves the loop stops it within a step.

        Args:
            model: what generates, `SmallEForTextToSpeech`.
            text: a string. voice, audio, audio_text, sampling_rate, normalize_text: as in the call. Without any voice,
                the first piece's speech is the voice of the others.
            chunk_frames: frames that are written before audio is made of them. None: as many as the codec takes at
                once, few at the beginning, so that it is heard soon.
            seed: makes the same speech again.
            longest: characters of a piece, where a sentence allows it.
            **settings: of `generate()`, except num_return_sequences and max_time; max_new_tokens is that of one piece.
                best_of is 1 unless asked for, whatever the checkpoint's default: with more, a piece is heard when it is
                whole.
        """
        (text,) = self._texts(text) if isinstance(text, str) else [None]
        if text is None or longest < 1:
            raise ValueError(f"text={text!r}, longest={longest}: a stream takes one string, in pieces of 1 or more.")
        call = self._settings({} if sampling_rate is None else {"sampling_rate": sampling_rate})
        del call["text_kwargs"]["normalize_text"]
        (prompt,) = self._prompts(1, voice, audio, audio_text, call, normalize_text)

        def fits(piece):
            if len(piece) > longest:
                return False
            return len(self.tokenizer(self._joined(prompt, piece))["input_ids"]) <= model.config.max_text_tokens

        def inputs_of(piece, prompt):
            return self._inputs([piece], [prompt], call).to(model.device)

        left = threading.Event()
        chunk_frames = block_sizes() if chunk_frames is None else chunk_frames
        settings |= {"chunk_frames": chunk_frames, "progress": until_left(left, settings.get("progress"))}
        codes = stream_codes(model, inputs_of, sentences(self, text, fits, normalize_text), prompt, seed, settings)
        return stream_audio(self.codec, codes, left)

    def astream(self, *args, **kwargs):
        """`stream` for an event loop: `async for wave in processor.astream(model, text)`. Work is done in threads."""
        left = threading.Event()
        progress = until_left(left, kwargs.pop("progress", None))
        return in_threads(lambda: self.stream(*args, **kwargs, progress=progress), left)

    def _settings(self, kwargs):
        """The settings of a call, sorted into text_kwargs and audio_kwargs."""
        unknown = sorted(kwargs.keys() - CALL_SETTINGS)
        if unknown:
            raise ValueError(f"{unknown}: this processor does not know that; expected what its documentation names.")
        settings = self._merge_kwargs(SmallEProcessorKwargs, **kwargs)
        wanted = settings["text_kwargs"]["return_tensors"]
        if wanted != "pt":
            raise ValueError(f"return_tensors={wanted!r}: this processor returns 'pt', nothing else.")
        return settings

    def _texts(self, text):
        """One text or several as a list."""
        texts = [text] if isinstance(text, str) else text
        if not isinstance(texts, (list, tuple)) or not texts or not all(isinstance(t, str) for t in texts):
            raise ValueError(f"text={text!r}: expected a string or a list of strings.")
        return list(texts)

    def _tokens(self, texts, settings):
        """input_ids and attention_mask (B, N), left-padded if the settings do not say otherwise."""
        return dict(self.tokenizer(texts, **settings))

    def _voices(self, voice, count):
        """The `Voice` of each text."""
        voices = voice if isinstance(voice, (list, tuple)) else [self.default_voice if voice is None else voice] * count
        if len(voices) != count:
            raise ValueError(f"{len(voices)} voices for {count} texts: expected one voice or one for each text.")
        return [self._voice(name) for name in voices]

    def spell(self, text):
        """English text as it is spoken, in characters that the tokenizer knows (`text_normalization_smalle.normalize`)."""
        known = {c for token in self.tokenizer.get_vocab() if not token.startswith("[") for c in token}
        return normalize(text, known)

    def normalize(self, text):
        """As `spell`; ValueError where nothing is left to speak."""
        spelled = self.spell(text)
        if not any(c.isalpha() for c in spelled):
            raise ValueError(
                f"text={text!r} has nothing to speak: expected at least one letter or digit that the tokenizer knows."
            )
        return spelled

    def read(self, text, normalize_text=True):
        """A text as the tokenizer gets it: normalised, or as it is; ValueError where it cannot be read."""
        if normalize_text:
            return self.normalize(text)
        ids, marks = (self.tokenizer(x)["input_ids"] for x in (text, ""))
        if len(ids) <= len(marks) or sum(i in self.tokenizer.all_special_ids for i in ids) > len(marks):
            unknown = [c for c in text if self.tokenizer.unk_token_id in self.tokenizer(c)["input_ids"]]
            raise ValueError(
                f"text={text!r} with normalize_text off: expected something to speak, and no special token and nothing "
                f"that the tokenizer does not know, such as {unknown}: spell it out, or leave normalize_text on."
            )
        return text

    def _voice(self, name):
        """The `Voice` of a preset or a voice file; an empty one for None."""
        if name is None:
            return Voice()
        if not isinstance(name, (str, os.PathLike)):
            raise ValueError(f"voice={name!r}: expected the name of a preset, one of {self.voices}, or a voice file.")
        if name not in self._loaded_voices:
            if name in self.voices and self.source is not None:
                path = cached_file(self.source, f"voices/{name}.safetensors", **self._source_options)
            elif os.path.isfile(name):
                path = name
            else:
                raise ValueError(f"voice={name!r} is not known; expected one of {self.voices} or a voice file.")
            self._loaded_voices[name] = load_voice(path)
        voice = self._loaded_voices[name]
        if voice.codec and self.codec_id and voice.codec != self.codec_id:
            raise ValueError(
                f"voice={name!r} was made with the codec {voice.codec}, expected that of this checkpoint, "
                f"{self.codec_id}: make it again from its recording (audio=, audio_text=)."
            )
        return voice

    def encode_voice(self, audio, audio_text=None, sampling_rate=None, normalize_text=True):
        """The `Voice` of a recording: its codes, and its transcript where that is known. See `__call__`."""
        if audio_text is not None and (not isinstance(audio_text, str) or not audio_text):
            raise ValueError(
                f"audio_text={audio_text!r}: expected what the recording says, or None, where it is heard for its "
                "voice alone."
            )
        waveform = load_waveform(audio, sampling_rate, self.sampling_rate)
        if not len(waveform):
            raise ValueError("audio has no sample at the model's rate: nothing to encode.")
        text = "" if audio_text is None else self.read(audio_text, normalize_text)
        codes = self.codec.encode(torch.from_numpy(waveform)[None])[0].T.cpu()
        return Voice(codes, text, codec=self.codec.identity)

    def _recorded_voices(self, audio, audio_text, sampling_rate, count, normalize_text):
        """The `Voice` of each text: one recording for all, or a list of them."""
        if is_one_recording(audio):
            return [self.encode_voice(audio, audio_text, sampling_rate, normalize_text)] * count
        said = list(audio_text) if isinstance(audio_text, (list, tuple)) else [audio_text]
        said = [None] * len(audio) if audio_text is None else said
        if not len(audio) == len(said) == count:
            raise ValueError(
                f"{len(audio)} recordings (audio) and {len(said)} transcripts (audio_text) for {count} texts: expected "
                "one of each for all, or as many as texts."
            )
        return [self.encode_voice(one, text, sampling_rate, normalize_text) for one, text in zip(audio, said)]

    def _states(self, states):
        """Starting states as rows (B, S), zeros where there is none."""
        rows = [None if state is None else join_state(state).float() for state in states]
        sizes = {len(row) for row in rows if row is not None}
        if len(sizes) > 1:
            raise ValueError(f"The voices' states have {sorted(sizes)} numbers: they were tuned for different models.")
        return torch.stack([torch.zeros(*sizes) if row is None else row for row in rows])

    def _pad_recordings(self, recordings, name):
        """Right-pads recordings (P, Q) of different lengths: NAME_codes and NAME_attention_mask."""
        longest = max(0 if codes is None else len(codes) for codes in recordings)
        width, *others = {codes.shape[1] for codes in recordings if codes is not None}
        if others:
            raise ValueError(f"The voices have {[width, *others]} codebooks: they were made with different codecs.")
        padded = torch.zeros(len(recordings), longest, width, dtype=torch.long)
        mask = torch.zeros(len(recordings), longest, dtype=torch.long)
        for row, codes in enumerate(recordings):
            if codes is not None:
                padded[row, : len(codes)] = codes
                mask[row, : len(codes)] = 1
        return {f"{name}_codes": padded, f"{name}_attention_mask": mask}

    @torch.no_grad()
    def decode(self, codes, **kwargs):
        """Codes (B, T, Q) or (T, Q), negative after a row's end -> list of float32 waveforms (L,) on the CPU."""
        codes = as_tensor("codes", codes)
        if codes.ndim not in (2, 3) or codes.dtype not in INTEGERS:
            raise ValueError(
                f"codes are {codes.dtype} of shape {tuple(codes.shape)}: expected integers (batch, frames, codebooks), "
                "the sequences of generate()."
            )
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

    def timestamps(self, output, text, voice=None, audio_text=None, normalize_text=True):
        """When each word was said.

        Args:
            output: of `generate(..., output_alignments=True, return_dict_in_generate=True)`, or its alignments
                (B, T, N) if no row ended early.
            text, voice, audio_text, normalize_text: as the processor was given them, but "" or [None] for a recording
                without its text. With num_return_sequences, one text for each group of rows.

        Returns:
            for each row, {"word", "start", "end"} of the words of the normalised text, in seconds from the start of the
            new speech; in order, not overlapping, inside the audio. A word that was not read starts where it ends.
        """
        maps = output if torch.is_tensor(output) else getattr(output, "alignments", None)
        if maps is None or maps.ndim != 3:
            raise ValueError(
                f"output={type(output).__name__} has no alignments (B, T, N): give what generate() returns with "
                "output_alignments=True and return_dict_in_generate=True."
            )
        lengths = [maps.shape[1]] * len(maps) if torch.is_tensor(output) else output.lengths.tolist()
        texts = [self.read(t, normalize_text) for t in self._texts(text)]
        if audio_text is None:
            prompts = self._voices(voice, len(texts))
        else:
            said = audio_text if isinstance(audio_text, (list, tuple)) else [audio_text or None]
            said = [Voice() if t is None else Voice(text=self.read(*self._texts(t), normalize_text)) for t in said]
            prompts = said * len(texts) if len(said) == 1 else said
        if len(prompts) != len(texts):
            raise ValueError(f"{len(prompts)} audio_text for {len(texts)} texts: expected one, or one for each.")
        if not len(maps) or len(maps) % len(texts):
            raise ValueError(f"{len(maps)} rows of alignments for {len(texts)} texts: give what was spoken.")
        each = len(maps) // len(texts)
        return [
            self._word_times(maps[row, :length].float().cpu().numpy(), prompts[row // each].text, texts[row // each])
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
        return [{"word": joined[slice(*word)], "start": start, "end": end} for word, (start, end) in zip(words, times)]

    def save_audio(self, audio, saving_path):
        """Writes 16-bit wav files, each complete or not at all; returns their paths.

        Args:
            audio: waveform (L,) or a list of them, as `decode` gives them.
            saving_path: a file for each waveform (one path, or a list), or a folder, which is made if need be and gets
                0.wav, 1.wav...
        """
        several = isinstance(audio, (list, tuple)) or getattr(audio, "ndim", 1) == 2
        waves = [as_tensor("audio", wave) for wave in (audio if several else [audio])]
        if not waves or any(wave.ndim != 1 or not wave.is_floating_point() for wave in waves):
            raise ValueError(
                f"audio holds {[(str(wave.dtype), tuple(wave.shape)) for wave in waves]}: expected waveforms (L,) of "
                "floats in -1..1, as decode() gives them."
            )
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
            write_wav(path, wave.detach().float().cpu(), self.sampling_rate)
        return paths

    def save_pretrained(self, save_directory, **kwargs):
        """Also saves the voices and, where it is one of ours or loaded, the codec."""
        codec = self.codec if self._codec_inside and (self._codec or self.source) else None
        files = super().save_pretrained(save_directory, **kwargs)
        if self.voices:
            os.makedirs(os.path.join(save_directory, "voices"), exist_ok=True)
        for name in self.voices:
            save_voice(os.path.join(save_directory, "voices", f"{name}.safetensors"), *self._voice(name))
        if codec is not None:
            codec.save_pretrained(os.path.join(save_directory, self.codec_name))
        return files
