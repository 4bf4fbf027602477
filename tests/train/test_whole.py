"""A small Libri-light goes through all of it: codes, tokenizer, training, checkpoint, evaluation."""

import json

import pytest
import torch
import yaml
from smalle.train import assemble
from smalle.train.data import prepare, tokenizer
from smalle.train.evaluation import evaluate
from smalle.train.model import audio_samples as samples
from smalle.train.model import trainer as train

from tests.librilight import make_cuts, make_librilight, make_tar

MODEL = dict(
    hidden_size=32,
    intermediate_size=48,
    text_layers=1,
    num_attention_heads=2,
    audio_encoder_layers=1,
    audio_decoder_layers=1,
    mixer_heads=2,
    expand_k=0.5,
    position_size=16,
    num_codebooks=3,
    codebook_size=20,
    frame_rate=50.0,
)


def call(module, *arguments):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.cuda, "is_available", lambda: False)
        module.main([*map(str, arguments)])


def test_from_a_tar_of_libri_light_to_a_page_of_results(tmp_path, tiny_codec, capsys, monkeypatch):
    monkeypatch.setattr(samples, "MAX_SECONDS", 2)
    voiced = make_librilight(tmp_path / "unlab", speakers=[str(n) for n in range(100, 106)])
    make_cuts(tmp_path / "cuts.jsonl.gz", voiced)
    archive = make_tar(tmp_path / "small.tar", tmp_path / "unlab")
    tiny_codec.save_pretrained(tmp_path / "codec")
    call(
        prepare,
        archive,
        "--libriheavy-cuts",
        tmp_path / "cuts.jsonl.gz",
        "--codec",
        tmp_path / "codec",
        "--threads",
        1,
        "--output",
        tmp_path / "codes",
        "--eval-speakers",
        1,
        "--test-speakers",
        1,
        "--shard-hours",
        0.003,
    )
    shards = sorted((tmp_path / "codes").glob("train-*.parquet"))
    assert len(shards) > 1
    call(tokenizer, *shards, "--output", tmp_path / "tokenizer", "--vocab-size", 40)

    codes = {split: f"{tmp_path}/codes/{split}.parquet" for split in ("train", "eval")}
    recipe = {
        "model": MODEL,
        "samples": {"codec": f"{tmp_path}/codec", "count": 1},
        "data": dict(
            tokenizer=f"{tmp_path}/tokenizer",
            cache_dir=f"{tmp_path}/cache",
            frames_per_batch=200,
            max_seconds=4,
            single_utterance_probability=0.3,
            eval_batches=1,
            **codes,
        ),
        "objective": dict(codebook_weights=[1.0] * 3, forward_sum_weight=0.1, text_dropout=0.0, ema_decay=0.5),
        "training": dict(
            output_dir=f"{tmp_path}/model",
            max_steps=3,
            save_steps=3,
            eval_strategy="steps",
            eval_steps=3,
            learning_rate=1e-3,
            warmup_steps=1,
            logging_steps=1,
        ),
    }
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    call(train, tmp_path / "recipe.yaml")
    assert (tmp_path / "model" / "samples" / "3" / "0001.png").is_file()

    recording = next((tmp_path / "unlab").rglob("*.flac"))
    voices = {
        "default": "reader",
        "voices": {"reader": {"audio": str(recording), "text": "One, two."}},
        "generation": {"max_seconds": 1},
    }
    (tmp_path / "voices.yaml").write_text(yaml.safe_dump(voices))
    call(assemble, tmp_path / "model", tmp_path / "codec", tmp_path / "voices.yaml", tmp_path / "checkpoint")
    (tmp_path / "lines.txt").write_text("One.\nTwo, three.\n")
    capsys.readouterr()
    paths = [str(tmp_path / name) for name in ("checkpoint", "lines.txt", "out")]
    assert evaluate.main([*paths, "--device", "cpu"]) == 0
    folder = tmp_path / "out" / json.loads(capsys.readouterr().out)["folder"]
    assert {"0001.wav", "0001.png", "0002.wav", "index.html", "report.json"} <= {path.name for path in folder.iterdir()}
