"""Small parts that need no download: a tokenizer, a codec with random weights, recordings of a hum."""

import os

import hypothesis
import numpy as np
import pytest
import soundfile
import torch
from smalle.train.data.tokenizer import train_tokenizer

from smalle import voices_smalle
from smalle.codec_smalle import SmallECodec, SmallECodecConfig

hypothesis.settings.register_profile("ci", derandomize=True)  # the same examples in each run
hypothesis.settings.register_profile("long", max_examples=5000)  # pytest --hypothesis-profile=long
if os.environ.get("CI"):
    hypothesis.settings.load_profile("ci")

torch.set_num_threads(1)  # on tensors this small, threads only wait for each other
os.environ["OMP_NUM_THREADS"] = "1"  # programs that tests start


def pytest_runtest_setup():
    """Fixtures and tests draw the same numbers, whatever ran before them in their process."""
    torch.manual_seed(0)


pytest_runtest_call = pytest_runtest_setup


@pytest.fixture(scope="session", autouse=True)
def short_tuning():
    """Voices of recordings are prepared in two steps, as tests listen to none of them."""
    voices_smalle.TUNING_STEPS = 2


@pytest.fixture(autouse=True)
def one_thread():
    """A test that chooses a number of threads leaves one to the next."""
    yield
    torch.set_num_threads(1)


SENTENCES = [
    "The quick brown fox jumps over the lazy dog.",
    "Pack my box with five dozen liquor jugs, please!",
    '"Why?" he asked; it\'s a half-open door: nobody knew.',
]


@pytest.fixture(scope="session")
def tiny_tokenizer():
    return train_tokenizer(SENTENCES * 3, vocab_size=64)


@pytest.fixture(scope="session")
def tiny_codec():
    """3 codebooks of 20 at 50 frames a second, as the tiny model expects."""
    torch.manual_seed(0)
    config = SmallECodecConfig(
        latent_size=16,
        num_codebooks=3,
        codebook_size=20,
        vocos_hidden_size=16,
        vocos_intermediate_size=32,
        vocos_num_layers=1,
    )
    codec = SmallECodec(config).eval()
    torch.nn.init.normal_(codec.analysis.projection, std=0.05)
    return codec


@pytest.fixture(scope="session")
def record():
    """Writes a wav of a hum in noise and returns it: float32 (channels, L), 16-bit exact."""

    def write(path, seconds=0.5, pitch=120.0, sampling_rate=24000, channels=1):
        time = np.arange(int(seconds * sampling_rate)) / sampling_rate
        noise = np.random.default_rng(0).normal(size=len(time))
        hum = sum(np.sin(2 * np.pi * pitch * harmonic * time) / harmonic for harmonic in range(1, 6))
        samples = (3000 * hum + 500 * noise).astype(np.int16)
        soundfile.write(path, np.tile(samples[:, None], channels), sampling_rate, subtype="PCM_16")
        return np.tile(samples / np.float32(32768), (channels, 1))

    return write
