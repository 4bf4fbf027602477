"""The comparison of variants: from codes to tables, and the tables themselves."""

import dataclasses
import json
import pathlib

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
import torch
import yaml
from smalle.train.data.dataset import Sample
from smalle.train.model.recipe import read_recipe

from benchmarks import compare_architectures as compare
from benchmarks import timing

SCORER = """
import argparse, json, pathlib
p = argparse.ArgumentParser(); p.add_argument("manifest"); p.add_argument("--out"); p.add_argument("--threads")
a = p.parse_args()
rows = [json.loads(line) for line in pathlib.Path(a.manifest).read_text().splitlines()]
summary = {"utterances": len(rows), "skips": 1, "repeats": 0, "silent": 0, "wer": 90.0, "cer": 60.0}
pathlib.Path(a.out).write_text(json.dumps({"summary": summary, "rows": rows}))
"""
TEXTS = ["Hello you.", "How are you?", "It is late.", "We go home now.", "No, not yet!", "The door is open."]


def rows(count, seed, speaker="ann"):
    """Codes of `count` made-up utterances of 0.6 to 1.2 s, as smalle.train.data.prepare writes them."""
    rng, table = np.random.default_rng(seed), []
    for n in range(count):
        text, frames = TEXTS[n % len(TEXTS)], int(rng.integers(30, 60))
        words = len(text.split())
        times = [time for w in range(words) for time in (w / words * frames / 50, (w + 1) / words * frames / 50)]
        table.append(
            {
                "text": text,
                "speaker": speaker,
                "duration": frames / 50,
                "words": times,
                "codes": rng.integers(0, 20, 3 * frames).astype(np.uint16),
            }
        )
    return table


def write(path, table):
    kinds = {
        "text": pyarrow.string(),
        "speaker": pyarrow.string(),
        "duration": pyarrow.float32(),
        "words": pyarrow.list_(pyarrow.float32()),
        "codes": pyarrow.list_(pyarrow.uint16()),
    }
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(table, pyarrow.schema(kinds.items())), path)


@pytest.fixture(scope="module")
def plan(tmp_path_factory, tiny_tokenizer, tiny_codec):
    """The shipped plan at a thousandth of its size: one step on made-up codes."""
    work = tmp_path_factory.mktemp("compare")
    write(work / "train.parquet", rows(12, 0) + rows(3, 1, "ben"))
    write(work / "eval.parquet", rows(6, 2))
    tiny_tokenizer.save_pretrained(work / "tokenizer")
    tiny_codec.save_pretrained(work / "codec")
    plan = yaml.safe_load(pathlib.Path(compare.__file__).with_suffix(".yaml").read_text())
    plan |= {
        "out": str(work / "out"),
        "speakers": ["ann"],
        "codec": str(work / "codec"),
        "sentences": {"count": 4, "seconds": [0.1, 5]},
        "generate": [{"max_new_tokens": 8}],
    }
    plan["variants"]["plain cross-attention"]["model"]["intermediate_size"] = 48
    plan["variants"]["decoder-only"]["model"] |= {"decoder_layers": 1, "intermediate_size": 48, "alignment_layer": 0}
    recipe = plan["recipe"]
    recipe["model"] |= dict(
        hidden_size=32,
        intermediate_size=48,
        text_layers=1,
        num_attention_heads=2,
        audio_encoder_layers=1,
        audio_decoder_layers=1,
        position_size=16,
        num_codebooks=3,
        codebook_size=20,
    )
    recipe["data"] |= {"frames_per_batch": 200, **{name: f"{work}/{name}.parquet" for name in ("train", "eval")}}
    recipe["data"]["tokenizer"] = str(work / "tokenizer")
    recipe["objective"]["codebook_weights"] = [1.0, 1.0, 1.0]
    recipe["training"] |= {"max_steps": 1, "bf16": False, "warmup_steps": 0}
    (work / "plan.yaml").write_text(yaml.safe_dump(plan, sort_keys=False))
    (work / "scorer.py").write_text(SCORER)
    return work


def call(work, *arguments):
    """Runs the command on the CPU, with its results in the work folder."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.cuda, "is_available", lambda: False)
        patch.setattr(timing, "RESULTS", work / "results.jsonl")
        compare.main([str(work / "plan.yaml"), *arguments])


def recorded(work):
    return [json.loads(line) for line in (work / "results.jsonl").read_text().splitlines()]


def test_every_variant_is_trained_and_spoken_with_every_seed_once(plan, capsys, monkeypatch):
    call(plan)
    trained = recorded(plan)
    assert [(row["variant"], row["seed"]) for row in trained] == [
        (name, seed) for seed in (0, 1) for name in ("PACA", "plain cross-attention", "decoder-only")
    ]
    assert all(row["steps"] == 1 and len(row["losses"]) == 3 for row in trained)
    assert all(row["alignment_loss"] > 0 for row in trained)
    assert trained[0]["losses"] != trained[3]["losses"]  # another seed
    assert "skips" not in capsys.readouterr().out
    (plan / "out" / "PACA-0" / "measured.json").unlink()  # killed after training
    monkeypatch.setattr(compare, "train", None)  # nothing is trained again
    call(plan)
    assert recorded(plan).pop()["losses"] == pytest.approx(trained[0]["losses"], abs=1e-3)
    monkeypatch.setattr(compare, "build_trainer", None)  # nor measured
    call(plan, "--scorer", str(plan / "scorer.py"))
    spoken = recorded(plan)[7:]
    assert [row["skips"] for row in spoken] == [25.0] * 6  # one of four
    assert all(row["generate"] == {"max_new_tokens": 8} for row in spoken)
    monkeypatch.setattr(compare, "evaluate", None)  # nor spoken
    capsys.readouterr()
    call(plan, "--scorer", str(plan / "scorer.py"))
    assert len(recorded(plan)) == 13
    assert "| decoder-only | 25.0 ± 0.0 | 0.0 ± 0.0 | 0.0 ± 0.0 | 90.0 ± 0.0 | 60.0 ± 0.0 |" in capsys.readouterr().out


def test_a_run_of_another_recipe_is_not_taken_for_this_one(tmp_path):
    for _ in range(2):
        compare.open_folder(tmp_path / "run", {"training": {"learning_rate": 1e-3}})
    with pytest.raises(ValueError, match="holds a run of another recipe"):
        compare.open_folder(tmp_path / "run", {"training": {"learning_rate": 1.0}})


def test_only_the_named_speakers_are_compared_on(plan):
    plan = read_recipe(compare.Plan, plan / "plan.yaml")
    read = compare.read_table(compare.select(plan, "train"))
    assert len(read) == 12 and set(read["speaker"].to_pylist()) == {"ann"}
    with pytest.raises(ValueError, match="speakers=.*nobody"):
        compare.select(dataclasses.replace(plan, speakers=["nobody"]), "train")


def test_too_few_texts_are_refused(plan):
    assert compare.held_out_texts(plan / "eval.parquet", 2, [0.1, 5]) == TEXTS[:2]
    with pytest.raises(ValueError, match="sentences.count=7"):
        compare.held_out_texts(plan / "eval.parquet", 7, [0.1, 5])


def test_another_text_is_that_of_the_next_sample():
    samples = [Sample(text, codes, None) for text, codes in (("one", 1), ("and two", 2), ("three", 3))]
    given = compare.with_next_text(list)(samples)
    assert [(sample.text, sample.codes) for sample in given] == [("and two", 1), ("three", 2), ("one", 3)]
    assert [len(sample.words) for sample in given] == [2, 1, 1]


def test_tables_give_mean_and_spread_over_the_seeds():
    runs = {
        "A": [
            {"parameters": 3_500_000, "losses": [0.0, np.log(4)], "another_text": 0.25},
            {"parameters": 3_500_000, "losses": [0.0, np.log(16)], "another_text": 0.75},
        ],
        "B": [{"parameters": 3_400_000, "losses": [0.0, 0.0], "another_text": 0.0}],
    }
    header, _, a, b = compare.perplexity_table(runs).splitlines()
    assert header.count("of codebook") == 2
    assert a == "| A | 3.50 | 2 | 3.0 ± 1.4 | 1.0 ± 0.0 | 10.0 ± 8.5 | 0.500 ± 0.354 |"
    assert b == "| B | 3.40 | 1 | 1.0 | 1.0 | 1.0 | 0.000 |"
