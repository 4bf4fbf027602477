"""Speech from a text and a voice. For the same seed, the codes equal those of the native runtime with PyTorch."""

import contextlib
import logging
import random
import secrets
from collections.abc import Callable, Generator, Iterable, Iterator
from os import PathLike
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
from tokenizers import Tokenizer

from ..alignment_smalle import MAX_UNREAD, SHARP, STOPPED, Reading
from ..checkpoint import default_checkpoint
from ..native_smalle import VocosDecoder, bits64, block_sizes, mersenne_twister
from ..reading.markup import Segment
from ..saving_smalle import (
    check_positive,
    check_processor_settings,
    check_settings,
    read_object,
    sampling_settings,
)
from ..text_normalization_smalle import normalize
from ..text_tables_smalle import MAX_CHARACTERS, PARAGRAPH, split_text
from .model import EOS, SPECIALS, Model, Sampling, State, Steps, delay
from .tensors import Voice, check_files, errors_name, read_config, read_voice, read_weights

logger = logging.getLogger(__name__)

Seed = int | random.Random | None
PROCESSOR_DEFAULTS: dict[str, Any] = dict(  # defaults of `SmallEProcessor`
    codec="codec",
    voices=None,
    default_voice=None,
    sampling_rate=24000,
    codec_id=None,
    clones_by_reference=False,
    converter=None,
)
CODEC_DEFAULTS: dict[str, Any] = dict(  # defaults of `SmallECodecConfig`
    sampling_rate=24000,
    hop_length=480,
    num_codebooks=6,
    codebook_size=1024,
    vocos_n_fft=1920,
    vocos_upsampling=1,
    vocos_excitation="none",
)
UNUSED = dict(  # unsupported settings, with the values that turn them off
    top_p=1.0, min_p=0.0, repetition_penalty=1.0, best_of=1, num_return_sequences=1, max_time=None
)
SAMPLING_DEFAULTS: dict[str, Any] = dict(
    do_sample=False, top_k=50, temperature=1.0, **UNUSED
)  # defaults of transformers


class Codec:
    """The decoder of the embedded codec. Raises ValueError for other codecs and for damaged files."""

    def __init__(self, library: Any, folder: Path):
        config = read_config(folder / "config.json", CODEC_DEFAULTS)
        with errors_name(folder / "config.json"):
            check_positive(config, [name for name, x in CODEC_DEFAULTS.items() if isinstance(x, int)])
        if getattr(config, "model_type", None) != "smalle_codec":
            raise ValueError(f"{folder} is not a smalle_codec: expected the codec of an embedded checkpoint.")
        tensors = read_weights(folder / "model.safetensors")
        settings = dict(hop_length=config.hop_length, sampling_rate=config.sampling_rate, padding="same")
        settings |= {name: getattr(config, f"vocos_{name}") for name in ("n_fft", "upsampling", "excitation")}
        if "quantizer.codebooks" not in tensors:
            raise ValueError(f"{folder} has no quantizer.codebooks: download or save the checkpoint again.")
        self.config, self.codebooks = config, tensors["quantizer.codebooks"]
        self.decoder = VocosDecoder(library, tensors.under("vocos."), tensors.under("refiner."), settings)

    def embed(self, codes: np.ndarray) -> np.ndarray:
        """Quantized latents (T, D) of codes (T, Q)."""
        latents = np.zeros((len(codes), self.codebooks.shape[2]), np.float32)
        for codebook, column in zip(self.codebooks, codes.T):
            latents += codebook[column]
        return latents


class TextToSpeech:
    """A checkpoint that speaks. Create it with `load`. Thread-safe."""

    def __init__(self, folder: Path):
        check_files(folder)
        processor = read_processor(folder / "processor_config.json")
        self.folder, self.voices = folder, list(processor["voices"] or [])
        self.default_voice: str | None = processor["default_voice"]
        self.codec_id: str | None = processor["codec_id"]
        self.sampling_rate: int = processor["sampling_rate"]
        self.model = Model(folder)
        self.codec = Codec(self.model.library, folder / processor["codec"])
        self.settings = read_object(folder / "generation_config.json")
        with errors_name(folder / "generation_config.json"):
            check_settings(SimpleNamespace(**self.settings))
            self.sampling = read_sampling(self.settings, self.model.config.num_codebooks)
        self.tokenizer = read_tokenizer(folder / "tokenizer.json")
        self._check_parts()
        vocabulary = (token for token in self.tokenizer.get_vocab() if not token.startswith("["))
        self.characters = frozenset(c for token in vocabulary for c in token)

    def _check_parts(self) -> None:
        """Raises ValueError if the model, its codec and its tokenizer do not fit together."""
        config, books = self.model.config, self.codec.codebooks.shape
        if books != (config.num_codebooks, config.codebook_size, self.codec.decoder.channels):
            raise ValueError(f"{self.folder} has a codec with codebooks of shape {books}, which do not fit its model.")
        tokens, known = self.tokenizer.get_vocab_size(), len(self.model.text_embedding)
        if tokens > known:
            raise ValueError(f"{self.folder} has a tokenizer of {tokens} tokens, but its model knows only {known}.")

    @classmethod
    def load(cls, checkpoint: str | PathLike | None = None) -> "TextToSpeech":
        """Loads the checkpoint in a folder; None: the default one.

        Raises:
            ValueError: there is no checkpoint, its files are damaged, or it needs PyTorch.
        """
        folder = Path(default_checkpoint() if checkpoint is None else checkpoint)
        if not (folder / "config.json").is_file():
            raise ValueError(f"There is no checkpoint at {folder}: expected a folder with config.json.")
        return cls(folder)

    def speak(self, text: str, voice: str | PathLike | None = None, seed: Seed = None, **options) -> np.ndarray:
        """Samples (L,), float32, of a text. Arguments as in `stream`."""
        return np.concatenate(list(self.stream(text, voice, seed, **options)))

    def stream(
        self, text: str, voice: str | PathLike | None = None, seed: Seed = None, **options
    ) -> Generator[np.ndarray]:
        """Yields samples (L,), float32, as soon as they are final.

        Args:
            text: a text of any length.
            voice: name of a preset, or path of a voice file; None: the default voice.
            seed: an integer or a generator of native_smalle.mersenne_twister, for reproducible speech; None: random.
            normalize_text: spell the text out as English (default: True).
            retry_first: also repeat the first piece if its reading failed. It is then yielded only when it is complete
                (default: False).
            progress: called after each step.

        Raises:
            ValueError: the text or the voice cannot be spoken. Raised by this call, not with the first samples.
        """
        return self._decode(self.generate(text, voice, seed, **options))

    def stream_segments(
        self, segments: Iterable[Segment], voice: str | PathLike | None = None, seed: Seed = None, **options
    ) -> Generator[np.ndarray]:
        """As `stream`, for segments of a text and the pauses after them. Voices and rates of segments are ignored."""
        segments, generator = list(segments), as_generator(seed)
        spoken = [any(map(str.isalpha, normalize(segment.text, self.characters))) for segment in segments]
        if not any(spoken):
            self.split(" ".join(segment.text for segment in segments), Voice())  # raises the error
        self.get_voice(self.default_voice if voice is None else voice)

        def waves():
            for segment, has_words in zip(segments, spoken):
                if has_words:
                    yield from self.stream(segment.text, voice, generator, **options)
                yield np.zeros(round(segment.pause * self.sampling_rate), np.float32)

        return waves()

    def generate(
        self,
        text: str,
        voice: str | PathLike | None = None,
        seed: Seed = None,
        normalize_text: bool = True,
        retry_first: bool = False,
        progress: Callable[[], Any] | None = None,
    ) -> Generator[np.ndarray]:
        """Yields codes (T, Q) of a text, chunk by chunk. Arguments as in `stream`."""
        if not isinstance(text, str):
            raise ValueError(f"text={text!r}: expected a string.")
        generator, prompt = as_generator(seed), self.get_voice(self.default_voice if voice is None else voice)
        pieces = self.split(text, prompt, normalize_text)
        return self._read_pieces(pieces, prompt, generator, retry_first, progress or (lambda: None))

    def get_voice(self, name: str | PathLike | None) -> Voice:
        """The preset with that name, or the voice in that file; None gives an empty voice. Raises ValueError."""
        if name is None:
            return Voice()
        path = self.folder / "voices" / f"{name}.safetensors" if name in self.voices else Path(name)
        if name in self.voices and not path.is_file():
            raise ValueError(f"{path} is missing: download or save the checkpoint again.")
        if not path.is_file():
            raise ValueError(f"voice={name!r} is not known: expected one of {self.voices} or a voice file.")
        voice, config = read_voice(path), self.model.config
        if voice.codec and self.codec_id and voice.codec != self.codec_id:
            raise ValueError(f"voice={name!r} was made with the codec {voice.codec}, expected {self.codec_id}.")
        codes, most = voice.codes, config.codebook_size - 1
        if codes is not None and (codes.shape[1] != config.num_codebooks or codes.max() > most):
            raise ValueError(
                f"voice={name!r} has codes {codes.shape} up to {codes.max()}: expected {config.num_codebooks} "
                f"codebooks, up to {most}."
            )
        return voice

    def split(self, text: str, prompt: Voice, normalize_text: bool = True) -> list[str]:
        """Splits a text into pieces for the tokenizer, as `SmallEProcessor.split_text`."""
        limit = self.model.config.max_text_tokens

        def fits(piece: str) -> bool:
            joined = joined_text(prompt, piece)
            short = len(joined) + 3 <= limit
            return len(piece) <= MAX_CHARACTERS and (short or len(self.tokenizer.encode(joined).ids) <= limit)

        if not normalize_text:
            self._check_spelled(text)
            paragraphs = PARAGRAPH.split(text)
        elif fits(spelled := normalize(text, self.characters)):
            paragraphs = [spelled]
        else:
            paragraphs = [normalize(paragraph, self.characters) for paragraph in PARAGRAPH.split(text)]
        pieces = [piece for paragraph in paragraphs for piece in split_text(paragraph, fits)]
        pieces = [piece for piece in pieces if any(map(str.isalpha, piece))]
        if not pieces:
            raise ValueError(
                f"text={text!r} has nothing to speak: expected at least one letter or digit that the tokenizer knows."
            )
        return pieces

    def _check_spelled(self, text: str) -> None:
        unknown = self.tokenizer.token_to_id("[UNK]")
        if unknown is not None and unknown in self.tokenizer.encode(text).ids:
            raise ValueError(f"text={text!r} contains characters that the tokenizer does not know: spell it out.")

    def _read_pieces(
        self, pieces: list[str], prompt: Voice, generator: random.Random, retry_first: bool, progress: Callable[[], Any]
    ) -> Generator[np.ndarray]:
        sizes, retries = block_sizes(), self.settings.get("max_retries") or 0
        speaker, spoken_for = None, None  # the speaker embedding, and the voice that it belongs to
        for number, piece in enumerate(pieces):
            if spoken_for is not prompt:
                speaker, spoken_for = self.model.encode_speaker(self._codes(prompt)), prompt
            text = PieceOfText(self, piece, prompt, speaker, generator, progress)
            chunks = [text.best(retries)] if retries and (number or retry_first) else text.chunks(sizes)
            spoken = []
            for chunk in chunks:
                spoken.append(chunk)
                yield chunk
            if text.reading.finish in STOPPED:
                what = f"Piece {number + 1}: the reading {STOPPED[text.reading.finish]}."
                logger.warning(f"{what} Try another seed, or other words.")
            if prompt.codes is None:
                prompt = Voice(np.concatenate(spoken), piece)

    def _codes(self, prompt: Voice) -> np.ndarray:
        nothing = np.zeros((0, self.model.config.num_codebooks), np.int64)
        return nothing if prompt.codes is None else prompt.codes

    def _decode(self, chunks: Generator[np.ndarray]) -> Generator[np.ndarray]:
        decoder, state = self.codec.decoder, None
        with contextlib.closing(chunks):
            for codes in chunks:
                wave, state = decoder.decode_chunk(self.codec.embed(codes), state)
                if len(wave):
                    yield wave
        yield decoder.decode_chunk(np.zeros((0, decoder.channels), np.float32), state, last=True)[0]


class PieceOfText:
    """A piece of a text after the prompt, read once or several times from the same state.

    reading: the state of the reading, initial or final.
    """

    def __init__(
        self,
        speech: TextToSpeech,
        piece: str,
        prompt: Voice,
        speaker: np.ndarray | None,
        generator: random.Random,
        progress: Callable[[], Any],
    ):
        self.generator, self.progress = generator, progress
        model, joined = speech.model, joined_text(prompt, piece)
        encoded, begin = speech.tokenizer.encode(joined), len(joined) - len(piece)
        if len(encoded.ids) > model.config.max_text_tokens:
            raise ValueError(f"The text has {len(encoded.ids)} tokens, the limit is {model.config.max_text_tokens}.")
        before = sum(not end > begin for _, end in encoded.offsets)  # tokens before the piece, and [EOS]
        self.reading = Reading(max(0, before - 1), len(encoded.ids) - 1)
        self.model, self.sampling = model, speech.sampling
        least = speech.settings.get("min_new_tokens")
        self.least = 1 if least is None else least
        self.most = speech.settings.get("max_new_tokens") or int(60 * model.config.frame_rate)
        prompted, nothing = bool(prompt.text), np.zeros((0, model.config.num_codebooks), np.int64)
        codes = prompt.codes if prompted and prompt.codes is not None else nothing
        grid, guided = delay(codes), self.sampling.guidance_scale != 1
        state = model.read_text(encoded.ids, speaker, prompted, guided)
        Steps(model, state).read(grid[: len(codes)])
        self.state: State = state
        self.unread, self.forced = grid[len(codes)], grid[len(codes) + 1 :]

    def best(self, retries: int) -> np.ndarray:
        """Codes (T, Q) of the best reading; a failed reading is repeated at most `retries` times."""
        codes, reading = self._whole()
        for _ in range(retries if any(k != 1 for k in self.sampling.top_k) else 0):
            if not reading.failed:
                break
            again, other = self._whole()
            if other.finish and other.score > reading.score:
                codes, reading = again, other
        self.reading = reading
        return codes

    def _whole(self) -> tuple[np.ndarray, Reading]:
        attempt = Attempt(self)
        codes = list(attempt)
        return np.array(codes, np.int64).reshape(-1, self.model.config.num_codebooks), attempt.reading

    def chunks(self, sizes: Iterator[int]) -> Iterator[np.ndarray]:
        """Yields the codes (T, Q) of one reading in chunks of these sizes."""
        frames, size, attempt = [], next(sizes), Attempt(self)
        for frame in attempt:
            frames.append(frame)
            if len(frames) == size:
                yield np.array(frames)
                frames, size = [], next(sizes)
        if frames:
            yield np.array(frames)
        self.reading = attempt.reading


class Attempt:
    """One reading of a piece: iterate over it for its frames of codes (Q,). reading: its progress."""

    def __init__(self, piece: PieceOfText):
        self.piece, self.reading = piece, piece.reading
        self.steps = Steps(piece.model, piece.state.copy())

    def __iter__(self) -> Iterator[np.ndarray]:
        piece, books = self.piece, self.piece.model.config.num_codebooks
        sampler = piece.sampling.sampler(self.steps)
        tokens, remaining = [piece.unread], -1  # steps until the end; -1 before that is known
        length = piece.most
        while remaining and len(tokens) < piece.most + books:
            self.steps.read(tokens[-1][None])
            sampler.random[:] = bits64(piece.generator, sampler.random.size).reshape(sampler.random.shape)
            (drawn, *_), (position,) = sampler(self.steps.step, len(tokens) > piece.least, [remaining])
            if len(tokens) == 1:
                self._check_prompt(position)
            if len(tokens) <= len(piece.forced):
                known = piece.forced[len(tokens) - 1]
                drawn = np.where(known == -1, drawn, known)
            tokens.append(drawn)
            if remaining > 0:
                remaining -= 1
            elif drawn[0] == EOS:
                remaining, length = books - 1, len(tokens) - 2
                self.reading = self.reading.end()
            if remaining < 0:
                may_stop = len(tokens) > piece.least
                self.reading = self.reading.follow(position, piece.model.config.frame_rate, may_stop)
                if self.reading.finish:
                    remaining, length = books, len(tokens) - 1
            piece.progress()
            frame = len(tokens) - 1 - books
            if 0 <= frame < length:
                yield np.array([tokens[1 + frame + q][q] for q in range(books)]) - SPECIALS

    def _check_prompt(self, position: float) -> None:
        """Raises ValueError if the recording of the voice ends before its transcript; the rest would be spoken."""
        first = self.reading.first or 0
        unread = first - position
        if unread > MAX_UNREAD and self.steps.alignment[0].max() > SHARP:
            raise ValueError(
                f"The transcript of the voice is longer than its recording, by about {unread:.0f} of {first} tokens: "
                "make the voice again with a transcript of exactly what the recording says."
            )


def read_processor(path: Path) -> dict[str, Any]:
    """The settings of a processor. Raises ValueError for those that `SmallEProcessor` would refuse."""
    values = read_object(path)
    settings = {name: values.get(name, default) for name, default in PROCESSOR_DEFAULTS.items()}
    with errors_name(path):
        check_processor_settings(**settings)
    return settings


def read_tokenizer(path: Path) -> Tokenizer:
    """The tokenizer in a file. Raises ValueError if the file cannot be read."""
    try:
        tokenizer = Tokenizer.from_file(str(path))
    except Exception as error:  # tokenizers raises nothing more specific
        raise ValueError(f"{path} cannot be read, {error}: download or save the checkpoint again.") from error
    tokenizer.no_padding()
    return tokenizer


def as_generator(seed: Seed) -> random.Random:
    """A generator for a seed. Raises ValueError for invalid seeds."""
    if isinstance(seed, random.Random):
        return seed
    if seed is not None and (not isinstance(seed, int) or isinstance(seed, bool) or not 0 <= seed < 2**63):
        raise ValueError(f"seed={seed!r}: expected an integer of 0 or more, or None.")
    return mersenne_twister(secrets.randbits(63) if seed is None else seed)


def joined_text(prompt: Voice, text: str) -> str:
    """The input of the model: the transcript of the prompt, then the text."""
    return " ".join(filter(None, (prompt.text, text)))


def read_sampling(settings: dict[str, Any], books: int) -> Sampling:
    """The sampling settings of a generation_config.json. Raises ValueError for settings that need PyTorch."""
    others = [f"{name}={settings[name]}" for name, x in UNUSED.items() if settings.get(name) not in (None, x)]
    if others:
        raise ValueError(f"{', '.join(others)}: smalle.lite supports only top_k and temperature.")
    given = {name: value for name, value in settings.items() if value is not None}
    codebooks = sampling_settings(SimpleNamespace(**{**SAMPLING_DEFAULTS, **given}), books)
    top_k, temperature = zip(*((x.top_k, x.temperature) for x in codebooks))
    return Sampling(settings.get("guidance_scale") or 1.0, top_k, temperature)
