"""Training of the voice converter, from pairs to a checkpoint, on some seconds of the embedded checkpoint's voices."""

import json
import pathlib
import shutil

import numpy as np
import pytest
import smalle.train.conversion.assemble as assembling
import torch
from smalle.train.codec.recipe import StageOptions
from smalle.train.codec.timed_run import TimedRun
from smalle.train.conversion import content, converter
from smalle.train.conversion.pairs import align, aligned_features, load_pairs, make_pair, mel_frames, save_pairs

import smalle
from smalle.codec_smalle import load_codec
from smalle.voices_smalle import VoiceConverter

CHECKPOINTS = pathlib.Path(__file__).parents[3] / "checkpoints"
SIZES = dict(content_size=24, content_intermediate_size=32, content_num_layers=1)
SIZES |= dict(hidden_size=24, intermediate_size=32, num_layers=2)


@pytest.fixture(scope="module")
def codec():
    return load_codec(str(CHECKPOINTS / "smalle-codec"))


@pytest.fixture(scope="module")
def waves():
    """The prompts of two preset voices, 4 s."""
    processor = smalle.SmallEProcessor.from_pretrained(CHECKPOINTS / "smalle-mini")
    voices = [processor.get_voice(name) for name in ("emma", "daniel")]
    return [processor.decode(voice.codes)[0][:96000].float().numpy() for voice in voices]


@pytest.fixture(scope="module")
def pairs(codec, waves, tmp_path_factory):
    """A file of pairs: each voice in two halves, each half its own reading."""
    path = str(tmp_path_factory.mktemp("pairs") / "pairs.safetensors")
    halves = [(name, half) for name, wave in zip("ab", waves) for half in np.split(wave, [len(wave) // 2])]
    save_pairs(path, [make_pair(codec.analysis, name, half, half) for name, half in halves])
    return path


def options(output, **changes):
    values = dict(minutes=1.0, batch_size=4, learning_rate=3e-3, warmup=5, ema_decay=0.9)
    return StageOptions(str(output), **{**values, **changes})


@torch.no_grad()
def test_the_alignment_follows_a_known_warp(codec, waves):
    frames = mel_frames(codec.analysis, waves[0], False)
    frames = frames.view(-1, 200)
    count = len(frames)
    warped = np.arange(count) + 8 * np.sin(np.arange(count) * (2 * np.pi / count))  # up to 0.16 s away
    chosen = frames[torch.from_numpy(warped).round().long().clamp(0, count - 1)]
    places, cost = align(aligned_features(chosen.view(-1, 100)), aligned_features(frames.view(-1, 100)))
    assert np.median(np.abs(places - warped)) < 1 and np.abs(np.arange(count) - warped).mean() > 4
    _, other = align(aligned_features(chosen.view(-1, 100)), aligned_features(frames.flip(0).reshape(-1, 100)))
    assert cost < 0.5 * other


def test_pairs_are_kept_whole(pairs):
    found = load_pairs([pairs])
    assert [pair.speaker.rpartition("/")[2] for pair in found] == ["a", "a", "b", "b"]
    for pair in found:
        assert len(pair.mel) == len(pair.f0) == 2 * len(pair.places) and len(pair.source) == len(pair.mel)
        assert np.abs(pair.places.numpy() - np.arange(len(pair.places))).max() < 1  # read by itself
    assert 0 < len(load_pairs([pairs], best=0.5)) < 4
    voiced = [float(pair.f0[pair.f0 > 0].median()) for pair in found]
    assert min(voiced[:2]) > max(voiced[2:])  # a woman and a man
    with pytest.raises(ValueError, match="no pair"):
        save_pairs("nothing.safetensors", [])


def content_stage(codec, pairs, output, **changes):
    torch.manual_seed(0)
    return content.ContentStage(content.new_converter(codec, **SIZES), load_pairs([pairs]), options(output, **changes))


@pytest.fixture(scope="module")
def encoder(codec, pairs, tmp_path_factory):
    """The folder of a converter with an encoder that has learnt for some steps, and its losses."""
    folder = tmp_path_factory.mktemp("encoder")
    stage = content_stage(codec, pairs, folder)
    losses = [float(stage.step(step, 0.0)["content"].detach()) for step in range(40)]
    stage.save(folder)
    return folder, losses


def test_the_encoder_learns(encoder):
    folder, losses = encoder
    assert np.mean(losses[-5:]) < 0.87 * np.mean(losses[:5])
    assert VoiceConverter.from_pretrained(folder).cepstrum.abs().max() > 0


@pytest.fixture(scope="module")
def stage(encoder, pairs, tmp_path_factory):
    torch.manual_seed(0)
    model = VoiceConverter.from_pretrained(encoder[0])
    converter.fill_speaker(model, str(CHECKPOINTS / "smalle-mini" / "converter" / "model.safetensors"))
    return converter.ConverterStage(model, load_pairs([pairs]), options(tmp_path_factory.mktemp("network")))


@torch.no_grad()
def test_rows_are_conditioned_as_one_speaker_is(stage):
    model, inputs, condition = stage.converter, torch.randn(2, 130, 9), torch.randn(2, 128)
    rows = converter.conditioned_latents(model, inputs, condition)
    for row, x, c in zip(rows, inputs, condition):
        expected = model.conditioned(c[None]).apply_blocks(x[None])[0] * model.latent_scale[:, None]
        torch.testing.assert_close(row[None], expected, atol=1e-4, rtol=1e-4)


def test_the_network_learns_and_the_discriminator_with_it(stage):
    frozen = {name: x.clone() for name, x in stage.converter.named_parameters() if not name.startswith(converter_parts)}
    rows = [stage.step(step, 0.0 if step < 40 else 0.5) for step in range(44)]
    losses = [float(row["l1"]) for row in rows]
    assert np.mean(losses[-5:]) < 0.87 * np.mean(losses[:5])
    assert float(rows[0]["adversarial"]) == 0 < float(rows[-1]["adversarial"]) and float(rows[-1]["matching"]) > 0
    assert all(torch.equal(dict(stage.converter.named_parameters())[name], x) for name, x in frozen.items())


converter_parts = ("condition", "films", "network")


def test_a_run_that_was_ended_resumes(codec, pairs, tmp_path):
    output = tmp_path / "content"
    stage = content_stage(codec, pairs, output, minutes=0.02)
    run = TimedRun(stage, stage.options, {"stage": "content"}, 1.0)
    step = stage.step

    def end_at_the_third(number, progress):
        run.stopped = number == 2
        return step(number, progress)

    stage.step = end_at_the_third
    run.run()
    again = content_stage(codec, pairs, output, minutes=0.02)
    resumed = TimedRun(again, again.options, {"stage": "content"}, 1.0)
    resumed.resume()
    assert resumed.step == 3 and resumed.spent > 0
    for name, x in stage.trained.state_dict().items():
        assert torch.equal(x, again.trained.state_dict()[name])
    resumed.run()
    assert resumed.step > 3 and resumed.spent >= 1.2


def test_the_assembled_checkpoint_speaks(stage, tmp_path, monkeypatch):
    checkpoint = tmp_path / "checkpoint"
    shutil.copytree(CHECKPOINTS / "smalle-mini", checkpoint, ignore=shutil.ignore_patterns("converter"))
    config = json.loads((checkpoint / "processor_config.json").read_text())
    config.pop("converter", None)
    (checkpoint / "processor_config.json").write_text(json.dumps(config))
    stage.save(tmp_path / "trained")
    monkeypatch.setattr(assembling, "TEXTS", ("The weather is fine today.",))
    assembling.main([str(tmp_path / "trained"), str(checkpoint)])
    processor = smalle.SmallEProcessor.from_pretrained(checkpoint)
    model = processor.converter
    assert 4.9 < model.config.source_pitch[0] < 5.6 and model.content_scale.min() > 0
    voice = processor.get_voice("daniel")
    wave = processor.decode(voice.codes)[0][:48000].float()
    conversion = model.prepare(wave, steps=0)
    speech, _ = model.convert(wave[None], model.network_of(conversion), conversion["pitch"], last=True)
    assert speech.shape[1] == len(wave) and speech.isfinite().all() and speech.abs().max() > 1e-3
