"""A wheel holds all that an installed `smalle` needs: it speaks offline, from any folder, without the source tree."""

import os
import pathlib
import re
import shutil
import subprocess
import sys
import wave
import zipfile

import pytest

from smalle.native_smalle import NAME, find_library, open_library

ROOT = pathlib.Path(__file__).parents[1]


@pytest.fixture(scope="module")
def installed(tmp_path_factory):
    """A folder with the wheel's contents."""
    folder = tmp_path_factory.mktemp("wheel")
    source = folder / "source"  # a build writes beside its source
    tracked = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, check=True).stdout.split(b"\0")
    for name in map(os.fsdecode, filter(None, tracked)):
        if name.startswith(("smalle/", "train/", "corpus/", "checkpoints/")) or "/" not in name:
            if (ROOT / name).is_file():
                (source / name).parent.mkdir(parents=True, exist_ok=True)
                os.link(ROOT / name, source / name)
    command = [sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "-w", str(folder), str(source)]
    built = subprocess.run(command, capture_output=True, text=True)
    if built.returncode and "No matching distribution" in built.stderr:
        pytest.skip("setuptools cannot be fetched for the build")
    assert built.returncode == 0, built.stderr
    (path,) = folder.glob("*.whl")
    with zipfile.ZipFile(path) as archive:
        archive.extractall(folder / "site")
    return folder / "site"


def run(installed, folder, *arguments):
    """Runs Python in a folder with the wheel's contents in place of the source tree."""
    code = f"import sys; sys.path.insert(0, {str(installed)!r}); "
    code += "sys.meta_path = [finder for finder in sys.meta_path if 'editable' not in str(finder)]; "
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    environment |= {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    return subprocess.run(
        [sys.executable, "-c", code + "; ".join(arguments)],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
    )


def test_the_wheel_speaks(installed, tmp_path):
    say = "from smalle.cli.main import main", "sys.exit(main(['say', 'Hello.']))"
    done = run(installed, tmp_path, *say)
    assert done.returncode == 0, done.stderr
    with wave.open(str(tmp_path / "smalle.wav")) as file:
        assert file.getnframes() > 4800


RECIPES = [  # commands that name a recipe, and what they say
    (["train", "smalle-mini"], "data.tokenizer='work/tokenizer' cannot be loaded"),  # so its recipe was read
    (["train", "smalle"], "no recipe smalle: expected a YAML file, or one of codec-mini, "),
    (["finetune", "finetune-lora", "recordings", "base", "out", "adapter.rank=0"], "adapter.rank=0: expected"),
]


def test_the_wheel_holds_the_commands_and_finds_recipes_by_name(installed, tmp_path):
    modules = "smalle.train.model.trainer", "smalle.train.data.prepare", "smalle.train.adapt.clone"
    calls = [f"print(main({command}), file=sys.stderr)" for command, _ in RECIPES]
    done = run(
        installed,
        tmp_path,
        f"import smalle, {', '.join(modules)}",
        "print(smalle.train.__path__, smalle.__file__)",
        "from smalle.cli.main import main",
        *calls,
    )
    assert done.returncode == 0, done.stderr
    assert str(ROOT) not in done.stdout.replace(str(installed), "")
    said = re.split(r"^2$", done.stderr, flags=re.MULTILINE)  # the exit code of each
    assert [message in one for one, (_, message) in zip(said, RECIPES, strict=False)] == [True] * 3, done.stderr
    recipes = {path.name for path in (installed / "smalle" / "train" / "recipes").iterdir()}
    assert {"smalle-mini.yaml", "finetune-recording.yaml"} <= recipes
    assert (installed / "smalle" / "corpus" / "templates.txt").is_file()


@pytest.mark.skipif(not shutil.which("cc"), reason="no C compiler is installed")
def test_the_wheel_holds_a_library_that_loads(installed):
    path = find_library(installed / "smalle" / "native", NAME)
    assert path is not None and open_library(path) is not None
