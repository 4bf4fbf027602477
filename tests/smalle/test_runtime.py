"""The native runtime computes what the model does, by every set of instructions, and runs only where it may."""

import copy
import functools
import os
import pickle
import shutil
import subprocess
import sys
import threading
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from smalle import SmallEForTextToSpeech, SmallEProcessor, native_smalle, runtime_smalle
from smalle.cache_smalle import MAX_PENDING, PendingUpdates
from smalle.generation_smalle import SamplingSettings, draw, force_tails, guide
from smalle.native_smalle import Sampler, Step, choose_kernels, load_library
from smalle.runtime_smalle import (
    MemoryPool,
    NativeSteps,
    TorchSteps,
    encode_text,
    fingerprint,
    native_weights,
    pointers,
    start_steps,
    text_tensors,
    zero_states,
)

ROOT = Path(__file__).parents[2]
LARGE = dict(hidden_size=128, position_size=64)  # a shape that may have pending updates
SHAPES = {"small states": {}, "pending updates": LARGE}
KERNELS = "plain", "avx2", "avx_vnni", "avx512_vnni", "neon_dot"
TEXT = torch.tensor([[1, 9, 8, 2]])


@pytest.fixture(scope="module")
def library():
    library, reason = load_library()
    if library is None:
        pytest.skip(reason)
    return library


@pytest.fixture(params=KERNELS)
def kernels(request, library):
    """The library with each of its kernels."""
    try:
        choose_kernels(library, request.param)
    except ValueError as error:
        pytest.skip(str(error))
    yield request.param
    choose_kernels(library)


@pytest.fixture(params=SHAPES)
def native(request, make_tiny, library, monkeypatch):
    """A model with strong decays by the native runtime, its matrices in single precision."""
    monkeypatch.setattr(runtime_smalle, "SMALL", 2**30)
    if request.param == "pending updates":
        monkeypatch.setattr(runtime_smalle, "LARGE_STATE", 0)
    model = make_tiny(**SHAPES[request.param])
    for name, parameter in model.named_parameters():
        if "decay_up_proj" in name:  # as trained ones have
            parameter.data.mul_(300)
    model.step_runtime = "native"
    model.off = 0.03 if request.param == "pending updates" else 0.0  # it reads the upper halves of its states
    return model


def random_codes(rows, steps):
    return torch.randint(0, 23, (rows, steps, 3), generator=torch.Generator().manual_seed(2))


def read(steps, codes):
    """Logits (B, T, Q, V) and alignments (B, T, N) of codes (B, T, Q) step by step."""
    with torch.no_grad():
        results = [steps(step[:, None], torch.ones(len(codes), 1)) for step in codes.unbind(1)]
    return [torch.cat(part, 1) for part in zip(*results)]


def tensors_of(state):
    """Tensors of a state that steps change."""
    tensors = []
    replace(state, **dict.fromkeys(text_tensors(state))).map(tensors.append)
    return tensors


def assert_near(tensor, expected, off, rtol=1e-4):
    """A tensor is as expected, but for rounding; or off by at most this share of its norm."""
    if off:
        assert (tensor - expected).norm() <= off * expected.norm()
    else:
        torch.testing.assert_close(tensor, expected, atol=1e-4, rtol=rtol)


def assert_same_state(state, expected, off):
    """Two states are the same once pending updates are added to them."""
    for one, other in zip(state.recurrent, expected.recurrent, strict=True):
        one, other = (x.fold() if isinstance(x, PendingUpdates) else x for x in (one, other))
        assert_near(one, other, off, rtol=1e-3)


@pytest.mark.parametrize("rows, tokens", [(1, 5), (3, 9)])
def test_steps_are_the_models(native, rows, tokens):
    ids = torch.randint(3, 60, (rows, tokens), generator=torch.Generator().manual_seed(2))
    mask = torch.ones_like(ids)
    mask[-1, :2] = 0
    state, codes = native.model.encode_text(ids, mask), random_codes(rows, 25)
    expected, steps = TorchSteps(native, state, True), start_steps(native, state, True)
    assert type(steps) is NativeSteps
    for one, other in zip(read(steps, codes), read(expected, codes)):
        assert_near(one, other, native.off)
    assert_same_state(steps.state, expected.state, native.off)


def test_the_text_is_the_models(native):
    ids = torch.randint(3, 60, (3, 9), generator=torch.Generator().manual_seed(2))
    for tokens in (9, 4):
        mask = torch.ones(3, tokens, dtype=torch.long)
        mask[-1, :2] = 0
        expected, state = native.model.encode_text(ids[:, :tokens], mask), encode_text(native, ids[:, :tokens], mask)
        for name, tensor in text_tensors(expected).items():
            torch.testing.assert_close(getattr(state, name), tensor, atol=1e-4, rtol=1e-4)


def test_padding_before_a_text_changes_nothing(native):
    ids, mask = torch.zeros(2, 150, dtype=torch.long), torch.zeros(2, 150, dtype=torch.long)
    ids[:, 60:], mask[0, 60:], mask[1, 146:] = TEXT.tile(23)[:, :90], 1, 1
    state = encode_text(native, ids, mask)
    for row, start in enumerate((60, 146)):
        alone = encode_text(native, ids[row : row + 1, start:])
        for name in ("text_keys", "text_values", "positions"):
            padded = getattr(state, name)[row, start:]
            torch.testing.assert_close(padded, getattr(alone, name)[0], atol=1e-4, rtol=1e-4)
    assert all(x.isfinite().all() for x in (state.text_keys, state.text_values))


def test_tokens_may_be_of_any_integer_type(native):
    states = [encode_text(native, TEXT.to(kind)) for kind in (torch.int64, torch.int32)]
    assert torch.equal(*(state.text_keys for state in states))


def test_a_tuned_voice_begins_in_its_state(native):
    ids = TEXT.repeat(2, 1)
    numbers = sum(x[0].numel() for x in zero_states(native.config, 1))
    voice = torch.randn(2, numbers, generator=torch.Generator().manual_seed(2))
    expected, state = native.model.encode_text(ids, None, voice), encode_text(native, ids, None, voice)
    assert all(map(torch.equal, tensors_of(expected), tensors_of(state)))
    steps = TorchSteps(native, expected, True), start_steps(native, state, True)
    expected, logits = (read(each, random_codes(2, 9))[0] for each in steps)
    assert_near(logits, expected, native.off)


def test_states_are_values_that_later_steps_leave_alone(native):
    options = dict(input_ids=TEXT, seed=3, return_dict_in_generate=True, temperature=5.0, top_k=0)
    part = native.generate(**options, max_new_tokens=6, min_new_tokens=6)
    before = [tensor.clone() for tensor in tensors_of(part.cache.model)]
    options = dict(cache=part.cache, max_new_tokens=9, min_new_tokens=9, seed=4)
    first, second = native.generate(**options), native.generate(**options)
    assert torch.equal(first, second)
    assert all(map(torch.equal, before, tensors_of(part.cache.model)))


def test_the_states_of_a_stream_are_values(native):
    options = dict(input_ids=TEXT, seed=3, temperature=5.0, top_k=0, max_new_tokens=40, min_new_tokens=40)
    states, copies = [], []
    for chunk in native.stream(**options, chunk_frames=7):
        states.append(tensors_of(chunk.cache.model))
        copies.append([tensor.clone() for tensor in states[-1]])
    assert all(map(torch.equal, sum(states, []), sum(copies, [])))
    going_on = native.generate(cache=chunk.cache, seed=4, max_new_tokens=9)
    assert torch.equal(native.generate(cache=chunk.cache, seed=4, max_new_tokens=9), going_on)


@pytest.mark.parametrize("chunk", [1, 7, MAX_PENDING + 1])
def test_steps_are_the_same_to_the_last_bit_wherever_they_pause(native, chunk):
    codes, state = random_codes(2, 2 * MAX_PENDING + 9), native.model.encode_text(TEXT.repeat(2, 1))
    at_once, parts = read(start_steps(native, state, True), codes)[0], []
    for part in codes.split(chunk, 1):
        steps = start_steps(native, state, True)
        parts.append(read(steps, part)[0])
        state = steps.state
    assert torch.equal(torch.cat(parts, 1), at_once)


def test_pytorch_goes_on_from_a_state_with_pending_updates(native):
    codes, state = random_codes(1, 9), native.model.encode_text(TEXT)
    steps = start_steps(native, state, True)
    read(steps, codes[:, :6])
    with torch.no_grad():
        logits = native(decoder_input_ids=codes[:, 6:], cache=steps.state).logits
    assert_near(logits, read(TorchSteps(native, state, True), codes)[0][:, 6:], native.off)


@pytest.mark.parametrize("parts", [[1], [MAX_PENDING], [5, 3], [37], [7, 30, 2 * MAX_PENDING]])
def test_a_prompt_read_at_once_leaves_the_state_of_single_steps(native, parts, monkeypatch):
    codes, state = random_codes(2, sum(parts) + 2), native.model.encode_text(TEXT.repeat(2, 1))
    expected, steps = TorchSteps(native, state, True), start_steps(native, state, True)
    monkeypatch.setattr(TorchSteps, "read", None)
    read(expected, codes[:, : sum(parts)])
    for part in codes[:, : sum(parts)].split(parts, 1):
        steps.read(part, torch.ones(2, part.shape[1], dtype=torch.bool))
    assert_same_state(steps.state, expected.state, native.off)
    following, expected = start_steps(native, steps.state, True), read(expected, codes[:, -2:])
    for each in (following, steps):
        for one, other in zip(read(each, codes[:, -2:]), expected):
            assert_near(one, other, native.off)


def test_a_prompt_may_follow_a_step(native):
    codes, state = random_codes(2, 24), native.model.encode_text(TEXT.repeat(2, 1))
    expected, steps = TorchSteps(native, state, True), start_steps(native, state, True)
    read(expected, codes[:, :-1]), read(steps, codes[:, :1])
    steps.read(codes[:, 1:-1], torch.ones(2, 22, dtype=torch.bool))
    for one, other in zip(read(steps, codes[:, -1:]), read(expected, codes[:, -1:])):
        assert_near(one, other, native.off)


@pytest.mark.parametrize("lengths", [[4], [50, 50], [40, 9]])
def test_speech_that_continues_a_prompt_is_the_same(tiny_checkpoint, library, lengths, monkeypatch):
    model, longest = SmallEForTextToSpeech.from_pretrained(tiny_checkpoint).eval(), max(lengths)
    mask = torch.arange(longest) >= longest - torch.tensor(lengths)[:, None]
    codes = torch.randint(0, 20, (len(lengths), longest, 3), generator=torch.Generator().manual_seed(2))
    options = dict(input_ids=TEXT.repeat(len(lengths), 1), audio_codes=codes, audio_attention_mask=mask)
    options |= dict(seed=1, max_new_tokens=30, guidance_scale=1.5)
    by_torch, torch_reads = [], TorchSteps.read
    monkeypatch.setattr(TorchSteps, "read", lambda *inputs: by_torch.append(1) or torch_reads(*inputs))
    speech = model.generate(**options)
    assert len(by_torch) == len(set(lengths)) - 1  # PyTorch reads prompts of different lengths
    model.step_runtime = "torch"
    assert torch.equal(model.generate(**options), speech) and len(by_torch) == len(set(lengths))


def test_generate_takes_the_native_runtime_by_itself(tiny_checkpoint, library):
    processor = SmallEProcessor.from_pretrained(tiny_checkpoint)
    model = SmallEForTextToSpeech.from_pretrained(tiny_checkpoint)
    inputs, options = processor(["Hello you.", "Nobody knew it."]), dict(seed=1, max_new_tokens=30, guidance_scale=1.5)
    speech = model.generate(**inputs, **options)
    assert model.native_weights is not None
    model.step_runtime = "torch"
    assert torch.equal(model.generate(**inputs, **options), speech)


# --- kernels


def pack(library, layer):
    return runtime_smalle.pack(library, [(layer,)])


@pytest.mark.parametrize("rows, columns", [(512, 96), (300, 40), (128, 16), (20, 7)])
def test_every_kernel_multiplies_bytes_exactly(library, kernels, rows, columns, monkeypatch):
    monkeypatch.setattr(runtime_smalle, "SMALL", 0)
    random, layer = np.random.default_rng(0), torch.nn.Linear(rows, columns)
    weight = random.integers(-127, 128, (columns, rows)).astype(np.float32)
    weight[:6] = random.choice([-127, 127], (6, 1))
    weight[:, ::128] = random.choice([-127, 127], weight[:, ::128].shape)  # which makes every scale 1
    values = random.choice([-127, -1, 0, 1, 127], (7, rows)).astype(np.float32)
    values[:2], values[:, ::128] = [[127], [-127]], 127
    layer.weight.data, layer.bias.data = torch.from_numpy(weight), torch.arange(columns).float()
    packed, scratch = pack(library, layer), MemoryPool().tensor(2**16)
    for count in range(1, 8):
        x, y = torch.from_numpy(values[:count].copy()), torch.zeros(count, columns)
        library.smalle_multiply(
            *map(runtime_smalle.pointer, (packed, x)), count, *map(runtime_smalle.pointer, (y, scratch))
        )
        assert np.array_equal(y.numpy(), values[:count] @ weight.T + np.arange(columns))


@pytest.mark.parametrize(
    "compiler, emulator",
    [("aarch64-linux-gnu-gcc", "qemu-aarch64 -cpu max"), ("aarch64-linux-gnu-gcc", "qemu-aarch64 -cpu cortex-a53")],
)
def test_kernels_of_other_processors_are_exact(compiler, emulator, tmp_path):
    if not shutil.which(compiler) or not shutil.which(emulator.split()[0]):
        pytest.skip(f"{compiler} or {emulator} is not installed")
    program = str(tmp_path / "check")
    subprocess.run(
        [compiler, "-O2", "-static", Path(__file__).with_name("check_kernels.c"), "-o", program, "-lm"], check=True
    )
    done = subprocess.run([*emulator.split(), program], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout
    assert done.stdout.split() == (["neon_dot", "plain"] if "max" in emulator else ["plain"])


def test_kernels_that_are_not_there_are_refused(library):
    with pytest.raises(ValueError, match="'sse9'"):
        choose_kernels(library, "sse9")


def test_8_bits_are_near(make_tiny, kernels):
    model = make_tiny(hidden_size=256, intermediate_size=300, expand_k=1.0)  # of which the last block is a part
    assert len(native_weights(model).step) < 0.5 * 4 * model.num_parameters()
    codes, ids = random_codes(1, 25), torch.tensor([[1, 9, 8, 30, 2]])
    expected = TorchSteps(model, model.model.encode_text(ids), True)
    steps = start_steps(model, encode_text(model, ids), True)
    one, other = (read(each, codes)[0].log_softmax(-1) for each in (expected, steps))
    divergence = (one.exp() * (one - other)).sum(-1)  # Kullback-Leibler, nats
    assert 0 < divergence[:, 1:].mean() < 0.02  # random weights make the first step very sensitive


@pytest.mark.parametrize("top_k", [100, 0, 1, 5, 2000])
@pytest.mark.parametrize("scale", [None, 2.6])
@pytest.mark.parametrize("remaining", [[-1, -1, -1], [-1, 3, 1], [0, -1, 2]])
def test_the_library_draws_what_pytorch_draws(library, kernels, top_k, scale, remaining):
    shape, mask = (3, 3, 130) if scale is None else (6, 3, 130), np.array([[0, 1, 1, 1, 1]] * 3)
    config = SimpleNamespace(num_codebooks=3, audio_vocab_size=130)
    settings = [SamplingSettings(top_k=top_k, temperature=0.7), SamplingSettings(), SamplingSettings(top_k=3)]
    top_ks, temperatures = zip(*((x.top_k, x.temperature) for x in settings))
    sampler = Sampler(library, config, mask, top_ks, temperatures, scale)
    for seed in range(20):
        logits = 3 * torch.randn(shape, generator=torch.Generator().manual_seed(seed))
        ours, reads = logits.clone(), torch.rand(len(logits), 5)
        step = Step(rows=len(logits), tokens=5, codebooks=3, vocabulary=130, **pointers(logits=ours, alignment=reads))
        one, other = (torch.Generator().manual_seed(seed) for _ in range(2))
        banned = torch.zeros(3, 130, dtype=torch.bool)
        banned[:, :3] = True
        banned[0, 2] = may_not_end = bool(seed % 2)
        scores = force_tails(guide(logits, scale).masked_fill(banned, -torch.inf), torch.tensor(remaining))
        expected, _ = draw(scores, settings, one)
        torch.from_numpy(sampler.random).random_(generator=other)
        tokens, positions = sampler(step, not may_not_end, remaining)
        assert np.array_equal(tokens, expected.repeat(len(logits) // 3, 1))
        assert torch.equal(one.get_state(), other.get_state())
        np.testing.assert_allclose(positions, reads[:3] @ torch.tensor([0, 0, 1, 2, 3.0]), rtol=1e-5)


# --- memory


@pytest.mark.parametrize(
    "changes",
    [
        {},
        dict(num_attention_heads=1, mixer_heads=1, expand_k=0.25, expand_v=0.25),
        dict(gate_low_rank=400),
        dict(position_intermediate_size=700),
        dict(intermediate_size=900),
        LARGE,
    ],
    ids=str,
)
def test_nothing_is_written_beyond_its_memory(make_tiny, library, monkeypatch, changes):
    model, guards, tensor = make_tiny(**changes), [], MemoryPool.tensor

    def guarded(self, size):
        whole = tensor(self, size + 4096)
        whole[size:] = 171
        guards.append(whole[size:])
        return whole[:size]

    monkeypatch.setattr(runtime_smalle, "LARGE_STATE", 0 if changes is LARGE else runtime_smalle.LARGE_STATE)
    monkeypatch.setattr(MemoryPool, "tensor", guarded)
    model.step_runtime = "native"
    codes = torch.randint(0, 20, (3, 40, 3), generator=torch.Generator().manual_seed(2))
    model.generate(torch.randint(3, 60, (3, 70)), audio_codes=codes, max_new_tokens=20, guidance_scale=1.5)
    assert len(guards) > 5 and all((guard == 171).all() for guard in guards)


def test_memory_is_used_again_once_nothing_refers_to_it():
    memory = MemoryPool()
    whole = memory.tensor(1000)
    place, view = whole.data_ptr(), whole.view(torch.float32)[3:]
    del whole
    assert memory.tensor(1000).data_ptr() != place
    del view
    first, second = memory.tensor(500), memory.tensor(500)
    assert place in (first.data_ptr(), second.data_ptr()) and first.data_ptr() != second.data_ptr()


# --- choice


def test_weights_are_packed_once_and_again_when_they_change(make_tiny, library):
    model = make_tiny()
    packed = native_weights(model)
    assert native_weights(model) is packed
    with torch.no_grad():
        model.head.weight.add_(0.01)
    assert native_weights(model, unchanged=True) is packed
    again = native_weights(model)
    assert again is not packed and not torch.equal(again.step, packed.step)


def test_only_models_that_the_library_computes_take_it(make_tiny, library):
    model = make_tiny()
    assert native_weights(model.train()) is None and native_weights(model.eval()) is not None
    assert native_weights(model.double()) is None and native_weights(model.float()) is not None
    for changes in (dict(mixer="rwkv6"), dict(cross_attention="plain"), dict(architecture="decoder-only")):
        other = make_tiny(**changes)
        assert native_weights(other) is None
        other.step_runtime = "native"
        with pytest.raises(ValueError, match=next(iter(changes))):
            native_weights(other)


def test_adapters_are_not_passed_over(make_tiny, library):
    peft = pytest.importorskip("peft")
    model = make_tiny()
    assert native_weights(model) is not None
    adapted = peft.get_peft_model(model, peft.LoraConfig(target_modules=["o_proj"], init_lora_weights=False)).eval()
    assert native_weights(model) is None
    model.step_runtime = "native"
    with pytest.raises(ValueError, match="merge_and_unload"):
        native_weights(model)
    assert native_weights(adapted.merge_and_unload()) is not None


def test_hooks_are_not_passed_over(make_tiny, library):
    model = make_tiny()
    hook = model.model.audio_decoder[0].register_forward_hook(lambda *_: None)
    assert native_weights(model) is None
    hook.remove()
    assert native_weights(model) is not None
    model.forward = model.forward
    assert native_weights(model) is None


def test_an_unknown_runtime_is_refused(make_tiny):
    model = make_tiny()
    model.step_runtime = "fast"
    with pytest.raises(ValueError, match="'fast'.*'auto', 'torch', 'native'"):
        model.generate(TEXT, max_new_tokens=3)


def test_other_weights_have_another_fingerprint(make_tiny):
    assert fingerprint(make_tiny()) == fingerprint(make_tiny())
    for name in ("head.weight", "model.audio_norm.bias"):
        model = make_tiny()
        model.get_parameter(name).data.add_(1e-4)
        assert fingerprint(model) != fingerprint(make_tiny())


def test_copies_share_packed_weights_and_pickles_leave_them_out(make_tiny, library):
    model = make_tiny()
    packed = native_weights(model)
    assert copy.deepcopy(model).native_weights is packed
    assert pickle.loads(pickle.dumps(model)).native_weights is None


# --- the library's file


@pytest.fixture
def cache(library, tmp_path, monkeypatch):
    """An empty folder for the library, and how often it was compiled into it: the true library's bytes are copied."""
    data, compiled = Path(library._name).read_bytes(), []
    monkeypatch.setattr(native_smalle, "compile_library", lambda: compiled.append(1) or data)
    monkeypatch.setattr(runtime_smalle, "load_library", functools.cache(load_library.__wrapped__))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(native_smalle, "package_folder", lambda: None)
    return tmp_path / "smalle", compiled


def load_again():
    """A new load, without what is remembered of the former ones."""
    return load_library.__wrapped__()


def test_the_library_is_compiled_once_into_a_private_folder(cache):
    folder, compiled = cache
    for _ in range(2):
        assert load_again()[0] is not None
    (path,) = folder.iterdir()
    assert len(compiled) == 1 and folder.stat().st_mode & 0o777 == 0o700 and path.stat().st_mode & 0o777 == 0o700


@pytest.mark.parametrize(
    "damage", [lambda x: x[:1000], lambda x: b"", lambda x: x[:-1] + b"x", lambda x: b"\0" * len(x)]
)
def test_a_damaged_library_is_compiled_again(cache, damage):
    folder, compiled = cache
    load_again()
    (path,) = folder.iterdir()
    whole = path.read_bytes()
    path.unlink()  # for the former is loaded
    path.write_bytes(damage(whole))
    path.chmod(0o700)
    assert load_again()[0] is not None and len(compiled) == 2 and path.read_bytes() == whole


@pytest.mark.parametrize("changed", ["version", "processor"])
def test_a_library_of_another_version_or_processor_is_not_loaded(cache, changed, monkeypatch):
    folder, compiled = cache
    load_again()
    (other,) = folder.iterdir()
    if changed == "version":
        monkeypatch.setattr(native_smalle, "NAME", "smalle-0123456789ab")
    else:
        monkeypatch.setattr(native_smalle.platform, "machine", lambda: "another")
    loaded = []
    monkeypatch.setattr(native_smalle, "open_library", loaded.append)
    load_again()
    assert len(compiled) == 2 and set(loaded) == set(folder.iterdir()) - {other}


def plant_for_others(path):
    path.chmod(0o722)


def plant_as_another_user(path):
    if os.geteuid():
        pytest.skip("only root gives files away")
    os.chown(path, 12345, 12345)


def plant_as_a_link(path):
    path.rename(path.with_name("elsewhere"))
    path.symlink_to(path.with_name("elsewhere"))


@pytest.mark.parametrize("plant", [plant_for_others, plant_as_another_user, plant_as_a_link])
def test_a_planted_library_is_compiled_again_and_a_planted_folder_refused(cache, plant, monkeypatch):
    folder, compiled = cache
    load_again()
    (path,) = folder.iterdir()
    plant(path)
    assert load_again()[0] is not None and len(compiled) == 2
    plant(folder)
    monkeypatch.setattr(native_smalle, "open_library", None)
    library, reason = load_again()
    assert library is None and str(folder) in reason and "XDG_CACHE_HOME" in reason


def test_processes_that_compile_at_once_all_succeed(cache):
    results = []
    threads = [threading.Thread(target=lambda: results.append(load_again()[0])) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(results) == 8 and None not in results and len(list(cache[0].iterdir())) == 1


def test_without_a_compiler_pytorch_speaks_and_says_so_once(cache, make_tiny, monkeypatch, caplog):
    monkeypatch.undo()
    folder = cache[0].with_name("empty")
    monkeypatch.setenv("XDG_CACHE_HOME", str(folder))
    monkeypatch.setattr(native_smalle, "__file__", str(folder / "native_smalle.py"))  # beside no library
    monkeypatch.setattr(runtime_smalle, "load_library", functools.cache(load_library.__wrapped__))
    monkeypatch.setattr(native_smalle, "compilers", lambda: [["no-compiler"], ["false"]])
    runtime_smalle.logger.warning_once.cache_clear()
    monkeypatch.setattr(runtime_smalle.logger, "propagate", True)
    monkeypatch.setattr(runtime_smalle.logger.parent, "propagate", True, raising=False)
    model = make_tiny()
    for _ in range(2):
        assert model.generate(TEXT, max_new_tokens=3).shape[2] == 3
    (record,) = [x for x in caplog.records if "PyTorch" in x.message]
    assert "install gcc" in record.message and model.native_weights is None
    model.step_runtime = "native"
    with pytest.raises(ValueError, match="install gcc"):
        model.generate(TEXT, max_new_tokens=3)


def test_a_folder_that_cannot_be_made_is_no_error(cache, monkeypatch):
    file = cache[0].with_name("file")
    file.write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(file))
    library, reason = load_again()
    assert library is None and str(file) in reason


def test_the_library_of_the_package_is_taken_first_unless_it_is_damaged(cache, tmp_path, monkeypatch):
    monkeypatch.setattr(native_smalle, "package_folder", lambda: tmp_path / "native")
    data = native_smalle.compile_library()
    cache[1].clear()
    packaged = tmp_path / "native" / f"{native_smalle.NAME}-{native_smalle.digest(data)}.so"
    packaged.parent.mkdir()
    packaged.write_bytes(data)
    assert load_again()[0]._name == str(packaged) and not cache[1]
    packaged.unlink()
    packaged.write_bytes(data[:-9])
    assert load_again()[0]._name != str(packaged) and len(cache[1]) == 1


@pytest.mark.parametrize("trust_remote_code", [True, False])
def test_nothing_is_loaded_from_a_checkpoint(cache, tiny_checkpoint, tmp_path, monkeypatch, trust_remote_code):
    folder = shutil.copytree(tiny_checkpoint, tmp_path / "tiny")
    (folder / "native").mkdir()
    for name in ("step.native.so", f"{native_smalle.NAME}.so", f"native/{native_smalle.NAME}-0.so"):
        (folder / name).write_bytes(native_smalle.compile_library())
    opened, load = [], native_smalle.open_library
    monkeypatch.setattr(native_smalle, "open_library", lambda path: opened.append(path) or load(path))
    model = SmallEForTextToSpeech.from_pretrained(folder, trust_remote_code=trust_remote_code).eval()
    model.generate(TEXT, max_new_tokens=3)
    assert [path.parent for path in opened] == [cache[0]]


def test_the_library_of_the_package_is_found_from_anywhere():
    """Remote code is in a package of another name."""
    assert native_smalle.package_folder() == ROOT / "smalle" / "native"


def test_the_sources_for_remote_code_are_those_of_the_library(tmp_path):
    copied = shutil.copytree(ROOT / "smalle" / "native", tmp_path / "native")
    subprocess.run([sys.executable, copied / "build.py"], check=True)
    written = (tmp_path / "native_smalle.py").read_text()
    assert written == Path(native_smalle.__file__).read_text(), "run python smalle/native/build.py"
