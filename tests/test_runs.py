"""runs/smalle-mini.sh: each of its commands is one that its program accepts, and none trains on what is held out."""

import argparse
import importlib
import os
import pathlib
import subprocess

import pytest
from smalle.corpus.speakers import HELD_OUT_VOICES
from smalle.train.codec.recipe import CodecRecipe
from smalle.train.model.recipe import Recipe, read_recipe

from smalle.cli.main import COMMANDS

ROOT = pathlib.Path(__file__).parents[1]
STUB = """#!/bin/sh
{{ printf '%s\\t' {name} "$@"; echo; }} >>"$CALLS"
for argument; do [ "$argument" = "$FAILS" ] && exit 1; done
exit 0
"""


@pytest.fixture
def run(tmp_path):
    """Runs the script with programs that write down how they are called; returns the code and the calls."""
    for name in "python", "smalle":
        (tmp_path / name).write_text(STUB.format(name=name))
        (tmp_path / name).chmod(0o755)
    calls = tmp_path / "calls"
    settings = {"PATH": f"{tmp_path}:{os.environ['PATH']}", "CALLS": str(calls), "WORK": str(tmp_path / "work")}
    settings |= {
        "PEOPLE": "people",
        "HELD_OUT": "1867 p232",
        "PRESETS": "p239",
        "EVAL": "sentences.txt hard.txt",
        "FAILS": "no",
    }

    def call(**more):
        plan = tmp_path / "work" / "plan.jsonl"
        plan.parent.mkdir(exist_ok=True)
        plan.write_text("{}\n")
        calls.write_text("")
        script = ROOT / "runs" / "smalle-mini.sh"
        done = subprocess.run([script], env={**settings, **more}, cwd=tmp_path, capture_output=True, text=True)
        return done, [line.split("\t")[:-1] for line in calls.read_text().splitlines()]

    return call


class Accepted(Exception):
    """The arguments of a command are right, and it would begin now."""


def arguments_of(call, monkeypatch):
    """(module, arguments) of a call, as its own parser reads them."""
    name, *argv = call
    if name == "smalle":
        module, argv = COMMANDS[argv[0]][1], argv[1:]
    else:
        assert argv[0] == "-m", call
        module, argv = argv[1], argv[2:]
    for parse in "parse_args", "parse_intermixed_args":
        original = getattr(argparse.ArgumentParser, parse)

        def accept(self, args=None, namespace=None, original=original):
            raise Accepted(original(self, args, namespace))

        monkeypatch.setattr(argparse.ArgumentParser, parse, accept)
    with pytest.raises(Accepted) as accepted:
        importlib.import_module(module).main(argv)
    monkeypatch.undo()
    return module, vars(accepted.value.args[0])


def test_every_command_accepts_its_arguments(run, monkeypatch):
    done, calls = run()
    assert done.returncode == 0, done.stderr
    calls = [call for call in calls if call[1] != "-c" and call[1:3] != ["-m", "pip"]]
    modules = set()
    for call in calls:
        module, arguments = arguments_of(call, monkeypatch)
        modules.add(module)
        if "overrides" in arguments:
            kind = CodecRecipe if "codec" in module else Recipe
            recipe = read_recipe(kind, arguments["recipe"], arguments["overrides"])
            if kind is CodecRecipe:
                assert set(HELD_OUT_VOICES) <= set(recipe.data.exclude_speakers)
        elif module == "smalle.corpus.texts":
            assert {"sentences.txt", "hard.txt", "words.txt"} <= {path.name for path in arguments["exclude"]}
        elif module == "smalle.corpus.synthesize":
            assert not set(HELD_OUT_VOICES) & set(arguments["voices"] or ())
        elif module == "smalle.train.data.select":
            assert arguments["exclude"] == ["1867", "p232"]
    assert sum(call.count("people") for call in calls) == 1, "only the selection of people reads all of them"
    stages = {f"smalle.train.conversion.{name}" for name in ("content", "converter", "joint", "assemble", "preset")}
    assert stages | {"smalle.train.assemble", "smalle.train.evaluation.evaluate"} <= modules


def test_it_stops_at_a_failure_and_goes_on_from_there(run):
    done, calls = run(FAILS="adversarial")
    assert done.returncode == 1 and calls[-1][5] == "adversarial"
    again, more = run()
    assert again.returncode == 0 and calls[-1] in more
    assert not [call for call in calls[:-1] if call in more and call[1] != "-c"]
    assert [call for call in run()[1] if call[1] != "-c"] == []


def test_it_asks_for_people(run):
    done, calls = run(PEOPLE="")
    assert done.returncode != 0 and "PEOPLE" in done.stderr and not calls
