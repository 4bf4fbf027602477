"""The small parts of tests/smalle."""

from tests.smalle.conftest import make_tiny, processor, tiny_checkpoint, tiny_config, tiny_model  # noqa: F401
