"""A codec's decoder learns from the voice converter, on some seconds of the embedded checkpoint's voices."""

import pathlib
import shutil

import numpy as np
import pytest
import torch
from smalle.train.codec.recipe import StageOptions
from smalle.train.conversion import decoder
from smalle.train.conversion.assemble import take_codec

import smalle
from smalle.audio_smalle import write_wav
from smalle.codec_smalle import load_codec

CHECKPOINT = pathlib.Path(__file__).parents[3] / "checkpoints" / "smalle-mini"
TEXTS = ["The old bridge was closed for the winter.", "Nobody had seen the letter before."]


@pytest.fixture(scope="module")
def processor():
    return smalle.SmallEProcessor.from_pretrained(CHECKPOINT)


@pytest.fixture(scope="module")
def converted(processor):
    model = smalle.SmallEForTextToSpeech.from_pretrained(CHECKPOINT).eval()
    return list(decoder.converted_examples(processor, model, TEXTS))


@pytest.fixture(scope="module")
def recorded(processor, tmp_path_factory):
    folder = tmp_path_factory.mktemp("corpus")
    wave = processor.decode(processor.get_voice("daniel").codes)[0][:96000].float().numpy()
    write_wav(folder / "a.wav", wave, 24000)
    (folder / "a.txt").write_text("The text does not matter.")
    return list(decoder.recorded_examples(processor, [str(folder)]))


def test_examples_are_codes_and_the_latents_of_better_speech(processor, converted, recorded):
    """The converter's Vocos speaks the latents as the converter speaks the decoded codes."""
    converter = processor.converter
    waves = [processor.decode(codes.T)[0] for codes, *_ in converted]
    with torch.no_grad():
        conversion = decoder.own_conversion(converter, torch.cat(waves).float())
    for (codes, latents, _), wave in zip(converted, waves):
        assert codes.shape == (6, latents.shape[1]) and latents.shape[0] == 64
        made, _ = converter.vocos.decode_chunk(latents[None].float(), None, True)
        meant, _ = converter.convert(wave[None], converter.network_of(conversion), conversion["pitch"], last=True)
        length = min(made.shape[1], meant.shape[1])
        gaps = (converter.analysis.mel(made[:, :length]) - converter.analysis.mel(meant[:, :length])).abs()
        assert gaps.mean() < 0.2, "the latents are not those of the conversion"
    for codes, latents, _ in recorded:
        assert codes.shape == (6, latents.shape[1]) and latents.shape[0] == 64


def test_the_decoder_learns_and_keeps_the_codes(processor, converted, recorded, tmp_path):
    options = StageOptions(str(tmp_path / "codec"), 1.0, 6, 3e-3, 5, 0.9)
    stage = decoder.DecoderStage(processor.codec, processor.converter, converted, recorded, options)
    first = float(stage.step(0, 0.0)["l1"])
    for step in range(1, 12):
        last = float(stage.step(step, step / 12)["l1"])
    assert last < 0.8 * first
    assert stage.sounds(converted[0][2][None].float(), converted[0][2][None].float()) < 1e-4
    assert stage.sounds(converted[0][2][None].float().flip(1), converted[0][2][None].float()) > 0.5
    stage.save(tmp_path / "codec")
    codec = load_codec(str(tmp_path / "codec"))
    assert codec.identity == processor.codec.identity
    assert codec.decode(converted[0][0][None].long()).shape == (1, converted[0][0].shape[1] * codec.hop_length)
    assert all(parameter.dtype == torch.float32 for parameter in stage.codec.parameters()), "saving changed the stage"


def test_only_a_codec_of_the_same_codes_is_taken(tmp_path):
    """smalle-codec has other codes; the checkpoint is left as it was."""
    checkpoint = shutil.copytree(CHECKPOINT, tmp_path / "checkpoint")
    with pytest.raises(ValueError, match="other codes"):
        take_codec(str(CHECKPOINT.parent / "smalle-codec"), str(checkpoint))
    before = (checkpoint / "codec" / "model.safetensors").read_bytes()
    take_codec(str(CHECKPOINT / "codec"), str(checkpoint))
    assert (checkpoint / "codec" / "model.safetensors").read_bytes() == before


def test_short_speech_is_refused():
    short = np.zeros((6, 20)), np.zeros((64, 20)), np.zeros((20, 200))
    with pytest.raises(ValueError, match="longer texts"):
        decoder.take(iter([tuple(map(torch.from_numpy, short))]), 1.0, 50.0, "recorded")
