"""EnCodec and Vocos equal the packages that published them, on checkpoints in the published forms.

Skipped where pip cannot bring the two packages (see tests/codec_oracle.py).
"""

import importlib.util
import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import EncodecConfig

from smalle.codec_smalle import VOCOS_BANDWIDTHS, EncodecCodec, load_codec, load_vocos

spec = importlib.util.spec_from_file_location("codec_oracle", Path(__file__).parents[1] / "codec_oracle.py")
codec_oracle = importlib.util.module_from_spec(spec)
spec.loader.exec_module(codec_oracle)


def published_name(name):
    """Parameter name of the encodec package -> that of facebook/encodec_24khz on the Hub."""
    for old, new in (
        (".model.", ".layers."),
        (".conv.conv.", ".conv."),
        (".convtr.convtr.", ".conv."),
        ("quantizer.vq.", "quantizer."),
        ("._codebook.", ".codebook."),
    ):
        name = name.replace(old, new)
    return name


@pytest.fixture(scope="module")
def oracle(tmp_path_factory):
    """A folder with EnCodec as the Hub has it, Vocos in its vocos/ as the Hub has it; what the packages compute."""
    folder = tmp_path_factory.mktemp("oracle")
    try:
        codec_oracle.make(folder)
    except codec_oracle.OracleUnavailable as error:
        pytest.skip(str(error))
    state = {published_name(name): value for name, value in load_file(folder / "encodec.safetensors").items()}
    save_file(state, folder / "model.safetensors", {"format": "pt"})
    (folder / "config.json").write_text(json.dumps(EncodecConfig().to_dict()))
    return folder, load_file(folder / "reference.safetensors")


@pytest.mark.parametrize("bandwidth", VOCOS_BANDWIDTHS)
def test_codes_and_waveform_equal_the_packages(oracle, bandwidth):
    folder, reference = oracle
    codec = load_codec(str(folder), bandwidth=bandwidth)
    codes, audio = reference[f"codes {bandwidth}"], reference[f"audio {bandwidth}"]
    assert codes.unique().numel() > 10 and audio.std() > 1e-2  # the oracle says something
    assert isinstance(codec, EncodecCodec)
    assert torch.equal(codec.encode(reference["waveform"]), codes)
    torch.testing.assert_close(codec.decode(codes), audio, atol=1e-5, rtol=0)


def test_published_vocos_is_recognised_and_saved_in_our_form(oracle, tmp_path):
    folder, reference = oracle
    vocos = load_vocos(str(folder / "vocos"))
    config = vocos.config
    assert (config.padding, config.n_fft, config.hop_length, config.num_bandwidths) == ("same", 1280, 320, 4)
    assert (config.hidden_size, config.intermediate_size, config.num_hidden_layers) == (384, 1152, 8)
    vocos.save_pretrained(tmp_path)
    features = load_codec(str(folder)).embed(reference["codes 3.0"])
    assert torch.equal(load_vocos(str(tmp_path))(features, 1), vocos(features, 1))
