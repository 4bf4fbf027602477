"""The C library decodes what PyTorch decodes, by every set of instructions, and writes nothing beyond its memory."""

import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
import torch

from smalle import native_smalle
from smalle.codec_smalle import LatentRefiner, SmallECodecConfig
from smalle.native_smalle import DecoderState, choose_kernels, load_library
from smalle.vocos_smalle import Vocos, VocosConfig, VocosState

KERNELS = "plain", "avx2", "avx_vnni", "avx512_vnni", "neon_dot"
SMALL = dict(input_channels=12, hidden_size=40, intermediate_size=52, num_hidden_layers=2)
SHAPES = {
    "harmonic": dict(excitation="harmonic", n_fft=120, hop_length=60, upsampling=2),
    "magnitude and phase": dict(n_fft=150, hop_length=50),
    "an odd factor": dict(n_fft=154, hop_length=44, kernel_size=5),
    "center": dict(n_fft=160, hop_length=40, padding="center"),
    "bandwidths": dict(n_fft=160, hop_length=40, num_bandwidths=3),
}


@pytest.fixture(scope="module")
def library():
    library, reason = load_library()
    if library is None:
        pytest.skip(reason)
    return library


@pytest.fixture(params=KERNELS)
def kernels(request, library):
    try:
        choose_kernels(library, request.param)
    except ValueError as error:
        pytest.skip(str(error))
    yield request.param
    choose_kernels(library)


def loud(module):
    """A module in which every part matters: initial weights are near zero."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
    return module.eval()


def make_vocos(shape):
    torch.manual_seed(0)
    return loud(Vocos(VocosConfig(**SMALL, **SHAPES[shape])))


def make_refiner():
    torch.manual_seed(0)
    sizes = dict(latent_size=12, refiner_hidden_size=20, refiner_intermediate_size=28, refiner_num_layers=2)
    refiner = loud(LatentRefiner(SmallECodecConfig(**sizes)))
    refiner.latent_scale.uniform_(0.5, 2), refiner.rest_scale.uniform_(0.1, 0.5)
    return refiner


def decode(vocos, runtime, refiner=None, frames=60):
    vocos.runtime = runtime
    features = torch.randn(2, 12, frames, generator=torch.Generator().manual_seed(1))
    bandwidth = 1 if vocos.config.num_bandwidths else None
    first, state = vocos.decode_chunk(features[..., :50], None, False, bandwidth, refiner)
    assert isinstance(state, VocosState) == (runtime == "torch")
    second, _ = vocos.decode_chunk(features[..., 50:], state, True, bandwidth, refiner)
    return torch.cat((first, second), 1)


@pytest.mark.parametrize("refined", [False, True])
@pytest.mark.parametrize("shape", SHAPES)
def test_it_decodes_what_pytorch_decodes(kernels, shape, refined):
    vocos, refiner = make_vocos(shape), make_refiner() if refined else None
    expected = decode(vocos, "torch", refiner)
    wave = decode(vocos, "auto", refiner)
    assert wave.shape == expected.shape and expected.abs().max() > 1e-3
    # the phase of pulses adds up rounding, and a sample where a harmonic comes in may have it or not
    assert (wave - expected).norm() <= (2e-3 if shape == "harmonic" else 1e-5) * expected.norm()


def test_pytorch_decodes_what_the_library_does_not(library):
    vocos = make_vocos("bandwidths")
    features = torch.randn(2, 12, 9)
    mixed = torch.tensor([0, 2])
    assert isinstance(vocos.decode_chunk(features, bandwidth_id=mixed)[1], VocosState)
    assert isinstance(vocos.double().decode_chunk(features.double(), bandwidth_id=1)[1], VocosState)
    assert isinstance(vocos.float().decode_chunk(features, bandwidth_id=1)[1][0], DecoderState)


def test_changed_weights_are_taken(library):
    vocos = make_vocos("harmonic")
    before = decode(vocos, "auto")
    with torch.no_grad():
        vocos.head.out.bias.add_(0.1)
    after, expected = decode(vocos, "auto"), decode(vocos, "torch")
    assert not torch.equal(before, after) and (after - expected).norm() <= 5e-3 * expected.norm()


@pytest.mark.parametrize("frames", [50, 51, 60, 130, 300])
@pytest.mark.parametrize("shape", SHAPES)
def test_nothing_is_written_beyond_its_memory(library, shape, frames, monkeypatch):
    guards, aligned = [], native_smalle.aligned

    def guarded(shape, kind=np.float32):
        if kind is not np.uint8:
            return aligned(shape, kind)
        whole = aligned(shape + 4096, kind)
        whole[shape:] = 171
        guards.append(whole[shape:])
        return whole[:shape]

    monkeypatch.setattr(native_smalle, "aligned", guarded)
    decode(make_vocos(shape), "auto", make_refiner(), frames)
    assert len(guards) > 5 and all((guard == 171).all() for guard in guards)


def printed(compiler, emulator, program):
    """What check_vocos.c prints for a processor: samples by kernels, of both kinds of heads."""
    source = Path(__file__).with_name("check_vocos.c")
    subprocess.run([*compiler.split(), "-O1", "-w", source, "-o", program, "-lm"], check=True)
    done = subprocess.run([*emulator.split(), program], capture_output=True, text=True, check=True)
    lines = [line.split() for line in done.stdout.splitlines()]
    return [(line[0], np.array(line[1:], float)) for line in lines]


def test_processors_of_other_makes_decode_the_same(tmp_path):
    if not all(map(shutil.which, ("cc", "aarch64-linux-gnu-gcc", "qemu-aarch64"))):
        pytest.skip("cc, aarch64-linux-gnu-gcc or qemu-aarch64 is not installed")
    here = printed("cc", "", str(tmp_path / "here"))
    there = printed("aarch64-linux-gnu-gcc -static", "qemu-aarch64 -cpu max", str(tmp_path / "there"))
    assert {name for name, _ in there} == {"neon_dot", "plain"}
    for n, (_, samples) in enumerate(there):
        expected = here[0 if n < len(there) / 2 else -1][1]
        assert expected[0] == 2400 and np.abs(expected[1:]).max() > 1e-3
        np.testing.assert_allclose(samples, expected, atol=5e-3 * np.abs(expected[1:]).max())
