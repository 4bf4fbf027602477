"""Properties of Small-E, its baselines (plain cross-attention, decoder-only) and the options of the original's models:
padded = unpadded, cached = full, causal, save -> load = same."""

import shutil

import pytest
import torch
from transformers import pipeline

from smalle import SmallEConfig, SmallEForTextToSpeech
from smalle.attention_smalle import rotary, rotate, sinusoids
from smalle.cache_smalle import SmallEState

BASELINES = {
    "small-e": {},
    "plain": dict(cross_attention="plain"),
    "decoder-only": dict(architecture="decoder-only", decoder_layers=3, alignment_layer=1),
    "rotary plain": dict(cross_attention="plain", cross_attention_heads=1, cross_rotary_size=8, final_norms=[]),
    "rwkv blocks": dict(
        mixer="rwkv6",
        feed_forward="rwkv",
        cross_rotary_size=16,
        position_gain=None,
        position_heads=2,
        partial_rotary_factor=0.5,
    ),
    "mamba blocks": dict(
        mixer="mamba",
        feed_forward="none",
        final_norms=["audio_encoder", "position", "audio_decoder"],
        cross_rotary_size=4,
        position_gain=None,
        position_layers=2,
    ),
}


@pytest.fixture(scope="module", params=list(BASELINES))
def model(request, make_tiny):
    return make_tiny(**BASELINES[request.param])


@pytest.fixture(scope="module")
def inputs(tiny_config):
    """Two texts of 9 tokens and 40 frames of delayed codes."""
    random = torch.Generator().manual_seed(0)
    ids = torch.randint(3, tiny_config.vocab_size, (2, 9), generator=random)
    shape = (2, 40, tiny_config.num_codebooks)
    return ids, torch.randint(0, tiny_config.audio_vocab_size, shape, generator=random)


@torch.no_grad()
@pytest.mark.parametrize("side", ["left", "right"])
def test_padded_equals_unpadded_and_so_does_what_follows(model, inputs, side):
    ids, codes = inputs
    alone = model(input_ids=ids, decoder_input_ids=codes, use_cache=True)

    def pad(x, amount):
        widths = (amount, 0) if side == "left" else (0, amount)
        return torch.nn.functional.pad(x, (0, 0) * (x.ndim - 2) + widths)

    text_mask, audio_mask = pad(torch.ones(2, 9), 4), pad(torch.ones(2, 40), 11)
    padded = model(
        input_ids=pad(ids, 4),
        attention_mask=text_mask,
        decoder_input_ids=pad(codes, 11),
        decoder_attention_mask=audio_mask,
        use_cache=True,
    )
    assert torch.allclose(padded.logits[audio_mask.bool()], alone.logits.flatten(0, 1), atol=1e-4)
    assert padded.logits.isfinite().all()
    got, wanted = (model(decoder_input_ids=codes[:, :2], cache=out.cache).logits for out in (padded, alone))
    assert torch.allclose(got, wanted, atol=1e-4)


@torch.no_grad()
def test_steps_with_state_equal_the_whole_sequence(model, inputs):
    ids, codes = inputs
    whole = model(input_ids=ids, decoder_input_ids=codes).logits
    out = model(input_ids=ids, decoder_input_ids=codes[:, :36], use_cache=True)
    logits = [out.logits]
    for t in range(36, 40):
        out = model(decoder_input_ids=codes[:, t : t + 1], cache=out.cache, use_cache=True)
        logits.append(out.logits)
    assert torch.allclose(torch.cat(logits, 1), whole, atol=1e-4)


@torch.no_grad()
def test_a_state_is_a_value_whose_rows_can_be_selected(model, inputs):
    ids, codes = inputs
    state = model(input_ids=ids, decoder_input_ids=codes, use_cache=True).cache
    second = state.map(lambda x: x[1:])
    wanted = model(decoder_input_ids=codes[:, :1], cache=state).logits[1:]
    assert torch.allclose(model(decoder_input_ids=codes[1:, :1], cache=second).logits, wanted, atol=1e-4)
    again = model(decoder_input_ids=codes[:, :1], cache=state).logits[1:]
    assert torch.equal(again, wanted)


@torch.no_grad()
def test_the_audio_path_is_causal_and_sees_the_whole_text_in_order(model, inputs):
    ids, codes = inputs
    before = model(input_ids=ids, decoder_input_ids=codes).logits
    later = codes.clone()
    later[:, 20:] = (later[:, 20:] + 1) % model.config.audio_vocab_size
    after = model(input_ids=ids, decoder_input_ids=later).logits
    assert torch.allclose(before[:, :20], after[:, :20], atol=1e-5)
    assert not torch.allclose(before[:, 20:], after[:, 20:], atol=1e-3)
    changed_end = torch.cat((ids[:, :-1], ids[:, -1:] % 60 + 3), 1)
    for other in (ids.flip(1), changed_end):
        logits = model(input_ids=other, decoder_input_ids=codes).logits
        assert not torch.allclose(before[:, 0], logits[:, 0], atol=1e-4)


def test_batch_with_different_prompts_equals_single_runs(model):
    config, random = model.config, torch.Generator().manual_seed(1)
    ids = torch.randint(3, config.vocab_size, (2, 9), generator=random)
    prompts = torch.randint(0, config.codebook_size, (2, 7, config.num_codebooks), generator=random)
    mask, prompt_mask = torch.ones(2, 9).long(), torch.ones(2, 7).long()
    mask[1, :3], prompt_mask[1, 4:] = 0, 0
    settings = dict(do_sample=False, return_dict_in_generate=True, max_new_tokens=15)
    both = model.generate(ids, mask, prompts, prompt_mask, **settings)
    for row in range(2):
        kept, prompt = ids[row][mask[row].bool()], prompts[row][prompt_mask[row].bool()]
        alone = model.generate(kept[None], None, prompt[None], None, **settings)
        length = int(alone.lengths[0])
        assert both.lengths[row] == length
        assert torch.equal(both.sequences[row, :length], alone.sequences[0])


def test_stopped_and_continued_equals_at_once(model, inputs):
    settings = dict(do_sample=False, return_dict_in_generate=True)
    whole = model.generate(inputs[0], max_new_tokens=14, min_new_tokens=14, **settings)
    part = model.generate(inputs[0], max_new_tokens=6, min_new_tokens=14, **settings)
    rest = model.generate(cache=part.cache, max_new_tokens=8, min_new_tokens=8, **settings)
    assert torch.equal(torch.cat((part.sequences, rest.sequences), 1), whole.sequences)


@torch.no_grad()
def test_save_and_load_give_the_same_model(model, inputs, tmp_path):
    model.save_pretrained(tmp_path)
    again = SmallEForTextToSpeech.from_pretrained(tmp_path).eval()
    assert torch.equal(*(m(input_ids=inputs[0], decoder_input_ids=inputs[1]).logits for m in (again, model)))


def test_training_steps_lower_the_loss_and_reach_every_parameter(model, inputs):
    fresh = SmallEForTextToSpeech(model.config)
    optimizer = torch.optim.AdamW(fresh.parameters(), lr=1e-2)
    losses = []
    for _ in range(4):
        loss = fresh(input_ids=inputs[0], decoder_input_ids=inputs[1], labels=inputs[1]).loss
        loss.backward()
        assert [name for name, p in fresh.named_parameters() if p.grad is None] == []
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    assert losses[-1] < losses[0] - 0.1


def test_pipeline_speaks(model, tiny_checkpoint, tmp_path):
    shutil.copytree(tiny_checkpoint, tmp_path / "checkpoint")
    model.save_pretrained(tmp_path / "checkpoint")
    speak = pipeline("text-to-speech", model=str(tmp_path / "checkpoint"))
    speech = speak("Hello.", generate_kwargs={"max_new_tokens": 12, "min_new_tokens": 12})
    assert speech["audio"].shape[-1] == 12 * 480


@torch.no_grad()
def test_plain_cross_attention_gives_one_alignment_and_no_recurrent_state(make_tiny, inputs):
    model, (ids, codes) = make_tiny(cross_attention="plain"), inputs
    mask = torch.ones_like(ids)
    mask[0, :4] = 0
    out = model(input_ids=ids, attention_mask=mask, decoder_input_ids=codes, use_cache=True, output_attentions=True)
    (attention,) = out.attentions
    assert attention.shape == (2, 40, 9)
    assert torch.allclose(attention.sum(-1), torch.ones(2, 40), atol=1e-5)
    assert attention[0, :, :4].max() < 1e-6
    assert [part is None for part in out.cache.recurrent] == [False, True, False, False]
    spoken = model.generate(ids, max_new_tokens=5, output_alignments=True, return_dict_in_generate=True)
    assert spoken.alignments.shape[2] == 9


@torch.no_grad()
def test_plain_cross_attention_is_multi_head_attention(make_tiny):
    layer = make_tiny(cross_attention="plain").model.cross_attention
    x, text = torch.randn(2, 5, 32), torch.randn(2, 7, 32)
    mask = torch.ones(2, 7, dtype=torch.bool)
    keys, values, _ = layer.encode_text(text, mask)
    assert torch.allclose(keys - layer.k_norm(layer.k_proj(text)), sinusoids(mask, 32), atol=1e-5)
    got = layer(x, SmallEState(keys, values, None, mask))[0]
    heads = [part.view(2, -1, 2, 16).transpose(1, 2) for part in (layer.q_norm(layer.q_proj(x)), keys, values)]
    wanted = torch.nn.functional.scaled_dot_product_attention(*heads)
    assert torch.allclose(got, layer.o_proj(wanted.transpose(1, 2).flatten(2)), atol=1e-5)


@torch.no_grad()
def test_decoder_only_is_one_causal_sequence_of_text_and_audio(make_tiny, inputs):
    model, (ids, codes) = make_tiny(architecture="decoder-only").model, inputs
    x = torch.cat((model.text_embedding(ids), model.embed_audio(codes)), 1)
    steps = torch.arange(x.shape[1])
    cos, sin = rotary(steps, 16, model.config.rope_theta)
    for layer in model.transformer.layers:
        x, _, _ = layer(x, steps <= steps[:, None], cos, sin)
    got = model(input_ids=ids, decoder_input_ids=codes).last_hidden_state
    assert torch.allclose(got, model.transformer.norm(x)[:, 9:], atol=1e-4)


@torch.no_grad()
def test_the_alignment_of_the_decoder_only_is_the_attention_of_a_head(make_tiny, inputs):
    model, (ids, codes) = make_tiny(architecture="decoder-only", decoder_layers=3, alignment_layer=1).model, inputs
    out = model(input_ids=ids, decoder_input_ids=codes, output_attentions=True)
    layer, x = model.transformer.layers[1], torch.cat((model.text_embedding(ids), model.embed_audio(codes)), 1)
    steps = torch.arange(x.shape[1])
    cos, sin = rotary(steps, 16, model.config.rope_theta)
    x, _, _ = model.transformer.layers[0](x, steps <= steps[:, None], cos, sin)
    q, k = (
        rotate(project(layer.norm1(x)).unflatten(-1, (2, -1)).transpose(1, 2), cos, sin)[:, 0]
        for project in (layer.q_proj, layer.k_proj)
    )
    scores = (q @ k.transpose(1, 2) / q.shape[-1] ** 0.5).masked_fill(steps > steps[:, None], -torch.inf)
    wanted = scores.softmax(-1)[:, ids.shape[1] :, : ids.shape[1]]
    assert len(out.attentions) == 1 and torch.allclose(out.attentions[0], wanted, atol=1e-5)
    plain = model(input_ids=ids, decoder_input_ids=codes).last_hidden_state
    assert torch.allclose(out.last_hidden_state, plain, atol=1e-4)


def test_decoder_only_without_alignment_layer_has_no_alignment(make_tiny, inputs):
    model = make_tiny(architecture="decoder-only")
    with pytest.raises(ValueError, match="has no alignment"):
        model(input_ids=inputs[0], decoder_input_ids=inputs[1], output_attentions=True)


UNKNOWN = [
    dict(architecture="rnn"),
    dict(cross_attention="none"),
    dict(decoder_layers=0),
    dict(feed_forward="gelu"),
    dict(final_norms=["audio"]),
    dict(partial_rotary_factor=0.0),
    dict(partial_rotary_factor=0.05),
    dict(cross_rotary_size=3),
    dict(cross_rotary_size=514),
    dict(cross_attention_heads=3, cross_attention="plain"),
    dict(cross_rotary_size=66, cross_attention="plain"),
    dict(position_layers=0),
    dict(position_heads=0),
    dict(alignment_layer=12),
    dict(alignment_layer=-1),
]


@pytest.mark.parametrize("wrong", UNKNOWN)
def test_unknown_architectures_are_refused(wrong):
    with pytest.raises(ValueError, match=next(iter(wrong))):
        SmallEConfig(**wrong)


def test_decoder_only_reads_the_whole_at_once_as_it_reads_text_and_audio_in_turn(make_tiny, inputs):
    model = make_tiny(architecture="decoder-only", decoder_layers=3)
    ids, codes = inputs
    text_mask, audio_mask = torch.ones(2, 9), torch.ones(2, 40)
    text_mask[0, 6:], text_mask[1, :2], audio_mask[1, 33:] = 0, 0, 0
    masks = dict(attention_mask=text_mask, decoder_attention_mask=audio_mask)
    found = []
    for use_cache in (False, True):
        model.zero_grad()
        out = model(input_ids=ids, decoder_input_ids=codes, use_cache=use_cache, output_hidden_states=True, **masks)
        states = torch.stack(out.hidden_states)[:, audio_mask.bool()]
        states.square().mean().backward()
        found.append((states, model.model.transformer.layers[0].k_proj.weight.grad.clone()))
    assert out.cache is not None
    for whole, in_turn in zip(*found):
        assert torch.allclose(whole, in_turn, rtol=1e-4, atol=1e-5)
