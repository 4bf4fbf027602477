"""Speaks segments of a text as one stream with word times. Used by the command line, from Python and by the server."""

import contextlib
from collections.abc import Generator, Iterable, Mapping
from dataclasses import replace
from typing import Any

import torch

from ..generation_smalle import seeded
from ..streaming_smalle import TextToSpeechStreamer, TimedSpeech
from ..text_tables_smalle import respell
from .markup import Segment, check_rate
from .stretching import TimeStretcher


def speak(
    segments: Iterable[Segment],
    streamer: TextToSpeechStreamer,
    *,
    voice: Any = None,
    seed: int | torch.Generator | None = None,
    speed: float = 1.0,
    voices: Mapping[str, Any] | None = None,
    lexicon: Mapping[str, str] | None = None,
    output_timestamps: bool = True,
    **options: Any,
) -> Generator[TimedSpeech]:
    """Yields the speech of segments (`markup.parse`) as `TimedSpeech`: waveforms (L,) float32 and words.

    A word is {"word", "start", "end"}, in seconds from the start of the stream. Closing the generator cancels the
    generation within a step. A single plain segment gives the same samples as `streamer.stream`.

    Args:
        streamer: speaks the text of each segment.
        voice: voice of segments that name none; as in `streamer.stream`.
        seed: integer or torch.Generator for reproducible speech.
        speed: overall speed, 0.25 to 4. It stretches the finished waveform; it does not change the reading.
        voices: the voices that segments may name, by name; None: the presets of the processor. A name is never used as
            a path.
        lexicon: respellings of words (`text_tables_smalle.read_lexicon`).
        output_timestamps: also find the times of words; otherwise `words` is empty.
        **options: arguments of `streamer.stream`.

    Raises:
        ValueError: a segment names an unknown voice (raised by this call), or the text cannot be spoken.
    """
    segments = list(segments)
    known = {name: name for name in streamer.processor.voices} if voices is None else voices
    for segment in segments:
        check_rate(segment.rate * speed)
        if segment.voice is not None and segment.voice not in known:
            raise ValueError(f"voice={segment.voice!r} in the text is not known: expected one of {list(known)}.")
    options |= {"seed": seeded(seed, streamer.model.device), "output_timestamps": output_timestamps}

    if options.get("audio") is not None:  # prepare the voice once, not for each segment
        given = {name: options.pop(name, None) for name in ("audio", "audio_text", "sampling_rate")}
        (voice,) = streamer.processor.prompts(1, voice, **given, normalize_text=options.get("normalize_text", True))

    def is_spoken(text: str) -> bool:
        return any(map(str.isalpha, streamer.processor.spell_out(text)))

    plain = options.get("normalize_text") is False
    texts = [respell(segment.text, lexicon or {}) for segment in segments]
    texts = [text if text and (plain or is_spoken(text)) else "" for text in texts]
    voice_of = [voice if segment.voice is None else known[segment.voice] for segment in segments]
    calls = [
        (replace(segment, text=text), {**options, "voice": one})
        for segment, text, one in zip(segments, texts, voice_of)
    ]
    if any(segment.text for segment in segments) and not any(texts):
        streamer.processor.normalize(" ".join(segment.text for segment in segments))  # raises the error
    return _speak(calls, streamer, speed)


def _speak(
    calls: list[tuple[Segment, dict[str, Any]]], streamer: TextToSpeechStreamer, speed: float
) -> Generator[TimedSpeech]:
    sampling_rate, samples = streamer.processor.sampling_rate, 0
    for segment, options in calls:
        rate, start = segment.rate * speed, samples / sampling_rate
        stretcher = TimeStretcher(rate, sampling_rate)
        for speech in stream_segment(segment, streamer, options):
            wave = torch.from_numpy(stretcher.stretch(speech.waveform.numpy()))
            samples += len(wave)
            yield TimedSpeech(wave, [moved(word, rate, start) for word in speech.words])
        rest = torch.from_numpy(stretcher.finish())
        silence = torch.zeros(round(segment.pause / speed * sampling_rate))
        samples += len(rest) + len(silence)
        yield TimedSpeech(torch.cat((rest, silence)), [])


def stream_segment(segment: Segment, streamer: TextToSpeechStreamer, options: dict[str, Any]) -> Generator[TimedSpeech]:
    """The speech of a segment's text, with words if the options ask for them."""
    if segment.text:
        with contextlib.closing(streamer.stream(segment.text, **options)) as stream:
            for speech in stream:
                yield speech if options["output_timestamps"] else TimedSpeech(speech, [])


def moved(word: dict[str, Any], rate: float, start: float) -> dict[str, Any]:
    """A word in a segment that starts at `start` seconds and is spoken `rate` times as fast."""
    return {**word, "start": start + word["start"] / rate, "end": start + word["end"] / rate}
