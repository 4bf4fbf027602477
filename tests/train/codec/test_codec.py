"""Codec training: the audio it reads, what it fits, and its stages end to end on a tiny corpus."""

import json
import shutil

import numpy as np
import pytest
import torch
from smalle.train.codec.acoustics import Acoustics
from smalle.train.codec.copy_synthesis import copy_synthesis
from smalle.train.codec.data import AudioPool, list_clips, load_audio
from smalle.train.codec.losses import SpectralLoss, low_pass
from smalle.train.codec.pitch import PitchTrack
from smalle.train.codec.quantizer import fit_codec, principal_components, residual_kmeans
from smalle.train.codec.recipe import CodecRecipe, ReconstructionOptions
from smalle.train.codec.stages import STAGES
from smalle.train.codec.train import main
from smalle.train.data.audio import QualityGate
from smalle.train.model.recipe import make_dataclass, read_recipe

from smalle.audio_smalle import write_wav
from smalle.cli.command import run_command
from smalle.codec_smalle import SmallECodec, SmallECodecConfig, load_codec

RECIPES = "train/recipes"
SIZES = {
    "latent_size": 8,
    "num_codebooks": 2,
    "codebook_size": 16,
    "vocos_hidden_size": 8,
    "vocos_intermediate_size": 16,
    "vocos_num_layers": 1,
    "refiner_hidden_size": 8,
    "refiner_intermediate_size": 16,
    "refiner_num_layers": 2,
}


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    folder, random = tmp_path_factory.mktemp("corpus"), np.random.default_rng(0)
    rows = []
    for i, speaker in enumerate(["a", "b", "mixed", "a", "c", "c"]):
        tone = 0.3 * np.sin(np.arange(9000 + 2000 * i) * (0.02 + 0.01 * i)) + 0.05 * random.normal(size=9000 + 2000 * i)
        write_wav(folder / f"{i}.wav", tone, 24000)
        rows.append({"file_name": f"{i}.wav", "text": "tone", "speaker": speaker})
    (folder / "metadata.jsonl").write_text("\n".join(map(json.dumps, rows)))
    (folder / "speakers.json").write_text(json.dumps({"mixed": [["b", 0.5], ["a", 0.5]]}))
    return folder


def file_names(clips):
    return [clip.path.rpartition("/")[2] for clip in clips]


def test_excluded_speakers_and_their_blends_are_left_out(corpus):
    assert file_names(list_clips([corpus], ["b"])) == ["0.wav", "3.wav", "4.wav", "5.wav"]
    with pytest.raises(ValueError, match="no recordings"):
        list_clips([corpus], ["a", "b", "c"])


def test_recordings_may_have_their_texts_beside_them(corpus, tmp_path):
    shutil.copy(corpus / "0.wav", tmp_path / "hello.wav")
    (tmp_path / "hello.txt").write_text("Hello.")
    assert file_names(list_clips([tmp_path])) == ["hello.wav"]


def test_audio_is_loaded_as_16_bit_up_to_a_limit(corpus, tmp_path, capsys):
    clips = list_clips([corpus])
    audio = load_audio(clips, 24000, threads=2)
    assert len(audio) == 6 and all(samples.dtype == np.int16 for samples in audio)
    slower = load_audio(clips, 16000, threads=2)
    assert [len(samples) for samples in slower] == pytest.approx([len(samples) * 2 / 3 for samples in audio], abs=2)
    assert len(load_audio(clips, 24000, max_hours=20000 / 24000 / 3600)) < 3
    for name in ("a", "b"):
        (tmp_path / f"{name}.txt").write_text(name)
        (tmp_path / f"{name}.wav").write_text("no sound")
    with pytest.raises(ValueError, match="none of 2"):
        load_audio(list_clips([tmp_path]), 24000)
    assert "2 recordings could not be used" in capsys.readouterr().out
    with pytest.raises(ValueError, match="none of 6.*too quiet"):
        load_audio(clips, 24000, gate=QualityGate())  # tones have no pauses


def test_segments_stay_within_recordings():
    audio = [np.full(length, value, np.int16) for value, length in enumerate((50, 1000, 120, 100), start=1)]
    segments = AudioPool(audio, 100, torch.device("cpu")).draw(20000)
    waveform = segments.waveform * 32768
    first = waveform[:, 0]
    assert torch.equal(first, segments.recording + 1.0)
    short = first == 1
    assert short.any() and (waveform[short, 50:] == 0).all()
    assert (waveform[~short] == first[~short, None]).all()
    assert {2.0, 3.0, 4.0} <= set(first.tolist()) and segments.start.max() == 900


def test_gains_lie_in_their_range():
    pool = AudioPool(
        [np.full(200, 10000, np.int16)], 100, torch.device("cpu"), augmentation=Acoustics(gain_db=(-6.0, 6.0))
    )
    level = pool.draw(1000).waveform[:, 0] * 32768 / 10000
    assert 0.5 < level.min() < 0.55 and 1.85 < level.max() < 2.0


def test_principal_components_and_kmeans_reduce_the_error():
    torch.manual_seed(0)
    points = torch.randn(2000, 12) @ torch.randn(12, 12)
    basis, deviations = principal_components(points, 12)
    torch.testing.assert_close(points @ basis.T @ basis, points, atol=1e-3, rtol=1e-3)
    assert (deviations[:-1] >= deviations[1:]).all()
    _, errors = residual_kmeans(points, 3, 32, 5)
    assert errors[0] > errors[1] > errors[2]


def test_a_fitted_codec_has_latents_of_deviation_one_and_uses_its_codebooks(capsys):
    torch.manual_seed(0)
    codec = SmallECodec(SmallECodecConfig(**SIZES)).eval()
    audio = [(3000 * np.random.default_rng(0).normal(size=48000) * np.linspace(0, 1, 48000)).astype(np.int16)]
    pool = AudioPool(audio, 4800, torch.device("cpu"))
    fit_codec(codec, pool, 60, 5)
    waveform = pool.draw(40).waveform
    latents = codec.analysis(waveform)
    assert latents.mean().abs() < 0.1 and latents.square().mean().sqrt() == pytest.approx(1, abs=0.1)
    assert all(len(row.unique()) == 16 for row in codec.encode(waveform).transpose(0, 1))
    assert "after each codebook" in capsys.readouterr().out


def test_spectral_loss_is_zero_only_for_the_same_and_its_gradient_is_finite():
    loss, target = SpectralLoss(), 0.1 * torch.randn(2, 4800)
    assert sum(loss(target, target)) == 0
    output = torch.stack([torch.zeros(4800), 1e-3 * torch.randn(4800)]).requires_grad_()
    sum(loss(output, target)).backward()
    assert output.grad.isfinite().all() and output.grad[1].abs().sum() > 0


def test_low_pass_removes_what_is_above_each_cutoff():
    time = torch.arange(4800) / 24000
    low, high = torch.sin(2 * torch.pi * 1000 * time), torch.sin(2 * torch.pi * 5000 * time)
    filtered = low_pass((low + high).expand(2, -1), torch.tensor([3000.0, 24000.0]), 24000)
    torch.testing.assert_close(filtered, torch.stack((low, low + high)), atol=1e-3, rtol=0)


@pytest.fixture
def band_limited_stage():
    """Reconstruction of a codec with a band extension, of a full-band recording and one that ends at 6 kHz."""
    torch.manual_seed(0)
    noise = 0.1 * torch.randn(2, 48000) * torch.linspace(0.1, 1, 48000)
    noise[1] = low_pass(noise[1:], torch.tensor([6000.0]), 24000)
    codec = SmallECodec(SmallECodecConfig(**SIZES, band_extension=True))
    pool = AudioPool([(32767 * row).short().numpy() for row in noise], 4800, torch.device("cpu"))
    pool.find_bands(codec.analysis)
    fit_codec(codec, pool, 40, 2)
    parts = {"output": "", "minutes": 1, "batch_size": 4, "learning_rate": 0.01, "warmup": 1, "ema_decay": 0.9}
    options = make_dataclass(ReconstructionOptions, {**parts, "codebooks": [1], "narrowed_share": 1.0})
    return STAGES["reconstruction"](codec, pool, noise[:, 4800:9600], options)


def test_the_target_above_the_band_of_a_recording_does_not_count(band_limited_stage):
    stage = band_limited_stage
    assert stage.pool.bands[0] == 100 and 60 < stage.pool.bands[1] < 90
    segments = stage.pool.draw(20)
    assert torch.equal(segments.bands, stage.pool.bands[segments.recording])
    limited = stage.limit_band(torch.randn(20, 4800), segments.bands)
    above = torch.fft.rfft(limited).abs()[:, 1300:].sum(1)  # 6.5 kHz
    assert (above[segments.bands < 100] < 0.1).all() and (above[segments.bands == 100] > 100).all()
    assert torch.stack(list(stage.step(0, 0.0).values())).isfinite().all()


def test_segments_are_quantized_by_the_chosen_codebooks_and_partly_as_band_limited(band_limited_stage):
    stage = band_limited_stage
    segments = stage.pool.draw(20)
    latents, quantized = stage.draw_latents(segments)
    codes = stage.codec.quantizer.encode(latents)
    assert torch.equal(quantized, stage.codec.quantizer.decode(codes[:, :1]))
    same = (latents == stage.analyze(segments.waveform, segments.bands)).flatten(1).all(1)
    assert torch.equal(same, segments.bands < 100)


def test_a_band_extension_needs_full_band_recordings(band_limited_stage):
    pool = band_limited_stage.pool
    pool.bands = torch.tensor([80, 80])
    with pytest.raises(ValueError, match="no recording reaches 12000 Hz"):
        fit_codec(band_limited_stage.codec, pool, 20, 2)


def make_stage(audio, stage, excitation="none", **options):
    """A stage of a fitted codec, at a learning rate for a few steps, and its pool."""
    torch.manual_seed(0)
    sizes = SIZES if excitation == "none" else SIZES | {"vocos_upsampling": 2, "vocos_n_fft": 960}
    codec = SmallECodec(SmallECodecConfig(**sizes, vocos_excitation=excitation))
    pitch = PitchTrack(audio, 24000, "cpu") if excitation == "harmonic" else None
    pool = AudioPool(audio, 4800, torch.device("cpu"), pitch=pitch)
    fit_codec(codec, pool, 20, 2)
    parts = {"output": "", "minutes": 1, "batch_size": 4, "learning_rate": 0.01, "warmup": 1, "ema_decay": 0.9}
    recipe = make_dataclass(CodecRecipe, {"data": {"corpus": [], "segment": 4800}, stage: parts | options})
    return STAGES[stage](codec, pool, pool.draw(4).waveform, getattr(recipe, stage))


@pytest.mark.parametrize(
    "stage, excitation, loss, options",
    [
        ("reconstruction", "none", "log", {}),
        ("reconstruction", "harmonic", "pitch", {}),
        ("adversarial", "none", "log", {"width": 2, "windows": [512], "clip": 50.0}),
        ("refiner", "none", "rest", {"frames": 8, "batch_size": 16}),
    ],
)
def test_every_stage_learns_and_keeps_the_codes(corpus, stage, excitation, loss, options):
    audio = load_audio(list_clips([corpus]), 24000, threads=2)
    stage = make_stage(audio, stage, excitation, **options)
    codes, before = stage.codec.encode(stage.validation), stage.validate()
    losses = [stage.step(n, n / 60)[loss].item() for n in range(60)]
    assert sum(losses[-10:]) < 0.97 * sum(losses[:10])
    assert torch.equal(stage.codec.encode(stage.validation), codes)
    assert stage.validate() != before


def tiny(corpus, out):
    settings = {
        "device": "cpu",
        "threads": 2,
        "data.corpus": f"[{corpus}]",
        "data.validation_files": 2,
        "data.segment": 4800,
        "codec": json.dumps(SIZES),
        "reconstruction.output": f"{out}/a",
        "reconstruction.minutes": 0.03,
        "reconstruction.batch_size": 2,
        "reconstruction.fitting_segments": 20,
        "reconstruction.kmeans_iterations": 2,
        "reconstruction.log_seconds": 0.5,
        "refiner.start": f"{out}/a",
        "refiner.output": f"{out}/r",
        "refiner.minutes": 0.02,
        "refiner.batch_size": 4,
        "refiner.frames": 8,
        "refiner.log_seconds": 0.5,
        "refiner.learning_rate": 0.01,
        "adversarial.start": f"{out}/r",
        "adversarial.output": f"{out}/b",
        "adversarial.minutes": 0.03,
        "adversarial.batch_size": 2,
        "adversarial.width": 2,
        "adversarial.log_seconds": 0.5,
    }
    return [f"{RECIPES}/codec.yaml", *(f"{key}={value}" for key, value in settings.items())]


def log(folder):
    return [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]


def test_all_stages_run_resume_and_keep_the_codes(corpus, tmp_path):
    arguments = tiny(corpus, tmp_path)
    main(arguments)
    steps = log(tmp_path / "a.training")[-1]["step"]
    main([*arguments, "reconstruction.minutes=0.04"])
    assert log(tmp_path / "a.training")[-1]["step"] > steps
    main([*arguments, "--stage", "refiner"])
    main([*arguments, "--stage", "adversarial"])
    first, second = load_codec(str(tmp_path / "a")), load_codec(str(tmp_path / "b"))
    waveform = 0.1 * torch.randn(1, 9600)
    codes = first.encode(waveform)
    assert torch.equal(second.encode(waveform), codes)
    assert not torch.equal(second.decode(codes), first.decode(codes))
    manifest = copy_synthesis(second, corpus / "metadata.jsonl", tmp_path / "copies", count=2)
    row = json.loads(manifest.read_text().splitlines()[0])
    assert (manifest.parent / row["audio"]).is_file() and (manifest.parent / row["reference"]).is_file()


def test_the_initial_weights_are_saved_by_their_share(corpus, tmp_path):
    arguments = tiny(corpus, tmp_path)
    main(arguments)
    main([*arguments, "--stage", "refiner"])
    fast = ["adversarial.learning_rate=0.1", "adversarial.warmup=1"]
    main([*arguments, *fast, "--stage", "adversarial", "adversarial.initial_share=1"])
    first, second = (load_codec(str(tmp_path / name)).state_dict() for name in "rb")
    torch.testing.assert_close(second, first)


def test_a_run_with_another_corpus_is_not_resumed(corpus, tmp_path, capsys):
    arguments = [*tiny(corpus, tmp_path), "reconstruction.minutes=0.01"]
    main(arguments)
    before = (tmp_path / "a.training" / "state.pt").read_bytes()
    assert run_command("codec", main, [*arguments, "data.max_hours=1"]) == 2
    assert "data was" in (said := capsys.readouterr().err) and "--fresh" in said
    assert (tmp_path / "a.training" / "state.pt").read_bytes() == before
    main([*arguments, "data.max_hours=1", "--fresh"])


def test_wrong_input_ends_with_code_2(corpus, tmp_path, capsys):
    untrained = tmp_path / "untrained"
    SmallECodec(SmallECodecConfig(**SIZES)).save_pretrained(untrained)
    for overrides, message in (
        (["reconstruction.minuets=1"], "reconstruction.minuets"),
        (["codec.encoder_num_layers=1"], "codec.encoder_num_layers"),
        ([f"data.corpus=[{tmp_path}]"], "metadata.jsonl"),
        (["adversarial=null", "--stage", "adversarial"], "no part adversarial"),
        (["refiner.start=null", "--stage", "refiner"], "refiner.start is not set"),
        ([f"adversarial.start={untrained}", "--stage", "adversarial"], "refiner first"),
    ):
        assert run_command("codec", main, [*tiny(corpus, tmp_path), *overrides]) == 2
        assert message in capsys.readouterr().err


@pytest.mark.parametrize("name", ["codec", "codec-mini", "codec-people", "finetune-codec"])
def test_shipped_recipes_are_valid(name):
    recipe = read_recipe(CodecRecipe, f"{RECIPES}/{name}.yaml", ["refiner.minutes=3", "codec.num_codebooks=8"])
    assert recipe.codec["num_codebooks"] == 8 and recipe.refiner.minutes == 3
