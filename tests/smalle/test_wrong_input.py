"""Any input to the processor, forward() and generate(): a right output, or a ValueError that says what to do."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from safetensors import safe_open
from safetensors.torch import save_file

from smalle import SmallEConfig, SmallEProcessor
from smalle.validation_smalle import (
    INTEGERS,
    check_complete,
    check_finite,
    check_forward,
    check_initial_state,
    check_labels,
    check_pieces,
    check_range,
    check_seed,
    check_tensor,
    check_text,
)
from smalle.voices_smalle import load_voice, save_voice

SAYS_WHAT_TO_DO = (
    "expected",
    "must be",
    "needs",
    "Give",
    "give ",
    "install ",
    "leave ",
    "split ",
    "shorten ",
    "ask ",
    "pass ",
    "Pass ",
)
trial = settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


def result_or_value_error(call):
    """What a call returns, or None after a ValueError that says what to do."""
    try:
        return call()
    except ValueError as error:
        assert any(word in str(error) for word in SAYS_WHAT_TO_DO), error


# --- each check takes what is just right, and refuses what is just wrong

CONFIG = SmallEConfig(vocab_size=8, num_codebooks=3, codebook_size=20)  # 23 audio tokens
DECODER_ONLY = SmallEConfig(num_codebooks=3, codebook_size=20, architecture="decoder-only", decoder_layers=1)
IDS, CODES, ONES = torch.full((2, 3), 7), torch.full((2, 4, 3), 22), torch.ones(2, 3).long()
RECORDING, HEARD = CODES - 3, torch.ones(2, 4)
GOES_ON = {"input_ids": None, "cache": SimpleNamespace(text_mask=ONES)}
INFINITE = torch.nn.Linear(2, 2)
torch.nn.init.constant_(INFINITE.bias, torch.inf)
CHECKS = [
    (
        check_tensor,
        ("x", IDS, (None, 3), INTEGERS, "ids"),
        ("x", IDS[0], (None, 3), INTEGERS, "ids"),
        r"x is torch.int64 of shape \(3,\): expected ids, a tensor of shape \(any, 3\)",
    ),
    (check_range, ("x", torch.tensor([0, 19]), 20, ""), ("x", torch.tensor([0, 20]), 20, ""), r"0\.\.20: .* 0\.\.19"),
    (check_range, ("x", ONES[:0], 20, ""), ("x", torch.tensor([0, 22]), 20, ""), r"0\.\.22: .* 0\.\.19"),
    (check_range, ("x", ONES, 20, ""), ("x", torch.tensor([-1, 19]), 20, ""), r"-1\.\.19: .* 0\.\.19"),
    (check_text, (IDS, None, CONFIG), (IDS[:, :0], None, CONFIG), r"input_ids of shape \(2, 0\)"),
    (check_text, (IDS.int(), None, CONFIG), (IDS.short(), None, CONFIG), "input_ids is torch.int16"),
    (
        check_text,
        (IDS, torch.tensor([[1, 1, 0], [1, 0, 0]]), CONFIG),
        (IDS, torch.tensor([[1, 1, 0], [0, 0, 0]]), CONFIG),
        "a text without tokens: leave",
    ),
    (check_pieces, (IDS.int(), None, ONES), (IDS.short(), None, ONES), "input_ids is torch.int16"),
    (check_pieces, (IDS, None, ONES), (IDS, None, torch.tensor([[1, 1, 1], [0, 2, 2]])), "piece_ids hold"),
    (
        check_pieces,
        (IDS, None, torch.tensor([[0, 1, 2], [0, 0, 1]])),
        (IDS, None, torch.tensor([[0, 1, 2], [0, -1, 1]])),
        "piece_ids hold",
    ),
    (check_initial_state, (ONES.float(), 2), (ONES / 0, 2), "initial_state holds NaN or infinity"),
    (check_initial_state, (None, 2), (ONES[:1].float(), 2), r"initial_state is .* \(2, any\)"),
    (check_labels, (CODES, CODES, CONFIG), (CODES + 1, CODES, CONFIG), r"labels holds 23\.\.23"),
    (check_labels, (CODES * 0 - 100, CODES, CONFIG), (CODES * 0 - 101, CODES, CONFIG), "labels holds -101"),
    (check_finite, (torch.nn.Linear(2, 2),), (INFINITE,), "weight bias holds NaN or infinity"),
    (check_complete, ({"missing_keys": []},), ({"missing_keys": ["b", "a"]},), "2 weights are missing, .* a: "),
    (check_seed, (2**63 - 1,), (2**63,), "seed=9223372036854775808"),
    (check_seed, (0,), (-1,), "seed=-1"),
    (check_seed, (None,), (True,), "seed=True"),
    (check_seed, (torch.Generator(),), (1.0,), r"seed=1\.0"),
]
FORWARDS = [
    ({}, {"decoder_input_ids": None}, "Pass decoder_input_ids"),
    (GOES_ON, {**GOES_ON, "input_ids": IDS}, "either input_ids"),
    ({}, {"input_ids": None}, "either input_ids"),
    (GOES_ON, {"input_ids": None, "cache": 5}, "cache is int"),
    (
        {"speaker_codes": RECORDING, "speaker_attention_mask": HEARD},
        {"speaker_attention_mask": HEARD},
        "without speaker",
    ),
    ({"initial_state": HEARD}, {**GOES_ON, "initial_state": HEARD}, "initial_state= belongs to a new text"),
    ({"speaker_codes": RECORDING}, {**GOES_ON, "speaker_codes": RECORDING}, "speaker_codes= belongs to a new text"),
    ({"output_attentions": True}, {"output_attentions": True, "config": DECODER_ONLY}, "output_attentions=True"),
    (
        {"forced_alignments": torch.zeros(2, 4, 3)},
        {"forced_alignments": torch.zeros(2, 4, 3), "config": DECODER_ONLY},
        "forced_alignments: a decoder-only",
    ),
    (
        {"forced_alignments": torch.zeros(2, 4, 3)},
        {"forced_alignments": torch.zeros(2, 4, 2)},
        "forced_alignments is .* expected where",
    ),
    ({"config": DECODER_ONLY}, {"speaker_codes": RECORDING + 1}, r"speaker_codes holds 20\.\.20"),
]


@pytest.mark.parametrize("check, right, wrong, message", CHECKS)
def test_each_check_refuses_what_is_just_wrong(check, right, wrong, message):
    check(*right)
    with pytest.raises(ValueError, match=message):
        check(*wrong)


@pytest.mark.parametrize("right, wrong, message", FORWARDS)
def test_inputs_of_forward_that_do_not_belong_together_are_refused(right, wrong, message):
    names = "attention_mask decoder_attention_mask cache initial_state forced_alignments speaker_codes"
    call = dict.fromkeys([*names.split(), "speaker_attention_mask"])
    call |= {"config": CONFIG, "input_ids": IDS, "decoder_input_ids": CODES, "output_attentions": False}
    check_forward(**{**call, **right})
    with pytest.raises(ValueError, match=message):
        check_forward(**{**call, **wrong})


# --- any input

anything = st.none() | st.booleans() | st.integers(-9, 9) | st.floats() | st.text(max_size=4) | st.just(object())
texts = st.text("ab C.5", max_size=8)
dtypes = st.sampled_from(["float32", "float64", "float16", "int16", "int64", "bool", "complex64", "object"])
shapes = st.lists(st.sampled_from([0, 1, 2, 5, 700]), max_size=3).filter(lambda shape: np.prod(shape) < 5000)
samples = st.floats(-1, 1, width=16) | st.sampled_from([np.nan, np.inf, -20000.0])


def cast(wave, dtype):
    """NaN and infinity have no place among integers."""
    return np.where(np.isfinite(wave), wave, 0).astype(dtype) if dtype in ("int16", "int64") else wave.astype(dtype)


waves = st.builds(cast, arrays.arrays("float32", shapes, elements=samples, fill=st.just(0.1)), dtypes)
rows = waves.map(lambda wave: {"array": wave})
recordings = anything | waves | rows | st.binary(max_size=9) | st.lists(waves, max_size=2)
rates = anything | st.sampled_from([24000, 16000.0, 44100, np.int64(8000), 1, 10**9, np.inf])


@trial
@given(text=texts | st.lists(texts | anything, max_size=3) | anything, voice=anything | st.lists(anything, max_size=2))
def test_texts_and_voices(processor, text, voice):
    inputs = result_or_value_error(lambda: processor(text, voice=voice))
    if inputs is not None:
        rows = 1 if isinstance(text, str) else len(text)
        assert inputs["input_ids"].shape == inputs["attention_mask"].shape and len(inputs["input_ids"]) == rows
        assert inputs["attention_mask"].any(1).all()


@trial
@given(audio=recordings, said=texts | anything | st.lists(texts, max_size=2), rate=rates)
def test_recordings(processor, audio, said, rate):
    asked = {"audio": audio, "audio_text": said, "sampling_rate": rate}
    inputs = result_or_value_error(lambda: processor("Hello.", **asked))
    if inputs is not None and audio is not None:
        codes = inputs["audio_codes"]
        assert codes.shape[0] == 1 and codes.shape[1] > 0 and 0 <= codes.min() and codes.max() < 20


@trial
@given(
    shape=st.lists(st.integers(0, 4), max_size=4),
    dtype=st.sampled_from(["int64", "int32", "float32", "bool"]),
    first=st.sampled_from([-9, -1, 0, 17, 30]),
    array=st.booleans(),
)
def test_codes_to_be_decoded(processor, shape, dtype, first, array):
    for wrong in (None, "codes", np.zeros((4, 3), complex), object()):
        with pytest.raises(ValueError, match="codes .*expected"):
            processor.decode(wrong)
    codes = np.asarray(np.arange(np.prod(shape, dtype=int)).reshape(shape) % 4 + first, dtype)
    waves = result_or_value_error(lambda: processor.batch_decode(codes if array else torch.from_numpy(codes)))
    if waves is not None:
        assert dtype in ("int64", "int32") and (first < 18 or not codes.size)
        assert all(wave.ndim == 1 and wave.isfinite().all() for wave in waves)


KINDS = ["small-e", "plain", "decoder-only"]


@pytest.fixture(scope="module")
def kinds(make_tiny):
    changes = {}, {"cross_attention": "plain"}, {"architecture": "decoder-only", "decoder_layers": 1}
    return {name: make_tiny(**change) for name, change in zip(KINDS, changes)}


def tensors(values, dims, dtypes=(torch.int64, torch.int32, torch.float32, torch.bool, torch.uint8)):
    """Mostly small integer tensors of `dims` dimensions, some wrong in every way that comes to mind."""
    shape = st.tuples(*[st.integers(0, 3)] * dims) | st.lists(st.integers(0, 3), max_size=4).map(tuple)
    make = st.builds(
        lambda shape, dtype, value, seed: (
            torch.randint(0, 2, shape, generator=torch.Generator().manual_seed(seed)) * (value - 1) + 1
        ).to(dtype),
        shape,
        st.sampled_from(dtypes),
        st.sampled_from(values),
        st.integers(0, 3),
    )
    return make | anything | st.just([[1, 2]])


@trial
@given(
    ids=tensors([5, 63, 64, -1], 2),
    mask=tensors([0, 1, 2], 2),
    codes=tensors([0, 5, 22, 23, -1], 3),
    codes_mask=tensors([0, 1, 2], 2),
    labels=tensors([5, 23, -100], 3),
    kind=st.sampled_from(KINDS),
)
def test_forward(kinds, kind, ids, mask, codes, codes_mask, labels):
    call = dict(
        input_ids=ids, attention_mask=mask, decoder_input_ids=codes, decoder_attention_mask=codes_mask, labels=labels
    )
    out = result_or_value_error(lambda: kinds[kind](**call))
    if out is not None:
        assert out.logits.shape == (*codes.shape, 23) and len(ids) == len(codes)


@trial
@given(
    change=st.sampled_from(["input_ids", "attention_mask", "decoder_input_ids", "decoder_attention_mask", "labels"]),
    wrong=tensors([0, 1, 5, 30, -1], 2) | tensors([0, 1, 5, 30, -1], 3),
    kind=st.sampled_from(KINDS),
)
def test_forward_with_one_wrong_input(kinds, kind, change, wrong):
    codes = torch.arange(18).view(2, 3, 3)
    right = {**right_text(2), "decoder_input_ids": codes, "labels": codes}
    out = result_or_value_error(lambda: kinds[kind](**{**right, change: wrong}))
    assert out is None or out.logits.shape[::3] == (2, 23)


def right_text(rows):
    return {"input_ids": torch.arange(3, 3 + 4 * rows).view(rows, 4)}


@trial
@given(ids=tensors([5, 63, 64, -1], 2), mask=tensors([0, 1, 2], 2))
def test_texts_of_generate(tiny_model, tiny_config, ids, mask):
    call = dict(input_ids=ids, attention_mask=mask, max_new_tokens=2)
    codes = result_or_value_error(lambda: tiny_model.generate(**call))
    if codes is not None:
        assert codes.shape[0] == len(ids) and codes.shape[1] <= 2 and codes.max() < tiny_config.codebook_size


@trial
@given(codes=tensors([0, 5, 19, 20, -1], 3), mask=tensors([0, 1, 2], 2), rows=st.integers(1, 2))
def test_prompts_of_generate(tiny_model, tiny_config, codes, mask, rows):
    call = dict(**right_text(rows), audio_codes=codes, audio_attention_mask=mask, max_new_tokens=2)
    spoken = result_or_value_error(lambda: tiny_model.generate(**call))
    if spoken is not None:
        assert spoken.shape[0] == rows and spoken.max() < tiny_config.codebook_size


@trial
@given(state=tensors([0, 1], 2), past=anything, seed=anything | st.integers())
def test_voices_states_and_seeds_of_generate(tiny_model, state, past, seed):
    call = dict(max_new_tokens=1, **({"cache": past} if past is not None else right_text(2)))
    spoken = result_or_value_error(lambda: tiny_model.generate(**call, initial_state=state, seed=seed))
    assert spoken is None or state is None and past is None


SETTINGS = [
    "temperature",
    "top_k",
    "top_p",
    "min_p",
    "repetition_penalty",
    "guidance_scale",
    "num_return_sequences",
    "best_of",
    "max_new_tokens",
    "min_new_tokens",
    "max_time",
    "num_beams",
    "do_sample",
    "output_scores",
    "return_dict_in_generate",
    "output_alignments",
    "colour",
]


@trial
@given(asked=st.dictionaries(st.sampled_from(SETTINGS), anything | st.lists(st.floats(-1, 9), max_size=3), max_size=3))
def test_settings_of_generate(tiny_model, asked):
    texts = right_text(1)
    result_or_value_error(lambda: tiny_model.generate(**{"max_new_tokens": 2, **texts, **asked}))


def test_limits_of_text_and_prompt(make_tiny):
    model = make_tiny(max_text_tokens=6, max_audio_frames=4)
    ids, codes = torch.full((1, 6), 5), torch.zeros(1, 4, 3).long()
    model.generate(ids, audio_codes=codes, max_new_tokens=1)
    with pytest.raises(ValueError, match="limit is 6: split"):
        model.generate(torch.full((1, 7), 5), max_new_tokens=1)
    with pytest.raises(ValueError, match="limit is 4: shorten"):
        model.generate(ids, audio_codes=torch.zeros(1, 5, 3).long(), max_new_tokens=1)


def test_voice_of_another_codec_is_refused(tiny_model, processor, tmp_path):
    save_voice(tmp_path / "wide.safetensors", torch.zeros(5, 4).long(), "So.")
    save_voice(tmp_path / "large.safetensors", torch.full((5, 3), 20), "So.")
    wide, large = str(tmp_path / "wide.safetensors"), str(tmp_path / "large.safetensors")
    with pytest.raises(ValueError, match="different codecs"):
        processor(["One.", "Two."], voice=[wide, "anna"])
    for voice in (wide, large):
        with pytest.raises(ValueError, match="codes"):
            tiny_model.generate(**processor("One.", voice=voice))
    path = str(tmp_path / "alike.safetensors")
    voice = processor.encode_voice(np.full(2400, 0.1, "float32"), "So.", 24000)
    save_voice(path, *voice)
    fresh = SmallEProcessor.from_pretrained(processor.source)  # it knows its codec without loading it
    assert torch.equal(fresh("One.", voice=path)["audio_codes"][0], voice.codes) and fresh._codec is None
    save_voice(path, *voice[:3], codec="0123456789abcdef")
    for one in (SmallEProcessor.from_pretrained(processor.source), processor):
        with pytest.raises(ValueError, match="made with the codec 0123456789abcdef.* make the voice again"):
            one("One.", voice=path)
    save_voice(path, *voice[:3])  # without its codec's name
    assert torch.equal(fresh("One.", voice=path)["audio_codes"][0], voice.codes)
    with pytest.raises(ValueError, match=r"codes.*expected integers of 0 or more, a tensor \(frames, codebooks\)"):
        save_voice(path, voice.codes[0])
    with pytest.raises(ValueError, match="not a voice file"):
        load_voice(tmp_path / "nowhere.safetensors")
    for codes in (torch.zeros(5, 3), torch.zeros(5).long(), torch.zeros(0, 3).long(), torch.full((5, 3), -1)):
        save_file({"codes": codes}, tmp_path / "odd.safetensors", metadata={"text": "So."})
        with pytest.raises(ValueError, match="holds codes"):
            processor("One.", voice=str(tmp_path / "odd.safetensors"))


# --- voice files


def test_a_voice_file_says_its_version_and_codec_and_old_ones_are_read(tmp_path):
    path, codes = tmp_path / "me.safetensors", torch.ones(5, 3).long()
    save_voice(path, codes, "So.", codec="0123456789abcdef")
    with safe_open(path, "pt") as file:
        assert file.metadata() == {"version": "1", "text": "So.", "codec": "0123456789abcdef"}
    save_file({"codes": codes}, path, metadata={"text": "So."})  # before there was a version
    assert torch.equal(load_voice(path).codes, codes)
    for version in ("3", "0", "", "one", "1.0"):
        save_file({"codes": codes}, path, metadata={"text": "So.", "version": version})
        with pytest.raises(ValueError, match=f"has version {version!r} .* expected 2: install a newer"):
            load_voice(path)


WRONG_PARTS = {
    "state of NaN": ({"state_0": torch.tensor([[1.0, torch.nan]])}, "state_0"),
    "state of infinity": ({"state_0": torch.tensor([[torch.inf]])}, "state_0"),
    "state of integers": ({"state_0": torch.ones(1, 2).long()}, "state_0"),
    "empty state": ({"state_0": torch.ones(0)}, "state_0"),
    "halves of two states": (
        {"state_0_left": torch.ones(2, 3), "state_0_right": torch.ones(4, 2)},
        "shapes do not fit",
    ),
    "a state that does not fit into memory": (
        {"state_0_left": torch.ones(2**20, 1), "state_0_right": torch.ones(1, 2**20)},
        "expected at most 33554432",
    ),
    "another tensor": ({"head.weight": torch.ones(2)}, "head.weight"),
    "large codes": ({"codes": torch.full((5, 3), 2**15)}, "at most 32767"),
    "many codebooks": ({"codes": torch.zeros(2, 65).int()}, "at most 65536 frames of 64"),
    "long recording": ({"codes": torch.zeros(2**16 + 1, 1).int()}, "Shorten"),
}


@pytest.mark.parametrize("tensors, message", WRONG_PARTS.values(), ids=WRONG_PARTS)
def test_parts_of_a_voice_are_checked_when_they_are_read_and_written(tmp_path, tensors, message):
    path = tmp_path / "me.safetensors"
    save_file(tensors, path, metadata={"text": "So."})
    with pytest.raises(ValueError, match=message):
        load_voice(path)
    path.unlink()
    codes = tensors.pop("codes", None)
    with pytest.raises(ValueError, match=message):
        save_voice(path, codes, "So.", tensors)
    assert not list(tmp_path.iterdir())


# --- arguments of generate() that are no settings

NO_SETTINGS = {
    "generation_config": [5, "x", {}, [1]],
    "logits_processor": [-1, 5, [5], "greedy", lambda ids, scores: scores],
    "stopping_criteria": [18, [5], "soon"],
    "best_of": [100_000],
    "num_return_sequences": [100_000],
}


@pytest.mark.parametrize("name, value", [(name, value) for name, values in NO_SETTINGS.items() for value in values])
def test_a_wrong_argument_is_named(tiny_model, name, value):
    call = {**right_text(1), "max_new_tokens": 2, name: value}
    with pytest.raises(ValueError, match=f"^{name}=.*: expected"):
        tiny_model.generate(**call)
    if name == "generation_config":
        with pytest.raises(ValueError, match=f"^{name}=.*: expected"):
            next(tiny_model.stream(**call))


@pytest.mark.parametrize("text", ["\ud800", "Hello \udfff you."])
def test_half_a_character_is_refused_or_left_out(processor, text):
    for call in ({"text": text}, {"text": "So.", "audio": np.full(2400, 0.1, "float32"), "audio_text": text}):
        with pytest.raises(ValueError, match="unpaired surrogates"):
            processor(**call, sampling_rate=24000, normalize_text=False)
    spoken = [letter for letter in "Hello you." if letter.isalpha()]
    assert [c for c in processor.spell_out(text) if c.isalpha()] in ([], spoken)
