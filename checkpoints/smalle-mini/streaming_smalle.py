"""Streaming: speech as waveforms while it is generated, for texts of any length, from a loop or an event loop."""

import asyncio
import contextlib
import functools
import threading
from collections.abc import AsyncIterator, Callable, Generator, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .generation_smalle import seeded
from .runtime_smalle import FewThreads
from .text_tables_smalle import BREAKS as BREAKS
from .text_tables_smalle import MAX_CHARACTERS
from .text_tables_smalle import PARAGRAPH as PARAGRAPH
from .text_tables_smalle import expected_frames as expected_frames
from .text_tables_smalle import split_text as split_text
from .vocos_smalle import block_sizes
from .voices_smalle import Voice

KEPT_DECODERS = 4  # decoders of converted voices that are cached, 14 MB each


class TimedSpeech(NamedTuple):
    """A waveform (L,) of a stream, and the words whose times became known with it.

    words: {"word", "start", "end"} of the normalized text, in seconds from the start of the stream.
    """

    waveform: Tensor
    words: list[dict[str, Any]]


class TextToSpeechStreamer:
    """Speaks texts of any length as a stream of waveforms.

    A long text is split at the ends of sentences and read piece by piece. Every piece starts from the same prompt, so
    the voice does not drift. The codec keeps its state between pieces, so the audio is continuous. The samples do not
    depend on the chunk sizes, and memory use is constant. While the codec decodes a chunk, a thread generates the next
    one.

    Args:
        model: `SmallEForTextToSpeech`.
        processor: `SmallEProcessor` of the same checkpoint.
        chunk_frames: frames of a chunk. None: as many as the codec decodes at once; the first chunks are small, so
            that the first audio comes early.
        max_characters: characters of the longest piece.
    """

    def __init__(
        self, model: Any, processor: Any, chunk_frames: int | None = None, max_characters: int = MAX_CHARACTERS
    ):
        if max_characters < 1:
            raise ValueError(f"max_characters={max_characters}: expected at least 1.")
        self.model, self.processor = model, processor
        self.chunk_frames, self.max_characters = chunk_frames, max_characters
        self._decoders: list[tuple[Any, Any]] = []  # (conversion, decoder), the most recent first

    def stream(
        self,
        text: str,
        voice: Any = None,
        audio: Any = None,
        audio_text: str | None = None,
        sampling_rate: float | None = None,
        seed: int | torch.Generator | None = None,
        normalize_text: bool = True,
        cancelled: threading.Event | None = None,
        progress: Callable[[int], Any] | None = None,
        output_timestamps: bool = False,
        **settings,
    ) -> Generator[Any]:
        """Yields waveforms (L,), float32 on the CPU, as soon as their samples are final.

        Closing the generator, or setting the event `cancelled`, cancels generation within a step.

        Args:
            text: one string.
            voice, audio, audio_text, sampling_rate, normalize_text: as in the processor's call. Without a voice, the
                speech of the first piece is the prompt of the others.
            seed: integer or torch.Generator for reproducible speech.
            output_timestamps: yield `TimedSpeech` instead of waveforms. The times of a word are known once its piece
                has been generated.
            progress, **settings: arguments of `generate()`, except num_return_sequences and max_time. max_new_tokens
                limits one piece. best_of defaults to 1; with more, each piece is yielded as one chunk. max_retries
                applies to all pieces, which are then yielded as one chunk each; by default, the checkpoint's value
                applies to all pieces except the first, which is played while it is generated.

        Raises:
            ValueError: the text or the voice cannot be spoken. Raised by this call, not with the first waveform.
        """
        if not isinstance(text, str):
            raise ValueError(f"text={text!r}: a stream takes one string.")
        (prompt,) = self.processor.prompts(1, voice, audio, audio_text, sampling_rate, normalize_text)
        pieces = self.split(text, prompt, normalize_text)
        stop = threading.Event() if cancelled is None else cancelled

        def step(num_active: int):
            if stop.is_set():
                raise Cancelled
            if progress is not None:
                progress(num_active)

        settings["progress"] = step
        settings["chunk_frames"] = block_sizes() if self.chunk_frames is None else self.chunk_frames
        settings["output_alignments"] = output_timestamps
        speech = self._decode(prefetch(self._generate(pieces, prompt, seed, settings), stop), prompt)
        return speech if output_timestamps else waveforms(speech)

    async def astream(self, text: str, **options) -> AsyncIterator[Any]:
        """`stream()` for an event loop: `async for wave in streamer.astream(text)`. A thread does the work."""
        worker, cancelled = ThreadPoolExecutor(1), threading.Event()
        chunks: Any = None
        run = functools.partial(asyncio.get_running_loop().run_in_executor, worker)
        try:
            chunks = await run(lambda: self.stream(text, **options, cancelled=cancelled))
            while (chunk := await run(next, chunks, None)) is not None:
                yield chunk
        finally:
            cancelled.set()
            if chunks is not None:
                worker.submit(chunks.close)  # after the current chunk, even if the event loop has ended
            worker.shutdown(wait=False)

    def split(self, text: str, prompt: Voice, normalize_text: bool = True) -> list[str]:
        """Splits a text into pieces for the tokenizer, each short enough to follow the prompt's transcript."""
        limits = {"max_characters": self.max_characters, "max_tokens": self.model.config.max_text_tokens}
        return self.processor.split_text(text, prompt, normalize_text, **limits)

    def _generate(
        self, pieces: list[str], prompt: Voice, seed: int | torch.Generator | None, settings: dict[str, Any]
    ) -> Generator[tuple[Tensor, list[dict[str, Any]]]]:
        """Yields codes (T, Q) of the pieces, chunk by chunk, and with output_alignments the words after each piece."""
        model, generator, embeddings = self.model, seeded(seed, self.model.device), None
        begun = 0  # frames before the piece
        defaults = settings.get("generation_config") or model.generation_config
        settings = {**settings, "seed": generator}
        retries = settings.pop("max_retries", None)
        later = (
            getattr(defaults, "max_retries", None) or 0
        )  # not of the first piece, which is played while it is generated
        for number, piece in enumerate(pieces):
            inputs = self.processor.model_inputs([piece], [prompt]).to(model.device)
            if "speaker_codes" in inputs:  # all pieces have the same reference: encode it once
                reference = inputs.pop("speaker_codes"), inputs.pop("speaker_attention_mask", None)
                embeddings = model.encode_speaker(*reference) if embeddings is None else embeddings
                inputs["speaker_embeddings"] = embeddings
            settings["max_retries"] = retries if retries is not None else later if number else 0
            outputs = self._generate_piece({**inputs, **settings})
            without_voice, spoken = prompt.codes is None and not prompt.state, []
            alignments: list[Any] = []
            # a generator expression, so that no state is kept longer than its piece
            for codes, alignment in (spoken_part(output) for output in outputs):
                if without_voice:
                    spoken.append(codes.cpu())
                if settings["output_alignments"]:
                    alignments.append(alignment)
                yield codes, []
            if alignments:
                path = torch.cat(alignments)
                yield codes[:0], self._words(path, piece, prompt, begun)
                begun += len(path)
            if without_voice:
                prompt = Voice(torch.cat(spoken), piece)

    def _generate_piece(self, call: dict[str, Any]) -> Iterator[Any]:
        """Outputs of the model for one piece: in chunks, or as a whole if the best of several readings is chosen."""
        if call.get("best_of", 1) == 1 and not call["max_retries"]:
            yield from self.model.stream(**call)
        else:
            del call["chunk_frames"]
            yield self.model.generate(**{"best_of": 1, **call}, return_dict_in_generate=True)

    def _words(self, alignment: Tensor, piece: str, prompt: Voice, begun: int) -> list[dict[str, Any]]:
        """The words of a piece that starts after `begun` frames, from its alignment (T, N)."""
        (words,) = self.processor.timestamps(alignment[None], piece, voice=prompt, normalize_text=False)
        start = begun / self.model.config.frame_rate
        return [{**word, "start": word["start"] + start, "end": word["end"] + start} for word in words]

    def _decode(self, chunks: Generator[tuple[Tensor, list[dict[str, Any]]]], voice: Voice) -> Generator[TimedSpeech]:
        """Yields the speech of chunks of codes (T, Q) and words, in a voice."""
        codec, state = self._decoder(voice), None
        codes = torch.zeros(0, codec.num_codebooks, dtype=torch.long)
        words: list[dict[str, Any]] = []
        for codes, new_words in chunks:
            words += new_words
            if len(codes):
                with FewThreads():
                    wave, state = codec.decode_chunk(codes.T[None], state)
                if wave.shape[1]:
                    yield TimedSpeech(wave[0].float().cpu(), words)
                    words = []
        if state is not None:
            with FewThreads():
                wave, _ = codec.decode_chunk(codes.T[None, :, :0], state, last=True)
            yield TimedSpeech(wave[0].float().cpu(), words)

    def _decoder(self, voice: Voice) -> Any:
        """The processor's decoder for a voice. Decoders of converted voices are cached, because building one takes
        longer than a step. Thread-safe."""
        if voice.conversion is None:
            return self.processor.decoder(voice)
        codec, kept = self.processor.codec, self._decoders
        known = (pair for pair in kept if pair[0] is voice.conversion and pair[1].codec is codec)
        last = next(known, None) or (voice.conversion, self.processor.decoder(voice))
        self._decoders = [last, *(pair for pair in kept if pair is not last)][:KEPT_DECODERS]
        return last[1]


def spoken_part(output: Any) -> tuple[Tensor, Tensor | None]:
    """Codes (T, Q) and, if there is one, alignment (T, N) of an output for one text."""
    length = int(output.lengths[0])
    return output.sequences[0, :length], None if output.alignments is None else output.alignments[0, :length]


def waveforms(speech: Generator[TimedSpeech]) -> Generator[Tensor]:
    """The waveforms alone."""
    with contextlib.closing(speech):
        for part in speech:
            yield part.waveform


class Cancelled(Exception):
    """Ends generation within a step."""


def prefetch(chunks: Generator[Any], cancelled: threading.Event) -> Generator[Any]:
    """The same chunks; a thread makes the next one while the caller uses the current one. Closing the generator sets
    `cancelled`."""
    try:
        with ThreadPoolExecutor(1) as worker:
            try:
                coming = worker.submit(next, chunks, None)
                while (chunk := coming.result()) is not None:
                    coming = worker.submit(next, chunks, None)
                    yield chunk
            finally:
                cancelled.set()
    finally:
        chunks.close()
