"""Segments are spoken as one stream, with times of words in it."""

import pytest
import torch

from smalle.reading.markup import Segment, parse
from smalle.reading.speech import speak
from smalle.streaming_smalle import TextToSpeechStreamer

TEXT = "The quick brown fox jumps over the lazy dog. Nobody knew, nobody asked! It is a door."
WAY = {"seed": 3, "max_new_tokens": 30}


@pytest.fixture
def streamer(tiny_model, processor):
    return TextToSpeechStreamer(tiny_model, processor, max_characters=50)


def listen(speech):
    """The waveform (L,) and the words of a speech."""
    parts = list(speech)
    return torch.cat([part.waveform for part in parts]), [word for part in parts for word in part.words]


@pytest.mark.parametrize("chunk_frames", [3, None])
def test_a_stream_with_word_times_has_the_same_samples_and_all_words(tiny_model, processor, chunk_frames):
    streamer = TextToSpeechStreamer(tiny_model, processor, chunk_frames, max_characters=50)
    plain = torch.cat(list(streamer.stream(TEXT, **WAY)))
    wave, words = listen(streamer.stream(TEXT, **WAY, output_timestamps=True))
    assert torch.equal(wave, plain)
    assert " ".join(word["word"] for word in words) == TEXT.replace(",", "").replace(".", "").replace("!", "")
    times = [time for word in words for time in (word["start"], word["end"])]
    assert times == sorted(times) and 0 <= times[0] and times[-1] <= len(wave) / 24000


def test_times_of_a_stream_are_those_of_its_pieces(streamer, tiny_model, processor):
    first = processor.normalize("The quick brown fox jumps over the lazy dog.")
    inputs = processor(first, normalize_text=False)
    output = tiny_model.generate(**inputs, **WAY, output_alignments=True, return_dict_in_generate=True, best_of=1)
    (expected,) = processor.timestamps(output, first)
    _, words = listen(streamer.stream(TEXT, **WAY, output_timestamps=True))
    assert words[: len(expected)] == expected


def test_a_plain_text_is_spoken_as_by_the_streamer(streamer):
    wave, words = listen(speak(parse(TEXT), streamer, **WAY))
    assert (wave, words) == (pytest.approx(wave), listen(streamer.stream(TEXT, **WAY, output_timestamps=True))[1])
    assert torch.equal(wave, torch.cat(list(streamer.stream(TEXT, **WAY))))
    without = listen(speak(parse(TEXT), streamer, **WAY, output_timestamps=False))
    assert torch.equal(without[0], wave) and without[1] == []


def test_pauses_move_what_follows(streamer):
    wave, words = listen(speak(parse("It is a door. [pause 1s] Nobody asked!"), streamer, **WAY))
    first, begun = listen(speak(parse("It is a door."), streamer, **WAY))
    assert words[: len(begun)] == begun and words[len(begun)]["start"] >= len(first) / 24000 + 1
    assert torch.equal(wave[: len(first)], first) and not wave[len(first) : len(first) + 24000].any()


def test_a_voice_speaks_its_segment(streamer):
    text = '<speak>Nobody knew.<voice name="ben">Nobody knew.</voice></speak>'
    wave, _ = listen(speak(parse(text), streamer, seed=1, max_new_tokens=30))
    generator = torch.Generator().manual_seed(1)
    parts = [list(streamer.stream("Nobody knew.", voice=x, seed=generator, max_new_tokens=30)) for x in (None, "ben")]
    assert torch.equal(wave, torch.cat([wave for part in parts for wave in part]))


def test_a_recording_is_prepared_once_for_all_segments(streamer, monkeypatch):
    encode, calls = streamer.processor.encode_voice, []
    monkeypatch.setattr(streamer.processor, "encode_voice", lambda *x: (calls.append(x), encode(*x))[1])
    recording = 0.1 * torch.randn(24000, generator=torch.Generator().manual_seed(0))
    heard = {"audio": recording, "audio_text": "Nobody knew.", "sampling_rate": 24000}
    wave, _ = listen(speak(parse("It is a door. [pause 1s] Nobody asked!"), streamer, **heard, **WAY))
    first, _ = listen(streamer.stream("It is a door.", **heard, output_timestamps=True, **WAY))
    assert len(calls) == 2 and torch.equal(wave[: len(first)], first)


def test_a_name_in_the_text_is_never_a_path(streamer, tiny_checkpoint):
    path = f"{tiny_checkpoint}/voices/ben.safetensors"
    with pytest.raises(ValueError, match="in the text is not known: expected one of .'anna', 'ben'"):
        speak([Segment("Hi.", voice=path)], streamer)
    listen(speak([Segment("Hi.", voice="mine")], streamer, voices={"mine": path}, max_new_tokens=9))


@pytest.mark.parametrize("speed", [0.5, 2.0])
def test_speed_changes_length_and_times(streamer, speed):
    segments = parse("It is a door. [pause 1s] Nobody asked!")
    (wave, words), (changed, moved) = (listen(speak(segments, streamer, speed=x, **WAY)) for x in (1.0, speed))
    assert len(changed) == pytest.approx(len(wave) / speed, abs=2)
    for word, other in zip(words, moved):
        assert other["start"] == pytest.approx(word["start"] / speed, abs=1e-3)


def test_a_lexicon_changes_what_is_said(streamer):
    wave, words = listen(speak(parse("The fox."), streamer, lexicon={"fox": "lazy dog"}, **WAY))
    assert [word["word"] for word in words] == ["The", "lazy", "dog"]
    assert torch.equal(wave, listen(speak(parse("The lazy dog."), streamer, **WAY))[0])


def test_what_cannot_be_spoken(streamer):
    with pytest.raises(ValueError, match="nothing to speak"):
        speak(parse("♦"), streamer)
    wave, _ = listen(speak(parse("♦ [pause 0.1s] The fox."), streamer, **WAY))
    assert torch.equal(wave[2400:], listen(speak(parse("The fox."), streamer, **WAY))[0])
    with pytest.raises(ValueError, match="rate=8: expected 0.25 to 4"):
        speak(parse("Hi."), streamer, speed=8)


def test_closing_ends_the_generation(streamer):
    steps = []
    speech = speak(parse(TEXT), streamer, seed=1, min_new_tokens=200, max_new_tokens=200, progress=steps.append)
    next(speech)
    speech.close()
    taken = len(steps)
    assert taken < 150
    assert len(steps) == taken
