"""The recurrence: chunk = naive = step by step, masked steps change nothing, gradients are right."""

import pytest
import torch

from smalle.linear_attention_smalle import chunk, chunk_exact, naive, recurrence, running_sum, scan

torch.manual_seed(0)


def inputs(length, strength=1.0, dtype=torch.float32, heads=2, key=8, value=12):
    q, k = torch.randn(2, 2, length, heads, key, dtype=dtype)
    v = torch.randn(2, length, heads, value, dtype=dtype)
    decay = -strength * torch.rand(2, length, heads, key, dtype=dtype)
    return q, k, v, decay, torch.randn(2, heads, key, value)


def relative(a, b):
    return float((a - b).norm() / b.norm())


def close(got, wanted, limit):
    return all(relative(a.double(), b.double()) < limit for a, b in zip(got, wanted, strict=True))


@pytest.mark.parametrize("length", [1, 15, 64, 65, 200])
@pytest.mark.parametrize("strength", [0.05, 1.0, 8.0])
def test_chunked_equals_naive_with_its_final_state(length, strength):
    q, k, v, decay, state = inputs(length, strength)
    assert close(chunk(q, k, v, decay, state), naive(q, k, v, decay, state), 1e-5)
    with torch.no_grad():  # sums in place
        assert close(chunk(q, k, v, decay, state), naive(q, k, v, decay, state), 1e-5)


def test_two_halves_with_state_equal_the_whole():
    q, k, v, decay, state = inputs(150)
    whole, last = chunk(q, k, v, decay, state)
    first, state = chunk(*(x[:, :70] for x in (q, k, v, decay)), state)
    second, state = chunk(*(x[:, 70:] for x in (q, k, v, decay)), state)
    assert relative(torch.cat((first, second), 1), whole) < 1e-5
    assert relative(state, last) < 1e-5


def test_long_sequences_with_strong_decay_stay_finite():
    q, k, v, decay, state = inputs(8000, strength=8.0, heads=1)
    out, last = chunk(q, k, v, decay, state)
    assert out.isfinite().all() and last.isfinite().all()


def test_gradients_equal_those_of_float64():
    q, k, v, decay, state = inputs(70)

    def gradients(function, dtype):
        leaves = [x.detach().to(dtype).requires_grad_() for x in (q, k, v, decay, state)]
        out, last = function(*leaves)
        (out.sum() + (last**2).sum()).backward()
        return [leaf.grad for leaf in leaves]

    for got, wanted in zip(gradients(chunk, torch.float32), gradients(naive, torch.float64)):
        assert relative(got.double(), wanted) < 1e-4


def test_unknown_kernel_is_refused():
    with pytest.raises(ValueError, match="expected one of 'auto'"):
        recurrence(*inputs(3), kernel="cuda")


@pytest.mark.parametrize("heads", [1, 2])
def test_gradients_in_half_precision_are_near_those_of_float64(heads):
    q, k, v, decay, _ = inputs(150, 0.2, heads=heads)
    weights = torch.randn_like(v)

    def gradients(function, dtype, half):
        leaves = [x.detach().to(dtype).requires_grad_() for x in (q, k, v, decay)]
        with torch.autocast("cpu", torch.bfloat16, enabled=half):
            out, _ = function(*leaves)
        (out * weights.to(dtype)).sum().backward()
        return [leaf.grad for leaf in leaves]

    for got, wanted in zip(gradients(chunk, torch.float32, True), gradients(naive, torch.float64, False)):
        assert relative(got.double(), wanted) < 0.02


def test_autocast_halves_the_precision_of_single_precision_alone():
    single, (*double, state) = inputs(70), inputs(70, dtype=torch.float64)
    with torch.autocast("cpu", torch.bfloat16):
        half, exact = chunk(*single), chunk(*double, state.double())
    assert close(half, naive(*single), 0.02) and not close(half, naive(*single), 1e-4)
    assert close(exact, naive(*double, state.double()), 1e-9)


def test_sums_one_after_the_other_equal_those_all_at_once():
    steps, decay = torch.randn(2, 3, 4, 64, 8), -torch.rand(2, 3, 4, 8)
    updates, state = torch.randn(2, 3, 4, 8, 12), torch.randn(2, 3, 8, 12)
    for backwards in (False, True):
        at_once = [running_sum(steps, backwards), *scan(decay, updates, state, backwards)]
        with torch.no_grad():
            in_turn = [running_sum(steps.clone(), backwards), *scan(decay, updates, state, backwards)]
        assert all(relative(a, b) < 1e-5 for a, b in zip(in_turn, at_once))


def test_no_step_leaves_the_state_as_it_is():
    *now, state = inputs(0)
    for given, wanted in ((state.half(), state.half().float()), (None, torch.zeros_like(state))):
        out, last = recurrence(*now, given)
        assert out.shape == now[2].shape and last.dtype == torch.float32 and torch.equal(last, wanted)


def mixed_inputs(length, form, dtype=torch.float32, heads=2, key=8, value=12):
    """Decays between none and -30 a step, weak and strong ones mixed."""
    torch.manual_seed(length)
    shared = 1 if form == "head" else heads
    q, k = torch.randn(2, 2, length, shared, key, dtype=dtype)
    v = torch.randn(2, length, heads, value, dtype=dtype)
    decay = -30 * torch.rand(2, length, heads, 1 if form == "head" else key, dtype=dtype) ** 8
    bonus = torch.randn(heads, key, dtype=dtype) if form == "bonus" else None
    return q, k, v, decay, torch.randn(2, heads, key, value, dtype=dtype), bonus


@pytest.mark.parametrize("form", ["channel", "head", "bonus"])
@pytest.mark.parametrize("length", [1, 2, 15, 64, 65, 200])
def test_exact_recurrence_equals_naive(form, length):
    arguments = mixed_inputs(length, form)
    without = (*arguments[:4], None, arguments[5])
    assert close(chunk_exact(*arguments), naive(*arguments), 2e-6)
    assert close(chunk_exact(*without), naive(*without), 2e-6)
    if form != "channel":
        assert close(recurrence(*arguments[:5], bonus=arguments[5]), naive(*arguments), 2e-6)


@pytest.mark.parametrize("form", ["channel", "head", "bonus"])
def test_gradients_of_the_exact_recurrence_equal_those_of_naive_in_double_precision(form):
    def gradients(function, dtype):
        leaves = [None if x is None else x.to(dtype).requires_grad_() for x in mixed_inputs(70, form)]
        out, last = function(*leaves)
        (out.sum() + (last**2).sum()).backward()
        return [leaf.grad for leaf in leaves if leaf is not None]

    assert close(gradients(chunk_exact, torch.float32), gradients(naive, torch.float64), 1e-4)
