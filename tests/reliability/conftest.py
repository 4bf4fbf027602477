"""The small parts of tests/smalle; and a line on the terminal for what crash tests found."""

import os

import pytest

from tests.smalle.conftest import make_tiny, processor, tiny_checkpoint, tiny_config  # noqa: F401


@pytest.fixture(scope="session")
def tiny_model(make_tiny):  # noqa: F811
    """With a layer of each kind, as crash tests load it thousands of times."""
    return make_tiny(text_layers=1, audio_decoder_layers=1)


@pytest.fixture
def report(request, capsys):
    """Prints a sentence, where more crashes were asked for than the suite makes."""

    def report(words: str) -> None:
        if "CRASHES" in os.environ:
            with capsys.disabled():
                print(f"{request.node.name}: {words}", flush=True)

    return report
