"""The repository keeps its promises: README's commands, the embedded checkpoint's code and size, who imports whom."""

import ast
import importlib
import json
import pathlib
import re
import shutil
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).parents[1]
CHECKPOINT = ROOT / "checkpoints" / "smalle-mini"
CODE = sorted((ROOT / "smalle").glob("*_smalle.py"))

needs_readme = pytest.mark.skipif(not (ROOT / "README.md").exists(), reason="README.md is not there yet")
needs_checkpoint = pytest.mark.skipif(not CHECKPOINT.exists(), reason="checkpoints/smalle-mini is not there yet")


def bash_blocks():
    """What stands in each ```bash block of the README."""
    return re.findall(r"^```bash\n(.*?)^```", (ROOT / "README.md").read_text(), re.MULTILINE | re.DOTALL)


@needs_readme
def test_first_two_bash_blocks_are_one_command_line_each():
    blocks = bash_blocks()
    assert len(blocks) >= 2
    for block in blocks[:2]:
        (line,) = block.splitlines()
        assert line.strip() and not line.startswith(("#", "$ ", " ")) and not line.endswith("\\")
        assert subprocess.run(["bash", "-n", "-c", line]).returncode == 0


@needs_readme
def test_ci_runs_readmes_second_command_at_the_root(tmp_path):
    (tmp_path / ".ci").mkdir()
    shutil.copy(ROOT / ".ci" / "run", tmp_path / ".ci")
    second = bash_blocks()[1]
    readme = (ROOT / "README.md").read_text().replace(f"```bash\n{second}", '```bash\necho "ran in $PWD"; exit 7\n', 1)
    (tmp_path / "README.md").write_text(readme)
    done = subprocess.run([tmp_path / ".ci" / "run"], cwd="/", capture_output=True, text=True)
    assert done.stdout.splitlines()[-1] == f"ran in {tmp_path}" and done.returncode == 7


@needs_checkpoint
def test_embedded_checkpoint_has_the_packages_code():
    assert [path.name for path in sorted(CHECKPOINT.glob("*.py"))] == [path.name for path in CODE]
    for path in CODE:
        assert (CHECKPOINT / path.name).read_bytes() == path.read_bytes(), (
            f"{path.name} differs: cp smalle/*_smalle.py checkpoints/smalle-mini/"
        )


@needs_checkpoint
def test_embedded_checkpoint_is_small_and_has_nothing_pickled():
    files = [path for path in CHECKPOINT.rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) <= 60e6
    assert {path.suffix for path in files} <= {
        ".json",
        ".jinja",
        ".md",
        ".py",
        ".safetensors",
    }


def imported(path):
    """Names that a module imports, relative ones with their dots."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (name.name for name in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield "." * node.level + (node.module or "")


PACKAGES = {"smalle": ROOT / "smalle", "smalle.train": ROOT / "train", "smalle.corpus": ROOT / "corpus"}


def modules():
    """{name: path} of all modules that are installed."""
    found = {}
    for package, folder in PACKAGES.items():
        for path in folder.rglob("*.py"):
            parts = path.relative_to(folder).with_suffix("").parts
            found[".".join((package, *(part for part in parts if part != "__init__")))] = path
    return found


def dependencies(name, path, known):
    """The modules among `known` that a module imports, anywhere in it."""
    package = name if path.stem == "__init__" else name.rpartition(".")[0]
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            above = package.split(".")[: len(package.split(".")) - node.level + 1] if node.level else []
            base = ".".join([*above, *([node.module] if node.module else [])])
            found |= {f"{base}.{alias.name}" if f"{base}.{alias.name}" in known else base for alias in node.names}
    return (found & known.keys()) - {name, "smalle"}


def test_no_module_imports_in_a_circle():
    known = modules()
    graph = {name: dependencies(name, path, known) for name, path in known.items()}
    while free := {name for name, needs in graph.items() if not needs}:
        graph = {name: needs - free for name, needs in graph.items() if name not in free}
    assert not graph, f"these import each other: {sorted(graph)}"


@pytest.mark.parametrize("name", sorted(modules()))
def test_inference_needs_no_training_and_corpora_need_no_trainer(name):
    known = modules()
    needs = dependencies(name, known[name], known)
    if not name.startswith(("smalle.train", "smalle.corpus")):
        assert not [other for other in needs if other.startswith(("smalle.train", "smalle.corpus"))]
    elif name.startswith("smalle.train"):
        assert not [other for other in needs if other.startswith("smalle.corpus")]
    else:  # the voice that reads for conversions trains nothing
        needs -= {"smalle.train.conversion.voice"}
        assert not [other for other in needs if other.startswith("smalle.train")]


def test_rooms_stay_few_and_files_stay_short():
    assert len(CODE) <= 20
    generated = ROOT / "smalle" / "native_smalle.py"
    long = {path.name: lines for path in modules().values() if (lines := len(path.read_text().splitlines())) > 1000}
    assert not [name for name in long if name != generated.name], long


@pytest.mark.parametrize("path", CODE, ids=lambda path: path.name)
def test_code_of_a_checkpoint_imports_its_siblings_alone(path):
    siblings = {f".{sibling.stem}" for sibling in CODE}
    for name in imported(path):
        assert not name.startswith("smalle"), f"{name}: a checkpoint's folder has no package"
        assert not name.startswith(".") or name in siblings, name


@pytest.mark.parametrize("name", ["notebooks/finetune_voice.ipynb", "space/app.py"])
def test_what_notebooks_and_the_space_import_is_there(name):
    path = ROOT / name
    text = path.read_text()
    if path.suffix == ".ipynb":
        cells = [cell for cell in json.loads(text)["cells"] if cell["cell_type"] == "code"]
        lines = [line for cell in cells for line in "".join(cell["source"]).splitlines()]
        text = "\n".join(line for line in lines if not line.lstrip().startswith(("!", "%")))
    imports = [node for node in ast.walk(ast.parse(text)) if isinstance(node, ast.ImportFrom)]
    ours = [node for node in imports if node.module.split(".")[0] == "smalle"]
    for node in ours:
        module = importlib.import_module(node.module)
        assert all(hasattr(module, name.name) for name in node.names), node.module


@pytest.mark.parametrize("modules", ["smalle, transformers", "transformers, smalle"])
def test_the_order_of_imports_does_not_matter(modules):
    """`import smalle` first is what sorted imports give; without registration the name would ask for remote code."""
    config = "transformers.AutoConfig.for_model('smalle')"
    program = f"import {modules}; print(type({config}).__module__)"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, cwd=ROOT)
    assert done.stdout.split() == ["smalle.configuration_smalle"], done.stderr
