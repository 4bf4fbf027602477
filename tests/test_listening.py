"""Word error rate of the default checkpoint by a speech recognizer."""

from pathlib import Path

import pytest
from transformers import pipeline, set_seed

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
def transcribe():
    """Transcribes a waveform. Skips where no recognizer can be had."""
    try:
        recognizer.recognizer()
    except recognizer.RecognizerUnavailable as error:
        pytest.skip(str(error))
    return recognizer.hear


def check_word_errors(transcribe, speeches):
    """At most a fifth of the words of (sentence, {"audio", "sampling_rate"}) may be recognized wrongly."""
    errors, total, transcripts = 0, 0, []
    for sentence, speech in speeches:
        transcripts.append(transcribe(speech["audio"], speech["sampling_rate"]))
        wrong, count = recognizer.word_errors(sentence, transcripts[-1])
        errors, total = errors + wrong, total + count
    assert errors / total <= 0.20, f"{errors} word errors in {total} words: {transcripts}"


def synthesize(speak, sentence, **voice):
    set_seed(0)
    return speak(sentence, generate_kwargs={"max_new_tokens": 300}, preprocess_params=voice)


def test_default_checkpoint_is_understood(transcribe):
    speak = pipeline("text-to-speech", model=str(CHECKPOINT), trust_remote_code=True)
    check_word_errors(transcribe, [(sentence, synthesize(speak, sentence)) for sentence in SENTENCES])


def test_every_preset_is_understood(transcribe):
    speak = pipeline("text-to-speech", model=str(CHECKPOINT), trust_remote_code=True)
    voices = speak.processor.voices
    assert len(voices) >= 6 and speak.processor.default_voice in voices
    pairs = [
        (sentence, synthesize(speak, sentence, voice=voice)) for voice, sentence in zip(voices, SENTENCES * len(voices))
    ]
    assert all((speech["audio"] ** 2).mean() > 0.01**2 for _, speech in pairs)  # louder than -40 dB
    check_word_errors(transcribe, pairs)
