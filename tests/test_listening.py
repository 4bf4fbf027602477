"""The embedded default speaks, and a recognizer understands it."""

from pathlib import Path

import pytest
from transformers import AutoProcessor, pipeline, set_seed

from smalle.processing_smalle import load_voice
from tests import recognizer

CHECKPOINT = Path(__file__).parents[1] / "checkpoints" / "smalle-mini"
SENTENCES = [
    "The bus stops right in front of the library.",
    "We bought some apples and a loaf of bread at the market.",
    "My brother is coming to visit us on Sunday.",
    "It was too cold to sit outside, so we stayed in the kitchen.",
    "Please close the door before you go to bed.",
]


@pytest.fixture(scope="module")
def hear():
    """The recognizer's ear; skips where no recognizer can be had."""
    try:
        recognizer.recognizer()
    except recognizer.RecognizerUnavailable as error:
        pytest.skip(str(error))
    return recognizer.hear


def test_default_checkpoint_is_understood(hear):
    speak = pipeline("text-to-speech", model=str(CHECKPOINT), trust_remote_code=True)
    errors, total, transcripts = 0, 0, []
    for sentence in SENTENCES:
        set_seed(0)
        speech = speak(sentence, generate_kwargs={"max_new_tokens": 300})
        transcripts.append(hear(speech["audio"], speech["sampling_rate"]))
        wrong, count = recognizer.word_errors(sentence, transcripts[-1])
        errors, total = errors + wrong, total + count
    assert errors / total <= 0.20, f"{errors} word errors in {total} words: {transcripts}"


def test_preset_voices_are_understood_through_the_codec(hear):
    processor = AutoProcessor.from_pretrained(str(CHECKPOINT), trust_remote_code=True)
    errors, total, transcripts = 0, 0, []
    for voice in processor.voices:
        codes, text, *_ = load_voice(CHECKPOINT / "voices" / f"{voice}.safetensors")
        wave = processor.decode(codes)[0]
        assert wave.isfinite().all() and wave.square().mean().sqrt() > 0.01  # louder than -40 dB
        transcripts.append(hear(wave.numpy(), processor.sampling_rate))
        wrong, count = recognizer.word_errors(text, transcripts[-1])
        errors, total = errors + wrong, total + count
    assert errors / total <= 0.15, f"{errors} word errors in {total} words: {transcripts}"
