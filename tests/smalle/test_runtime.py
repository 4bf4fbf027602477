"""The exported decode step: the same answers as the model's, chosen by itself, and only where it may be."""

import os
import re
import shutil
import sys
from dataclasses import replace

import pytest
import torch

from smalle import SmallEForTextToSpeech, SmallEProcessor, decoding_smalle, native_runtime_smalle
from smalle.cache_smalle import MAX_PENDING, PendingUpdates, tensors_of
from smalle.cli import main as cli
from smalle.decoding_smalle import CHUNK, TorchSteps, begins_at_zero, each_matrix, moving_tensors, text_tensors
from smalle.export import export, fastest
from smalle.export import native as export_native
from smalle.generation_smalle import SamplingSettings, draw, guide
from smalle.native_runtime_smalle import Memory, NativeSteps
from smalle.onnx_runtime_smalle import OnnxSteps
from smalle.runtime_smalle import encode_text, find_export, fingerprint, start_steps

NATIVE = dict(hidden_size=128, position_size=64)  # states that step.c can have beside
KINDS = {
    "native": {},
    "native, large": NATIVE,
    "gla": {},
    "gla, channel mixing": dict(feed_forward="rwkv"),
    "gla, large": {},
    "gla, large, channel mixing, two position layers": dict(feed_forward="rwkv", position_layers=2),
    "gla, large, plain": dict(cross_attention="plain", cross_rotary_size=8),
    "rwkv6, tuples of states": dict(mixer="rwkv6", feed_forward="rwkv"),
    "plain, positions by step": dict(cross_attention="plain", cross_rotary_size=8, mixer="retnet"),
}


@pytest.fixture(scope="module", params=KINDS)
def exported(request, make_tiny, tmp_path_factory, exporting):
    """A checkpoint with strong decays, its step in single precision; one with states that count as large."""
    kind, size = request.param, decoding_smalle.LARGE
    decoding_smalle.LARGE = 0 if "large" in kind else size
    model, folder = make_tiny(**KINDS[kind]), tmp_path_factory.mktemp("exported")
    for name, parameter in model.named_parameters():
        if "decay_up_proj" in name:  # as trained ones have: log(sigmoid(x)) must not stop at -18
            parameter.data.mul_(300)
    model.save_pretrained(folder)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(export_native, "SMALL", 2**30)  # no matrix in 8 bits
        exporting(folder, "native" if "native" in kind else "float")
    model = SmallEForTextToSpeech.from_pretrained(folder).eval()
    model.steps = NativeSteps if "native" in kind else OnnxSteps
    model.off = 0.03 if kind == "native, large" else 0.0  # it reads the upper halves of its states
    yield model
    decoding_smalle.LARGE = size


def read(steps, codes):
    """Logits (B, T, Q, V) and maps (B, T, N) of codes (B, T, Q) step by step."""
    with torch.no_grad():
        results = [steps(step[:, None], torch.ones(len(codes), 1)) for step in codes.unbind(1)]
    return [torch.cat(part, 1) for part in zip(*results)]


def assert_near(tensor, expected, off, rtol=1e-4):
    """A tensor is what was expected, but for rounding; or off by at most this share of its length."""
    if off:
        assert (tensor - expected).norm() <= off * expected.norm()
    else:
        torch.testing.assert_close(tensor, expected, atol=1e-4, rtol=rtol)


def assert_same(state, other, off):
    """Two states of a model are the same, whether steps stand beside them or not."""

    def written(state):
        recurrent = each_matrix(lambda x: x.fold() if isinstance(x, PendingUpdates) else x, state.recurrent)
        return moving_tensors(replace(state, recurrent=recurrent))

    for one, same in zip(*map(written, (state, other)), strict=True):
        assert_near(same, one, off, rtol=1e-3)


@pytest.mark.parametrize("rows, tokens", [(1, 5), (3, 9)])
def test_the_exported_step_is_the_models(exported, rows, tokens):
    random = torch.Generator().manual_seed(2)
    ids = torch.randint(3, 60, (rows, tokens), generator=random)
    mask = torch.ones_like(ids)
    mask[-1, :2] = 0
    codes = torch.randint(0, 23, (rows, 25, 3), generator=random)
    state = exported.model.encode_text(ids, mask)
    mine, others = TorchSteps(exported, state, True), start_steps(exported, state, True)
    assert type(others) is exported.steps
    for one, other in zip(read(mine, codes), read(others, codes)):
        assert_near(other, one, exported.off)
    assert_same(mine.state, others.state, exported.off)


def test_the_exported_text_is_the_models(exported):
    ids = torch.randint(3, 60, (3, 9), generator=torch.Generator().manual_seed(2))
    for tokens in (9, 4):  # any number
        mask = torch.ones(3, tokens, dtype=torch.long)
        mask[-1, :2] = 0
        mine, other = exported.model.encode_text(ids[:, :tokens], mask), encode_text(exported, ids[:, :tokens], mask)
        assert find_export(exported) is not None and (mine.steps is None) == (other.steps is None)
        assert text_tensors(mine).keys() == text_tensors(other).keys()
        for name, tensor in text_tensors(mine).items():
            torch.testing.assert_close(text_tensors(other)[name], tensor, atol=1e-4, rtol=1e-4)


def test_a_tuned_voice_begins_after_the_exported_text_as_after_the_models(exported):
    ids = torch.tensor([[1, 9, 8, 2]] * 2)
    numbers = sum(x[0].numel() for x in tensors_of(exported.model._zero_state(exported.model.encode_text(ids))))
    voice = torch.randn(2, numbers, generator=torch.Generator().manual_seed(2))
    mine, other = exported.model.encode_text(ids, None, voice), encode_text(exported, ids, None, voice)
    assert all(map(torch.equal, moving_tensors(mine), moving_tensors(other)))
    codes = torch.randint(0, 23, (2, 9, 3), generator=torch.Generator().manual_seed(2))
    steps = TorchSteps(exported, mine, True), start_steps(exported, other, True)
    one, same = (read(each, codes)[0] for each in steps)
    assert_near(same, one, exported.off)


def test_states_are_values_that_later_steps_leave_alone(exported):
    way = dict(input_ids=torch.tensor([[1, 9, 8, 2]]), seed=3, return_dict_in_generate=True, temperature=5.0, top_k=0)
    part = exported.generate(**way, max_new_tokens=6, min_new_tokens=6)
    before = [tensor.clone() for tensor in moving_tensors(part.cache.model)]
    way = dict(cache=part.cache, max_new_tokens=9, min_new_tokens=9, seed=4)
    first, second = exported.generate(**way), exported.generate(**way)
    assert torch.equal(first, second)
    assert all(map(torch.equal, before, moving_tensors(part.cache.model)))


@pytest.mark.parametrize("chunk", [1, 7, MAX_PENDING + 1])
def test_steps_are_the_same_to_the_last_bit_wherever_they_pause(exported, chunk):
    codes = torch.randint(0, 23, (2, 2 * MAX_PENDING + 9, 3), generator=torch.Generator().manual_seed(2))
    state = exported.model.encode_text(torch.tensor([[1, 9, 8, 2]] * 2))
    at_once, parts = read(start_steps(exported, state, True), codes)[0], []
    for part in codes.split(chunk, 1):
        steps = start_steps(exported, state, True)
        parts.append(read(steps, part)[0])
        state = steps.state
    assert torch.equal(torch.cat(parts, 1), at_once)


def test_pytorch_goes_on_from_steps_that_stand_beside_a_state(exported):
    codes = torch.randint(0, 23, (1, 9, 3), generator=torch.Generator().manual_seed(2))
    state = exported.model.encode_text(torch.tensor([[1, 9, 8, 2]]))
    steps = start_steps(exported, state, True)
    read(steps, codes[:, :6])
    with torch.no_grad():
        logits = exported(audio_codes=codes[:, 6:], cache=steps.state).logits
    assert_near(logits, read(TorchSteps(exported, state, True), codes)[0][:, 6:], exported.off)


@pytest.mark.parametrize("parts", [[1], [CHUNK], [5, 3], [37], [7, 30, 2 * CHUNK]])
def test_a_prompt_read_at_once_leaves_the_state_of_single_steps(exported, parts, monkeypatch):
    codes = torch.randint(0, 23, (2, sum(parts) + 2, 3), generator=torch.Generator().manual_seed(2))
    state = exported.model.encode_text(torch.tensor([[1, 9, 8, 2]] * 2))
    one, other = TorchSteps(exported, state, True), start_steps(exported, state, True)
    if begins_at_zero(exported.config):
        monkeypatch.setattr(TorchSteps, "read", None)  # what was exported reads
    read(one, codes[:, : sum(parts)])
    for part in codes[:, : sum(parts)].split(parts, 1):
        with torch.no_grad():
            other.read(part, torch.ones(2, part.shape[1], dtype=torch.bool))
    assert_same(one.state, other.state, exported.off)
    following, expected = start_steps(exported, other.state, True), read(one, codes[:, -2:])
    for steps in (following, other):  # those that read may go on, too
        for mine, others in zip(expected, read(steps, codes[:, -2:])):
            assert_near(others, mine, exported.off)


@pytest.fixture
def folder(tiny_checkpoint, tmp_path):
    return shutil.copytree(tiny_checkpoint, tmp_path / "tiny")


def test_one_command_and_generate_takes_it_with_the_same_speech(folder, capsys, monkeypatch):
    processor, model = SmallEProcessor.from_pretrained(folder), SmallEForTextToSpeech.from_pretrained(folder).eval()
    inputs, way = processor(["Hello you.", "Nobody knew it."]), dict(seed=1, max_new_tokens=30, guidance_scale=1.5)
    assert find_export(model) is None
    plain = model.generate(**inputs, **way)
    assert cli.main(["export", str(folder), "--runtime", "float"]) == 0
    assert re.fullmatch(r".*/step\.onnx: [0-9.]+ MB; .*\n", capsys.readouterr().out)
    assert find_export(model) is not None  # a model that was loaded before finds it, too
    steps, bind = [], OnnxSteps._start
    monkeypatch.setattr(OnnxSteps, "_start", lambda self, codes: steps.append(1) or bind(self, codes))
    assert torch.equal(model.generate(**inputs, **way), plain) and steps == [1]
    model.step_runtime = "torch"
    assert torch.equal(model.generate(**inputs, **way), plain) and steps == [1]
    assert not [name for name in os.listdir(folder) if name.endswith(".partial")]


def test_the_newer_kind_of_export_takes_the_place_of_the_others(folder, exporting):
    there = {path.name for path in folder.iterdir()}
    for runtime, names in (
        ("float", {"step.onnx", "text.onnx"}),
        ("native", {"step.native.safetensors", "step.native.so"}),
        ("int8", {"step.int8.onnx", "text.int8.onnx"}),
    ):
        exporting(folder, runtime)
        assert {path.name for path in folder.iterdir()} - there == names


def test_tokens_may_be_of_any_whole_type(exported):
    ids = torch.tensor([[1, 9, 8, 2]])
    states = [encode_text(exported, ids.to(kind)) for kind in (torch.int64, torch.int32)]
    assert torch.equal(*(state.text_keys for state in states))


@pytest.mark.parametrize("lengths", [[4], [50, 50], [40, 9]])
@pytest.mark.parametrize("runtime", ["float", "native"])
def test_speech_that_goes_on_from_a_prompt_is_the_same(folder, lengths, monkeypatch, exporting, runtime):
    exporting(folder, runtime)
    model, longest = SmallEForTextToSpeech.from_pretrained(folder).eval(), max(lengths)
    mask = torch.arange(longest) >= longest - torch.tensor(lengths)[:, None]
    codes = torch.randint(0, 20, (len(lengths), longest, 3), generator=torch.Generator().manual_seed(2))
    way = dict(input_ids=torch.tensor([[1, 9, 8, 2]] * len(lengths)), audio_codes=codes, audio_attention_mask=mask)
    way |= dict(seed=1, max_new_tokens=30, guidance_scale=1.5)
    by_torch, torch_reads = [], TorchSteps.read
    monkeypatch.setattr(TorchSteps, "read", lambda *inputs: by_torch.append(1) or torch_reads(*inputs))
    speech = model.generate(**way)
    assert len(by_torch) == len(set(lengths)) - 1  # PyTorch reads prompts of different lengths
    model.step_runtime = "torch"
    assert torch.equal(model.generate(**way), speech) and len(by_torch) == len(set(lengths))


def test_what_was_exported_to_take_single_steps_reads_prompts_by_pytorch(folder, monkeypatch):
    way = dict(input_ids=torch.tensor([[1, 9, 8, 2]]), audio_codes=torch.full((1, 20, 3), 7), seed=1, max_new_tokens=9)
    speech = SmallEForTextToSpeech.from_pretrained(folder).eval().generate(**way)
    monkeypatch.setattr("smalle.export.onnx.reads_chunks", lambda config: False)
    export(folder, "float")
    model = SmallEForTextToSpeech.from_pretrained(folder).eval()
    assert torch.equal(model.generate(**way), speech) and not start_steps(model, None, False).several


@pytest.mark.parametrize(
    "runtime, name, generic",
    [
        ("int8", "step.int8.onnx", False),
        ("native", "step.native.safetensors", False),
        ("native", "step.native.safetensors", True),
    ],
)
def test_8_bits_are_near(make_tiny, tmp_path, exporting, runtime, name, generic, monkeypatch):
    if generic:  # any processor's instructions alone
        monkeypatch.setattr(export_native, "FLAGS", [x for x in export_native.FLAGS if x != "-march=native"])
    model = make_tiny(hidden_size=256, intermediate_size=300, expand_k=1.0)  # of which the last block is a part
    model.save_pretrained(tmp_path)
    path = exporting(tmp_path, runtime)
    assert path.name == name and path.stat().st_size < 0.5 * (tmp_path / "model.safetensors").stat().st_size
    model = SmallEForTextToSpeech.from_pretrained(tmp_path).eval()
    codes = torch.randint(0, 23, (1, 25, 3), generator=torch.Generator().manual_seed(2))
    ids = torch.tensor([[1, 9, 8, 30, 2]])
    ways = (TorchSteps, model.model.encode_text(ids)), (start_steps, encode_text(model, ids))
    one, other = (read(steps(model, state, True), codes)[0].log_softmax(-1) for steps, state in ways)
    divergence = (one.exp() * (one - other)).sum(-1)  # Kullback-Leibler, nats
    assert 0 < divergence[:, 1:].mean() < 0.02  # of random weights the first step hangs by a thread


def test_a_step_alone_as_it_was_exported_once_still_speaks(folder, exporting):
    exporting(folder, "float")
    model, way = SmallEForTextToSpeech.from_pretrained(folder).eval(), dict(seed=1, max_new_tokens=9)
    ids = torch.tensor([[1, 9, 8, 2]])
    with_text = model.generate(ids, **way)
    (folder / "text.onnx").unlink()
    again = SmallEForTextToSpeech.from_pretrained(folder).eval()
    assert torch.equal(again.generate(ids, **way), with_text)
    assert find_export(again).text is None and find_export(again).step is not None


def test_what_was_exported_from_other_weights_or_may_not_run_is_not_used(folder, exporting):
    exporting(folder, "float")
    model = SmallEForTextToSpeech.from_pretrained(folder)
    assert find_export(model.train()) is None and find_export(model.eval()) is not None
    assert find_export(model.double()) is None and find_export(model.float()) is not None
    with torch.no_grad():
        model.head.weight.add_(0.01)
    assert find_export(model) is None
    model.step_runtime = "onnx"
    with pytest.raises(ValueError, match="smalle export"):
        model.generate(torch.tensor([[1, 9, 2]]), max_new_tokens=3)
    model.step_runtime = "fast"
    with pytest.raises(ValueError, match="'fast'"):
        model.generate(torch.tensor([[1, 9, 2]]), max_new_tokens=3)


def test_every_training_has_its_fingerprint(make_tiny):
    assert fingerprint(make_tiny()) == fingerprint(make_tiny())
    for name in ("head.weight", "model.audio_norm.bias"):
        model = make_tiny()
        model.get_parameter(name).data.add_(1e-4)
        assert fingerprint(model) != fingerprint(make_tiny())


def test_without_the_package_torch_speaks(folder, monkeypatch, exporting):
    exporting(folder, "float")
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    assert find_export(SmallEForTextToSpeech.from_pretrained(folder).eval()) is None


def test_what_cannot_be_exported_is_refused(make_tiny, tmp_path, capsys):
    make_tiny(architecture="decoder-only").save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="decoder-only"):
        export(tmp_path)
    model = make_tiny(cross_attention="plain")
    model.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="cross_attention='plain'.*--runtime int8"):
        export(tmp_path, "native")
    with pytest.raises(ValueError, match="'fast'.*native, int8, float"):
        export(tmp_path, "fast")
    assert not [path for path in tmp_path.iterdir() if path.name.startswith("step.")]
    assert cli.main(["export", str(tmp_path / "nowhere")]) == 2 and "nowhere" in capsys.readouterr().err


def test_without_a_compiler_what_is_there_stays(folder, exporting, monkeypatch):
    step = exporting(folder, "native").read_bytes()
    monkeypatch.setattr(export_native, "compilers", lambda: [["no-compiler"], ["false"]])
    with pytest.raises(ValueError, match="install gcc"):
        export(folder, "native")
    assert (folder / "step.native.safetensors").read_bytes() == step and not list(folder.glob("*.partial"))


def test_the_fastest_runtime_that_a_model_can_have_is_exported(make_tiny, monkeypatch):
    for fast, plain, expected in ((True, False, "native"), (False, False, "int8"), (True, True, "int8")):
        pytest.importorskip("onnxruntime"), pytest.importorskip("onnx")
        monkeypatch.setattr(export_native, "runs_fast", lambda fast=fast: fast)
        assert fastest(make_tiny(**(dict(cross_attention="plain") if plain else {})).config) == expected


@pytest.mark.parametrize("name", ["processor", "VERSION"])
def test_a_step_for_another_processor_or_version_is_not_used(folder, exporting, monkeypatch, name):
    exporting(folder, "native")
    monkeypatch.setattr(native_runtime_smalle, name, {"processor": lambda: "other", "VERSION": "0"}[name])
    model = SmallEForTextToSpeech.from_pretrained(folder).eval()
    assert find_export(model) is None and model.generate(torch.tensor([[1, 9, 2]]), max_new_tokens=3).shape[2] == 3
    model.step_runtime = "native"
    with pytest.raises(ValueError, match="--runtime native"):
        model.generate(torch.tensor([[1, 9, 2]]), max_new_tokens=3)


@pytest.mark.parametrize(
    "changes",
    [
        {},
        dict(num_attention_heads=1, mixer_heads=1, expand_k=0.25, expand_v=0.25),
        dict(gate_low_rank=400),
        dict(position_intermediate_size=700),
        dict(intermediate_size=900),
        NATIVE,
    ],
    ids=str,
)
def test_nothing_is_written_beyond_its_memory(make_tiny, tmp_path, exporting, monkeypatch, changes):
    model, lent, tensor = make_tiny(**changes), [], Memory.tensor

    def watched(self, size):
        whole = tensor(self, size + 4096)
        whole[size:] = 171
        lent.append(whole[size:])
        return whole[:size]

    monkeypatch.setattr(decoding_smalle, "LARGE", 0 if changes is NATIVE else decoding_smalle.LARGE)
    model.save_pretrained(tmp_path)
    exporting(tmp_path, "native")
    monkeypatch.setattr(Memory, "tensor", watched)
    model = SmallEForTextToSpeech.from_pretrained(tmp_path).eval()
    codes = torch.randint(0, 20, (3, 40, 3), generator=torch.Generator().manual_seed(2))
    model.generate(torch.randint(3, 60, (3, 70)), audio_codes=codes, max_new_tokens=20, guidance_scale=1.5)
    assert find_export(model).kind == "native" and len(lent) > 3 and all((end == 171).all() for end in lent)


def test_memory_is_used_again_once_nobody_looks_at_it():
    memory = Memory()
    whole = memory.tensor(1000)
    place, view = whole.data_ptr(), whole.view(torch.float32)[3:]
    del whole
    assert memory.tensor(1000).data_ptr() != place
    del view
    first, second = memory.tensor(500), memory.tensor(500)
    assert place in (first.data_ptr(), second.data_ptr()) and first.data_ptr() != second.data_ptr()


@pytest.mark.parametrize("top_k", [100, 0, 1, 5, 2000])
@pytest.mark.parametrize("scales", [[], [2.6], [0.5, 3.0]])
def test_c_draws_what_pytorch_draws(folder, exporting, top_k, scales):
    exporting(folder, "native")
    model = SmallEForTextToSpeech.from_pretrained(folder).eval()
    steps = start_steps(model, None, False)
    settings = [SamplingSettings(top_k=top_k, temperature=0.7), SamplingSettings(), SamplingSettings(top_k=3)]
    banned = torch.zeros(3, 130, dtype=torch.bool)
    banned[:, :3] = True
    for seed in range(20):
        logits = 3 * torch.randn(4 * (1 + len(scales)), 3, 130, generator=torch.Generator().manual_seed(seed))
        steps.logits = logits.clone()
        one, other = (torch.Generator().manual_seed(seed) for _ in range(2))
        expected, _ = draw(guide(logits, scales).masked_fill(banned, -torch.inf), settings, one)
        assert torch.equal(steps.draw(scales, banned, settings, other), expected)
        assert torch.equal(one.get_state(), other.get_state())
