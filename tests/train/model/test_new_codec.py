"""A model for a new codec from one for another."""

import torch
from smalle.train.model.new_codec import delayed, fit_embeddings, mean_heads, transfer

from smalle import SmallEConfig, SmallEForTextToSpeech
from smalle.generation_smalle import delay


def test_delayed_codes_are_those_that_the_model_reads_in_a_step():
    codes = torch.arange(30).view(10, 3)
    steps = delay(codes)[3:-1] - 3  # complete steps
    assert torch.equal(delayed(codes), steps[: len(delayed(codes))])


def test_a_renamed_codec_gets_the_old_weights_by_other_names():
    generator = torch.Generator().manual_seed(0)
    table = torch.randn(2, 8, 16, generator=generator)
    old, names = torch.randint(8, (4000, 2), generator=generator), torch.randperm(8, generator=generator)
    new = names[old]
    fitted = fit_embeddings(table, old, new)
    sums = [sum(t[q][codes[:, q]] for q in range(2)) for t, codes in ((table, old), (fitted, new))]
    assert (sums[0] - sums[1]).square().mean() < 0.01 * sums[0].var()
    heads = mean_heads(table, old, new)
    assert torch.allclose(heads[:, names], table, atol=0.05)


def test_only_embeddings_and_heads_of_codes_change():
    config = SmallEConfig(
        vocab_size=32, hidden_size=32, intermediate_size=48, text_layers=1, num_attention_heads=2, mixer_heads=2,
        audio_encoder_layers=1, audio_decoder_layers=1, num_codebooks=3, codebook_size=24, frame_rate=50.0,
    )  # fmt: skip
    model = SmallEForTextToSpeech(config)
    before = {name: weight.clone() for name, weight in model.state_dict().items()}
    codes = torch.randint(24, (50, 3))
    transfer(model, [(codes, codes.flip(0))])
    changed = {name for name, weight in model.state_dict().items() if not torch.equal(weight, before[name])}
    assert changed == {"model.audio_embedding.weight", "head.weight"}
    specials = model.head.weight.view(3, 27, -1)[:, :3]
    assert torch.equal(specials, before["head.weight"].view(3, 27, -1)[:, :3])
