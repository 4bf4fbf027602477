"""From a folder of recordings to a checkpoint that speaks: tokenizer, codec, codes, training, resuming, assembly."""

import json
import shutil

import pyarrow.parquet
import pytest
import torch
import yaml
from safetensors.torch import load_file
from smalle.train import assemble
from smalle.train.data import prepare, tokenizer
from smalle.train.data.audio import read_audio
from smalle.train.data.corpora import read_metadata
from smalle.train.data.dataset import shards
from smalle.train.model import trainer as train
from smalle.train.model.initialization import grow
from smalle.train.model.recipe import Recipe, read_recipe

from smalle import SmallEForTextToSpeech, SmallEProcessor
from smalle.codec_smalle import load_codec

TEXTS = [
    "Hello you.",
    "How are you?",
    "It is late.",
    "We go home now.",
    "No, not yet!",
    "The door is open.",
    "Who is it?",
    "Come in, please.",
]

RECIPE = {
    "model": dict(
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
        dropout=0.1,
    ),
    "data": dict(frames_per_batch=120, max_seconds=4, single_utterance_probability=0.5, eval_batches=1),
    "objective": dict(
        codebook_weights=[1.5, 1.0, 0.5], alignment_weight=0.1, forward_sum_weight=0.1, text_dropout=0.3, ema_decay=0.9
    ),
    "training": dict(
        seed=3,
        max_steps=6,
        learning_rate=1e-2,
        lr_scheduler_type="cosine",
        warmup_steps=1,
        logging_steps=1,
        save_steps=3,
        eval_strategy="steps",
        eval_steps=3,
    ),
}


def call(module, *arguments):
    """Runs a command in this process, on the CPU: there equal runs are equal to the last bit."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.cuda, "is_available", lambda: False)
        module.main([*map(str, arguments)])


def losses(folder, step=6):
    """Logged training losses by step, as of a checkpoint."""
    history = json.loads((folder / f"checkpoint-{step}" / "trainer_state.json").read_text())["log_history"]
    return {row["step"]: row["loss"] for row in history if "loss" in row}


@pytest.fixture(scope="module")
def work(tmp_path_factory, tiny_codec, record):
    """A folder with a corpus, its codes, and a recipe over them."""
    work = tmp_path_factory.mktemp("work")
    (work / "corpus").mkdir()
    rows = []
    for index, text in enumerate(TEXTS):
        name, speaker = f"{index}.wav", "ab"[index % 2]
        wave = record(work / "corpus" / name, 0.5 + 0.1 * index, 100 + 15 * index)
        duration, count = wave.shape[1] / 24000, len(text.split())
        words = [[n / count * duration, (n + 1) / count * duration] for n in range(count)]
        timed = {"words": words} if index % 3 else {}  # some corpora know when words are said
        rows.append({"file_name": name, "text": text, "speaker": speaker, "duration": duration, **timed})
    (work / "corpus" / "metadata.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    tiny_codec.save_pretrained(work / "codec")
    call(tokenizer, work / "corpus" / "metadata.jsonl", "--output", work / "tokenizer", "--vocab-size", 60)
    call(
        prepare,
        work / "corpus",
        "--codec",
        work / "codec",
        "--output",
        work / "codes",
        "--eval-clips",
        2,
        "--threads",
        1,
    )
    recipe = {**RECIPE, "data": {**RECIPE["data"], "tokenizer": f"{work}/tokenizer"}}
    recipe["data"] |= {name: f"{work}/codes/{name}.parquet" for name in ("train", "eval")}
    (work / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    return work


@pytest.fixture(scope="module")
def trained(work):
    """Output folder of an uninterrupted run."""
    call(train, work / "recipe.yaml", f"training.output_dir={work}/trained")
    return work / "trained"


def test_codes_are_those_of_each_recording(work):
    parts = [pyarrow.parquet.read_table(shards(work / "codes" / f"{part}.parquet")[0]) for part in ("train", "eval")]
    rows = [row for part in parts for row in part.to_pylist()]
    codec, by_text = load_codec(str(work / "codec")), {row["text"]: row for row in rows}
    assert len(rows) == len(TEXTS) == len(by_text)
    for said in read_metadata(work / "corpus"):
        wave, row = torch.from_numpy(read_audio(said["path"], 24000)), by_text[said["text"]]
        assert torch.equal(torch.tensor(row["codes"]).view(-1, 3), codec.encode(wave[None])[0].T)
        assert row["words"] == pytest.approx([time for word in said.get("words", []) for time in word])
        assert row["speaker"] == said["speaker"] and row["duration"] == pytest.approx(said["duration"])


def test_excluded_speakers_are_left_out(work, tmp_path):
    call(prepare, work / "corpus", "--codec", work / "codec", "--output", tmp_path, "--eval-clips", 1, "--exclude", "b")
    parts = [pyarrow.parquet.read_table(*shards(tmp_path / f"{part}.parquet")) for part in ("train", "eval")]
    assert [len(part) for part in parts] == [3, 1]
    assert {speaker for part in parts for speaker in part["speaker"].to_pylist()} == {"a"}


def test_loss_falls(trained):
    values = losses(trained)
    assert sorted(values) == [1, 2, 3, 4, 5, 6]
    assert values[6] < values[1] - 0.1


def test_what_was_trained_is_averaged_and_can_be_loaded(trained):
    average = load_file(trained / "checkpoint-6" / "ema.safetensors")
    for name, value in SmallEForTextToSpeech.from_pretrained(trained).named_parameters():
        assert torch.equal(value, average[name])
    assert {"tokenizer.json", "recipe.yaml"} <= {path.name for path in trained.iterdir()}


def test_resumed_run_equals_an_uninterrupted_one(work, trained):
    shutil.copytree(trained / "checkpoint-3", work / "resumed" / "checkpoint-3")
    call(train, work / "recipe.yaml", f"training.output_dir={work}/resumed", "--resume")
    assert losses(work / "resumed") == losses(trained)
    whole, resumed = (load_file(folder / "model.safetensors") for folder in (trained, work / "resumed"))
    for name, value in whole.items():
        assert torch.equal(resumed[name], value), name


@pytest.mark.parametrize(
    "kind",
    [
        ["model.cross_attention=plain"],
        ["model.architecture=decoder-only", "objective.alignment_weight=0", "objective.forward_sum_weight=0"],
        ["model.architecture=decoder-only", "model.decoder_layers=2", "model.alignment_layer=1"],
        ["model.tie_word_embeddings=true"],
    ],
    ids=["plain", "decoder-only", "decoder-only with an alignment", "tied"],
)
def test_baselines_train_and_resume(work, tmp_path, kind):
    changes = *kind, "training.max_steps=4", "training.save_steps=2", f"training.output_dir={tmp_path}/whole"
    call(train, work / "recipe.yaml", *changes)
    values = losses(tmp_path / "whole", 4)
    assert min(values.values()) < values[1]
    shutil.copytree(tmp_path / "whole" / "checkpoint-2", tmp_path / "resumed" / "checkpoint-2")
    call(train, work / "recipe.yaml", *changes[:-1], f"training.output_dir={tmp_path}/resumed", "--resume")
    assert losses(tmp_path / "resumed", 4) == values
    voice = {"audio": str(work / "corpus" / "3.wav"), "text": TEXTS[3]}
    (tmp_path / "voices.yaml").write_text(yaml.safe_dump({"default": "three", "voices": {"three": voice}}))
    checkpoint = tmp_path / "whole" / "checkpoint-4"
    call(assemble, checkpoint, work / "codec", tmp_path / "voices.yaml", tmp_path / "assembled")
    average = load_file(checkpoint / "ema.safetensors")
    for name, value in SmallEForTextToSpeech.from_pretrained(tmp_path / "assembled").named_parameters():
        assert torch.equal(value, average[name].half().float()), name


def test_forced_alignments_of_a_decoder_only_transformer_are_refused(work):
    with pytest.raises(ValueError, match="objective.forced_alignment_probability=0.3"):
        call(
            train,
            work / "recipe.yaml",
            "model.architecture=decoder-only",
            "objective.forced_alignment_probability=0.3",
            "objective.alignment_weight=0",
            "objective.forward_sum_weight=0",
            f"training.output_dir={work}/refused",
        )


def test_alignment_loss_of_a_decoder_only_transformer_is_refused(work):
    with pytest.raises(ValueError, match="objective.alignment_weight=0.1"):
        call(train, work / "recipe.yaml", "model.architecture=decoder-only", f"training.output_dir={work}/refused")


@pytest.mark.parametrize("wrong", ["voice_swap_probability=0.5", "speaker_dropout=0.1"])
def test_options_of_speaker_embeddings_need_a_speaker_encoder(work, wrong):
    with pytest.raises(ValueError, match=f"objective.{wrong}"):
        call(train, work / "recipe.yaml", f"objective.{wrong}", f"training.output_dir={work}/refused")


def test_training_ends_by_the_clock(work):
    call(train, work / "recipe.yaml", f"training.output_dir={work}/timed", "training.minutes=0.00001")
    assert sorted(path.name for path in (work / "timed").glob("checkpoint-*")) == ["checkpoint-1"]


def test_a_grown_checkpoint_computes_the_same_and_learns(trained):
    changes = {"audio_encoder_layers": 2, "audio_decoder_layers": 3, "text_layers": 2, "speaker_layers": 2}
    before, after = SmallEForTextToSpeech.from_pretrained(trained), grow(trained, changes)
    ids, codes = torch.tensor([[3, 4, 5, 6]]), torch.randint(3, 20, (1, 12, before.config.num_codebooks))
    inputs = {"input_ids": ids, "decoder_input_ids": codes}
    said = after.eval()(**inputs, speaker_codes=codes - 3).logits
    assert after.num_parameters() > before.num_parameters()
    assert torch.equal(before.eval()(**inputs).logits, said)
    said.logsumexp(-1).sum().backward()
    new = after.model.speaker_encoder.proj, after.model.audio_decoder[-1].mlp.down_proj
    for layer in (*new, after.model.text_encoder[-1].o_proj):
        assert not layer.weight.any() and layer.weight.grad.any()


def test_a_grown_checkpoint_keeps_how_it_generates(trained, tmp_path):
    model = SmallEForTextToSpeech.from_pretrained(trained)
    model.generation_config.temperature = 0.37
    model.save_pretrained(tmp_path)
    assert grow(tmp_path, {"audio_decoder_layers": 2}).generation_config.temperature == 0.37
    same = grow(tmp_path, {"audio_decoder_layers": 1, "hidden_size": 32})
    assert same.config._name_or_path == str(tmp_path)


@pytest.mark.parametrize(
    "changes",
    [
        {"audio_decoder_layers": 0},
        {"hidden_size": 64},
        {"cross_attention": "plain"},
        {"norm_eps": 0.1},
        {"cross_attention": "plane"},
        {"audio_decoder_layer": 3},
        {"final_norms": ["text"]},
    ],
)
def test_changes_that_would_not_compute_the_same_are_refused(trained, changes):
    with pytest.raises(ValueError, match=next(iter(changes))):
        grow(trained, changes)


@pytest.mark.parametrize(
    "override, message",
    [
        ("objective.codebook_weights=[1, 1]", "expected 3 numbers"),
        ("objective.timed_row=0", "objective.timed_row: unknown key"),
        ("data.max_second=0", "data.max_second: unknown key"),
        ("training.max_step=0", "training.max_step: unknown key"),
        ("model.hidden_sizes=0", "model.hidden_sizes: unknown key"),
    ],
)
def test_wrong_recipes_are_refused(work, override, message):
    with pytest.raises(ValueError, match=message):
        call(train, work / "recipe.yaml", override, f"training.output_dir={work}/refused")


def test_the_recipe_beside_the_weights_is_what_was_run(work):
    overrides = f"training.output_dir={work}/said", "training.max_steps=1"
    call(train, work / "recipe.yaml", "--resume", *overrides)
    assert read_recipe(Recipe, work / "said" / "recipe.yaml") == read_recipe(Recipe, work / "recipe.yaml", overrides)


@pytest.mark.parametrize("limit", ["training.max_steps=3", "training.minutes=0.00001"])
def test_a_finished_run_is_not_trained_on(work, tmp_path, capsys, limit):
    """Issue 23: each --resume made one more step. Final weights that are missing are written from the checkpoint."""
    arguments = work / "recipe.yaml", f"training.output_dir={tmp_path}", limit
    call(train, *arguments)
    files = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}
    call(train, *arguments, "--resume")
    assert "training is finished" in capsys.readouterr().out
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")} == files
    weights = load_file(tmp_path / "model.safetensors")
    (tmp_path / "model.safetensors").unlink()  # killed before they were saved
    call(train, *arguments, "--resume")
    assert len(list(tmp_path.glob("checkpoint-*"))) == 1
    for name, value in load_file(tmp_path / "model.safetensors").items():
        assert torch.equal(value, weights[name]), name


def test_a_finished_run_continues_to_a_later_end(work, tmp_path, trained):
    shutil.copytree(trained, tmp_path / "more")
    call(train, work / "recipe.yaml", f"training.output_dir={tmp_path}/more", "training.max_steps=7", "--resume")
    assert (tmp_path / "more" / "checkpoint-7").is_dir()


def test_assembled_checkpoint_speaks(work, trained):
    voice = {"audio": str(work / "corpus" / "3.wav"), "text": TEXTS[3]}
    (work / "voices.yaml").write_text(yaml.safe_dump({"default": "three", "voices": {"three": voice}}))
    call(assemble, trained, work / "codec", work / "voices.yaml", work / "checkpoint")
    processor = SmallEProcessor.from_pretrained(work / "checkpoint")
    model = SmallEForTextToSpeech.from_pretrained(work / "checkpoint")
    assert model.dtype == torch.float32 and model.generation_config.max_new_tokens == 60 * 50
    out = model.generate(**processor("It is late."), seed=0, max_new_tokens=20, return_dict_in_generate=True)
    wave = processor.decode(out.sequences)[0]
    assert len(wave) == 480 * int(out.lengths[0]) > 0 and wave.isfinite().all() and wave.std() > 0
