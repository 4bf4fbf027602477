"""A tuned starting state: it speaks without a prompt, learns, is stored full or at low rank, fits one model alone."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from smalle import SmallEProcessor
from smalle.cache_smalle import InitialState, join_state, split_state
from smalle.generation_smalle import delay
from smalle.mixers_smalle import MIXERS
from smalle.voices_smalle import load_voice, save_voice


def untuned(model, rank=None):
    with torch.no_grad():
        return InitialState(model(**batch(model.config), use_cache=True).cache.recurrent, rank)


def random_state(model, rank=None):
    torch.manual_seed(3)
    state = untuned(model, rank)
    for tensor in state.parameters():
        torch.nn.init.normal_(tensor, std=0.5)
    return state


@pytest.fixture
def state(tiny_model):
    return random_state(tiny_model)


@pytest.fixture
def voice_file(state, tmp_path):
    save_voice(tmp_path / "carl.safetensors", state=state.tensors)
    return str(tmp_path / "carl.safetensors")


def test_a_low_rank_is_of_matrices_alone():
    like = torch.ones(3, 8), torch.ones(3, 2, 8, 8)  # of three rows: a vector each, and two matrices
    assert {name: tuple(x.shape) for name, x in InitialState(like, rank=1).tensors.items()} == {
        "state_0": (8,),
        "state_1_left": (2, 8, 1),
        "state_1_right": (2, 1, 8),
    }


def batch(config, rows=2, frames=6):
    generator = torch.Generator().manual_seed(1)
    ids = torch.randint(3, config.vocab_size, (rows, 7), generator=generator)
    codes = torch.randint(0, config.codebook_size, (rows, frames, config.num_codebooks), generator=generator)
    return {"input_ids": ids, "decoder_input_ids": torch.stack([delay(row) for row in codes])}


KINDS = [{"mixer": mixer} for mixer in sorted(MIXERS)] + [{"cross_attention": "plain"}, {"position_layers": 2}]


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: str(*kind.values()))
def test_state_of_zeros_is_the_model_as_it_is_and_another_is_not(make_tiny, kind):
    model = make_tiny(**kind)
    inputs = batch(model.config)
    zeros = untuned(model)()
    other = random_state(model)()
    with torch.no_grad():
        plain = model(**inputs).logits
        assert torch.allclose(model(**inputs, initial_state=zeros.expand(2, -1)).logits, plain, atol=1e-6)
        assert not torch.allclose(model(**inputs, initial_state=other.expand(2, -1)).logits, plain, atol=1e-3)


def test_state_after_a_prompt_speaks_as_the_prompt_does(tiny_model, tiny_config):
    inputs = batch(tiny_config, 1)
    with torch.no_grad():
        whole = tiny_model(**inputs, use_cache=True)
        head, rest = inputs["decoder_input_ids"].split([4, inputs["decoder_input_ids"].shape[1] - 4], 1)
        after = tiny_model(inputs["input_ids"], decoder_input_ids=head, use_cache=True).cache
        numbers = []
        after.map(lambda x: numbers.append(x) or x)
        row = torch.cat([x.flatten() for x in numbers[4:]])[None]  # keys, values, positions and mask stand first
        split = split_state(row, after.recurrent)
        resumed = tiny_model(inputs["input_ids"], decoder_input_ids=rest, initial_state=row)
    for part, expected in zip(split, after.recurrent):
        assert torch.equal(part, expected)
    assert torch.allclose(resumed.logits, whole.logits[:, 4:], atol=1e-5)


@settings(max_examples=20, deadline=None)
@given(shape=st.lists(st.integers(1, 9), min_size=1, max_size=3), rank=st.integers(1, 3))
def test_low_rank_is_its_dense_product_and_never_larger(shape, rank):
    like = torch.randn(1, *shape), (torch.randn(1, *shape), None)
    low, full = InitialState(like, rank), InitialState(like)
    assert sum(p.numel() for p in low.parameters()) <= sum(p.numel() for p in full.parameters())
    assert torch.equal(low(), full())  # both begin at zero
    for parameter in low.parameters():
        torch.nn.init.normal_(parameter)
    pairs = [
        low.tensors[f"state_{n}_left"] @ low.tensors[f"state_{n}_right"]
        if f"state_{n}_left" in low.tensors
        else low.tensors[f"state_{n}"]
        for n in range(2)
    ]
    assert torch.equal(low(), torch.cat([pair.flatten() for pair in pairs]))


@pytest.mark.parametrize("rank", [None, 2])
def test_tuning_lowers_the_loss_and_leaves_the_model_alone(make_tiny, rank):
    model = make_tiny().requires_grad_(False)
    before = [parameter.clone() for parameter in model.parameters()]
    state, inputs = untuned(model, rank), batch(model.config)
    labels = inputs["decoder_input_ids"].roll(-1, 1)
    optimizer = torch.optim.Adam(state.parameters(), 0.05)
    losses = []
    for _ in range(15):
        optimizer.zero_grad()
        loss = model(**inputs, labels=labels, initial_state=state().expand(2, -1)).loss
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < losses[0] - 0.1
    assert all(torch.equal(old, new) for old, new in zip(before, model.parameters()))


@pytest.mark.parametrize("rank", [None, 1])
def test_same_after_save_and_load(tiny_model, rank, tmp_path):
    state = random_state(tiny_model, rank)
    save_voice(tmp_path / "v.safetensors", state=state.tensors)
    voice = load_voice(tmp_path / "v.safetensors")
    assert (voice.codes, voice.text) == (None, "")
    assert torch.equal(join_state(voice.state), state().detach())
    assert voice.state.keys() == state.tensors.keys()  # as small as it was


def test_what_is_tuned_is_relative_to_the_states_of_speech(tiny_model):
    state = untuned(tiny_model)
    with torch.no_grad():
        spoken = tiny_model(**batch(tiny_model.config), use_cache=True).cache.recurrent
    for parameter in state.parameters():
        torch.nn.init.ones_(parameter)
    for tensor, natural in zip(state.tensors.values(), spoken):
        assert torch.allclose(tensor.abs().mean(), natural.pow(2).mean().sqrt())


def test_voice_may_be_a_prompt_and_a_state(processor, state, tmp_path):
    codes = torch.randint(20, (7, 3))
    save_voice(tmp_path / "both.safetensors", codes, "So it is.", state.tensors)
    inputs = processor("Hello.", voice=str(tmp_path / "both.safetensors"))
    assert torch.equal(inputs["audio_codes"][0], codes) and torch.equal(inputs["initial_state"][0], state())


def test_processor_gives_a_state_for_each_row(processor, voice_file, state):
    inputs = processor(["One.", "Two."], voice=[voice_file, "anna"])
    assert torch.equal(inputs["initial_state"], torch.stack([state().detach(), torch.zeros_like(state())]))
    assert not inputs["audio_attention_mask"][0].any() and inputs["audio_attention_mask"][1].any()
    alone = processor("One.", voice=voice_file)
    assert set(alone) == {"input_ids", "attention_mask", "piece_ids", "initial_state"}
    assert "initial_state" not in processor("One.", voice="anna")


def greedy(model, inputs, **kwargs):
    return model.generate(**inputs, do_sample=False, max_new_tokens=12, return_dict_in_generate=True, **kwargs)


def test_batch_of_a_state_and_a_prompt_equals_single_runs(tiny_model, processor, voice_file):
    texts, voices = ["One.", "Two, three."], [voice_file, "anna"]
    both = greedy(tiny_model, processor(texts, voice=voices))
    for row, (text, voice) in enumerate(zip(texts, voices)):
        alone = greedy(tiny_model, processor(text, voice=voice))
        assert torch.equal(both.sequences[row, : both.lengths[row]], alone.sequences[0])
    assert not torch.equal(alone.sequences, greedy(tiny_model, processor(texts[1], voice=voice_file)).sequences)


def test_guidance_keeps_the_voice(tiny_model, processor, voice_file):
    inputs = processor("One.", voice=voice_file)
    guided = greedy(tiny_model, inputs, guidance_scale=1.0 + 1e-6)
    assert torch.equal(guided.sequences, greedy(tiny_model, inputs).sequences)
    given = {name: inputs[name] for name in ("input_ids", "initial_state")}
    conditional, unconditional = tiny_model._prefill(guided=True, **given).model.recurrent[0]
    assert torch.equal(conditional, unconditional) and conditional.any()


def test_saved_as_a_preset_of_a_checkpoint(processor, voice_file, tmp_path):
    voice = load_voice(voice_file)
    processor.add_voice("carl", voice)
    processor.default_voice = "carl"
    processor.save_pretrained(tmp_path / "saved")
    loaded = SmallEProcessor.from_pretrained(tmp_path / "saved")
    assert torch.equal(loaded("One.")["initial_state"], processor("One.", voice=voice_file)["initial_state"])
    assert (tmp_path / "saved/voices/carl.safetensors").stat().st_size < 20_000 + 4 * len(join_state(voice.state))


def test_state_of_another_model_is_refused(make_tiny, tiny_model, processor, voice_file, tmp_path):
    inputs = processor("Hello.", voice=voice_file)
    with pytest.raises(ValueError, match="the model it was tuned for"):
        make_tiny(audio_decoder_layers=3).generate(**inputs)
    with pytest.raises(ValueError, match="a recording with its transcript"):
        make_tiny(architecture="decoder-only").generate(**inputs)
    other = random_state(make_tiny(audio_decoder_layers=3))
    save_voice(tmp_path / "other.safetensors", state=other.tensors)
    with pytest.raises(ValueError, match="different models"):
        processor(["One.", "Two."], voice=[voice_file, str(tmp_path / "other.safetensors")])


def test_wrong_states_are_refused(tiny_model, processor, voice_file, tmp_path):
    inputs = processor("Hello.", voice=voice_file)
    row = inputs.pop("initial_state")
    with pytest.raises(ValueError, match="NaN"):
        tiny_model.generate(**inputs, initial_state=row * torch.nan)
    with pytest.raises(ValueError, match=r"expected a tuned voice for each text, a tensor of shape \(1, any"):
        tiny_model.generate(**inputs, initial_state=row.repeat(2, 1))
    with pytest.raises(ValueError, match=r"a tensor of shape \(1, any\)"):
        tiny_model(**inputs, decoder_input_ids=torch.zeros(1, 1, 3).long(), initial_state=row.repeat(2, 1))
    for wrong in (row[0], row[None], row[:, :-1]):
        with pytest.raises(ValueError, match="initial_state (has|is)"):
            tiny_model.generate(**inputs, initial_state=wrong)
    state = greedy(tiny_model, inputs).cache
    with pytest.raises(ValueError, match="goes on"):
        tiny_model.generate(cache=state, initial_state=row)
    with pytest.raises(ValueError, match="one of them"):
        tiny_model(decoder_input_ids=torch.zeros(1, 1, 3).long(), cache=state.model, initial_state=row)
    with pytest.raises(ValueError, match="rank=0"):
        InitialState(torch.ones(1, 3, 3), 0)
    with pytest.raises(ValueError, match="a state or a conversion"):
        save_voice(tmp_path / "nothing.safetensors")
    with pytest.raises(ValueError, match="colour"):
        save_voice(tmp_path / "odd.safetensors", state={"colour": torch.zeros(3)})
