"""Every mixer: parts with state = the whole, masked steps change nothing, right gradients, and the model with it.

Where transformers has a plain implementation of the same layer, ours equals it.
"""

import pytest
import torch
from torch import nn

from smalle import SmallEConfig, SmallEForTextToSpeech
from smalle.mixers_smalle import MIXERS, build_mixer, delta_naive, delta_rule, selective_scan

each_mixer = pytest.mark.parametrize("name", sorted(MIXERS))


def relative(a, b):
    a, b = a.detach().double(), b.detach().double()
    return float((a - b).norm() / b.norm())


def parts_of(state):
    """The tensors of a state, which may be one tensor."""
    return (state,) if torch.is_tensor(state) else tuple(state)


def close(got, wanted, limit=1e-5):
    """Tensors, or states of several, are equal up to a relative error."""
    got, wanted = parts_of(got), parts_of(wanted)
    return len(got) == len(wanted) and all(relative(a, b) < limit for a, b in zip(got, wanted, strict=True))


def mixer(config, name, size=16, heads=2, noise=0.1):
    """A mixer whose every part matters: the model's initial values, with noise on top."""
    torch.manual_seed(1)
    config = SmallEConfig(**{**config.to_dict(), "mixer": name, "state_size": 4})
    module = build_mixer(config, size, heads, 1)
    module.apply(lambda part: hasattr(part, "init_parameters") and part.init_parameters())
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(noise * torch.randn_like(parameter))
    return module


def inputs(length, size=16, batch=2):
    return torch.randn(batch, length, size, generator=torch.Generator().manual_seed(length))


def pieces(module, x, sizes, state=None):
    """Outputs and final state of x, fed in parts."""
    outputs = []
    for part in x.split(sizes, 1):
        y, state = module(part, None, state)
        outputs.append(y)
    return torch.cat(outputs, 1), state


@each_mixer
@torch.no_grad()
def test_whole_in_two_parts_and_step_by_step_are_equal(tiny_config, name):
    module, x = mixer(tiny_config, name), inputs(75)
    whole, last = module(x)
    for sizes in ([41, 34], [1] * 75):
        out, state = pieces(module, x, sizes)
        assert close(out, whole) and close(state, last)


@each_mixer
@torch.no_grad()
@pytest.mark.parametrize("size, heads", [(64, 1), (48, 3)])
def test_other_widths_work(tiny_config, name, size, heads):
    module, x = mixer(tiny_config, name, size, heads), inputs(9, size)
    whole, last = module(x)
    out, state = pieces(module, x, [4, 5])
    assert whole.shape == x.shape and close(out, whole) and close(state, last)


@each_mixer
@torch.no_grad()
@pytest.mark.parametrize("before, after", [(5, 0), (0, 7), (3, 2), (70, 0)])
def test_masked_steps_on_either_side_change_nothing(tiny_config, name, before, after):
    module, x = mixer(tiny_config, name), inputs(21)
    _, start = module(inputs(4))
    for state in (None, start):
        wanted, last = module(x, None, state)
        padded = torch.cat((inputs(before), x, inputs(after)), 1)
        mask = torch.zeros(padded.shape[:2])
        mask[:, before : before + 21] = 1
        got, got_last = module(padded, mask, state)
        assert close(got[:, before : before + 21], wanted) and close(got_last, last)


@each_mixer
@torch.no_grad()
def test_rows_with_masks_of_their_own_equal_single_rows(tiny_config, name):
    module, x = mixer(tiny_config, name), inputs(20, batch=3)
    mask = torch.rand(3, 20, generator=torch.Generator().manual_seed(0)) < torch.tensor([[0.8], [0.3], [1.0]])
    got, state = module(x, mask)
    for row in range(3):
        wanted, last = module(x[row][mask[row]][None])
        assert close(got[row][mask[row]][None], wanted)
        assert close([part[row : row + 1] for part in parts_of(state)], last)


@each_mixer
@torch.no_grad()
def test_a_masked_single_step_keeps_the_state(tiny_config, name):
    module = mixer(tiny_config, name)
    _, state = module(inputs(9))
    _, after = module(inputs(1), torch.zeros(2, 1), state)
    assert close(after, state, 1e-6)


def leaves_of(module, x):
    """x and a state to start from, as leaves, and what makes a state of the latter."""
    with torch.no_grad():
        _, state = module(inputs(5, x.shape[-1], x.shape[0]).to(x.dtype))
    leaves = [part.detach().clone().requires_grad_() for part in (x, *parts_of(state))]
    return leaves, (lambda parts: parts[0] if torch.is_tensor(state) else tuple(parts))


def loss_of(out, state):
    weight = torch.linspace(-1, 1, out.numel(), dtype=out.dtype).view_as(out)
    return (out * weight).sum() + sum((part.to(out.dtype) ** 2).sum() for part in parts_of(state))


@each_mixer
def test_gradients_equal_those_of_double_precision_and_reach_the_initial_state(tiny_config, name):
    module = mixer(tiny_config, name)
    leaves, packed = leaves_of(module, inputs(37))

    def gradients(dtype):
        module.to(dtype)
        x, *state = (leaf.detach().to(dtype).requires_grad_() for leaf in leaves)
        loss = loss_of(*module(x, None, packed(state)))
        return torch.autograd.grad(loss, [x, *state, *module.parameters()])

    for got, wanted in zip(gradients(torch.float32), gradients(torch.float64), strict=True):
        assert relative(got, wanted) < 1e-4 or wanted.abs().max() < 1e-8


@each_mixer
def test_gradients_of_whole_and_parts_are_equal_also_of_the_initial_state(tiny_config, name):
    module = mixer(tiny_config, name).double()
    leaves, packed = leaves_of(module, inputs(75).double())
    leaves_and_weights = [*leaves, *(p for p in module.parameters())]

    def gradients(sizes):
        loss = loss_of(*pieces(module, leaves[0], sizes, packed(leaves[1:])))
        return torch.autograd.grad(loss, leaves_and_weights)

    whole = gradients(75)
    for sizes in ([41, 34], [1] * 75):
        for got, wanted in zip(gradients(sizes), whole, strict=True):
            assert relative(got, wanted) < 1e-7 or wanted.abs().max() < 1e-9


@each_mixer
def test_gradients_equal_finite_differences(tiny_config, name):
    module = mixer(tiny_config, name, 8).double()
    leaves, packed = leaves_of(module, inputs(6, 8, batch=1).double())
    names, weights = zip(*module.named_parameters())
    count = len(leaves)

    def function(*values):
        call = dict(zip(names, values[count:])), (values[0], None, packed(values[1:count]))
        out, state = torch.func.functional_call(module, *call)
        return out, *parts_of(state)

    assert torch.autograd.gradcheck(function, (*leaves, *weights), fast_mode=True)


@each_mixer
@pytest.mark.parametrize("before, after", [(5, 0), (0, 7), (3, 2)])
def test_gradients_with_masked_steps_equal_those_without(tiny_config, name, before, after):
    module = mixer(tiny_config, name)
    leaves, packed = leaves_of(module, inputs(21))

    def gradients(before, after):
        x = torch.cat((inputs(before), leaves[0], inputs(after)), 1)
        mask = torch.zeros(x.shape[:2])
        mask[:, before : before + 21] = 1
        out, state = module(x, mask if before + after else None, packed(leaves[1:]))
        return torch.autograd.grad(loss_of(out[:, before : before + 21], state), [*leaves, *module.parameters()])

    for got, wanted in zip(gradients(before, after), gradients(0, 0), strict=True):
        assert relative(got, wanted) < 1e-5 or wanted.abs().max() < 1e-6


def stays_finite(module):
    """Over 8,000 steps, with loud input."""
    out, state = module(3 * inputs(8000, batch=1))
    out.sum().backward()
    assert out.isfinite().all() and all(p.grad.isfinite().all() for p in module.parameters())
    assert all(part.isfinite().all() for part in parts_of(state))


@each_mixer
def test_8000_steps_stay_finite(tiny_config, name):
    stays_finite(mixer(tiny_config, name))


STRONG = {
    "gla": ("decay_up_proj.bias", -2000.0),
    "rwkv5": ("decay", 3.4),
    "rwkv6": ("decay", 3.4),
    "rwkv7": ("decay", 9.0),
    "mamba": ("A_log", 5.0),
    "mamba2": ("A_log", 5.0),
    "gated_deltanet": ("A_log", 5.0),
}


@torch.no_grad()
@pytest.mark.parametrize("name", STRONG)
@pytest.mark.parametrize("every", [1, 3])
def test_strong_decays_are_exact(tiny_config, name, every):
    module, x = mixer(tiny_config, name), inputs(150)
    parameter, value = STRONG[name]
    module.get_parameter(parameter)[::every] = value
    whole, last = module(x)
    out, state = pieces(module, x, [1] * 150)
    assert close(out, whole) and close(state, last)


@pytest.mark.parametrize("name", STRONG)
def test_8000_steps_with_strong_decays_stay_finite(tiny_config, name):
    module = mixer(tiny_config, name)
    parameter, value = STRONG[name]
    with torch.no_grad():
        module.get_parameter(parameter)[::2] = value
    stays_finite(module)


def delta_inputs(length, form, heads=2, key=8, value=12):
    torch.manual_seed(length)
    q, k, a = nn.functional.normalize(torch.randn(3, 2, length, heads, key), dim=-1)
    v, rate = torch.randn(2, length, heads, value), torch.rand(2, length, heads, 1)
    decay = (-30 * torch.rand(2, length, heads, 1) ** 8) if form == "head" else -torch.rand(2, length, heads, key)
    return q, k, v, a, -rate * a * decay.exp().amin(-1, keepdim=True), decay, torch.randn(2, heads, key, value)


@pytest.mark.parametrize("form", ["channel", "head"])
@pytest.mark.parametrize("length", [1, 2, 15, 64, 65, 200])
def test_delta_rule_in_chunks_equals_step_by_step(form, length):
    arguments = delta_inputs(length, form)
    assert close(delta_rule(*arguments), delta_naive(*arguments), 5e-6)
    assert close(delta_rule(*arguments[:-1]), delta_naive(*arguments[:-1]), 5e-6)


def test_delta_rule_equals_that_of_qwen3_next():
    reference = pytest.importorskip("transformers.models.qwen3_next.modeling_qwen3_next")
    torch.manual_seed(0)
    q, k = torch.randn(2, 2, 100, 2, 8)
    v, g, beta = torch.randn(2, 100, 2, 12), -torch.rand(2, 100, 2), torch.rand(2, 100, 2)
    state = torch.randn(2, 2, 8, 12)
    unit = nn.functional.normalize(k, dim=-1)
    query, rate, decay = nn.functional.normalize(q, dim=-1) * 8**-0.5, beta[..., None], g[..., None]
    got = delta_rule(query, rate * unit, v, unit, -rate * decay.exp() * unit, decay, state)
    for function in (reference.torch_recurrent_gated_delta_rule, reference.torch_chunk_gated_delta_rule):
        settings = dict(initial_state=state, output_final_state=True, use_qk_l2norm_in_kernel=True)
        assert close(got, function(q, k, v, g=g, beta=beta, **settings))


def with_changes(x):
    """Each step of x (T, D) and the change from it to the step before."""
    return zip(x, torch.cat((torch.zeros_like(x[:1]), x[:-1])) - x, strict=True)


@torch.no_grad()
@pytest.mark.parametrize("name", ["rwkv5", "rwkv6"])
def test_rwkv5_and_6_equal_the_papers_steps(tiny_config, name):
    m, x = mixer(tiny_config, name), inputs(20, batch=1)[0]
    share, state, outputs = dict(zip(m.inputs, m.time_mix, strict=True)), torch.zeros(2, 8, 8), []
    for now, change in with_changes(x):
        w = torch.exp(-torch.exp(m.decay))
        mu = share
        if name == "rwkv6":
            low = torch.tanh((now + change * m.time_mix_x[0]) @ m.time_mix_down).view(5, 32)
            mu = {part: share[part] + low[n] @ m.time_mix_up[n] for n, part in enumerate("wkvrg")}
            w = torch.exp(-torch.exp(m.decay + torch.tanh((now + change * mu["w"]) @ m.decay_down) @ m.decay_up))
        r, k, v, g = (getattr(m, f"{part}_proj")(now + change * mu[part]) for part in "rkvg")
        update = k.view(2, 8, 1) * v.view(2, 1, 8)
        out = r.view(2, 1, 8) @ (state + m.bonus.view(2, 8, 1) * update)
        state = w.view(2, 8, 1) * state + update
        normed = nn.functional.group_norm(out.view(1, 16), 2, m.norm.weight, m.norm.bias, 64e-5)[0]
        outputs.append(m.o_proj(normed * nn.functional.silu(g)))
    got, (last, _) = m(x[None])
    assert close((got[0], last[0]), (torch.stack(outputs), state))


@torch.no_grad()
def test_rwkv7_equals_the_papers_steps(tiny_config):
    m, x, state, outputs = mixer(tiny_config, "rwkv7"), inputs(20, batch=1)[0], torch.zeros(2, 8, 8), []
    for now, change in with_changes(x):
        xr, xw, xk, xv, xa, xg = (now + change * share for share in m.time_mix)
        w = m.decay + torch.tanh(xw @ m.decay_down) @ m.decay_up
        w = torch.exp(-torch.exp(-nn.functional.softplus(-w) - 0.5)).view(2, 1, 8)
        a = torch.sigmoid(m.rate + xa @ m.rate_down @ m.rate_up)
        r, k, v = m.r_proj(xr), m.k_proj(xk), m.v_proj(xv)
        kappa = nn.functional.normalize((k * m.key_scale).view(2, 1, 8), dim=-1)
        k = k * (1 + (a - 1) * m.key_rate)
        state = state * w - (state @ kappa.mT) @ (kappa * a.view(2, 1, 8)) + v.view(2, 8, 1) * k.view(2, 1, 8)
        out = nn.functional.group_norm((state @ r.view(2, 8, 1)).view(1, 16), 2, m.norm.weight, m.norm.bias, 64e-5)[0]
        out = out + ((r * k * m.bonus).view(2, 8).sum(-1, keepdim=True) * v.view(2, 8)).view(16)
        outputs.append(m.o_proj(out * (torch.sigmoid(xg @ m.gate_down) @ m.gate_up)))
    got, (last, _) = m(x[None])
    assert close((got[0], last[0]), (torch.stack(outputs), state.mT))


@torch.no_grad()
def test_retention_equals_its_parallel_form(tiny_config):
    module, x = mixer(tiny_config, "retnet"), inputs(30)
    q, k, v, gate = (
        layer(x).unflatten(-1, (2, -1)).transpose(1, 2)
        for layer in (module.q_proj, module.k_proj, module.v_proj, module.g_proj)
    )
    half = q.shape[-1] // 2
    age = torch.arange(30)[:, None] - torch.arange(30)
    spin = torch.exp(1j * age[..., None] * 10000.0 ** -torch.linspace(0, 1, half))
    q, k = (torch.complex(part[..., :half], part[..., half:]) for part in (q, k))
    scores = torch.einsum("bhid,ijd,bhjd->bhij", q.conj(), spin.conj(), k).real * (2 * half) ** -0.5
    gamma = 1 - 2.0 ** -torch.tensor([5.0, 6.0])
    out = (scores * (gamma[:, None, None] ** age).tril()) @ v
    out = module.norm(out) * nn.functional.silu(gate)
    assert close(module(x)[0], module.o_proj(out.transpose(1, 2).flatten(-2)))


def test_long_selective_scans_that_save_memory_have_the_same_gradients():
    torch.manual_seed(0)
    x, dt = torch.randn(1, 600, 3), torch.rand(1, 600, 3)
    A, B, C = -torch.rand(3, 4), torch.randn(1, 600, 4), torch.randn(1, 600, 4)

    def gradients(parts):
        leaves = [part.clone().requires_grad_() for part in (x, dt, A, B, C)]
        state, total = None, 0
        for start in range(0, 600, parts):
            rows = slice(start, start + parts)
            y, state = selective_scan(
                leaves[0][:, rows], leaves[1][:, rows], leaves[2], leaves[3][:, rows], leaves[4][:, rows], state
            )
            total = total + (y**2).sum()
        (total + state.sum()).backward()
        return [leaf.grad for leaf in leaves]

    assert close(gradients(600), gradients(60))


def renamed(module, names):
    """State dict with the names of another implementation."""
    weights = {}
    for name, value in module.state_dict().items():
        for ours, theirs in names.items():
            name = name.replace(ours, theirs) if name.startswith(ours) else name
        weights[name] = value
    return weights


@torch.no_grad()
def test_mamba_equals_that_of_transformers(tiny_config):
    reference = pytest.importorskip("transformers.models.mamba.modeling_mamba")
    sizes = dict(hidden_size=16, state_size=4, expand=1, num_hidden_layers=1)
    config = reference.MambaConfig(**sizes, use_associative_scan=False)
    module, other = mixer(tiny_config, "mamba"), reference.MambaMixer(config, 0).eval()
    other.load_state_dict(renamed(module, {"conv.": "conv1d.", "o_proj": "out_proj"}))
    x = inputs(40)
    assert close(module(x)[0], other(x))


@torch.no_grad()
def test_mamba2_equals_that_of_transformers(tiny_config):
    reference = pytest.importorskip("transformers.models.mamba2.modeling_mamba2")
    config = reference.Mamba2Config(
        hidden_size=16, state_size=4, expand=1, num_heads=2, head_dim=8, n_groups=1, chunk_size=16, num_hidden_layers=1
    )
    module, other = mixer(tiny_config, "mamba2"), reference.Mamba2Mixer(config, 0).eval()
    other.load_state_dict(renamed(module, {"conv.": "conv1d.", "o_proj": "out_proj"}))
    x = inputs(40)
    assert close(module(x)[0], other(x))


@torch.no_grad()
def test_gated_deltanet_equals_that_of_transformers(tiny_config):
    reference = pytest.importorskip("transformers.models.olmo_hybrid.modeling_olmo_hybrid")
    config = reference.OlmoHybridConfig(
        hidden_size=16,
        linear_num_key_heads=2,
        linear_num_value_heads=2,
        linear_key_head_dim=4,
        linear_value_head_dim=8,
        linear_conv_kernel_dim=4,
        linear_allow_neg_eigval=False,
        num_hidden_layers=2,
        layer_types=["linear_attention", "full_attention"],
        num_attention_heads=2,
        num_key_value_heads=2,
    )
    module, other = mixer(tiny_config, "gated_deltanet"), reference.OlmoHybridGatedDeltaNet(config, 0).eval()
    names = {"conv.": "conv1d.", "norm.": "o_norm.", "decay_proj": "a_proj", "beta_proj": "b_proj"}
    other.load_state_dict(renamed(module, names))
    x = inputs(40)
    assert close(module(x)[0], other(x))


def model_with(config, name):
    torch.manual_seed(0)
    return SmallEForTextToSpeech(SmallEConfig(**{**config.to_dict(), "mixer": name, "state_size": 4}))


def speech(config):
    torch.manual_seed(2)
    codes = torch.randint(0, config.audio_vocab_size, (2, 12, config.num_codebooks))
    return torch.randint(3, config.vocab_size, (2, 7)), codes


@each_mixer
def test_model_trains_a_step_and_loads_what_it_saved(tiny_config, name, tmp_path):
    model, (ids, codes) = model_with(tiny_config, name), speech(tiny_config)
    optimizer = torch.optim.SGD(model.parameters(), 0.05)
    losses = []
    for _ in range(2):
        loss = model(input_ids=ids, decoder_input_ids=codes, labels=codes).loss
        loss.backward()
        assert [part for part, p in model.named_parameters() if p.grad is None or not p.grad.isfinite().all()] == []
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[1] < losses[0]
    model.eval().save_pretrained(tmp_path)
    again = SmallEForTextToSpeech.from_pretrained(tmp_path).eval()
    with torch.no_grad():
        wanted = model(input_ids=ids, decoder_input_ids=codes).logits
        assert torch.equal(again(input_ids=ids, decoder_input_ids=codes).logits, wanted)


@each_mixer
def test_generated_batch_equals_single_texts_and_prompts(tiny_config, name):
    model = model_with(tiny_config, name).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    ids, mask = torch.randint(3, 60, (2, 8)), torch.ones(2, 8).long()
    prompts, prompt_mask = torch.randint(0, 20, (2, 6, 3)), torch.ones(2, 6).long()
    mask[1, :3] = prompt_mask[1, 4:] = 0
    settings = dict(do_sample=False, return_dict_in_generate=True, max_new_tokens=8)
    both = model.generate(ids, mask, prompts, prompt_mask, **settings)
    for row in range(2):
        text, prompt = ids[row][mask[row].bool()][None], prompts[row][prompt_mask[row].bool()][None]
        alone = model.generate(text, None, prompt, **settings)
        length = int(alone.lengths[0])
        assert both.lengths[row] == length and torch.equal(both.sequences[row, :length], alone.sequences[0])


@each_mixer
def test_checkpointing_changes_nothing_and_half_precision_little_and_no_states(tiny_config, name):
    model, (ids, codes) = model_with(tiny_config, name), speech(tiny_config)

    def gradient():
        model.zero_grad()
        out = model(input_ids=ids, decoder_input_ids=codes, labels=codes, use_cache=True)
        out.loss.backward()
        return out.logits, torch.cat([p.grad.flatten() for p in model.parameters()])

    logits, wanted = gradient()
    with torch.autocast("cpu", torch.bfloat16):
        near, finite = gradient()
        assert relative(near, logits) < 0.02 and finite.isfinite().all()
    model.gradient_checkpointing_enable()
    model.train()
    assert relative(gradient()[1], wanted) < 1e-5
    model.bfloat16().eval()
    state = model(input_ids=ids, decoder_input_ids=codes, use_cache=True).cache
    state = model(decoder_input_ids=codes[:, :1], cache=state, use_cache=True).cache
    for part in state.recurrent:
        assert {x.dtype for x in parts_of(part)} == {torch.float32}


@each_mixer
def test_initial_values_are_finite_and_not_left_to_chance(tiny_config, name):
    first, second = (dict(model_with(tiny_config, name).named_parameters()) for _ in range(2))
    assert all(value.isfinite().all() and torch.equal(value, second[part]) for part, value in first.items())


@torch.no_grad()
def test_initial_decays_are_spread_as_published(tiny_config):
    def own(name):
        return model_with(tiny_config, name).model.audio_decoder[1].mixer

    for name in ("rwkv5", "rwkv6"):
        decay = own(name).decay  # the last block
        assert abs(float(decay[0]) + 6) < 1e-5 and abs(float(decay[-1]) + 1) < 1e-5 and (decay.diff() > 0).all()
    decay = own("rwkv7").decay
    assert abs(float(decay[0]) + 8) < 1e-5 and abs(float(decay[-1]) - 3) < 1e-5
    assert (own("gla").decay_up_proj.bias == 0).all() and own("gla").decay_up_proj.weight.std() < 0.03
    assert torch.equal(own("mamba").A_log.exp().round(), torch.arange(1.0, 5).expand(32, 4))
    for name, shortest in (("mamba", 1e-3), ("mamba2", 1e-3), ("gated_deltanet", 1e-3)):
        module = own(name)
        step = nn.functional.softplus(module.dt_proj.bias if name == "mamba" else module.dt_bias)
        assert step.min() >= 0.99 * shortest and step.max() <= 0.101
    assert (own("mamba2").A_log.exp() >= 1).all() and (own("mamba2").A_log.exp() <= 16).all()


@pytest.mark.parametrize("name", ["gla", "retnet", "rwkv6", "rwkv7", "mamba2", "gated_deltanet"])
def test_heads_that_do_not_fit_are_refused(tiny_config, name):
    with pytest.raises(ValueError, match="multiple of the mixer's heads"):
        mixer(tiny_config, name, 16, 3)


def test_odd_rotations_are_refused(tiny_config):
    with pytest.raises(ValueError, match="must be even"):
        mixer(tiny_config, "retnet", 4, 2)
