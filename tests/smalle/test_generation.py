"""Delay pattern and generate(): batch = single, stopped and continued = at once, seeds, prompts, stopping, sampling,
guidance, several speeches of a text, processors and criteria of transformers."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import GenerationConfig
from transformers.generation import (
    LogitsProcessor,
    LogitsProcessorList,
    MaxLengthCriteria,
    MaxTimeCriteria,
    MinLengthLogitsProcessor,
    NoRepeatNGramLogitsProcessor,
    StoppingCriteria,
)

from smalle.alignment_smalle import monotonicity
from smalle.configuration_smalle import AUDIO_BOS, AUDIO_EOS, NUM_AUDIO_SPECIALS
from smalle.generation_smalle import (
    SamplingSettings,
    best_rows,
    delay,
    draw,
    penalise_repetition,
    sampling_settings,
    undelay,
    undelay_steps,
    warp,
)


@pytest.fixture
def tiny_model(tiny_model):
    """Run by PyTorch: the native runtime rounds weights to 8 bits and does not call forward()."""
    tiny_model.step_runtime = "torch"
    yield tiny_model
    del tiny_model.step_runtime


@given(st.integers(0, 12), st.integers(1, 6))
def test_delay_shifts_each_codebook_by_one_more_step_and_undelay_is_its_inverse(length, num_codebooks):
    codes = torch.randint(0, 50, (length, num_codebooks))
    grid = delay(codes)
    assert grid.shape == (length + num_codebooks, num_codebooks)
    for q in range(num_codebooks):
        assert (grid[: q + 1, q] == AUDIO_BOS).all()
        assert (grid[q + 1 : q + 1 + length, q] == codes[:, q] + NUM_AUDIO_SPECIALS).all()
        assert (grid[q + 1 + length :, q] == AUDIO_EOS).all()
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
            tiny_model,
            ids[row][mask[row].bool()][None],
            None,
            prompts[row][prompt_mask[row].bool()][None],
            None,
            max_new_tokens=15,
        )
        length = int(alone.lengths[0])
        assert both.lengths[row] == length
        assert torch.equal(both.sequences[row, :length], alone.sequences[0])
        assert (both.sequences[row, length:] == -1).all()


def test_stopped_and_continued_equals_at_once(tiny_model, tiny_config):
    ids, mask = texts(tiny_config)
    whole = greedy(tiny_model, ids, mask, max_new_tokens=20, output_alignments=True)
    part = greedy(tiny_model, ids, mask, max_new_tokens=8, output_alignments=True)
    rest = greedy(tiny_model, cache=part.cache, max_new_tokens=12, output_alignments=True)
    assert torch.equal(torch.cat((part.sequences, rest.sequences), 1), whole.sequences)
    assert torch.allclose(torch.cat((part.alignments, rest.alignments), 1), whole.alignments, atol=1e-5)


def test_generated_codes_are_what_the_whole_sequence_pass_predicts(tiny_model, tiny_config):
    ids, _ = texts(tiny_config, (9,))
    out = greedy(tiny_model, ids, max_new_tokens=12)
    grid = delay(out.sequences[0])
    with torch.no_grad():
        logits = tiny_model(input_ids=ids, decoder_input_ids=grid[None]).logits[0]
    logits[..., :NUM_AUDIO_SPECIALS] = -torch.inf
    for q in range(tiny_config.num_codebooks):
        predicted = logits[q:12, q].argmax(-1) - NUM_AUDIO_SPECIALS  # later steps read AUDIO_EOS
        assert torch.equal(predicted, out.sequences[0, : 12 - q, q])


def test_a_seed_gives_the_same_speech_and_another_seed_another(tiny_model, tiny_config):
    ids, mask = texts(tiny_config)
    first, again, other = (
        tiny_model.generate(ids, mask, seed=seed, max_new_tokens=12, temperature=2.0) for seed in (1, 1, 2)
    )
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def ending_model(model, step):
    """The model, but its first codebook says AUDIO_EOS for row 0 at a step, for row 1 two steps later."""
    counter = {"steps": 0}
    forward = model.forward

    def wrapped(*args, **kwargs):
        out = forward(*args, **kwargs)
        for row, end in enumerate((step, step + 2)):
            out.logits[row, -1, 0, AUDIO_EOS] = 1e4 if counter["steps"] >= end else -1e4
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
    def chosen(**kwargs):
        config, _ = tiny_model._prepare_generation_config(None, **kwargs)
        return sampling_settings(config, tiny_config.num_codebooks)

    assert chosen() == [SamplingSettings(top_k=100)] + [SamplingSettings(top_k=1)] * (tiny_config.num_codebooks - 1)
    assert [s.top_k for s in chosen(top_k=[5, 4, 3])] == [5, 4, 3]
    assert [s.repetition_penalty for s in chosen(repetition_penalty=1.2)] == [1.2, 1, 1]
    assert [s.min_p for s in chosen(min_p=[0.1, 0.2, 0.3])] == [0.1, 0.2, 0.3]
    assert [s.top_k for s in chosen(temperature=[1.0, 0.7, 0.5])] == [100, 100, 100]  # or these would do nothing
    assert [s.top_k for s in chosen(temperature=[1.0, 0.7, 0.5], top_k=[100, 1, 1])] == [100, 1, 1]
    assert chosen(do_sample=False, temperature=3.0) == [SamplingSettings()] * tiny_config.num_codebooks


def test_a_number_leaves_the_other_codebooks_as_the_checkpoint_has_them(tiny_model, monkeypatch):
    monkeypatch.setattr(tiny_model.generation_config, "temperature", [0.1, 0.6, 0.9])

    def chosen(**kwargs):
        config, _ = tiny_model._prepare_generation_config(None, **kwargs)
        return [x.temperature for x in sampling_settings(config, 3)]

    assert chosen() == [0.1, 0.6, 0.9]
    assert chosen(temperature=0.5) == [0.5, 0.6, 0.9] and chosen() == [0.1, 0.6, 0.9]
    assert chosen(temperature=[0.5, 0.4, 0.3]) == [0.5, 0.4, 0.3]
    with pytest.raises(ValueError, match=r"temperature=-1: expected"):
        chosen(temperature=-1)


WRONG = [
    ({"top_k": [1, 2]}, "top_k"),
    ({"temperature": -1.0}, "temperature"),
    ({"max_new_tokens": 0}, "max_new_tokens"),
    ({"temperature": 0.0}, "temperature"),
    ({"min_p": 1.5}, "min_p"),
    ({"top_p": [0.5, 0.0, 1.0]}, "top_p"),
    ({"repetition_penalty": 0.0}, "repetition_penalty"),
    ({"unheard_of": 1}, "unheard_of"),
    ({"top_k": [1, 2, 3, 4]}, "one for each codebook"),
    ({"num_return_sequences": 0}, "num_return_sequences"),
    ({"num_return_sequences": 3, "best_of": 2}, "best_of"),
    ({"guidance_scale": -1.0}, "guidance_scale"),
    ({"best_of": 0}, "best_of"),
]


@pytest.mark.parametrize("wrong, message", WRONG, ids=str)
def test_wrong_settings_are_refused(tiny_model, tiny_config, wrong, message):
    with pytest.raises(ValueError, match=message):
        tiny_model.generate(*texts(tiny_config), **wrong)


MODES = {  # settings of other ways to generate -> how the error names them
    "num_beams": (4, "num_beams=4"),
    "prompt_lookup_num_tokens": (3, "prompt_lookup_num_tokens=3"),
    "dola_layers": ("high", "dola_layers='high'"),
    "force_words_ids": ([[5]], "force_words_ids"),
    "typical_p": (0.5, "typical_p=0.5"),
    "no_repeat_ngram_size": (1, "no_repeat_ngram_size=1"),
    "bad_words_ids": ([[5]], "bad_words_ids"),
    "suppress_tokens": ([5], "suppress_tokens"),
    "stop_strings": ("a", "stop_strings"),
    "cache_implementation": ("static", "cache_implementation"),
    "output_logits": (True, "output_logits"),
}


@pytest.mark.parametrize("name", MODES)
def test_other_ways_to_generate_are_refused_by_name(tiny_model, tiny_config, name):
    value, named = MODES[name]
    for asked in ({name: value}, {"generation_config": GenerationConfig(**{name: value})}):
        with pytest.raises(ValueError, match=f"{named}.*generate\\(\\) is greedy.*logits_processor="):
            tiny_model.generate(*texts(tiny_config), **asked)


def test_settings_of_other_ways_may_be_off(tiny_model, tiny_config):
    off = {"num_beams": 1, "typical_p": 1.0, "no_repeat_ngram_size": 0, "suppress_tokens": None, "output_logits": False}
    tiny_model.generate(*texts(tiny_config), max_new_tokens=1, **off, streamer=None, assistant_model=None)


@pytest.mark.parametrize("name", ["max_length", "min_length", "output_attentions", "streamer", "assistant_model"])
def test_arguments_of_other_models_are_refused_by_name(tiny_model, tiny_config, name):
    with pytest.raises(ValueError, match=f"{name}.*(use|expected)"):
        tiny_model.generate(*texts(tiny_config), **{name: 9 if "length" in name else True})


def test_a_given_configuration_falls_back_on_that_of_the_model(tiny_model):
    given = GenerationConfig(temperature=0.5, min_p=0.1)
    config, _ = tiny_model._prepare_generation_config(given, max_new_tokens=7)
    assert (config.temperature, config.min_p, config.max_new_tokens) == (0.5, 0.1, 7)
    assert config.do_sample and config.top_k == 100 and given.max_new_tokens is None


def test_wrong_inputs_are_refused(tiny_model, tiny_config):
    ids, mask = texts(tiny_config)
    prompt = torch.zeros(2, 4, tiny_config.num_codebooks, dtype=torch.long)
    with pytest.raises(ValueError, match="model's codec"):
        tiny_model.generate(ids, mask, prompt + tiny_config.codebook_size)
    with pytest.raises(ValueError, match="one recording for each text"):
        tiny_model.generate(ids, mask, prompt[:1])
    with pytest.raises(ValueError, match="input_ids"):
        tiny_model.generate()
    with pytest.raises(ValueError, match="split the text"):
        tiny_model.generate(torch.full((1, tiny_config.max_text_tokens + 1), 5))


def prompts_of(config):
    """Codes and mask of two prompts of 7 and 4 frames."""
    random = torch.Generator().manual_seed(3)
    codes = torch.randint(config.codebook_size, (2, 7, config.num_codebooks), generator=random)
    mask = torch.ones(2, 7).long()
    mask[1, 4:] = 0
    return codes, mask


GUIDED = [{"guidance_scale": 2.5}, {"guidance_scale": 0.5}]


def guided(model, config, rows, scales, **kwargs):
    """Greedy speech of some rows of two texts with prompts."""
    ids, mask = texts(config)
    codes, codes_mask = prompts_of(config)
    inputs = {"attention_mask": mask[rows], "audio_codes": codes[rows], "audio_attention_mask": codes_mask[rows]}
    return greedy(model, ids[rows], **inputs, **scales, **kwargs)


@pytest.mark.parametrize("scales", GUIDED)
def test_guided_batch_equals_single_runs_and_differs_from_unguided(tiny_model, tiny_config, scales):
    both = guided(tiny_model, tiny_config, [0, 1], scales, max_new_tokens=15)
    free = guided(tiny_model, tiny_config, [0, 1], {}, max_new_tokens=15)
    assert not torch.equal(both.sequences, free.sequences)
    for row in range(2):
        alone = guided(tiny_model, tiny_config, [row], scales, max_new_tokens=15)
        length = int(alone.lengths[0])
        assert both.lengths[row] == length
        assert torch.equal(both.sequences[row, :length], alone.sequences[0])


def test_guidance_of_one_is_no_guidance(tiny_model, tiny_config):
    free = guided(tiny_model, tiny_config, [0, 1], {}, max_new_tokens=15)
    one = guided(tiny_model, tiny_config, [0, 1], {"guidance_scale": 1.0}, max_new_tokens=15)
    assert torch.equal(free.sequences, one.sequences) and not one.cache.guided


def test_text_guidance_is_the_formula_on_two_whole_passes(tiny_model, tiny_config):
    ids, _ = texts(tiny_config, (9,))
    out = greedy(tiny_model, ids, max_new_tokens=12, min_new_tokens=12, guidance_scale=3.0, output_scores=True)
    inputs = delay(out.sequences[0])[None]
    bare = torch.tensor([[tiny_config.bos_token_id, tiny_config.eos_token_id]])
    with torch.no_grad():
        text, none = (tiny_model(input_ids=x, decoder_input_ids=inputs).logits for x in (ids, bare))
    expected = undelay_steps(none + 3.0 * (text - none))[:, :10, :, NUM_AUDIO_SPECIALS:]  # later steps read AUDIO_EOS
    assert torch.allclose(out.scores[:, :10, :, NUM_AUDIO_SPECIALS:], expected, atol=1e-3)


@pytest.mark.parametrize("scales", GUIDED)
def test_guided_stopped_and_continued_equals_at_once(tiny_model, tiny_config, scales):
    options = {"output_scores": True, "repetition_penalty": [1.3] * tiny_config.num_codebooks, **scales}
    whole = guided(tiny_model, tiny_config, [0, 1], options, max_new_tokens=20)
    part = guided(tiny_model, tiny_config, [0, 1], options, max_new_tokens=8)
    rest = greedy(tiny_model, cache=part.cache, max_new_tokens=12, **options)
    assert torch.equal(torch.cat((part.sequences, rest.sequences), 1), whole.sequences)
    assert torch.allclose(torch.cat((part.scores, rest.scores), 1), whole.scores, atol=1e-4)


def test_a_row_of_guided_speech_goes_on_without_the_others(tiny_model, tiny_config):
    part = guided(tiny_model, tiny_config, [0, 1], GUIDED[0], max_new_tokens=8)
    both, alone = (
        greedy(tiny_model, cache=cache, max_new_tokens=5, **GUIDED[0])
        for cache in (part.cache, part.cache.select(torch.tensor([1])))
    )
    assert torch.equal(alone.sequences[0], both.sequences[1])


@pytest.mark.parametrize("wanted", [{"guidance_scale": 2.0}, {"output_scores": True}, {"output_alignments": True}])
def test_what_the_first_call_did_not_begin_cannot_be_continued(tiny_model, tiny_config, wanted):
    part = greedy(tiny_model, *texts(tiny_config), max_new_tokens=5)
    with pytest.raises(ValueError, match=next(iter(wanted))):
        greedy(tiny_model, cache=part.cache, max_new_tokens=5, **wanted)


def test_scores_are_of_the_codes(tiny_model, tiny_config):
    ids, mask = texts(tiny_config)
    length = {"max_new_tokens": 9, "min_new_tokens": 9}
    out = greedy(tiny_model, ids, mask, *prompts_of(tiny_config), output_scores=True, **length)
    assert out.scores.shape == (2, 9, tiny_config.num_codebooks, tiny_config.audio_vocab_size)
    assert torch.equal(out.scores.argmax(-1) - NUM_AUDIO_SPECIALS, out.sequences)
    drawn = tiny_model.generate(
        ids, mask, max_new_tokens=9, seed=1, top_k=[5, 5, 5], output_scores=True, return_dict_in_generate=True
    )
    inside = drawn.sequences[..., :1] >= 0
    picked = drawn.scores.gather(-1, (drawn.sequences + NUM_AUDIO_SPECIALS)[..., None])[..., 0]
    assert picked[inside.expand_as(picked)].isfinite().all()
    assert (drawn.scores.isfinite().sum(-1) <= 5).all()


def test_each_codebook_is_drawn_by_its_own_settings(tiny_model, tiny_config):
    def scores(**asked):
        options = {"seed": 1, "max_new_tokens": 6, "min_new_tokens": 6, "output_scores": True}
        return tiny_model.generate(*texts(tiny_config), **options, **asked, return_dict_in_generate=True).scores

    kept = scores(top_k=[4, 1, 7]).isfinite().sum(-1)[..., [0, 2]]
    assert (kept == torch.tensor([4, 7])).all()
    plain, tempered = scores(top_k=[20, 20, 20])[:, 0], scores(top_k=[20, 20, 20], temperature=[1.0, 2.0, 1.0])[:, 0]
    assert torch.allclose(tempered[:, 0], plain[:, 0])  # of the first frame; its other codebooks have seen the first
    narrow = scores(top_k=[0, 0, 0], top_p=[0.2, 1.0, 0.5]).isfinite().sum(-1).float().mean((0, 1))
    assert narrow[0] < narrow[2] < narrow[1]
    first = scores(top_k=0, min_p=0.5)
    assert (first[:, :, 0].isfinite().sum(-1) < 10).all()


@given(st.lists(st.floats(-5, 5), min_size=6, max_size=6), st.floats(0.01, 1), st.floats(0.5, 2))
def test_top_p_keeps_the_fewest_that_reach_it_at_any_temperature(logits, top_p, temperature):
    logits = torch.tensor([logits])
    scores = warp(logits, SamplingSettings(top_k=0, top_p=top_p, temperature=temperature))
    kept, probs = scores.isfinite()[0], (logits[0] / temperature).softmax(-1)
    assert torch.allclose(scores[0, kept], logits[0, kept] / temperature)
    assert probs[kept].sum() >= top_p - 1e-5
    assert kept.sum() == 1 or probs[kept].sum() - probs[kept].min() < top_p + 1e-5
    assert kept.all() or probs[kept].min() >= probs[~kept].max()


def test_best_of_and_guidance_are_off_by_default(tiny_model):
    config, _ = tiny_model._prepare_generation_config(None)
    assert (config.best_of, config.num_return_sequences, config.guidance_scale) == (1, 1, 1)


def test_several_speeches_of_a_text_differ_when_sampled_and_are_equal_when_greedy(tiny_model, tiny_config):
    ids, mask = texts(tiny_config)
    length = {"max_new_tokens": 12, "min_new_tokens": 12}
    one = greedy(tiny_model, ids, mask, *prompts_of(tiny_config), **length)
    same = greedy(tiny_model, ids, mask, *prompts_of(tiny_config), num_return_sequences=3, **length)
    assert torch.equal(same.sequences, one.sequences.repeat_interleave(3, 0))
    drawn = tiny_model.generate(ids, mask, num_return_sequences=3, seed=1, temperature=2.0, **length)
    assert drawn.shape[0] == 6 and len({tuple(row.flatten().tolist()) for row in drawn}) == 6


def test_best_of_keeps_the_best_rows_of_each_text(tiny_model, tiny_config):
    assert best_rows(torch.tensor([-3.0, -1, -2, -5, -5, -4]), 3, 1).tolist() == [1, 5]
    assert best_rows(torch.tensor([-3.0, -1, -2, -5, -5, -4]), 3, 2).tolist() == [1, 2, 5, 3]


def test_best_of_returns_the_steadiest_of_the_candidates(tiny_model, tiny_config):
    ids, mask = texts(tiny_config)
    options = {"seed": 1, "temperature": 2.0, "max_new_tokens": 12, "return_dict_in_generate": True}
    many = tiny_model.generate(ids, mask, num_return_sequences=4, output_alignments=True, **options)
    best = tiny_model.generate(ids, mask, best_of=4, **options)
    steadiness = monotonicity(many.alignments, many.lengths, mask.repeat_interleave(4, 0)).view(2, 4)
    for row, kept in enumerate((steadiness.argmax(1) + torch.tensor([0, 4])).tolist()):
        assert best.lengths[row] == many.lengths[kept]
        assert torch.equal(best.sequences[row, : best.lengths[row]], many.sequences[kept, : best.lengths[row]])
    more = tiny_model.generate(cache=best.cache, seed=2, max_new_tokens=4)
    assert len(more) == 2


class OnlyEven(LogitsProcessor):
    """Forbids odd codes, and remembers what it was called with."""

    def __init__(self):
        self.seen = []

    def __call__(self, input_ids, scores):
        self.seen.append(input_ids)
        odd = (torch.arange(scores.shape[-1]) - NUM_AUDIO_SPECIALS) % 2 == 1
        odd[:NUM_AUDIO_SPECIALS] = False
        return scores.masked_fill(odd, -torch.inf)


def test_processors_see_and_change_the_first_codebook(tiny_model, tiny_config):
    ids, mask = texts(tiny_config)
    even = OnlyEven()
    codes = tiny_model.generate(
        ids, mask, *prompts_of(tiny_config), seed=1, max_new_tokens=9, min_new_tokens=9, logits_processor=[even]
    )
    assert (codes[..., 0] % 2 == 0).all() and (codes[..., 1:] % 2 == 1).any()
    assert even.seen[0].shape == (2, 0)
    assert torch.equal(even.seen[9] - NUM_AUDIO_SPECIALS, codes[..., 0])


def test_processors_of_transformers_work(tiny_model, tiny_config, monkeypatch):
    ids, mask = texts(tiny_config)
    processors = LogitsProcessorList([NoRepeatNGramLogitsProcessor(1)])
    codes = greedy(tiny_model, ids, mask, max_new_tokens=9, min_new_tokens=9, logits_processor=processors).sequences
    assert all(len(set(row.tolist())) == 9 for row in codes[..., 0])
    plain = greedy(tiny_model, ids, mask, max_new_tokens=9).sequences
    assert not all(len(set(row.tolist())) == 9 for row in plain[..., 0])
    monkeypatch.setattr(tiny_model, "forward", tiny_model.forward)
    at_least = MinLengthLogitsProcessor(9, AUDIO_EOS, device="cpu")
    out = greedy(ending_model(tiny_model, 5), ids, mask, max_new_tokens=20, logits_processor=[at_least])
    assert out.lengths.tolist() == [9, 9]


def test_repetition_penalty_keeps_from_saying_the_same(tiny_model, tiny_config):
    logits = torch.tensor([[1.0, -1, 1, 2, -2, 4]])
    assert penalise_repetition(logits, torch.tensor([[0, 3, 4, 3]]), 2.0).tolist() == [[1, -1, 1, 1, -4, 4]]
    ids, mask = texts(tiny_config)
    plain, penalised = (
        greedy(tiny_model, ids, mask, max_new_tokens=15, repetition_penalty=penalty).sequences[..., 0]
        for penalty in (1.0, 100.0)
    )
    assert len(penalised[0].unique()) > len(plain[0].unique())


def test_a_repetition_penalty_looks_back_50_frames(tiny_model, tiny_config):
    ids, mask = texts(tiny_config)
    codes = torch.full((1, 80, tiny_config.num_codebooks), 7)
    codes[0, 29, 0], codes[0, 30, 0] = 5, 6
    plain, penalised = (
        greedy(
            tiny_model, ids[:1], mask[:1], codes, max_new_tokens=1, output_scores=True, repetition_penalty=penalty
        ).scores[0, 0, 0, NUM_AUDIO_SPECIALS:]
        for penalty in (1.0, 2.0)
    )
    assert (plain != penalised).nonzero().flatten().tolist() == [6, 7]


@given(st.lists(st.floats(-5, 5), min_size=6, max_size=6), st.floats(0, 1))
def test_min_p_keeps_what_is_likely_enough(logits, min_p):
    logits = torch.tensor([logits])
    kept = warp(logits, SamplingSettings(top_k=0, min_p=min_p)).isfinite()
    probs = logits.softmax(-1)
    assert torch.equal(kept, probs >= min_p * probs.max())


def test_what_is_drawn_is_what_multinomial_draws():
    scores = torch.randn(50, 30, generator=torch.Generator().manual_seed(1))
    scores = scores.masked_fill(scores < 0, -torch.inf)
    drawn, _ = draw(scores[:, None], [SamplingSettings(top_k=0)], torch.Generator().manual_seed(2))
    assert drawn[:, 0].equal(torch.multinomial(scores.softmax(-1), 1, generator=torch.Generator().manual_seed(2))[:, 0])


class StopRow(StoppingCriteria):
    """Stops one row at a number of tokens."""

    def __init__(self, row, length):
        self.row, self.length = row, length

    def __call__(self, input_ids, scores, **kwargs):
        done = torch.zeros(len(input_ids), dtype=torch.bool)
        done[self.row] = input_ids.shape[1] >= self.length
        return done


def test_a_criterion_stops_its_row_alone(tiny_model, tiny_config):
    ids, mask = texts(tiny_config)
    length = {"max_new_tokens": 12, "min_new_tokens": 12}
    free = greedy(tiny_model, ids, mask, *prompts_of(tiny_config), **length)
    out = greedy(tiny_model, ids, mask, *prompts_of(tiny_config), stopping_criteria=[StopRow(1, 5)], **length)
    assert out.lengths.tolist() == [12, 5]
    assert torch.equal(out.sequences[0], free.sequences[0])
    assert torch.equal(out.sequences[1, :5, 0], free.sequences[1, :5, 0])  # later codebooks have seen the end


def test_criteria_of_transformers_stop_all_rows(tiny_model, tiny_config):
    ids, mask = texts(tiny_config)
    length = {"max_new_tokens": 50, "min_new_tokens": 50}
    assert greedy(tiny_model, ids, mask, stopping_criteria=[MaxLengthCriteria(6)], **length).lengths.tolist() == [6, 6]
    at_once = greedy(tiny_model, ids, mask, stopping_criteria=[MaxTimeCriteria(0.0)], **length)
    assert at_once.lengths.tolist() == [1, 1]
    assert greedy(tiny_model, ids, mask, max_time=0.0, **length).lengths.tolist() == [1, 1]
