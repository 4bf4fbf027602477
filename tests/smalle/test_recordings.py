"""Recordings to clone: what is refused, and what is cleaned."""

import warnings
from pathlib import Path

import numpy as np
import pytest
import torch

from benchmarks.bad_recordings import KINDS, Material
from smalle import SmallEProcessor
from smalle.audio_smalle import clean_reference, load_waveform, speech_level

RATE = 24000
CHECKPOINT = Path(__file__).parents[2] / "checkpoints/smalle-mini"
TIME = np.arange(5 * RATE) / RATE


@pytest.fixture(scope="module")
def speech():
    """Five seconds of speech (L,)."""
    processor = SmallEProcessor.from_pretrained(CHECKPOINT)
    codes = processor.get_voice("kore").codes[:250]
    return processor.decode(codes)[0].numpy()


def tone():
    return 0.2 * np.sin(2 * np.pi * 440 * TIME)


def noise():
    return 0.1 * np.random.default_rng(0).standard_normal(len(TIME))


def chord():
    """Notes that last half a second each, as in music."""
    return sum(0.1 * np.sin(2 * np.pi * pitch * (1 + np.floor(2 * TIME) / 8) * TIME) for pitch in (220, 277, 330))


@pytest.mark.parametrize("make, reason", [(tone, "steady"), (noise, "steady"), (chord, "steady")])
def test_what_is_steady_is_no_speech(make, reason):
    with pytest.raises(ValueError, match=f"{reason}.*expected a recording of speech"):
        clean_reference(make().astype(np.float32), RATE)


def test_silent_short_and_clipped_recordings_are_refused(speech):
    with pytest.raises(ValueError, match="silent"):
        load_waveform(np.zeros(5 * RATE, np.float32), RATE, RATE)
    with pytest.raises(ValueError, match="0.4 s of sound: expected at least 1 s"):
        clean_reference(speech[RATE : RATE + RATE * 4 // 10], RATE)
    with pytest.raises(ValueError, match="clipped.*lower level"):
        clean_reference(np.clip(12 * speech / np.abs(speech).max(), -1, 1), RATE)


@pytest.mark.parametrize("gain", [0.02, 0.2, 1.0])
def test_the_level_is_the_same_at_every_gain(speech, gain):
    cleaned = clean_reference(gain * speech, RATE)
    assert speech_level(cleaned)[0] == pytest.approx(-23, abs=0.5) and np.abs(cleaned).max() <= 1
    assert cleaned == pytest.approx(clean_reference(speech, RATE), abs=1e-3)


def test_offsets_and_silence_at_the_ends_do_not_matter(speech):
    padded = np.concatenate((np.zeros(2 * RATE), speech, np.zeros(3 * RATE))).astype(np.float32) + 0.05
    clean, wanted = clean_reference(padded, RATE), clean_reference(speech, RATE)
    assert len(clean) == pytest.approx(len(wanted), abs=0.1 * RATE)
    assert abs(clean.mean()) < 2e-3


def test_of_two_minutes_the_part_with_most_speech_is_heard(speech):
    quiet = np.zeros(60 * RATE, np.float32)
    long = np.concatenate((speech[:RATE], quiet, *[speech] * 8, quiet))
    with pytest.warns(UserWarning, match=r"audio is 161 s long: .* s of it are used\. Give 5 to 10 s"):
        cleaned = clean_reference(long, RATE)
    assert 11.9 * RATE < len(cleaned) < 20.3 * RATE
    assert speech_level(cleaned[: 5 * RATE])[0] > -30 and speech_level(cleaned[-5 * RATE :])[0] > -30


def test_a_long_recording_is_cut_at_pauses(speech):
    phrase = np.concatenate((speech[: 3 * RATE], np.zeros(RATE // 2, np.float32)))
    with pytest.warns(UserWarning, match="audio is 35 s long"):
        cleaned = clean_reference(np.concatenate([phrase] * 10), RATE)
    ends = np.abs(cleaned[: RATE // 20]).max(), np.abs(cleaned[-RATE // 20 :]).max()
    assert max(ends) < 0.05 * np.abs(cleaned).max() and 11.9 * RATE < len(cleaned) < 20.3 * RATE


def test_a_reference_ignores_its_transcript(speech):
    processor = SmallEProcessor.from_pretrained(CHECKPOINT, clones_by_reference=True)
    inputs = {"audio": np.concatenate([speech] * 4), "sampling_rate": RATE}
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("default")
        with_text = processor("Hello.", audio_text="No.", **inputs)
        assert "audio_text is ignored" in str(caught[0].message)
        assert len(caught) == 1  # 20 s are used whole
        without = processor("Hello.", **inputs)
    assert len(caught) == 1
    assert with_text.keys() == without.keys() and "audio_codes" not in with_text
    assert all(torch.equal(with_text[name], without[name]) for name in without)
    with pytest.raises(ValueError, match="audio_text=.*expected the transcript"):
        processor("Hello.", audio_text="", **inputs)
    heard = processor.reference_voice(0.1 * inputs["audio"], None, RATE).codes
    assert len(heard) == len(processor.clean_recording(inputs["audio"], RATE)) // 480
    assert (heard == without["speaker_codes"][0]).float().mean() > 0.9  # whatever the level


def test_a_prepared_voice_says_that_its_transcript_is_not_used(speech):
    processor = SmallEProcessor.from_pretrained(CHECKPOINT)
    with pytest.warns(UserWarning, match="audio_text is ignored.*Leave it out"):
        voice = processor.encode_voice(speech, "Never said.", RATE)
    assert voice.conversion is not None and voice.text == processor.get_voice(processor.default_voice).text


@pytest.mark.filterwarnings("ignore:audio_text is ignored")
def test_word_times_of_a_clone_need_no_transcript(speech):
    processor = SmallEProcessor.from_pretrained(CHECKPOINT, clones_by_reference=True)
    inputs = processor("Hello.", audio=speech, audio_text="Not what it says.", sampling_rate=RATE)
    alignment = torch.eye(inputs["input_ids"].shape[1])[None]
    words = [processor.timestamps(alignment, "Hello.", audio_text=text) for text in ("Not what it says.", "")]
    assert words[0] == words[1] and words[0][0][0]["word"] == "Hello"


@pytest.fixture(scope="module")
def processor():
    return SmallEProcessor.from_pretrained(CHECKPOINT)


@pytest.mark.parametrize("kind", ["pulsing chord", "arpeggio", "beat"])
def test_music_is_refused(processor, kind):
    music = KINDS[kind](Material(*[np.zeros(0)] * 3, np.random.default_rng(1))).astype(np.float32)
    with pytest.raises(ValueError, match="hardly any (voiced sound|sounds of speech): expected a recording of"):
        processor.encode_voice(music, sampling_rate=RATE)


def test_two_people_are_refused_and_each_of_them_is_not(processor):
    woman, man = (processor.decode(processor.get_voice(name).codes[:250])[0].numpy() for name in ("emma", "daniel"))
    for one in (woman, man):
        assert processor.encode_voice(one, sampling_rate=RATE).conversion
    with pytest.raises(ValueError, match="two people: expected one. Cut out"):
        processor.encode_voice(np.concatenate((woman, man)), sampling_rate=RATE)
