"""A model of a few thousand parameters, and a checkpoint of it in the form of a Hub repository."""

import pytest
import torch
from smalle.train.assemble import assemble

from smalle import SmallEConfig, SmallEForTextToSpeech, SmallEProcessor

TINY = dict(
    vocab_size=64,
    hidden_size=32,
    intermediate_size=48,
    text_layers=2,
    num_attention_heads=2,
    audio_encoder_layers=1,
    audio_decoder_layers=2,
    mixer_heads=2,
    expand_k=0.5,
    expand_v=1.0,
    position_size=16,
    num_codebooks=3,
    codebook_size=20,
    frame_rate=50.0,
)

VOICES = """\
default: anna
voices:
  anna: {audio: WORK/anna.wav, text: It is a door.}
  ben: {audio: WORK/ben.wav, text: Nobody asked!}
"""


@pytest.fixture(scope="session")
def tiny_config():
    return SmallEConfig(**TINY)


@pytest.fixture(scope="session")
def make_tiny():
    """Makes a tiny model whose configuration has some changes."""

    def make(**changes):
        torch.manual_seed(0)
        model = SmallEForTextToSpeech(SmallEConfig(**{**TINY, **changes})).eval()
        with torch.no_grad():  # initial weights are near zero: make every part matter
            for parameter in model.parameters():
                parameter.add_(0.15 * torch.randn_like(parameter))
        return model

    return make


@pytest.fixture(scope="session")
def tiny_model(make_tiny):
    return make_tiny()


@pytest.fixture(scope="session")
def tiny_checkpoint(tiny_model, tiny_codec, tiny_tokenizer, record, tmp_path_factory):
    """Folder with two voices of different lengths; speaks for at most 6 seconds. Tests only read it."""
    work = tmp_path_factory.mktemp("checkpoint")
    tiny_model.save_pretrained(work / "model")
    tiny_tokenizer.save_pretrained(work / "model")
    tiny_codec.save_pretrained(work / "codec")
    record(work / "anna.wav", 0.5, 200)
    record(work / "ben.wav", 0.3, 100)
    (work / "voices.yaml").write_text(
        VOICES.replace("WORK", str(work)) + "generation: {max_seconds: 6, max_retries: 0}\n"
    )
    assemble(work / "model", work / "codec", work / "voices.yaml", work / "tiny")
    return work / "tiny"


@pytest.fixture
def processor(tiny_checkpoint):
    return SmallEProcessor.from_pretrained(tiny_checkpoint)
