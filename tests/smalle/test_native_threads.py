"""Several threads compute what one computes, to the last bit, and leave no thread behind."""

import os
import platform
import time
from pathlib import Path

import pytest
import torch

from smalle import native_smalle, runtime_smalle
from smalle.cache_smalle import MAX_PENDING
from smalle.native_smalle import LARGE_WEIGHTS, choose_kernels, load_library, threads_for
from smalle.runtime_smalle import encode_text, pointer, start_steps

LIBRARY, REASON = load_library()
WIDE = dict(hidden_size=512, intermediate_size=744, position_size=64, text_layers=1)  # several items in a product
TEXT = torch.randint(3, 60, (1, 70), generator=torch.Generator().manual_seed(2))
CODES = torch.randint(0, 23, (1, 60, 3), generator=torch.Generator().manual_seed(2))
TASKS = Path("/proc/self/task")
needs_library = pytest.mark.skipif(LIBRARY is None, reason=REASON)
needs_tasks = pytest.mark.skipif(not TASKS.is_dir(), reason="threads are counted on Linux only")


@pytest.fixture(params=["plain", "avx2", "avx_vnni", "avx512_vnni", "neon_dot"])
def kernels(request):
    try:
        choose_kernels(LIBRARY, request.param)
    except ValueError as error:
        pytest.skip(str(error))
    yield request.param
    choose_kernels(LIBRARY)


@pytest.fixture
def wide(make_tiny, monkeypatch):
    monkeypatch.setattr(runtime_smalle, "LARGE_STATE", 0)  # which states have pending updates, and are folded
    model = make_tiny(**WIDE)
    model.step_runtime = "native"
    return model


@torch.no_grad()
def speak(model, threads):
    """Text, prompt and steps by so many threads: keys, logits, alignments and states."""
    model.native_weights = None
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(runtime_smalle, "threads_for", lambda size: threads)
        state = encode_text(model, TEXT)
        steps = start_steps(model, state, True)
    steps.read(CODES[:, :40], torch.ones(1, 40, dtype=torch.bool))
    results = [steps(code[:, None], torch.ones(1, 1)) for code in CODES[:, 40:].unbind(1)]
    states = [x for block in steps.state.recurrent for x in block]
    return [state.text_keys, state.text_values, *(x for step in results for x in step), *states]


def tasks():
    return set(os.listdir(TASKS))


@needs_library
@pytest.mark.parametrize("threads", [2, 3])
def test_any_number_of_threads_computes_the_same(wide, kernels, threads):
    assert all(map(torch.equal, speak(wide, threads), speak(wide, 1)))


@needs_library
@needs_tasks
def test_helpers_are_started_compute_and_end_again_and_again(wide):
    before, deadline = tasks(), time.monotonic() + 60
    speak(wide, 1)
    assert tasks() == before
    for _ in range(2):
        speak(wide, 3)
        (helper, *others) = tasks() - before
        assert len(others) == 1 and int((TASKS / helper / "schedstat").read_text().split()[0]) > 0
        while tasks() != before and time.monotonic() < deadline:
            time.sleep(0.02)
        assert tasks() == before


@needs_library
def test_every_thread_takes_tiny_numbers_for_zero():
    """Those of less than single precision's full digits, which x86 computes slowly."""
    if platform.machine() not in ("x86_64", "AMD64"):
        pytest.skip("elsewhere they are fast")
    heads, keys, values, tiny = 8, 256, 64, 1e-39
    state, decay = torch.full((heads, keys, values), tiny), torch.ones(heads, keys)
    old_keys, old = torch.zeros(heads, MAX_PENDING, keys), torch.zeros(heads, MAX_PENDING, values)
    for threads in (1, *[3] * 200):
        out, bands = torch.ones_like(state), torch.zeros(heads, keys, values, dtype=torch.int16)
        LIBRARY.smalle_fold(threads, heads, keys, values, *map(pointer, (state, decay, old_keys, old, out, bands)))
        assert not out.view(torch.int32).any()


def test_large_weights_are_read_by_two_threads_and_one_setting_says_otherwise(monkeypatch):
    monkeypatch.delenv("SMALLE_THREADS", raising=False)
    monkeypatch.setattr(native_smalle.os, "sched_getaffinity", lambda process: {0, 5}, raising=False)
    assert [threads_for(size) for size in (0, LARGE_WEIGHTS - 1, LARGE_WEIGHTS)] == [1, 1, 2]
    monkeypatch.setattr(native_smalle.os, "sched_getaffinity", lambda process: {5}, raising=False)
    assert threads_for(LARGE_WEIGHTS) == 1
    monkeypatch.setenv("SMALLE_THREADS", "3")
    assert threads_for(0) == threads_for(LARGE_WEIGHTS) == 3
    monkeypatch.setenv("SMALLE_THREADS", "two")
    with pytest.raises(ValueError, match="SMALLE_THREADS='two': expected a whole number"):
        threads_for(0)
