"""A recipe is a YAML file whose every key is known."""

from dataclasses import dataclass, field

import pytest
from smalle.train.model.recipe import RECIPES, find_recipe, read_recipe, write_recipe


@dataclass
class Clock:
    minutes: float | None = None
    steps: int = 3


@dataclass
class Example:
    name: str
    clock: Clock = field(default_factory=Clock)
    samples: Clock | None = None
    model: dict = field(default_factory=dict)
    weights: list[float] | None = None
    average: bool = False


@pytest.fixture
def read(tmp_path):
    def read(text, *overrides):
        (tmp_path / "recipe.yaml").write_text(text)
        return read_recipe(Example, tmp_path / "recipe.yaml", overrides)

    return read


def test_nested_parts_and_overrides_become_attributes(read):
    recipe = read("name: one\nclock: {minutes: 1}", "clock.steps=7", "model.a.b=[1]", "samples.minutes=1e-3")
    assert recipe == Example("one", Clock(1.0, 7), Clock(0.001), {"a": {"b": [1]}})
    assert isinstance(recipe.clock.minutes, float)
    assert read("name: one\nsamples:").samples is None


def test_a_written_recipe_reads_the_same(read, tmp_path):
    recipe = read("name: one\nweights: [1.0, 2.0]", "samples.steps=2")
    write_recipe(recipe, tmp_path / "recipe.yaml")
    assert read_recipe(Example, tmp_path / "recipe.yaml") == recipe


def test_a_file_wins_over_a_recipe_of_the_package(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "smalle-mini").mkdir()  # such as the output of a training
    assert find_recipe("smalle-mini") == RECIPES / "smalle-mini.yaml"
    (tmp_path / "codec").write_text("name: mine")
    assert read_recipe(Example, "codec") == Example("mine")
    with pytest.raises(ValueError, match="no recipe train/recipes/mini.yaml: .* codec-mini, .* smalle-mini"):
        find_recipe("train/recipes/mini.yaml")


@pytest.mark.parametrize(
    "text, override, message",
    [
        ("name: one\nclock: {second: 1}", "average=true", "clock.second: unknown key; expected one of minutes, steps"),
        ("name: one", "names=two", "names: unknown key"),
        ("clock: {steps: 1}", "average=true", "name: missing"),
        ("name: one", "clock.steps=1.5", "clock.steps=1.5: expected int"),
        ("name: one", "clock.minutes=soon", "clock.minutes='soon': expected float or null"),
        ("name: one", "average=1", "average=1: expected bool"),
        ("name: one", "clock=5", "clock: expected keys and values, got 5"),
        ("name: one", "name.first=5", "name is 'one', which cannot have keys"),
        ("name: one", "clock.steps", "expected key.subkey=value"),
    ],
)
def test_what_a_recipe_has_no_place_for_is_refused_by_name(read, text, override, message):
    with pytest.raises(ValueError, match=message.replace("'", ".")):
        read(text, override)
