"""Segments of a text as one stream of speech with word times. The command line, Python and the server speak by it."""

from collections.abc import Generator, Iterable, Mapping
from typing import Any

import torch

from ..generation_smalle import seeded
from ..serving.stretching import TimeStretcher
from ..streaming_smalle import TextToSpeechStreamer, TimedSpeech
from .markup import Segment, check_rate


def speak(
    segments: Iterable[Segment],
    streamer: TextToSpeechStreamer,
    *,
    voice: Any = None,
    seed: int | torch.Generator | None = None,
    speed: float = 1.0,
    voices: Mapping[str, Any] | None = None,
    output_timestamps: bool = True,
    **options: Any,
) -> Generator[TimedSpeech]:
    """Yields the speech of segments (`markup.parse`) as `TimedSpeech`: waveforms (L,) float32 and words.

    A word is {"word", "start", "end"}, in seconds from the start of the stream. Closing the generator cancels the
    generation within a step. One plain segment gives the samples of `streamer.stream`.

    Args:
        streamer: speaks the text of each segment.
        voice: of segments that name none; as in `streamer.stream`.
        seed: integer or torch.Generator for reproducible speech.
        speed: of everything, 0.25 to 4; the tempo of the finished waveform is changed, not the reading.
        voices: what the names of voices in segments stand for; None: the presets of the processor. A name never becomes
            a path.
        output_timestamps: also find the times of words; without, `words` is empty.
        **options: of `streamer.stream`.

    Raises:
        ValueError: a segment names an unknown voice, or the text cannot be spoken; the first at once.
    """
    segments = list(segments)
    known = {name: name for name in streamer.processor.voices} if voices is None else voices
    for segment in segments:
        check_rate(segment.rate * speed)
        if segment.voice is not None and segment.voice not in known:
            raise ValueError(f"voice={segment.voice!r} in the text is not known: expected one of {list(known)}.")
    options |= {"seed": seeded(seed, streamer.model.device), "output_timestamps": True}
    options["output_alignments"] = output_timestamps

    def voice_of(segment: Segment) -> dict[str, Any]:
        if segment.voice is None:
            return {**options, "voice": voice}
        without = {name: value for name, value in options.items() if name not in ("audio", "audio_text")}
        return {**without, "voice": known[segment.voice]}

    return _speak([(segment, voice_of(segment)) for segment in segments], streamer, speed)


def _speak(
    calls: list[tuple[Segment, dict[str, Any]]], streamer: TextToSpeechStreamer, speed: float
) -> Generator[TimedSpeech]:
    sampling_rate, samples = streamer.processor.sampling_rate, 0
    for segment, options in calls:
        rate, start = segment.rate * speed, samples / sampling_rate
        stretcher = TimeStretcher(rate, sampling_rate)
        for speech in streamer.stream(segment.text, **options) if segment.text else ():
            wave = torch.from_numpy(stretcher.stretch(speech.waveform.numpy()))
            samples += len(wave)
            yield TimedSpeech(wave, [moved(word, rate, start) for word in speech.words])
        rest = torch.from_numpy(stretcher.finish())
        silence = torch.zeros(round(segment.pause / speed * sampling_rate))
        samples += len(rest) + len(silence)
        yield TimedSpeech(torch.cat((rest, silence)), [])


def moved(word: dict[str, Any], rate: float, start: float) -> dict[str, Any]:
    """A word that is said `rate` times as fast in a segment that begins at `start` seconds."""
    return {**word, "start": start + word["start"] / rate, "end": start + word["end"] / rate}
