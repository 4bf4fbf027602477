"""The repository keeps its promises: README's commands, the embedded checkpoint's code and size, who imports whom."""

import ast
import pathlib
import re
import shutil
import subprocess

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
        assert (CHECKPOINT / path.name).read_bytes() == path.read_bytes(), f"{path.name} differs: copy it again"


@needs_checkpoint
def test_embedded_checkpoint_is_small_and_has_nothing_pickled():
    files = [path for path in CHECKPOINT.rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) <= 60e6
    assert {path.suffix for path in files} <= {
        ".json",
        ".jinja",
        ".md",
        ".onnx",
        ".py",
        ".safetensors",
        ".so",
        ".txt",
        "",  # some of them exported
    }


def imported(path):
    """Names that a module imports, relative ones with their dots."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (name.name for name in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield "." * node.level + (node.module or "")


@pytest.mark.parametrize("path", sorted((ROOT / "smalle").glob("*.py")), ids=lambda path: path.name)
def test_package_imports_nothing_of_training(path):
    for name in imported(path):
        assert name.partition(".")[0] not in ("train", "tests", "benchmarks"), name


@pytest.mark.parametrize("path", CODE, ids=lambda path: path.name)
def test_code_of_a_checkpoint_imports_its_siblings_alone(path):
    siblings = {f".{sibling.stem}" for sibling in CODE}
    for name in imported(path):
        assert not name.startswith("smalle"), f"{name}: a checkpoint's folder has no package"
        assert not name.startswith(".") or name in siblings, name
