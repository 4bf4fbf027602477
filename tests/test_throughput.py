"""The throughput benchmark: a step of a tiny model gives a row; growth is computed from rows."""

import argparse
import pathlib

import pytest
from smalle.train.model.recipe import Recipe, read_recipe

from benchmarks import throughput

RECIPES = pathlib.Path(__file__).parents[1] / "train" / "recipes"


@pytest.mark.parametrize("recipe", ["smalle-mini", "decoder-only-64m"])
def test_a_step_of_a_recipe_is_measured(recipe):
    recipe = read_recipe(Recipe, RECIPES / f"{recipe}.yaml")
    recipe.model |= dict(
        hidden_size=32,
        intermediate_size=32,
        text_layers=1,
        num_attention_heads=2,
        audio_encoder_layers=1,
        audio_decoder_layers=1,
        decoder_layers=1,
    )
    arguments = argparse.Namespace(batch_seconds=4, steps=1, device="cpu", fp32=True, note=None)
    row = throughput.measure("tiny", recipe, 2.0, arguments)
    codes = recipe.model["frame_rate"] * recipe.model["num_codebooks"]
    assert row["batch"] == 2 and row["step_s"] > 0 and 10 < row["text_tokens"] < 32
    assert row["tokens_per_s"] == pytest.approx(4 * codes / row["step_s"], rel=0.02)


def test_growth_is_the_exponent_of_the_length():
    for power in (1, 2):
        rows = [{"seconds": length, "audio_per_s": length ** (1 - power)} for length in (5.0, 25.0, 120.0)]
        grown = throughput.growth(rows)
        assert float(grown["exponent"]) == power
        assert float(grown["120 s : 5 s"]) == 24 ** (power - 1)
