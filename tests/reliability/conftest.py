"""The small parts of tests/smalle; and a line on the terminal for what crash tests found."""

import os

import pytest

from tests.smalle.conftest import make_tiny, processor, tiny_checkpoint, tiny_config, tiny_model  # noqa: F401


@pytest.fixture
def report(request, capsys):
    """Prints a sentence, where more crashes were asked for than the suite makes."""

    def report(words: str) -> None:
        if "CRASHES" in os.environ:
            with capsys.disabled():
                print(f"{request.node.name}: {words}", flush=True)

    return report
