"""The model: alignments, loss, initial values, precision, saving, devices, refusals. See also test_baselines."""

import pytest
import torch

from smalle import SmallEConfig, SmallEForTextToSpeech
from smalle.mixers_smalle import MIXERS


def batch(config, batch_size=2, text=9, frames=70, seed=0):
    random = torch.Generator().manual_seed(seed)
    ids = torch.randint(3, config.vocab_size, (batch_size, text), generator=random)
    shape = (batch_size, frames, config.num_codebooks)
    return ids, torch.randint(0, config.audio_vocab_size, shape, generator=random)


@torch.no_grad()
def test_alignments_are_distributions_over_the_unmasked_text(tiny_model, tiny_config):
    ids, codes = batch(tiny_config)
    mask = torch.ones_like(ids)
    mask[0, :4] = 0
    out = tiny_model(input_ids=ids, attention_mask=mask, decoder_input_ids=codes, output_attentions=True)
    for attention in out.attentions:
        assert attention.shape == (2, 70, 9)
        assert torch.allclose(attention.sum(-1), torch.ones(2, 70), atol=1e-5)
        assert attention[0, :, :4].max() < 1e-6


def test_loss_is_the_mean_cross_entropy_of_unmasked_labels(tiny_model, tiny_config):
    ids, codes = batch(tiny_config)
    labels = codes.roll(-1, 1)
    labels[:, -1] = -100
    labels[0, :, 2] = -100
    out = tiny_model(input_ids=ids, decoder_input_ids=codes, labels=labels)
    log_probs = out.logits.log_softmax(-1)
    keep = labels != -100
    wanted = -log_probs[keep].gather(-1, labels[keep][:, None]).mean()
    assert torch.allclose(out.loss, wanted, atol=1e-5)
    count = int(keep.sum())
    summed = tiny_model(input_ids=ids, decoder_input_ids=codes, labels=labels, num_items_in_batch=2 * count).loss
    assert torch.allclose(summed * 2, wanted, atol=1e-5)


def test_every_parameter_gets_a_gradient(tiny_config):
    model = SmallEForTextToSpeech(tiny_config)
    ids, codes = batch(tiny_config)
    model(input_ids=ids, decoder_input_ids=codes, labels=codes).loss.backward()
    assert [name for name, p in model.named_parameters() if p.grad is None] == []


KINDS = [dict(), dict(cross_attention="plain"), dict(architecture="decoder-only", decoder_layers=3)]
kinds = pytest.mark.parametrize("kind", KINDS, ids=["paca", "plain", "decoder-only"])


@kinds
def test_residual_branches_start_small(kind):
    config = SmallEConfig(
        hidden_size=96, intermediate_size=128, text_layers=2, audio_encoder_layers=1, audio_decoder_layers=3, **kind
    )
    for name, weight in SmallEForTextToSpeech(config).named_parameters():
        if name.endswith((".o_proj.weight", ".down_proj.weight")):
            depth = 3 if "transformer." in name else 2 if "text_encoder." in name else 4
            wanted = config.initializer_range / (2 * depth) ** 0.5
        elif name.endswith(("q_proj.weight", "gate_proj.weight")):
            wanted = config.initializer_range
        else:
            continue
        assert weight.std().item() == pytest.approx(wanted, rel=0.05), name


@kinds
@torch.no_grad()
def test_hidden_states_are_those_from_the_embeddings_to_the_head(make_tiny, kind):
    model = make_tiny(**kind)
    ids, codes = batch(model.config)
    out = model(input_ids=ids, decoder_input_ids=codes, output_hidden_states=True)
    blocks = 3 if kind.get("architecture") else 1 + 1 + 2
    assert len(out.hidden_states) == 1 + blocks
    assert torch.equal(out.hidden_states[0], model.model.embed_audio(codes))
    assert torch.equal(model.head(out.hidden_states[-1]).view_as(out.logits), out.logits)
    assert model(input_ids=ids, decoder_input_ids=codes).hidden_states is None


@torch.no_grad()
def test_the_configuration_has_the_defaults_of_a_call(make_tiny):
    model = make_tiny()
    ids, codes = batch(model.config)
    inputs = {"input_ids": ids, "decoder_input_ids": codes}
    assert set(model(**inputs)) == {"logits", "cache"}
    assert set(model.train()(**inputs)) == {"logits"}
    speech = model.eval().generate(ids, max_new_tokens=5, min_new_tokens=5)
    model.set_attn_implementation("eager")  # or transformers refuses the second of these
    model.config.use_cache, model.config.output_attentions, model.config.output_hidden_states = False, True, True
    assert set(model(**inputs)) == {"logits", "attentions", "hidden_states"}
    assert set(model(**inputs, use_cache=True, output_attentions=False, output_hidden_states=False)) == {
        "logits",
        "cache",
    }
    model.config.return_dict = False
    assert isinstance(model(**inputs), tuple) and len(model(**inputs)) == 3
    assert model.generate(ids, max_new_tokens=5, min_new_tokens=5).shape == speech.shape


@kinds
def test_gradients_are_equal_with_gradient_checkpointing(make_tiny, kind):
    model = make_tiny(**kind).train()
    ids, codes = batch(model.config, frames=20)
    gradients = []
    for enable in (False, True):
        if enable:
            model.gradient_checkpointing_enable()
            assert model.is_gradient_checkpointing
        model.zero_grad()
        model(input_ids=ids, decoder_input_ids=codes, labels=codes).loss.backward()
        gradients.append({name: p.grad.clone() for name, p in model.named_parameters()})
    for name, gradient in gradients[0].items():
        assert torch.allclose(gradients[1][name], gradient, atol=1e-6), name


@kinds
@torch.no_grad()
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_finite_and_near(make_tiny, kind, dtype):
    model = make_tiny(**kind)
    ids, codes = batch(model.config)
    mask = torch.ones_like(ids)
    mask[0, :4] = 0
    wanted = model(input_ids=ids, attention_mask=mask, decoder_input_ids=codes).logits
    logits = model.to(dtype)(input_ids=ids, attention_mask=mask, decoder_input_ids=codes).logits
    assert logits.dtype == dtype and logits.isfinite().all()
    assert (logits.float() - wanted).norm() / wanted.norm() < (0.1 if dtype == torch.bfloat16 else 0.02)


@kinds
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_gradients_are_finite_under_autocast(make_tiny, kind, dtype):
    model = make_tiny(**kind).train()
    ids, codes = batch(model.config)
    mask = torch.ones_like(ids)
    mask[0, 5:] = 0
    with torch.autocast("cpu", dtype):
        loss = model(input_ids=ids, attention_mask=mask, decoder_input_ids=codes, labels=codes).loss
    loss.backward()
    assert all(p.grad.isfinite().all() for p in model.parameters())


@kinds
def test_tied_head_is_the_audio_embedding_after_loading_too(make_tiny, kind, tmp_path):
    model = make_tiny(**kind, tie_word_embeddings=True)
    ids, codes = batch(model.config)
    model.save_pretrained(tmp_path)
    again = SmallEForTextToSpeech.from_pretrained(tmp_path).eval()
    for tied in (model, again):
        assert tied.head.weight is tied.model.audio_embedding.weight
        assert "head.weight" not in dict(tied.named_parameters())
    with torch.no_grad():
        got = again(input_ids=ids, decoder_input_ids=codes).logits
        assert torch.equal(got, model(input_ids=ids, decoder_input_ids=codes).logits)
    assert "head.weight" in dict(make_tiny(**kind).named_parameters())


@kinds
@torch.no_grad()
def test_text_vocabulary_can_grow(make_tiny, kind, tmp_path):
    model = make_tiny(**kind)
    ids, codes = batch(model.config)
    before = model(input_ids=ids, decoder_input_ids=codes).logits
    model.resize_token_embeddings(80, mean_resizing=False)
    assert torch.equal(model(input_ids=ids, decoder_input_ids=codes).logits, before)
    model.save_pretrained(tmp_path)
    again = SmallEForTextToSpeech.from_pretrained(tmp_path).eval()
    assert again.config.vocab_size == 80
    assert again(input_ids=ids + 10, decoder_input_ids=codes).logits.shape == before.shape


@kinds
@torch.no_grad()
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_checkpoints_load_as_saved_or_as_asked(make_tiny, kind, dtype, tmp_path):
    model = make_tiny(**kind).to(dtype)
    ids, codes = batch(model.config)
    wanted = model(input_ids=ids, decoder_input_ids=codes).logits
    model.save_pretrained(tmp_path)
    again = SmallEForTextToSpeech.from_pretrained(tmp_path).eval()
    assert {p.dtype for p in again.parameters()} == {dtype}
    assert torch.equal(again(input_ids=ids, decoder_input_ids=codes).logits, wanted)
    assert again.generate(ids, max_new_tokens=4, min_new_tokens=4).shape == (2, 4, 3)
    single = SmallEForTextToSpeech.from_pretrained(tmp_path, dtype=torch.float32)
    assert {p.dtype for p in single.parameters()} == {torch.float32}


def every_second_on_disk(model):
    """A device map of the parts that may stand apart, in turn."""
    blocks = [name for name, module in model.named_modules() if type(module).__name__ in model._no_split_modules]
    names = [name for name, _ in model.named_parameters()]
    parts = dict.fromkeys(
        next((block for block in blocks if name.startswith(f"{block}.")), name.rpartition(".")[0]) for name in names
    )
    return {part: "disk" if index % 2 else "cpu" for index, part in enumerate(parts)}


@kinds
@torch.no_grad()
def test_offloaded_to_devices_the_output_is_the_same(make_tiny, kind, tmp_path):
    model = make_tiny(**kind)
    ids, codes = batch(model.config)
    model.save_pretrained(tmp_path)
    settings = {"do_sample": False, "max_new_tokens": 4, "min_new_tokens": 4}
    wanted, speech = model(input_ids=ids, decoder_input_ids=codes).logits, model.generate(ids, **settings)
    for device_map in ("cpu", "auto", every_second_on_disk(model)):
        spread = SmallEForTextToSpeech.from_pretrained(
            tmp_path, device_map=device_map, offload_folder=tmp_path / "offload"
        ).eval()
        assert torch.equal(spread(input_ids=ids, decoder_input_ids=codes).logits.cpu(), wanted), device_map
        assert torch.equal(spread.generate(ids, **settings).cpu(), speech)


@pytest.mark.parametrize("mixer", MIXERS)
def test_no_buffer_is_lost_in_a_checkpoint(tiny_config, tiny_codec, mixer):
    model = SmallEForTextToSpeech(SmallEConfig(**{**tiny_config.to_dict(), "mixer": mixer}))
    for root in (model, tiny_codec):
        assert [name for name, module in root.named_modules() if module._non_persistent_buffers_set] == []


@kinds
def test_layers_with_residual_branches_stay_on_one_device(make_tiny, kind):
    model = make_tiny(**kind)
    whole = {name for name, module in model.named_modules() if type(module).__name__ in model._no_split_modules}
    inside = tuple(f"{name}." for name in whole)
    outside = {name for name, _ in model.named_parameters() if not name.startswith(inside)}
    assert {name.split(".")[-2] for name in outside} <= {
        "head",
        "text_embedding",
        "audio_embedding",
        "text_norm",
        "audio_norm",
        "norm",
    }


def test_paper_shape_has_64_million_parameters():
    with torch.device("meta"):
        count = sum(p.numel() for p in SmallEForTextToSpeech(SmallEConfig()).parameters())
    assert 62e6 < count < 68e6


IMPOSSIBLE = [
    dict(hidden_size=30),
    dict(num_codebooks=0),
    dict(position_size=15),
    dict(expand_v=0.99),
    dict(position_size=0),
    dict(text_layers=-1),
    dict(text_layers=10**9),
    dict(dropout=1.5),
    dict(max_text_tokens=0),
    dict(hidden_size="large"),
    dict(mixer=5),
    dict(num_codebooks=None),
    dict(final_norms=5),
    dict(vocab_size=True),
    dict(expand_k=float("nan")),
    dict(audio_encoder_layers=2.0),
    dict(position_theta="far"),
    dict(tie_word_embeddings=1),
]


@pytest.mark.parametrize("wrong", IMPOSSIBLE)
def test_impossible_sizes_and_values_of_another_kind_are_refused(wrong):
    with pytest.raises(ValueError, match=next(iter(wrong))):
        SmallEConfig(**{"hidden_size": 32, "num_attention_heads": 2, **wrong})


def test_wrong_inputs_are_refused(tiny_model, tiny_config):
    ids, codes = batch(tiny_config)
    right = {"input_ids": ids, "decoder_input_ids": codes}
    state = tiny_model(**right).cache
    for name, wrong, message in [
        ("decoder_input_ids", codes[..., :2], r"expected delayed codes.*\(2, any, 3\)"),
        ("decoder_input_ids", codes[:1], r"\(2, any, 3\)"),
        ("decoder_input_ids", codes.float(), "is torch.float32"),
        ("decoder_input_ids", codes + 3, r"expected 0\.\.22"),
        ("decoder_input_ids", codes[:, :1].expand(-1, 65537, -1), "limit is 65536"),
        ("decoder_attention_mask", torch.ones(2, 69), r"\(2, 70\)"),
        ("decoder_attention_mask", torch.full((2, 70), 2), "expected 1 for"),
        ("input_ids", ids + 64, r"expected 0\.\.63, tokens"),
        ("input_ids", ids[0], "is torch.int64 of shape"),
        ("input_ids", ids.tolist(), "is list"),
        ("attention_mask", torch.ones(2, 3), r"\(2, 9\)"),
        ("attention_mask", ids, "expected 1 for"),
        ("labels", codes[:, :9], "codes that follow"),
        ("labels", codes.float(), "codes that follow"),
        ("labels", codes - 99, "or -100"),
        ("forced_alignments", torch.ones(2, 70, 4), r"\(2, 70, 9\)"),
        ("initial_state", torch.ones(2, 5).long(), "tuned voice for each"),
    ]:
        with pytest.raises(ValueError, match=f"{name} .*{message}"):
            tiny_model(**{**right, name: wrong})
    with pytest.raises(ValueError, match="cache is int"):
        tiny_model(decoder_input_ids=codes, cache=5)
    with pytest.raises(ValueError, match=r"\(2, any, 3\)"):
        tiny_model(decoder_input_ids=codes[:1], cache=state)
    with pytest.raises(ValueError, match="either input_ids"):
        tiny_model(decoder_input_ids=codes)
    with pytest.raises(ValueError, match="mixer='lstm'"):
        SmallEForTextToSpeech(SmallEConfig(mixer="lstm"))


@pytest.mark.parametrize("kind", ["paca", "plain"])
@torch.no_grad()
def test_forced_alignments_are_used_and_zeros_keep_the_models_own(make_tiny, kind):
    model = make_tiny(cross_attention=kind)
    text, codes = batch(model.config, text=6, frames=5)
    own = model(text, decoder_input_ids=codes, output_attentions=True)
    torch.testing.assert_close(
        model(text, decoder_input_ids=codes, forced_alignments=torch.zeros(2, 5, 6)).logits, own.logits
    )
    forced = torch.zeros(2, 5, 6)
    forced[0, 2:, 3] = 1
    given = model(text, decoder_input_ids=codes, forced_alignments=forced, output_attentions=True)
    torch.testing.assert_close(given.logits[1], own.logits[1])
    torch.testing.assert_close(given.logits[0, :2], own.logits[0, :2])
    assert (given.logits[0, 2:] - own.logits[0, 2:]).abs().max() > 1e-4
    torch.testing.assert_close(given.attentions, own.attentions)  # the model's own
