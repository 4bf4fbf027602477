"""Training of the voice converter, from pairs to a checkpoint, on some seconds of the embedded checkpoint's voices."""

import json
import pathlib
import shutil

import numpy as np
import pytest
import smalle.train.conversion.assemble as assembling
import torch
from safetensors.torch import save_file
from smalle.train.codec.recipe import StageOptions
from smalle.train.codec.timed_run import TimedRun
from smalle.train.conversion import classes, content, converter, joint
from smalle.train.conversion.pairs import load_pairs, make_pair, save_pairs
from smalle.train.conversion.phones import ALPHABET, NUM_PHONES, align, corresponding, phone_sequence, phones_at
from smalle.train.conversion.readings import load_readings, places_of, read_in_times
from smalle.train.conversion.stage import new_converter
from smalle.train.conversion.voice import HibariVoice

import smalle
from smalle.codec_smalle import load_codec
from smalle.voices_smalle import SpeechStatistics, VoiceConverter

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


def reading(wave):
    """A waveform as if it were the reading of twelve phones of the same length."""
    return "ðə wɛðɚ ɪz fIn\n", np.linspace(0, len(wave) / 24000, 16)[:-1].tolist(), wave


@pytest.fixture(scope="module")
def pairs(codec, waves, tmp_path_factory):
    """A file of pairs: each voice in two halves, each half its own reading."""
    path = str(tmp_path_factory.mktemp("pairs") / "pairs.safetensors")
    halves = [(name, half) for name, wave in zip("ab", waves) for half in np.split(wave, [len(wave) // 2])]
    save_pairs(path, [make_pair(codec.analysis, name, half, reading(half)) for name, half in halves])
    return path


def options(output, **changes):
    values = dict(minutes=1.0, batch_size=4, learning_rate=3e-3, warmup=5, ema_decay=0.9)
    return StageOptions(str(output), **{**values, **changes})


def test_phones_of_a_text():
    symbols = "hˈaᵊ, mˌæ"
    phones = phone_sequence(symbols)
    assert "".join(("|" + ALPHABET)[n] for n in phones) == "|hæə|mæ|"
    # a comma and a space of 0.02 s, too short for a pause, are shared by their neighbours; a sign of stress as well
    starts = [0.1, 0.2, 0.24, 0.4, 0.5, 0.52, 0.54, 0.6, 0.64]
    at = "".join(("|" + ALPHABET)[n] for n in phones_at(symbols, starts, 40))
    assert at == "|" * 5 + "h" * 6 + "æ" * 9 + "ə" * 6 + "m" * 5 + "æ" * 9
    assert phones_at("a, a", [0.0, 0.1, 0.15, 0.3], 20).tolist() == [phones[2]] * 6 + [0] * 9 + [phones[2]] * 5


@pytest.mark.parametrize("silent", [True, False])
def test_alignments_find_the_times_of_phones(silent):
    random = np.random.default_rng(0)
    phones = phone_sequence("ðə wɛðə ɪz fIn " * 12)
    lengths = random.integers(2, 9, len(phones))
    lengths[phones == 0] *= silent  # a silence may be left out
    truth = np.repeat(np.arange(len(phones)), lengths)
    logits = random.normal(size=(len(truth), NUM_PHONES)) + 5 * np.eye(NUM_PHONES)[phones[truth]]
    path, fit = align(logits - np.log(np.exp(logits).sum(1, keepdims=True)), phones)
    assert (path == truth).all() and -1 < fit < 0
    slow = np.repeat(np.arange(len(phones)), 3 * lengths)
    assert np.abs(corresponding(path, slow) - (3 * np.arange(len(path)) + 1)).max() < 1e-6


class Speller:
    """A voice whose samples tell the phoneme: its place in the alphabet; 0 is a pause."""

    def frames(self, phonemes):
        return np.array([3.0, *(1 + ord(symbol) % 4 for symbol in phonemes), 3.0])

    def speak(self, phonemes, frames, rng):
        return np.repeat([0, *(1 + ALPHABET.find(symbol) for symbol in phonemes), 0], 600 * frames.astype(int))


@pytest.mark.parametrize("seed", range(5))
def test_readings_are_spoken_at_the_times_of_the_phones(seed):
    random, symbols = np.random.default_rng(seed), "ðə wˈɛðə ɪz fIn.\nhɪɹ, tˌu\n"
    phones = phone_sequence(symbols)
    assert {place: phones[place] for place in places_of(symbols)}.keys() == set(range(1, len(phones)))
    lengths = random.integers(2, 9, len(phones))
    lengths[phones == 0] = random.integers(0, 40, (phones == 0).sum())
    path = np.repeat(np.arange(len(phones)), lengths)
    wave = read_in_times(Speller(), 0.025, 24000, symbols, path, random)
    said = wave[: len(path) * 480].reshape(-1, 480)[:, 240].astype(int)
    assert abs(len(wave) - 480 * len(path)) < 600
    shifted = [np.roll(said, -shift) == phones[path] for shift in (-2, -1, 0, 1, 2)]  # 25 ms frames, and pauses
    assert np.any(shifted, 0)[phones[path] != 0].mean() > 0.97


def test_a_recording_that_is_too_short_for_its_text_has_a_reading():
    symbols = "ðə wˈɛðə ɪz fIn.\n" * 20
    path = np.arange(25)  # half a second
    wave = read_in_times(Speller(), 0.025, 24000, symbols, path, np.random.default_rng(0))
    assert len(wave) == 12000 and wave.any()


def test_the_voice_speaks_at_given_times():
    pytest.importorskip("hibari")
    voice = HibariVoice()
    symbols, starts, wave = voice.read("Hello there. Good morning.")
    assert symbols.count("\n") == 2 and len(starts) == len(symbols) and abs(len(wave) / 24000 - starts[-1]) < 0.6
    first = symbols[: symbols.index("\n")]
    frames = voice.frames(first)
    assert len(frames) == len(first) + 2
    slow = frames.copy()
    slow[5] += 20  # one phone, half a second longer
    lengths = [len(voice.speak(first, x, np.random.default_rng(0))) for x in (frames, slow)]
    assert lengths == [600 * frames.sum(), 600 * slow.sum()]


def test_readings_of_other_pairs_are_refused(pairs, tmp_path):
    found, path = load_pairs([pairs]), str(tmp_path / "readings.safetensors")
    save_file({str(n): torch.zeros(len(pair.mel) // 2, 48) for n, pair in enumerate(found)}, path)
    assert [len(x) for x in load_readings(path, found[2:])] == [len(pair.mel) // 2 for pair in found[2:]]
    with pytest.raises(ValueError, match="other pairs"):
        load_readings(path, [*found, found[0]])


def test_pairs_are_kept_whole(pairs):
    found = load_pairs([pairs])
    assert [pair.speaker.rpartition("/")[2] for pair in found] == ["a", "a", "b", "b"]
    for pair in found:
        assert len(pair.mel) == len(pair.f0) == len(pair.source) == 2 * len(pair.spoken)
        assert pair.phones.tolist() == phone_sequence("ðə wɛðɚ ɪz fIn").tolist()
        assert set(pair.spoken.tolist()) == set(pair.phones.tolist())
    voiced = [float(pair.f0[pair.f0 > 0].median()) for pair in found]
    assert min(voiced[:2]) > max(voiced[2:])  # a woman and a man
    with pytest.raises(ValueError, match="no pair"):
        save_pairs("nothing.safetensors", [])


def test_the_phone_network_learns_readings_and_recordings(codec, pairs, tmp_path):
    torch.manual_seed(0)
    blank, found = new_converter(codec, **SIZES), load_pairs([pairs])
    network, aligned = classes.phone_network(blank), []
    for _ in range(2):
        stage = classes.PhoneStage(blank, network, found, aligned, options(tmp_path))
        losses = [float(stage.step(step, 0.0)["phones"]) for step in range(40)]
        assert np.mean(losses[-5:]) < 0.85 * np.mean(losses[:5]) or aligned
        aligned = [classes.align_pair(network, pair) for pair in found]
    assert len(stage.aligned) < len(found)
    for row in aligned:
        assert (
            (np.diff(row.recorded) >= 0).all() and np.isfinite(row.fit) and row.recorded[-1] >= len(row.pair.phones) - 2
        )
    stage.save(tmp_path)
    assert (tmp_path / "phones.pt").is_file()


@pytest.fixture(scope="module")
def aligned(pairs):
    """Pairs whose readings and recordings are aligned by the known times."""
    rows = []
    for pair in load_pairs([pairs]):
        path = np.concatenate(([0], np.cumsum(np.diff(pair.spoken.numpy()) != 0)))
        path += pair.phones[0].item() != pair.spoken[0].item()
        rows.append(classes.Aligned(pair, path, path, -1.0))
    return rows


def test_classes_are_parts_of_phones(aligned):
    found = classes.fit_classes(aligned, 60)
    assert (found.phones.bincount() <= 12).all() and (found.phones == 0).sum() == 1
    for row, labels in zip(aligned, found.labels):
        assert (found.phones[labels] == row.pair.phones[torch.from_numpy(row.read)]).all()
    values = torch.cat([content.smooth_envelope(row.pair.source) for row in aligned])
    standard, labels = (values - found.moments[0]) / found.moments[1], torch.cat(found.labels)
    assert (standard - found.centroids[labels]).square().mean() < 0.7 * standard.square().mean()
    torch.testing.assert_close(found.centroids[labels[0]], standard[labels == labels[0]].mean(0))


def envelopes_of(aligned, moments):
    """Those of recordings that are their own readings."""
    return [(content.smooth_envelope(row.pair.source) - moments[0]) / moments[1] for row in aligned]


def content_stage(codec, aligned, output, **changes):
    torch.manual_seed(0)
    found = classes.fit_classes(aligned, 60)
    blank = new_converter(codec, num_content_classes=len(found.phones), **SIZES)
    envelopes = envelopes_of(aligned, found.moments)
    return content.ContentStage(blank, aligned, envelopes, range(2), found, options(output, **changes))


@pytest.fixture(scope="module")
def encoder(codec, aligned, tmp_path_factory):
    """The folder of a converter with an encoder that has learnt for some steps, and its losses."""
    folder = tmp_path_factory.mktemp("encoder")
    stage = content_stage(codec, aligned, folder)
    losses = [stage.step(step, 0.0) for step in range(40)]
    stage.save(folder)
    return folder, losses


def test_the_encoder_learns_classes_and_the_converted_voice(encoder, aligned):
    folder, losses = encoder
    for name in ("classes", "regression"):
        values = [float(row[name]) for row in losses]
        assert np.mean(values[-5:]) < 0.87 * np.mean(values[:5])
    model = VoiceConverter.from_pretrained(folder)
    assert model.cepstrum.abs().max() > 0 and model.centroids.weight.abs().max() > 0
    mel = aligned[0].pair.mel.float()
    by = [model.encode_content(mel.view(1, -1, 200), SpeechStatistics.of(mel), of_source=x)[0] for x in (True, False)]
    assert by[0].shape == by[1].shape and not torch.allclose(*by, atol=0.1)


@torch.no_grad()
def test_classes_begin_as_their_phones(codec, aligned):
    found = classes.fit_classes(aligned, 60)
    blank = new_converter(codec, num_content_classes=len(found.phones), **SIZES)
    network, groups = classes.phone_network(blank), torch.nn.functional.one_hot(found.phones, NUM_PHONES).float()
    network.out.weight.normal_()
    content.start_encoder(blank.encoder, network, groups)
    frames = torch.randn(1, 200, 20)
    expected = network.apply_blocks(frames)[0][0].softmax(0)
    begun = blank.encoder.apply_blocks(frames)[0][0][: len(groups)]
    there = groups.sum(0) > 0
    sums = groups.T @ begun.exp()
    torch.testing.assert_close(
        (sums / sums.sum(0))[there], (expected / expected[there].sum(0))[there], atol=0.1, rtol=0.5
    )


@pytest.fixture(scope="module")
def stage(encoder, pairs, tmp_path_factory):
    torch.manual_seed(0)
    model = VoiceConverter.from_pretrained(encoder[0])
    converter.fill_speaker(model, str(CHECKPOINTS / "smalle-mini" / "converter" / "model.safetensors"))
    found = load_pairs([pairs])
    readings = [torch.randn(len(pair.mel) // 2, 48).half() for pair in found]
    return converter.ConverterStage(model, found, readings, options(tmp_path_factory.mktemp("network")))


@torch.no_grad()
def test_rows_are_conditioned_as_one_speaker_is(stage):
    model, inputs, condition = stage.converter, torch.randn(2, 132, 9), torch.randn(2, 128)
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


def test_a_run_that_was_ended_resumes(codec, aligned, tmp_path):
    output = tmp_path / "content"
    stage = content_stage(codec, aligned, output, minutes=0.02)
    run = TimedRun(stage, stage.options, {"stage": "content"}, 1.0)
    step = stage.step

    def end_at_the_third(number, progress):
        run.stopped = number == 2
        return step(number, progress)

    stage.step = end_at_the_third
    with pytest.raises(KeyboardInterrupt):  # or a program would go on with what is not finished
        run.run()
    again = content_stage(codec, aligned, output, minutes=0.02)
    resumed = TimedRun(again, again.options, {"stage": "content"}, 1.0)
    resumed.resume()
    assert resumed.step == 3 and resumed.spent > 0
    for name, x in stage.trained.state_dict().items():
        assert torch.equal(x, again.trained.state_dict()[name])
    resumed.run()
    assert resumed.step > 3 and resumed.spent >= 1.2


@pytest.fixture(scope="module")
def joint_stage(stage, pairs, tmp_path_factory):
    """Goes on with `stage`, with the recordings of one speaker as those of the converted voice."""
    folder = tmp_path_factory.mktemp("joint")
    stage.save(folder / "start")
    model = VoiceConverter.from_pretrained(folder / "start")
    found = load_pairs([pairs])
    readings = [torch.randn(len(pair.mel) // 2, 48).half() for pair in found]
    own = slice(0, 2)
    return joint.JointStage(model, found, readings, found[own], readings[own], options(folder / "out"))


def test_conversions_learn_to_say_what_is_converted(joint_stage):
    judge = {name: x.clone() for name, x in joint_stage.judge.state_dict().items()}
    rows = [joint_stage.step(step, 0.5) for step in range(30)]
    for name in ("sounds", "own"):
        values = [float(row[name]) for row in rows]
        assert np.mean(values[-5:]) < 0.93 * np.mean(values[:5]), name
    assert all(torch.equal(x, judge[name]) for name, x in joint_stage.judge.state_dict().items())
    encoder = joint_stage.converter.encoder.state_dict()
    assert not torch.equal(encoder["out.weight"], judge["out.weight"])


@torch.no_grad()
def test_the_difference_of_sounds(joint_stage):
    frames = joint_stage.source_sample(np.random.default_rng(0))[0][None]
    heard, _ = joint_stage.hear(joint_stage.judge, frames)
    torch.testing.assert_close(heard.exp().sum(1), torch.ones(1, heard.shape[2]))
    louder, _ = joint_stage.hear(joint_stage.judge, frames + 0.3)
    torch.testing.assert_close(louder, heard, atol=0.2, rtol=0.2)
    assert joint.kl_divergence(heard, heard) == 0 < joint.kl_divergence(heard.roll(3, 2), heard)
    known = torch.zeros(1, heard.shape[2])
    known[:, :5] = 1
    changed = heard.clone()
    changed[..., 5:] = changed[..., 5:].roll(3, 2)
    assert joint.kl_divergence(changed, heard, known) == 0


def test_the_assembled_checkpoint_speaks(stage, tmp_path, monkeypatch):
    # forty steps of training do not tell speech from music
    monkeypatch.setattr(smalle.voices_smalle, "LEAST_SPEECH", (0.0, -1.0))
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
    assert 4.5 < model.config.source_pitch[0] < 5.7 and abs(model.source_loudness) < 1
    voice = processor.get_voice("daniel")
    wave = processor.decode(voice.codes)[0][:48000].float()
    conversion = model.prepare(wave, steps=0)
    speech, _ = model.convert(wave[None], model.network_of(conversion), conversion["pitch"], last=True)
    assert speech.shape[1] == len(wave) and speech.isfinite().all() and speech.abs().max() > 1e-3
