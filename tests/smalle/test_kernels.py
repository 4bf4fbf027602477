"""Which path a mixer takes: chosen by device and by what is installed, and overridable by `mixer_kernel`."""

import json
import sys
from types import SimpleNamespace

import pytest
import torch

from smalle import SmallEConfig, SmallEForTextToSpeech, linear_attention_smalle
from smalle.linear_attention_smalle import KERNELS, fla_kernel
from smalle.mixers_smalle import MIXERS, build_mixer

each_kind = pytest.mark.parametrize("kind", KERNELS)


@pytest.fixture
def machine(monkeypatch):
    """Pretends that fla is installed or not, and that its GPU is sound or not."""

    def pretend(has_fla=True, wrong=False):
        monkeypatch.delenv("TRITON_INTERPRET", raising=False)
        monkeypatch.setattr(linear_attention_smalle, "installed", lambda path: has_fla)
        monkeypatch.setattr(linear_attention_smalle, "miscompiled", lambda: wrong)

    return pretend


def keys(length=9, width=64, dtype=torch.float32, device="cuda"):
    """What `fla_kernel` looks at of the keys."""
    device = torch.device(device)
    return SimpleNamespace(shape=(2, length, 2, width), dtype=dtype, device=device, is_cuda=device.type == "cuda")


@each_kind
def test_auto_takes_fla_for_several_steps_on_a_gpu_where_it_is_installed(machine, kind, monkeypatch):
    machine()
    assert fla_kernel(kind, "auto", keys()) is not None
    assert fla_kernel(kind, "auto", keys(dtype=torch.bfloat16)) is not None
    for other in (keys(length=1), keys(device="cpu"), keys(device="mps"), keys(dtype=torch.float64)):
        assert fla_kernel(kind, "auto", other) is None
    assert fla_kernel(kind, "torch", keys()) is None
    assert fla_kernel(None, "auto", keys()) is None
    with monkeypatch.context() as exporting:
        exporting.setattr(torch.compiler, "is_exporting", lambda: True)
        assert fla_kernel(kind, "auto", keys()) is None
    machine(has_fla=False)
    assert fla_kernel(kind, "auto", keys()) is None


@each_kind
def test_auto_leaves_out_what_triton_gets_wrong_and_what_does_not_fit(machine, kind):
    machine(wrong=True)
    assert (fla_kernel(kind, "auto", keys()) is None) == (kind in ("head", "gated_delta"))
    assert fla_kernel(kind, "fla", keys()) is not None  # who insists hears of it from fla
    machine()
    assert (fla_kernel(kind, "auto", keys(width=257)) is None) == ("delta" in kind)


@pytest.mark.parametrize(
    "hopper, recent, latest, wrong",
    [(True, True, False, True), (True, True, True, False), (True, False, False, False), (False, True, False, False)],
)
def test_hopper_below_triton_3_7_1_is_known(monkeypatch, hopper, recent, latest, wrong):
    utils = SimpleNamespace(IS_NVIDIA_HOPPER=hopper, TRITON_ABOVE_3_4_0=recent, TRITON_ABOVE_3_7_1=latest)
    monkeypatch.setitem(sys.modules, "fla", SimpleNamespace(utils=utils))
    monkeypatch.setitem(sys.modules, "fla.utils", utils)
    assert linear_attention_smalle.miscompiled.__wrapped__() == wrong


def test_who_insists_on_fla_hears_why_it_cannot_be(machine):
    machine()
    for kind, k, reason in (
        (None, keys(), "no kernel for this mixer"),
        ("delta", keys(width=300), "300 channels, the kernel takes 256"),
        ("channel", keys(device="cpu"), "the input is on the CPU"),
    ):
        with pytest.raises(ValueError, match=reason):
            fla_kernel(kind, "fla", k)
    machine(has_fla=False)
    with pytest.raises(ValueError, match=r"the extra fla"):
        fla_kernel("channel", "fla", keys())


@pytest.mark.parametrize("name", MIXERS)
def test_every_mixer_obeys_the_configuration_at_any_time(tiny_config, machine, name):
    machine()
    config = SmallEConfig(**{**tiny_config.to_dict(), "mixer": name, "state_size": 4})
    mixer, x = build_mixer(config, 16, 2), torch.randn(1, 5, 16)
    mixer.apply(lambda part: hasattr(part, "init_parameters") and part.init_parameters())
    for kernel, reason in (("fla", "mixer_kernel='fla' cannot be used"), ("cuda", "expected one of 'auto'")):
        config.mixer_kernel = kernel
        with pytest.raises(ValueError, match=reason):
            mixer(x)
    config.mixer_kernel = "auto"
    mixer(x)


def test_the_choice_is_refused_if_unknown_made_on_loading_and_not_saved(tiny_config, tmp_path):
    with pytest.raises(ValueError, match="mixer_kernel='triton': expected one of auto, torch, fla"):
        SmallEConfig(mixer_kernel="triton")
    SmallEForTextToSpeech(SmallEConfig(**tiny_config.to_dict(), mixer_kernel="fla")).save_pretrained(tmp_path)
    assert "mixer_kernel" not in json.loads((tmp_path / "config.json").read_text())
    assert SmallEForTextToSpeech.from_pretrained(tmp_path).config.mixer_kernel == "auto"
    model = SmallEForTextToSpeech.from_pretrained(tmp_path, mixer_kernel="torch")
    assert model.config.mixer_kernel == model.model.audio_encoder[0].mixer.config.mixer_kernel == "torch"
