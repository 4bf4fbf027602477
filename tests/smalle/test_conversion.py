"""The voice converter of the embedded checkpoint: it takes the pitch of a recording, in chunks as in one, and its files
are checked."""

import pathlib
import warnings

import pytest
import torch

import smalle
from smalle.generation_smalle import SmallEGenerateOutput
from smalle.lite.tensors import NeedsPyTorch, read_voice
from smalle.voices_smalle import (
    RANK,
    SpeechStatistics,
    Voice,
    VoiceConverter,
    VoiceConverterConfig,
    change_of,
    factors,
    load_voice,
    save_voice,
)

CHECKPOINT = pathlib.Path(__file__).parents[2] / "checkpoints" / "smalle-mini"
TEXT = "The weather is fine today."


@pytest.fixture(scope="module")
def processor():
    return smalle.SmallEProcessor.from_pretrained(CHECKPOINT)


@pytest.fixture(scope="module")
def model():
    return smalle.SmallEForTextToSpeech.from_pretrained(CHECKPOINT).eval()


def median_f0(converter, waveform):
    mel = converter.recording_mel(waveform)
    _, f0 = converter.recording_content(mel, SpeechStatistics.of(mel.reshape(-1, mel.shape[2] // 2)))
    return float(f0[f0 > 0].median())


@pytest.fixture(scope="module")
def recordings(processor):
    """The prompts of a woman's and of a man's voice, as recordings (L,)."""
    return {name: processor.decode(processor.get_voice(name).codes)[0] for name in ("emma", "daniel")}


@pytest.fixture(scope="module")
def voices(processor, recordings):
    base = processor.get_voice(processor.default_voice)
    prepare = processor.converter.prepare
    return {name: base._replace(conversion=prepare(x, steps=2)) for name, x in recordings.items()}


@pytest.fixture(scope="module")
def spoken(processor, model):
    return model.generate(**processor(TEXT), seed=1)


@torch.no_grad()
def test_the_speech_has_the_pitch_of_the_recording(processor, recordings, voices, spoken):
    converter = processor.converter
    for name, recording in recordings.items():
        (converted,) = processor.decode(spoken, voice=voices[name])
        wanted, heard = median_f0(converter, recording), median_f0(converter, converted)
        assert abs(heard / wanted - 1) < 0.12, (name, wanted, heard)
    (own,) = processor.decode(spoken)
    assert abs(len(own) - len(converted)) == 0 and not torch.allclose(own, converted, atol=0.05)


@torch.no_grad()
@pytest.mark.parametrize("size", [240, 4800, 7001])
def test_in_chunks_as_in_one(processor, voices, spoken, size):
    converter, conversion = processor.converter, voices["emma"].conversion
    network, (wave,) = converter.network_of(conversion), processor.decode(spoken)
    wave = wave[None, : len(wave) // 480 * 480]
    whole, _ = converter.convert(wave, network, conversion["pitch"], last=True)
    state, parts = None, []
    for part in wave.split(size, 1):
        y, state = converter.convert(part, network, conversion["pitch"], state)
        parts.append(y)
    parts.append(converter.convert(wave[:, :0], network, conversion["pitch"], state, last=True)[0])
    assert torch.equal(torch.cat(parts, 1), whole)


def test_a_stream_speaks_as_decode_does(processor, model, voices, spoken):
    voice = voices["daniel"]
    streamed = torch.cat(list(processor.stream(model, TEXT, voice=voice, seed=1)))
    (decoded,) = processor.decode(spoken, voice=voice)
    assert torch.equal(streamed, decoded)


def test_a_forgotten_voice_is_told(processor, voices, spoken):
    processor(TEXT, voice=voices["emma"])
    with pytest.warns(UserWarning, match="Pass voice="):
        (forgotten,) = processor.decode(spoken)
    processor(TEXT)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        (default,) = processor.decode(SmallEGenerateOutput(sequences=spoken))
    assert torch.equal(forgotten, default)


def test_tuning_comes_nearer_to_the_recording(processor, recordings):
    converter, recording = processor.converter, recordings["daniel"][:72000]
    losses = []
    for steps in (0, 12):
        network = converter.network_of(converter.prepare(recording, steps))
        with torch.no_grad():
            known = converter.analyze_recording(recording)
            frames = converter.frames_of(network, converter.inputs(known.content, known.f0))
            losses.append(float((frames - known.mel).abs().mean()))
    assert losses[1] < 0.9 * losses[0]


def test_voice_files_keep_the_conversion(processor, voices, spoken, tmp_path):
    voice, path = voices["emma"], tmp_path / "me.safetensors"
    save_voice(path, *voice)
    again = load_voice(path)
    assert torch.equal(*(processor.decode(spoken, voice=x)[0] for x in (voice, again)))
    assert set(again.conversion) == set(voice.conversion) and again.text == voice.text
    assert path.stat().st_size < 1_800_000
    with pytest.raises(NeedsPyTorch, match="conversion"):  # `smalle say` takes PyTorch then
        read_voice(path)


def test_damaged_conversions_are_refused(processor, voices, tmp_path):
    conversion = voices["emma"].conversion
    broken = {
        "no pitch": {name: x for name, x in conversion.items() if name != "pitch"},
        "NaN": {**conversion, "change.out.bias": conversion["change.out.bias"] * torch.nan},
        "its shape": {**conversion, "pitch": torch.ones(3)},
    }
    for damage in broken.values():
        with pytest.raises(ValueError, match="prepare the voice again"):
            save_voice(tmp_path / "v.safetensors", conversion=damage)
    left = next(name for name in conversion if name.startswith("left."))
    wrong = {
        "has no change": {name: x for name, x in conversion.items() if name != "change.out.bias"},
        "has no change of": {**conversion, left: conversion[left][:, 1:]},
        "another converter": {**conversion, "converter": conversion["converter"] * 1.001},
        "by another converter": {name: conversion[name] for name in ("pitch", "change.out.bias")},
    }
    for message, damage in wrong.items():
        with pytest.raises(ValueError, match=message):
            processor.decode(torch.zeros(3, 6, dtype=torch.long), voice=Voice(conversion=damage))


@torch.no_grad()
def test_factors_keep_the_largest_part_of_a_change(processor):
    random = torch.Generator().manual_seed(0)
    wide = torch.randn(160, RANK, generator=random) @ torch.randn(RANK, 190, generator=random)
    noisy = wide + 0.01 * torch.randn(160, 190, generator=random)
    for change, error in ((wide, 1e-5), (noisy, 0.011), (torch.randn(300, 7, generator=random), 0.0)):
        kept = factors("weight", change)
        again = change_of("weight", change.flatten(), kept).view_as(change)
        assert (again - change).square().mean().sqrt() <= error
    assert sum(x.numel() for x in factors("weight", noisy).values()) == RANK * 350


@pytest.mark.parametrize("pitch", ["hot", [5.25], [5.25, 0], [float("nan"), 0.25], ["5", "6"]])
def test_a_pitch_that_is_none_is_refused_by_name(pitch):
    with pytest.raises(ValueError, match="source_pitch"):
        VoiceConverterConfig(source_pitch=pitch)


@pytest.mark.parametrize(
    "name, value", [("hidden_size", -1), ("num_layers", 10**9), ("content_size", "8"), ("codec", 5)]
)
def test_sizes_that_are_none_are_refused_by_name(name, value):
    with pytest.raises(ValueError, match=name):
        VoiceConverterConfig(**{name: value})


def test_recordings_without_a_voice_are_refused(processor):
    with pytest.raises(ValueError, match="voiced"):
        processor.converter.prepare(torch.zeros(48000))
    times = torch.arange(120000) / 24000
    chord = sum((2 * torch.pi * f0 * times).sin() for f0 in (220, 277, 330)) * (2 * torch.pi * times).sin().square()
    noise = 0.02 * torch.randn(len(times), generator=torch.Generator().manual_seed(0))
    with pytest.raises(ValueError, match="sounds of speech"):
        processor.converter.prepare(0.1 * chord + noise, steps=0)


def test_a_saved_converter_is_the_same(processor, voices, spoken, tmp_path):
    processor.converter.save_pretrained(tmp_path)
    again, conversion = VoiceConverter.from_pretrained(tmp_path), voices["emma"].conversion
    (wave,) = processor.decode(spoken)
    waves = [
        c.convert(wave[None], c.network_of(conversion), conversion["pitch"], last=True)[0]
        for c in (processor.converter, again)
    ]
    assert torch.equal(*waves)
