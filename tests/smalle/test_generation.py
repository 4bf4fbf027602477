"""Delay pattern and generate(): batch = single, stopped and continued = at once, seeds, prompts, stopping."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from smalle.configuration_smalle import AUDIO_HEAD, AUDIO_TAIL, NUM_AUDIO_SPECIALS
from smalle.generation_smalle import delay, undelay


@given(st.integers(0, 12), st.integers(1, 6))
def test_delay_shifts_each_codebook_by_one_more_step_and_undelay_is_its_inverse(length, num_codebooks):
    codes = torch.randint(0, 50, (length, num_codebooks))
    grid = delay(codes)
    assert grid.shape == (length + num_codebooks, num_codebooks)
    for q in range(num_codebooks):
        assert (grid[: q + 1, q] == AUDIO_HEAD).all()
        assert (grid[q + 1 : q + 1 + length, q] == codes[:, q] + NUM_AUDIO_SPECIALS).all()
        assert (grid[q + 1 + length :, q] == AUDIO_TAIL).all()
    assert torch.equal(undelay(grid[None])[0], codes)


def texts(config, lengths=(9, 6)):
    random = torch.Generator().manual_seed(1)
    ids = torch.zeros(len(lengths), max(lengths), dtype=torch.long)
    mask = torch.zeros_like(ids)
    for row, length in enumerate(lengths):
        ids[row, -length:] = torch.randint(3, config.vocab_size, (length,), generator=random)
        mask[row, -length:] = 1
    return ids, mask


def greedy(model, *inputs, **kwargs):
    return model.generate(*inputs, do_sample=False, return_dict_in_generate=True, **kwargs)


def test_batch_with_different_prompts_equals_single_runs(tiny_model, tiny_config):
    ids, mask = texts(tiny_config)
    prompts = torch.randint(0, tiny_config.codebook_size, (2, 7, tiny_config.num_codebooks))
    prompt_mask = torch.ones(2, 7).long()
    prompt_mask[1, 4:] = 0
    both = greedy(tiny_model, ids, mask, prompts, prompt_mask, max_new_tokens=15)
    for row in range(2):
        alone = greedy(
            tiny_model, ids[row][mask[row].bool()][None], None, prompts[row][prompt_mask[row].bool()][None], None,
            max_new_tokens=15,
        )  # fmt: skip
        length = int(alone.lengths[0])
        assert both.lengths[row] == length
        assert torch.equal(both.sequences[row, :length], alone.sequences[0])
        assert (both.sequences[row, length:] == -1).all()


def test_stopped_and_continued_equals_at_once(tiny_model, tiny_config):
    ids, mask = texts(tiny_config)
    whole = greedy(tiny_model, ids, mask, max_new_tokens=20, output_alignments=True)
    part = greedy(tiny_model, ids, mask, max_new_tokens=8, output_alignments=True)
    rest = greedy(tiny_model, past_key_values=part.past_key_values, max_new_tokens=12, output_alignments=True)
    assert torch.equal(torch.cat((part.sequences, rest.sequences), 1), whole.sequences)
    assert torch.allclose(torch.cat((part.alignments, rest.alignments), 1), whole.alignments, atol=1e-5)


def test_generated_codes_are_what_the_whole_sequence_pass_predicts(tiny_model, tiny_config):
    ids, _ = texts(tiny_config, (9,))
    out = greedy(tiny_model, ids, max_new_tokens=12)
    grid = delay(out.sequences[0])
    with torch.no_grad():
        logits = tiny_model(input_ids=ids, audio_codes=grid[None]).logits[0]
    logits[..., :NUM_AUDIO_SPECIALS] = -torch.inf
    for q in range(tiny_config.num_codebooks):
        predicted = logits[q : q + 12, q].argmax(-1) - NUM_AUDIO_SPECIALS
        assert torch.equal(predicted, out.sequences[0, :, q])


def test_a_seed_gives_the_same_speech_and_another_seed_another(tiny_model, tiny_config):
    ids, mask = texts(tiny_config)
    first, again, other = (
        tiny_model.generate(ids, mask, seed=seed, max_new_tokens=12, temperature=2.0) for seed in (1, 1, 2)
    )
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def ending_model(model, step):
    """The model, but its first codebook says AUDIO_TAIL for row 0 at a step, for row 1 two steps later."""
    counter = {"steps": 0}
    forward = model.forward

    def wrapped(*args, **kwargs):
        out = forward(*args, **kwargs)
        for row, end in enumerate((step, step + 2)):
            out.logits[row, -1, 0, AUDIO_TAIL] = 1e4 if counter["steps"] >= end else -1e4
        counter["steps"] += 1
        return out

    model.forward = wrapped
    return model


def test_every_row_stops_by_itself(tiny_model, tiny_config, monkeypatch):
    ids, mask = texts(tiny_config)
    monkeypatch.setattr(tiny_model, "forward", tiny_model.forward)  # put back after the test
    free = greedy(ending_model(tiny_model, 99), ids, mask, max_new_tokens=20)
    monkeypatch.undo()
    monkeypatch.setattr(tiny_model, "forward", tiny_model.forward)
    out = greedy(ending_model(tiny_model, 5), ids, mask, max_new_tokens=20)
    assert out.lengths.tolist() == [5, 7]
    assert out.sequences.shape == (2, 7, tiny_config.num_codebooks)
    assert torch.equal(out.sequences[0, :5, 0], free.sequences[0, :5, 0])  # later codebooks have seen the end
    assert torch.equal(out.sequences[1, :7, 0], free.sequences[1, :7, 0])
    assert (out.sequences[0, 5:] == -1).all()


def test_first_codebook_is_sampled_and_the_rest_greedy_by_default(tiny_model, tiny_config):
    settings = tiny_model._sampling_settings(tiny_model._speech_config(None, {}))
    assert settings == [(100, 1.0, 1.0)] + [(1, 1.0, 1.0)] * (tiny_config.num_codebooks - 1)
    listed = tiny_model._sampling_settings(tiny_model._speech_config(None, {"top_k": [5, 4, 3]}))
    assert [s[0] for s in listed] == [5, 4, 3]


@settings(max_examples=25, deadline=None)
@given(
    st.sampled_from([
        ({"top_k": [1, 2]}, "top_k"), ({"temperature": -1.0}, "temperature"), ({"max_new_tokens": 0}, "max_new_tokens"),
        ({"num_beams": 4}, "num_beams"), ({"unheard_of": 1}, "unheard_of"), ({"num_return_sequences": 2}, "num_return"),
    ])
)  # fmt: skip
def test_wrong_settings_are_refused(tiny_model, tiny_config, wrong):
    ids, mask = texts(tiny_config)
    with pytest.raises(ValueError, match=wrong[1]):
        tiny_model.generate(ids, mask, **wrong[0])


def test_wrong_inputs_are_refused(tiny_model, tiny_config):
    ids, mask = texts(tiny_config)
    prompt = torch.zeros(2, 4, tiny_config.num_codebooks, dtype=torch.long)
    with pytest.raises(ValueError, match="another codec"):
        tiny_model.generate(ids, mask, prompt + tiny_config.codebook_size)
    with pytest.raises(ValueError, match="one prompt for each text"):
        tiny_model.generate(ids, mask, prompt[:1])
    with pytest.raises(ValueError, match="input_ids"):
        tiny_model.generate()
    with pytest.raises(ValueError, match="split the text"):
        tiny_model.generate(torch.full((1, tiny_config.max_text_tokens + 1), 5))
