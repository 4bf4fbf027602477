"""flash-linear-attention's kernels give what plain PyTorch gives: outputs, states and gradients.

They need flash-linear-attention (`pip install -e .[fla]`) and a GPU; or, in single precision and with patience,
triton's interpreter:

    TRITON_INTERPRET=1 FLA_DISABLE_BACKEND_DISPATCH=1 pytest tests/smalle/test_fla.py

Elsewhere all of this is skipped; when which path is taken, test_kernels.py tests everywhere.
"""

import builtins
import importlib
import os
import sys

import pytest
import torch

from smalle import SmallEConfig, SmallEForTextToSpeech
from smalle.linear_attention_smalle import KERNELS, naive, recurrence
from smalle.mixers_smalle import MIXERS, build_mixer, delta_naive, delta_rule, gated_delta_rule

GPU, INTERPRETER = torch.cuda.is_available(), os.environ.get("TRITON_INTERPRET") == "1"
DEVICE, LIMIT = ("cpu", 1e-4) if INTERPRETER or not GPU else ("cuda", 2e-2)  # kernels on a GPU round to TF32


def interpret():
    """Fills the gaps between fla's kernels and triton's interpreter on a machine that has no driver for a GPU."""
    from triton.runtime import autotuner

    def run(self, *args, **kwargs):
        """The first configuration, for none can be timed."""
        self.nargs = dict(zip(self.arg_names, args))
        config = (self.prune_configs(kwargs) if len(self.configs) > 1 else self.configs)[0]
        if config.pre_hook is not None:
            config.pre_hook({**self.nargs, **kwargs, **config.all_kwargs()})
        return self.fn.run(*args, **{**kwargs, **config.all_kwargs()})

    class Index(int):
        """Some kernels call .to() on the number of a loop."""

        def to(self, *args, **kwargs):
            return int(self)

    def loop(*bounds):
        values = (x.handle.data.item() if hasattr(x, "handle") else x for x in bounds)
        return map(Index, builtins.range(*map(int, values)))

    autotuner.Autotuner.run = run
    for kernel in KERNELS.values():
        importlib.import_module(f"fla.ops.{kernel.path.split('.')[0]}")
    for name, module in list(sys.modules.items()):
        if name.startswith(("fla.ops.", "fla.modules.")) and module is not None and hasattr(module, "tl"):
            module.range = loop
            module.IS_GATHER_SUPPORTED = False


def reason_to_skip():
    if not (INTERPRETER or GPU):
        return "needs a GPU, or TRITON_INTERPRET=1 for triton's interpreter"
    try:
        importlib.import_module("fla.ops.gla")
    except Exception as error:  # without triton the submodules of fla raise all kinds of errors
        return f"needs flash-linear-attention and triton: {error}"
    if INTERPRETER:
        interpret()


if reason := reason_to_skip():
    pytest.skip(reason, allow_module_level=True)


def relative(a, b):
    a, b = a.detach().double().cpu(), b.detach().double().cpu()
    return float((a - b).norm() / b.norm())


def assert_close(got, wanted, limit=LIMIT):
    for number, (a, b) in enumerate(zip(got, wanted, strict=True)):
        assert b.abs().max() > 0 and relative(a, b) < limit, f"part {number}: {relative(a, b):.1e}"


def gradients(function, *leaves):
    """Output, final states, and the gradients of all leaves, which must stay as they are."""
    leaves = [leaf.detach().clone().requires_grad_() for leaf in leaves]
    before = [leaf.detach().clone() for leaf in leaves]
    out, *states = function(*leaves)
    loss = (out * torch.linspace(-1, 1, out.numel(), device=out.device).view_as(out)).sum()
    (loss + sum((state**2).sum() for state in states)).backward()
    assert all(torch.equal(leaf, old) for leaf, old in zip(leaves, before, strict=True))
    return [out, *states, *(leaf.grad for leaf in leaves)]


def tensors(length, kind, heads=2, key=8, value=12):
    """Inputs of a recurrence, with decays from none to -30 a step where it may have such."""
    torch.manual_seed(length)
    by_head, delta = kind in ("head", "gated_delta"), "delta" in kind
    q, k = torch.randn(2, 2, length, 1 if kind == "head" else heads, key)
    k = torch.nn.functional.normalize(k, dim=-1) if delta else k
    v = torch.randn(2, length, heads, value)
    decay = -30 * torch.rand(2, length, heads, 1 if by_head else key) ** 8
    rate, state = torch.rand(2, length, heads, 1), torch.randn(2, heads, key, value)
    others = {
        "bonus": (decay, torch.randn(heads, key)),
        "gated_delta": (decay, rate),
        "delta": (-k, k * rate / 2, -0.6 * torch.rand(2, length, heads, key)),
    }.get(kind, (decay,))
    return [x.to(DEVICE) for x in (q, k, v, *others, state)]


def compute(kind, kernel):
    """A recurrence of that kind, as a function of `tensors`."""

    def plain(q, k, v, *others):
        *others, state = others
        if kind == "delta":
            return delta_rule(q, k, v, *others, state, kernel) if kernel else delta_naive(q, k, v, *others, state)
        if kind == "gated_delta" and kernel:
            return gated_delta_rule(q, k, v, *others, state, kernel)
        if kind == "gated_delta":
            decay, rate = others
            return delta_naive(q, rate * k, v, k, -rate * decay.exp() * k, decay, state)
        decay, *bonus = others
        return recurrence(q, k, v, decay, state, kernel, *bonus) if kernel else naive(q, k, v, decay, state, *bonus)

    return plain


@pytest.mark.parametrize("kind", KERNELS)
@pytest.mark.parametrize("length", [1, 37, 70])
def test_every_kernel_equals_the_naive_recurrence(kind, length):
    leaves = tensors(length, kind)
    assert_close(gradients(compute(kind, "fla"), *leaves), gradients(compute(kind, None), *leaves))


def reference(kind, q, k, v, *others):
    """fla's naive implementation; some want the heads before the steps, all divide queries by sqrt(K)."""
    from fla.ops.gated_delta_rule.naive import naive_recurrent_gated_delta_rule
    from fla.ops.generalized_delta_rule.dplr.naive import dplr_recurrence
    from fla.ops.gla.naive import naive_recurrent_gla
    from fla.ops.rwkv6.recurrent_naive import naive_recurrent_rwkv6
    from fla.ops.simple_gla.naive import naive_recurrent_simple_gla

    *others, state = others
    heads = v.shape[:3]
    q, k = q.expand(*heads, -1) * q.shape[-1] ** 0.5, k.expand(*heads, -1)
    if kind == "channel":
        return naive_recurrent_gla(q, k, v, *others, state, True)
    if kind == "head":
        return naive_recurrent_simple_gla(q, k, v, others[0].squeeze(-1), None, state, True)
    if kind == "gated_delta":
        decay, rate = (x.squeeze(-1) for x in others)
        return naive_recurrent_gated_delta_rule(q, k, v, rate, decay, None, state, True)
    inputs = [x.transpose(1, 2) if x.ndim == 4 else x for x in (q, k, v, *others)]
    if kind == "bonus":
        out, last = naive_recurrent_rwkv6(*inputs, None, state, True)
    else:
        out, last = dplr_recurrence(*inputs, state, True)
    return out.transpose(1, 2), last


@pytest.mark.parametrize("kind", KERNELS)
def test_plain_pytorch_equals_flas_naive_references(kind):
    leaves = tensors(70, kind)
    assert_close(gradients(compute(kind, "torch"), *leaves), gradients(lambda *x: reference(kind, *x), *leaves), 2e-5)


@pytest.mark.parametrize("kind", KERNELS)
def test_without_a_state_they_start_at_zero(kind):
    *leaves, state = tensors(20, kind)
    wanted = compute(kind, None)(*leaves, torch.zeros_like(state))
    assert_close(compute(kind, "fla")(*leaves, None), wanted)


@pytest.mark.parametrize("kind", KERNELS)
@torch.no_grad()
def test_kernels_take_the_lowest_of_mixed_precisions_and_keep_states_in_single(kind):
    q, k, v, *others = tensors(20, kind)
    wanted = compute(kind, None)(q, k, v, *others)
    for half in ((q.half(), k.half(), v), (q, k, v.half())):
        out, state = compute(kind, "fla")(*half, *others)
        assert out.dtype == half[2].dtype and state.dtype == torch.float32
        assert_close((out, state), wanted, max(LIMIT, 5e-3))


def mixer(config, name):
    torch.manual_seed(1)
    config = SmallEConfig(**{**config.to_dict(), "mixer": name, "state_size": 4})
    module = build_mixer(config, 16, 2, 1).to(DEVICE)
    module.apply(lambda part: hasattr(part, "init_parameters") and part.init_parameters())
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return module


with_kernel = pytest.mark.parametrize("name", [name for name in MIXERS if name != "mamba"])


@with_kernel
@pytest.mark.parametrize("padded", [False, True])
def test_every_mixer_is_the_same_by_fla_and_by_pytorch(tiny_config, name, padded):
    module = mixer(tiny_config, name)
    x, earlier = torch.randn(2, 50, 16, device=DEVICE), torch.randn(2, 4, 16, device=DEVICE)
    mask = torch.ones(2, 50, device=DEVICE)
    if padded:
        mask[0, :7] = mask[1, 40:] = 0
    with torch.no_grad():
        _, start = module(earlier)
    single = torch.is_tensor(start)

    def by(kernel):
        module.config.mixer_kernel = kernel
        module.zero_grad()

        def run(x, *state):
            out, last = module(x, mask if padded else None, state[0] if single else state)
            return out * mask[..., None], *((last,) if single else last)

        parts = gradients(run, x, *((start,) if single else start))
        return parts + [p.grad.clone() for p in module.parameters() if p.grad.abs().max() > 1e-6]

    assert_close(by("fla"), by("torch"))


def test_compiling_changes_nothing_and_breaks_only_at_the_kernel(tiny_config):
    module, x = mixer(tiny_config, "gla"), torch.randn(2, 20, 16, device=DEVICE)
    module.config.mixer_kernel = "fla"
    assert torch._dynamo.explain(module)(x).graph_break_count == 1
    assert_close(torch.compile(module, backend="eager")(x), module(x))


def test_mixer_kernel_chooses_the_path_of_a_model(tiny_config):
    torch.manual_seed(0)
    model = SmallEForTextToSpeech(tiny_config).to(DEVICE).eval()
    ids, codes = torch.randint(3, 60, (2, 7), device=DEVICE), torch.randint(0, 20, (2, 12, 3), device=DEVICE)

    @torch.no_grad()
    def logits(kernel):
        model.config.mixer_kernel = kernel
        return model(input_ids=ids, decoder_input_ids=codes).logits

    try:
        fla, plain = logits("fla"), logits("torch")
    finally:
        model.config.mixer_kernel = "auto"  # other tests share the configuration
    assert_close([fla], [plain])
    assert not torch.equal(fla, plain)


@pytest.mark.filterwarnings("ignore:According to Bo")
@torch.no_grad()
def test_rwkv7_starts_with_flas_initial_values(tiny_config):
    from fla.layers.rwkv7 import RWKV7Attention

    config = SmallEConfig(
        **{**tiny_config.to_dict(), "mixer": "rwkv7", "audio_encoder_layers": 2, "audio_decoder_layers": 2}
    )
    for index in (0, 1, 3):
        ours = build_mixer(config, 32, 2, index)
        ours.init_parameters()
        other = RWKV7Attention(hidden_size=32, head_dim=16, layer_idx=index, num_hidden_layers=4)
        time_mix = torch.cat([getattr(other, f"x_{part}").view(1, -1) for part in "rwkvag"])
        bias = {"decay": other.w_lora, "rate": other.a_lora}
        assert_close([ours.time_mix], [time_mix])
        assert_close([getattr(ours, part) for part in bias], [lora.lora[2].bias for lora in bias.values()])
        assert_close((ours.key_scale, ours.key_rate, ours.bonus), (other.k_k, other.k_a, other.r_k.flatten()))
        assert_close([ours.norm.weight], [other.g_norm.weight])
        assert ours.decay_down.shape[1] == other.w_lora.lora[0].weight.shape[0]
        assert ours.gate_down.shape[1] == other.g_lora.lora[0].weight.shape[0]
