"""torch.compile takes the training step in one graph, torch.export the decoding step with its state."""

import pytest
import torch

from smalle import SmallEConfig, SmallEForTextToSpeech
from smalle.mixers_smalle import MIXERS

KINDS = [{"mixer": "gla"}, {"architecture": "decoder-only"}]
OTHERS = [{"mixer": name} for name in MIXERS if name != "gla"] + [{"cross_attention": "plain"}]


def slow(*values):
    return pytest.param(*values, marks=pytest.mark.slow)


def name(value):
    return value if isinstance(value, str) else next(iter(value.values()))


@pytest.fixture
def model(tiny_config, kind):
    torch.manual_seed(0)
    torch._dynamo.reset()
    small = {"audio_encoder_layers": 0, "audio_decoder_layers": 1, "text_layers": 1, "decoder_layers": 1}
    return SmallEForTextToSpeech(SmallEConfig(**{**tiny_config.to_dict(), **small, **kind}))


@pytest.fixture
def speech(tiny_config):
    torch.manual_seed(1)
    shape = (2, 5, tiny_config.num_codebooks)
    return torch.randint(3, tiny_config.vocab_size, (2, 7)), torch.randint(0, tiny_config.codebook_size, shape)


@pytest.mark.parametrize(
    "kind, backend",
    [*((kind, "eager") for kind in KINDS), *(slow(kind, "aot_eager") for kind in KINDS + OTHERS)],
    ids=name,
)
def test_training_step_compiles_without_a_break_and_has_the_same_gradients(model, speech, backend):
    ids, codes = speech
    mask = torch.ones_like(ids)
    mask[0, :2] = 0

    def loss():
        return model(input_ids=ids, attention_mask=mask, decoder_input_ids=codes, labels=codes).loss

    gradients = []
    for step in (loss, torch.compile(loss, backend=backend, fullgraph=True)):
        model.zero_grad()
        step().backward()
        gradients.append(torch.cat([p.grad.flatten() for p in model.parameters()]))
    assert torch.allclose(*gradients, atol=1e-6)


@pytest.mark.parametrize("kind", [*KINDS, *map(slow, OTHERS)], ids=name)
@torch.no_grad()
def test_exported_decoding_step_equals_the_model(model, speech, kind):
    ids, codes = speech
    state = model.eval()(input_ids=ids, decoder_input_ids=codes, use_cache=True).cache
    inputs = {"decoder_input_ids": codes[:, :1], "cache": state, "use_cache": True}
    program, theirs, ours = torch.export.export(model, (), inputs).module(), state, state
    for t in range(1 if kind.get("architecture") else 3):  # keys and values of a transformer grow
        got = program(decoder_input_ids=codes[:, t : t + 1], cache=theirs, use_cache=True)
        wanted = model(decoder_input_ids=codes[:, t : t + 1], cache=ours, use_cache=True)
        assert torch.allclose(got.logits, wanted.logits, atol=1e-5)
        theirs, ours = got.cache, wanted.cache
        assert type(theirs) is type(ours)
