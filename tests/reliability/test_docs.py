"""docs/reliability.md names tests that are there."""

import re
from pathlib import Path

ROOT = Path(__file__).parents[2]


def test_every_test_that_the_page_names_is_there():
    page = (ROOT / "docs" / "reliability.md").read_text(encoding="utf-8")
    table = page.partition("## What once failed")[2]
    named = re.findall(r"`([\w/]+)::(test_\w+)`", table)
    assert len(named) >= 19 and len(re.findall(r"^\| [^-]", table, re.MULTILINE)) == 27  # with the head
    for file, test in named:
        source = (ROOT / "tests" / f"{file}.py").read_text(encoding="utf-8")
        assert f"def {test}(" in source, f"{file}::{test} is not there: name the test that took its place."
