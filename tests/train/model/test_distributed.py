"""Several processes, accumulation, FSDP, bf16, checkpointing: one global batch gives one result, however it is made."""

import json
import math
import multiprocessing
import os
import shutil
import signal
import socket
import time
from unittest import mock

import pytest
import torch
import torch.distributed.checkpoint.state_dict
import torch.distributed.fsdp  # once, for all processes that are copies of this one
import yaml
from accelerate.state import AcceleratorState, DistributedType, GradientState, PartialState
from safetensors.torch import load_file
from smalle.train.data.batching import SpeakerBatchSampler
from smalle.train.data.prepare import write_codes
from smalle.train.model import trainer as train
from smalle.train.model.recipe import Recipe, read_recipe

STEPS = 4
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
        initializer_range=0.1,
    ),
    "data": dict(frames_per_batch=90, max_seconds=2, single_utterance_probability=0.5, eval_batches=3),
    "objective": dict(
        codebook_weights=[1.5, 1.0, 0.5], alignment_weight=0.1, forward_sum_weight=0.05, text_dropout=0.2, ema_decay=0.9
    ),
    "training": dict(
        seed=3,
        max_steps=STEPS,
        learning_rate=1e-2,
        lr_scheduler_type="cosine",
        warmup_steps=1,
        logging_steps=1,
        save_steps=2,
        eval_strategy="steps",
        eval_steps=2,
    ),
}


@pytest.fixture(scope="module")
def recipe(tmp_path_factory, tiny_tokenizer):
    """Path of a recipe over random codes of three speakers."""
    work, random = tmp_path_factory.mktemp("work"), torch.Generator().manual_seed(0)
    tiny_tokenizer.save_pretrained(work / "tokenizer")
    for split, count in ("train", 40), ("eval", 9):
        rows = []
        for index in range(count):
            frames = int(torch.randint(12, 60, (1,), generator=random))
            codes = torch.randint(0, 20, (frames * 3,), generator=random).numpy().astype("uint16")
            words = 2 * (1 + frames // 20)
            timed = [time for n in range(words) for time in (n / words * frames / 50, (n + 1) / words * frames / 50)]
            rows.append(
                {
                    "text": "fox box " * (words // 2),
                    "speaker": "abc"[index % 3],
                    "duration": frames / 50,
                    "words": timed if index % 2 else [],
                    "codes": codes,
                }
            )
        write_codes(rows, work / f"{split}-00000.parquet")
    data = {"tokenizer": f"{work}/tokenizer", **{split: f"{work}/{split}.parquet" for split in ("train", "eval")}}
    (work / "recipe.yaml").write_text(yaml.safe_dump({**RECIPE, "data": {**RECIPE["data"], **data}}))
    return work / "recipe.yaml"


def allow_fsdp_on_the_cpu(patch):
    """accelerate turns FSDP on beside accelerators alone, though torch and gloo shard on the CPU as well."""
    init = train.SmallETrainer.__init__

    def init_as_if_on_gpus(self, *args, **kwargs):
        PartialState._shared_state["distributed_type"] = DistributedType.MULTI_XPU
        init(self, *args, **kwargs)

    patch.setattr(train.SmallETrainer, "__init__", init_as_if_on_gpus)


def work(arguments, environment):
    """The training command in a copy of this process."""
    os.environ.update(environment)
    for state in AcceleratorState, GradientState, PartialState:
        state._shared_state.clear()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.cuda, "is_available", lambda: False)
        if any(str(argument).startswith("training.fsdp=") for argument in arguments):
            allow_fsdp_on_the_cpu(patch)
        train.main([*map(str, arguments)])


def start(world, *arguments):
    """So many processes."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    processes = []
    for rank in range(world):
        environment = {
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": str(port),
            "GLOO_SOCKET_IFNAME": "lo",
            "WORLD_SIZE": str(world),
            "LOCAL_WORLD_SIZE": str(world),
            "RANK": str(rank),
            "LOCAL_RANK": str(rank),
        }
        environment = environment if world > 1 else {}
        processes.append(multiprocessing.get_context("fork").Process(target=work, args=(arguments, environment)))
        processes[-1].start()
    return processes


def run(world, *arguments):
    processes = start(world, *arguments)
    for process in processes:
        process.join(120)
    assert [process.exitcode for process in processes] == [0] * world


def history(folder, step=STEPS):
    """(training losses and parts of them, evaluations) by step, without times."""
    log = json.loads((folder / f"checkpoint-{step}" / "trainer_state.json").read_text())["log_history"]
    kept = [
        {
            key: value
            for key, value in row.items()
            if "loss" in key or "alignment" in key or "forward" in key or "perplexity" in key
        }
        for row in log
    ]
    return [row for row in kept if "loss" in row], [row for row in kept if "eval_loss" in row]


def same(first, second, tolerance=2e-3):
    """Whether two histories tell the same."""
    for rows, others in zip(first, second):
        assert len(rows) == len(others) > 0
        for row, other in zip(rows, others):
            assert row == pytest.approx(other, rel=tolerance, abs=tolerance)
    return True


@pytest.fixture(scope="module")
def alone(recipe, tmp_path_factory):
    """Output folder of one process that accumulates two batches a step."""
    out = tmp_path_factory.mktemp("alone")
    run(1, recipe, f"training.output_dir={out}", "training.gradient_accumulation_steps=2")
    return out


def test_two_processes_give_what_one_gives_with_the_same_global_batch(recipe, alone, tmp_path):
    run(2, recipe, f"training.output_dir={tmp_path}")
    assert same(history(tmp_path), history(alone))
    for name in ("model.safetensors", f"checkpoint-{STEPS}/ema.safetensors"):
        first, second = (load_file(folder / name) for folder in (tmp_path, alone))
        for key, value in first.items():
            torch.testing.assert_close(value, second[key], atol=2e-3, rtol=2e-3)


FSDP = "objective.ema_decay=0", "training.fsdp=true", "training.fsdp_config={cpu_ram_efficient_loading: false}"


def check_weights(folder, alone):
    """Losses and final weights of a run without averaging are those of one process."""
    assert same(history(folder)[:1], history(alone)[:1])
    own = load_file(alone / f"checkpoint-{STEPS}" / "model.safetensors")
    for key, value in load_file(folder / "model.safetensors").items():
        torch.testing.assert_close(value, own[key], atol=2e-3, rtol=2e-3)


def test_fsdp_gives_what_one_process_gives(recipe, alone, tmp_path):
    run(2, recipe, f"training.output_dir={tmp_path}", *FSDP)
    assert (tmp_path / "checkpoint-2" / "pytorch_model_fsdp.bin").is_file()  # it was FSDP
    check_weights(tmp_path, alone)


@pytest.mark.slow
def test_fsdp_shards_a_decoder_only_model_with_an_alignment(recipe, tmp_path):
    kind = (
        "model.architecture=decoder-only",
        "model.decoder_layers=2",
        "model.alignment_layer=1",
        "objective.forced_alignment_probability=0",
    )
    twice = "training.gradient_accumulation_steps=2"
    run(1, recipe, f"training.output_dir={tmp_path}/alone", *kind, "objective.ema_decay=0", twice)
    run(2, recipe, f"training.output_dir={tmp_path}/both", *kind, *FSDP)
    check_weights(tmp_path / "both", tmp_path / "alone")


@pytest.mark.slow
def test_fsdp_resumes(recipe, alone, tmp_path):
    run(2, recipe, f"training.output_dir={tmp_path}/whole", *FSDP)
    shutil.copytree(tmp_path / "whole" / "checkpoint-2", tmp_path / "resumed" / "checkpoint-2")
    run(2, recipe, f"training.output_dir={tmp_path}/resumed", *FSDP, "--resume")
    check_weights(tmp_path / "resumed", alone)


def test_fsdp_refuses_what_needs_whole_weights(recipe):
    changes = ["training.fsdp=true", "training.output_dir=nowhere"]
    with mock.patch.dict(os.environ), pytest.raises(ValueError, match="objective.ema_decay: not supported with FSDP"):
        train.build_trainer(read_recipe(Recipe, recipe, changes))


def test_what_is_logged_and_evaluated_adds_up(alone):
    trained, evaluated = history(alone)
    for rows, prefix in (trained, ""), (evaluated, "eval_"):
        for row in rows:
            codebooks = sum(weight * row[f"{prefix}loss_{q}"] for q, weight in enumerate([1.5, 1.0, 0.5])) / 3
            maps = 0.1 * row[f"{prefix}alignment"] + 2 * 0.05 * row[f"{prefix}forward_sum"]  # PACA has two alignments
            assert row[f"{prefix}loss"] == pytest.approx(codebooks + maps, abs=2e-3)
    for row in evaluated:
        for q in range(3):
            assert row[f"eval_perplexity_{q}"] == pytest.approx(math.exp(row[f"eval_loss_{q}"]), rel=1e-3)


def test_the_best_checkpoint_is_kept(recipe, tmp_path):
    changes = [
        "save_total_limit=2",
        "metric_for_best_model=loss",
        "greater_is_better=false",
        "learning_rate=0.5",
        "eval_steps=1",
        "save_steps=1",
        f"output_dir={tmp_path}",
    ]
    run(1, recipe, "objective.ema_decay=0", *(f"training.{change}" for change in changes))
    state = json.loads((tmp_path / f"checkpoint-{STEPS}" / "trainer_state.json").read_text())
    losses = {row["step"]: row["eval_loss"] for row in state["log_history"] if "eval_loss" in row}
    best = min(losses, key=losses.get)
    assert best < STEPS  # a learning rate like this makes it worse
    assert {path.name for path in tmp_path.glob("checkpoint-*")} == {f"checkpoint-{best}", f"checkpoint-{STEPS}"}


def test_a_limit_that_would_delete_the_newest_checkpoint_is_refused(recipe):
    changes = ["training.save_total_limit=1", "training.metric_for_best_model=loss", "training.output_dir=nowhere"]
    with pytest.raises(ValueError, match="save_total_limit=1"):
        train.build_trainer(read_recipe(Recipe, recipe, changes))


def test_gradient_checkpointing_changes_no_loss_and_bf16_little(recipe, alone, tmp_path):
    accumulate = "training.gradient_accumulation_steps=2"
    run(1, recipe, f"training.output_dir={tmp_path}/a", accumulate, "training.gradient_checkpointing=true")
    assert same(history(tmp_path / "a"), history(alone))
    run(1, recipe, f"training.output_dir={tmp_path}/b", accumulate, "training.bf16=true")
    rounded = history(tmp_path / "b")
    assert rounded != history(alone) and same(rounded, history(alone), 0.1)


def test_a_run_that_was_killed_resumes_with_the_same_losses(recipe, tmp_path):
    changes = "training.max_steps=8", "training.save_steps=1", "training.save_total_limit=3"
    run(1, recipe, f"training.output_dir={tmp_path}/whole", *changes)
    (process,) = start(1, recipe, f"training.output_dir={tmp_path}/killed", *changes)
    deadline = time.monotonic() + 60
    while not (tmp_path / "killed" / "checkpoint-3").exists() and time.monotonic() < deadline:
        time.sleep(0.001)
    os.kill(process.pid, signal.SIGKILL)
    process.join()
    assert not (tmp_path / "killed" / "checkpoint-8").exists()
    run(1, recipe, f"training.output_dir={tmp_path}/killed", *changes, "--resume")
    assert history(tmp_path / "killed", 8) == history(tmp_path / "whole", 8)


def test_processes_that_end_by_the_clock_end_at_the_same_step(recipe, tmp_path):
    run(2, recipe, f"training.output_dir={tmp_path}", "training.minutes=0.00001")
    assert [path.name for path in tmp_path.glob("checkpoint-*")] == ["checkpoint-1"]


def test_processes_take_every_batch_once_and_the_same_number():
    lengths, speakers = [10 + index % 7 for index in range(61)], [index % 3 for index in range(61)]
    whole = SpeakerBatchSampler(lengths, speakers, 100, 40, seed=5)
    parts = [SpeakerBatchSampler(lengths, speakers, 100, 40, seed=5, rank=rank, world=3) for rank in range(3)]
    everything = iter(whole)
    for step, batches in zip(range(100), zip(*parts)):  # over the ends of epochs
        assert [next(everything) for _ in range(3)] == list(batches), step
