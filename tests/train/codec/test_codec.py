"""Codec training: the audio it reads, where it starts, and both stages end to end on a tiny corpus."""

import json
import shutil

import numpy as np
import pytest
import torch
from smalle.train.codec.audio_pool import AudioPool, list_files, load_corpus
from smalle.train.codec.copy_synthesis import copy_synthesis
from smalle.train.codec.losses import SpectralLoss
from smalle.train.codec.main import main, read_recipe
from smalle.train.codec.residual_kmeans import principal_components, residual_kmeans
from smalle.train.codec.stages import CodebookLearner

from smalle.audio_smalle import write_wav
from smalle.codec_smalle import load_codec

RECIPE = "train/recipes/codec.yaml"


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


def test_excluded_speakers_and_their_blends_are_not_listed(corpus):
    names = [path.name for path, _ in list_files([corpus], ["b"])]
    assert names == ["0.wav", "3.wav", "4.wav", "5.wav"]


def test_pieces_stay_inside_files():
    audio = [np.full(length, value, np.int16) for value, length in enumerate((50, 1000, 120, 100), start=1)]
    pieces = AudioPool(audio, 100, torch.device("cpu")).pieces(20000) * 32768
    first = pieces[:, 0]
    short = first == 1
    assert short.any() and (pieces[short, 50:] == 0).all()
    assert (pieces[~short] == first[~short, None]).all()
    assert {2.0, 3.0, 4.0} <= set(first.tolist())


def test_corpus_loads_as_16_bit(corpus):
    audio = load_corpus([corpus], 24000, threads=2)
    assert len(audio) == 6 and all(samples.dtype == np.int16 for samples in audio)
    slower = load_corpus([corpus], 16000, threads=2)
    assert [len(samples) for samples in slower] == pytest.approx([len(samples) * 2 / 3 for samples in audio], abs=2)


def test_principal_components_and_kmeans_shrink_the_rest():
    torch.manual_seed(0)
    points = torch.randn(2000, 12) @ torch.randn(12, 12)
    mean, basis, deviations = principal_components(points, 12)
    torch.testing.assert_close((points - mean) @ basis.T @ basis, points - mean, atol=1e-3, rtol=1e-3)
    assert (deviations[:-1] >= deviations[1:]).all()
    _, rest = residual_kmeans(points - mean, 3, 32, 5)
    assert rest[0] > rest[1] > rest[2]


def test_spectral_loss_is_zero_only_for_the_same_and_its_gradient_is_finite():
    loss, target = SpectralLoss(), 0.1 * torch.randn(2, 4800)
    assert sum(loss(target, target)) == 0
    output = torch.stack([torch.zeros(4800), 1e-3 * torch.randn(4800)]).requires_grad_()
    sum(loss(output, target)).backward()
    assert output.grad.isfinite().all() and output.grad[1].abs().sum() > 0


def test_codebooks_follow_what_they_are_chosen_for():
    quantizer = torch.nn.Module()
    quantizer.codebooks = torch.tensor([[[0.0], [10.0], [99.0]]])
    learner = CodebookLearner(quantizer, memory=40)
    for _ in range(300):
        codes = torch.tensor([[0, 0, 1, 1]])
        learner.update(codes, torch.tensor([[[1.0], [3.0], [11.0], [13.0]]]), restart=False)
    torch.testing.assert_close(quantizer.codebooks[0, :2], torch.tensor([[2.0], [12.0]]))
    learner.update(codes, torch.tensor([[[1.0], [3.0], [11.0], [13.0]]]), restart=True)
    assert quantizer.codebooks[0, 2] in (1, 3, 11, 13)


def tiny(corpus, out):
    sizes = {
        "latent_size": 8,
        "num_codebooks": 2,
        "codebook_size": 16,
        "encoder_hidden_size": 8,
        "encoder_intermediate_size": 8,
        "encoder_num_layers": 1,
        "vocos_hidden_size": 8,
        "vocos_intermediate_size": 16,
        "vocos_num_layers": 1,
        "refiner_hidden_size": 8,
        "refiner_intermediate_size": 16,
        "refiner_num_layers": 2,
    }
    settings = {
        "device": "cpu",
        "threads": 2,
        "data.corpus": f"[{corpus}]",
        "data.validation_files": 2,
        "data.segment": 4800,
        "codec": json.dumps(sizes),
        "reconstruction.output": f"{out}/a",
        "reconstruction.minutes": 0.03,
        "reconstruction.batch_size": 2,
        "reconstruction.start_pieces": 20,
        "reconstruction.kmeans_iterations": 2,
        "reconstruction.log_seconds": 0.5,
        "refiner.start": f"{out}/b",
        "refiner.output": f"{out}/r",
        "refiner.minutes": 0.05,
        "refiner.batch_size": 4,
        "refiner.frames": 8,
        "refiner.log_seconds": 0.5,
        "refiner.learning_rate": 0.01,
        "decoder.start": f"{out}/a",
        "decoder.output": f"{out}/b",
        "decoder.minutes": 0.03,
        "decoder.batch_size": 2,
        "decoder.width": 2,
        "decoder.log_seconds": 0.5,
    }
    return [RECIPE, *(f"{key}={value}" for key, value in settings.items())]


def log(folder):
    return [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]


def test_all_stages_run_resume_and_keep_the_codes(corpus, tmp_path):
    arguments = tiny(corpus, tmp_path)
    assert main(arguments) == 0
    steps = log(tmp_path / "a.training")[-1]["step"]
    assert main([*arguments, "reconstruction.minutes=0.04"]) == 0
    rows = [row for row in log(tmp_path / "a.training") if row["kind"] == "train"]
    assert rows[-1]["step"] > steps and rows[-1]["log"] < rows[0]["log"]
    assert main([*arguments, "--stage", "decoder"]) == 0
    assert main([*arguments, "--stage", "refiner"]) == 0
    rows = [row for row in log(tmp_path / "r.training") if row["kind"] == "train"]
    assert rows[-1]["rest"] < rows[0]["rest"] and rows[-1]["rest"] < 1  # 1: nothing is known of what is lost
    first, second = load_codec(str(tmp_path / "a")), load_codec(str(tmp_path / "r"))
    waveform = 0.1 * torch.randn(1, 9600)
    codes = first.encode(waveform)
    assert torch.equal(second.encode(waveform), codes)
    assert not torch.equal(second.decode(codes), first.decode(codes))
    manifest = copy_synthesis(second, corpus / "metadata.jsonl", tmp_path / "copies", count=2)
    row = json.loads(manifest.read_text().splitlines()[0])
    assert (manifest.parent / row["audio"]).is_file() and (manifest.parent / row["reference"]).is_file()


def test_a_run_of_another_corpus_is_not_taken_up(corpus, tmp_path, capsys):
    arguments = [*tiny(corpus, tmp_path), "reconstruction.minutes=0.01"]
    assert main(arguments) == 0
    before = (tmp_path / "a.training" / "state.pt").read_bytes()
    assert main([*arguments, "data.max_hours=1"]) == 2
    assert "data was" in (said := capsys.readouterr().err) and "--fresh" in said
    assert (tmp_path / "a.training" / "state.pt").read_bytes() == before
    assert main([*arguments, "data.max_hours=1", "--fresh"]) == 0


def test_recordings_may_have_their_texts_beside_them(corpus, tmp_path):
    shutil.copy(corpus / "0.wav", tmp_path / "hello.wav")
    (tmp_path / "hello.txt").write_text("Hello.")
    assert [path.name for path, _ in list_files([tmp_path])] == ["hello.wav"]


def test_wrong_input_ends_with_code_2(corpus, tmp_path, capsys):
    assert main([RECIPE, "reconstruction.minuets=1"]) == 2
    assert "minuets" in capsys.readouterr().err
    assert main([RECIPE, f"data.corpus=[{tmp_path}]"]) == 2
    assert "metadata.jsonl" in capsys.readouterr().err


def test_recipe_settings():
    assert read_recipe(RECIPE, ["decoder.minutes=3", "codec.num_codebooks=8"])["codec"]["num_codebooks"] == 8
