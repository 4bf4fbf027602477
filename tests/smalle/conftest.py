"""A model of a few thousand parameters, and a checkpoint of it in the form of a Hub repository."""

import pytest
import torch

from smalle import SmallEConfig, SmallEForTextToSpeech

TINY = dict(
    vocab_size=64, hidden_size=32, intermediate_size=48, text_layers=2, num_attention_heads=2, audio_encoder_layers=1,
    audio_decoder_layers=2, mixer_heads=2, expand_k=0.5, expand_v=1.0, position_size=16, num_codebooks=3,
    codebook_size=20, frame_rate=50.0,
)  # fmt: skip


@pytest.fixture(scope="session")
def tiny_config():
    return SmallEConfig(**TINY)


@pytest.fixture(scope="session")
def tiny_model(tiny_config):
    torch.manual_seed(0)
    model = SmallEForTextToSpeech(tiny_config).eval()
    with torch.no_grad():  # initial weights are near zero: make every part matter
        for parameter in model.parameters():
            parameter.add_(0.15 * torch.randn_like(parameter))
    return model
