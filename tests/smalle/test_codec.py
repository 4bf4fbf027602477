"""Codecs: shapes, padding, storage, EnCodec with Vocos, and what they refuse."""

import copy
import json
import re

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import EncodecConfig, EncodecModel

from smalle.codec_smalle import (
    BandExtension,
    EncodecCodec,
    SmallECodec,
    SmallECodecConfig,
    load_codec,
    load_vocos,
    mel_magnitudes,
    occupied_bands,
)
from smalle.vocos_smalle import Vocos, VocosConfig, convert_original, inverse_stft, pulse_train

TINY = {
    "latent_size": 16,
    "num_codebooks": 3,
    "codebook_size": 32,
    "vocos_hidden_size": 16,
    "vocos_intermediate_size": 32,
    "vocos_num_layers": 2,
}


@pytest.fixture(scope="module")
def codec():
    torch.manual_seed(0)
    codec = SmallECodec(SmallECodecConfig(**TINY)).eval()
    torch.nn.init.normal_(codec.analysis.projection, std=0.05)
    return codec


@pytest.fixture(scope="module")
def encodec():
    torch.manual_seed(0)
    model = EncodecModel(EncodecConfig(hidden_size=16, num_filters=2, num_lstm_layers=1)).eval()
    for layer in model.quantizer.layers:
        torch.nn.init.normal_(layer.codebook.embed)
    vocos = Vocos(
        VocosConfig(input_channels=16, hidden_size=8, intermediate_size=16, num_hidden_layers=1, num_bandwidths=4)
    )
    return EncodecCodec(model, vocos).eval()


@pytest.fixture(scope="module")
def harmonic():
    torch.manual_seed(0)
    sizes = {"vocos_excitation": "harmonic", "vocos_upsampling": 2, "vocos_n_fft": 960, **TINY}
    codec = SmallECodec(SmallECodecConfig(**sizes)).eval()
    torch.nn.init.normal_(codec.analysis.projection, std=0.05)
    torch.nn.init.normal_(codec.vocos.head.out.weight, std=0.1)  # so that pitch and filters move
    return codec


@pytest.fixture(params=["codec", "harmonic", "encodec"])
def any_codec(request):
    return request.getfixturevalue(request.param)


def noise(*shape):
    return 0.1 * torch.randn(*shape, generator=torch.Generator().manual_seed(1))


@settings(max_examples=15, deadline=None)
@given(length=st.integers(1, 5000))
def test_frames_are_length_over_hop_rounded_up(codec, length):
    codes = codec.encode(noise(1, length))
    frames = -(-length // 480)
    assert codes.shape == (1, 3, frames) and codes.dtype == torch.int64
    assert codec.decode(codes).shape == (1, 480 * frames)


def test_both_calls_of_every_codec(any_codec):
    codes = any_codec.encode(noise(2, 4000))
    frames = -(-4000 // any_codec.hop_length)
    assert codes.shape == (2, any_codec.num_codebooks, frames) and codes.dtype == torch.int64
    assert 0 <= codes.min() and codes.max() < any_codec.codebook_size
    waveform = any_codec.decode(codes)
    assert waveform.shape == (2, frames * any_codec.hop_length) and waveform.dtype == torch.float32
    assert any_codec.frame_rate * any_codec.hop_length == any_codec.sampling_rate == 24000


def test_identity_is_of_the_codebooks_alone_and_survives_half_precision(any_codec, tmp_path):
    identity = any_codec.identity
    half, other = copy.deepcopy(any_codec).half(), copy.deepcopy(any_codec)
    assert re.fullmatch("[0-9a-f]{16}", identity) and half.identity == identity
    half.save_pretrained(tmp_path)
    assert load_codec(str(tmp_path)).identity == identity
    other.vocos.head.out.weight.data.zero_()
    assert other.identity == identity
    first = next(value for name, value in other.state_dict().items() if name.endswith(("codebooks", "codebook.embed")))
    first.view(-1)[3] += 1
    assert other.identity != identity


def test_padded_batch_equals_single_runs(any_codec):
    waveform, lengths = noise(3, 6000), [6000, 3333, 500]
    codes = any_codec.encode(waveform, torch.tensor(lengths))
    for row, length in enumerate(lengths):
        alone = any_codec.encode(waveform[row : row + 1, :length])[0]
        assert torch.equal(codes[row, :, : alone.shape[1]], alone)


def test_analysis_projects_standardized_log_mel_frames():
    codec = SmallECodec(SmallECodecConfig(**TINY))
    codec.analysis.mean.fill_(2.0)
    codec.analysis.scale.fill_(4.0)
    waveform = noise(2, 4800)
    features = codec.analysis.features(codec.analysis.mel(waveform))
    assert features.shape == (2, 10, codec.config.feature_size)
    expected = ((features - 2) / 4) @ codec.analysis.projection.T
    torch.testing.assert_close(codec.analysis(waveform), expected.transpose(1, 2))


def low_passed(waveform, cut):
    """Waveform (B, L) at 24 kHz without what lies above `cut` Hz."""
    spectrum = torch.fft.rfft(waveform)
    spectrum[:, torch.linspace(0, 12000, spectrum.shape[1]) > cut] = 0
    return torch.fft.irfft(spectrum, waveform.shape[1])


def test_occupied_bands_do_not_depend_on_the_level():
    full, narrow = (
        [
            occupied_bands(mel_magnitudes(level * low_passed(noise(1, 24000), cut), 1024, 240, 100, 24000)[0])
            for level in (1, 0.1)
        ]
        for cut in (12000, 8000)
    )
    assert full == [100, 100] and narrow[0] == narrow[1] and 84 <= narrow[0] <= 89
    assert occupied_bands(torch.zeros(1, 100)) == 100


def test_band_extension_predicts_the_bands_above_from_those_below():
    extension = BandExtension(4)
    low = torch.randn(5000, 2, generator=torch.Generator().manual_seed(0))
    extension.fit(torch.cat((low, low @ torch.tensor([[1.0, 0.5], [0.0, -1.0]])), 1))
    mel = torch.tensor([[[1.0, 2.0, -9.0, -9.0]]])
    full = extension(mel, torch.tensor([3]), floor=-10.0)[0, 0]
    torch.testing.assert_close(full, torch.tensor([1.0, 2.0, 1.0, -1.5]), atol=0.05, rtol=0)
    assert torch.equal(extension(mel, torch.tensor([4]), floor=-10.0), mel)
    assert extension(mel, torch.tensor([3]), floor=0.5).min() == 0.5


def test_a_narrow_recording_has_the_latents_of_the_full_band_one(tmp_path):
    torch.manual_seed(0)
    codec = SmallECodec(SmallECodecConfig(**TINY, band_extension=True)).eval()
    wide = noise(1, 24000)
    narrow, mel = low_passed(wide, 8000), codec.analysis.mel(wide)
    codec.analysis.extension.fit(mel[0].clamp(min=codec.config.mel_floor).log())
    unextended = codec.analysis.project(codec.analysis.features(codec.analysis.mel(narrow)))
    distance = (codec.analysis(narrow) - codec.analysis(wide)).square().mean()
    assert distance < 0.05 * (unextended - codec.analysis(wide)).square().mean()
    assert torch.equal(codec.encode(torch.cat((narrow, wide)))[0], codec.encode(narrow)[0])  # each row by its own band
    padded = torch.cat((narrow, torch.ones(1, 4800)), 1)
    assert torch.equal(codec.encode(padded, torch.tensor([24000]))[..., :50], codec.encode(narrow))
    codec.save_pretrained(tmp_path)
    assert torch.equal(load_codec(str(tmp_path)).encode(narrow), codec.encode(narrow))


def test_fewer_codebooks_decode_to_coarser_speech(any_codec):
    codes = any_codec.encode(noise(1, 4800))
    assert any_codec.decode(codes[:, :1]).shape == any_codec.decode(codes).shape
    partial = [any_codec.embed(codes[:, :count]) for count in range(1, any_codec.num_codebooks + 1)]
    assert torch.equal(partial[-1], any_codec.embed(codes))
    assert not torch.equal(partial[0], partial[-1])


def test_same_after_save_and_load(codec, tmp_path):
    codec.save_pretrained(tmp_path)
    loaded, waveform = load_codec(str(tmp_path)), noise(1, 4800)
    codes = codec.encode(waveform)
    assert torch.equal(loaded.encode(waveform), codes)
    assert torch.equal(loaded.decode(codes), codec.decode(codes))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_storage_computes_in_float32(codec, dtype, tmp_path):
    half = SmallECodec(codec.config)
    half.load_state_dict(codec.state_dict())
    half.to(dtype).save_pretrained(tmp_path)
    loaded = load_codec(str(tmp_path))
    assert {value.dtype for value in loaded.state_dict().values()} == {torch.float32}
    codes = codec.encode(noise(1, 4800))
    assert (loaded.encode(noise(1, 4800)) == codes).float().mean() > 0.8
    torch.testing.assert_close(loaded.decode(codes), codec.decode(codes), atol=0.1, rtol=0.1)
    assert half.encode(noise(1, 4800)).shape == codes.shape and half.decode(codes).isfinite().all()


def test_codes_sum_their_codebooks_vectors(codec):
    codes = torch.randint(32, (1, 3, 5))
    books = codec.quantizer.codebooks
    expected = sum(books[q, codes[0, q]] for q in range(3)).T
    torch.testing.assert_close(codec.embed(codes)[0], expected)


def test_quantizer_finds_its_own_codes():
    codec = SmallECodec(SmallECodecConfig(**TINY))
    codec.quantizer.codebooks *= torch.tensor([1.0, 1e-2, 1e-4])[:, None, None]
    codes = torch.randint(32, (2, 3, 7))
    assert torch.equal(codec.quantizer.encode(codec.embed(codes)), codes)


def test_inverse_transform_undoes_the_transform():
    window, waveform = torch.hann_window(64), noise(1, 640)
    spectrum = torch.stft(waveform, 64, 16, window=window, return_complex=True)
    inverse, _ = inverse_stft(spectrum.transpose(1, 2), 64, 16, "center")
    torch.testing.assert_close(inverse, waveform, atol=1e-5, rtol=1e-4)


def test_upsampling_makes_several_spectral_frames_of_a_feature_frame():
    config = dict(input_channels=4, hidden_size=8, intermediate_size=8, num_hidden_layers=1, hop_length=40)
    vocos = Vocos(VocosConfig(n_fft=80, upsampling=2, **config))
    assert vocos.head.out.out_features == 2 * (80 + 2)
    assert vocos(torch.randn(2, 4, 7)).shape == (2, 7 * 40)
    with pytest.raises(ValueError, match="divisor of hop_length"):
        VocosConfig(n_fft=80, upsampling=3, **config)


def test_a_row_decodes_as_it_does_alone_and_each_time_the_same(any_codec):
    codes = any_codec.encode(noise(3, 8000))
    together = any_codec.decode(codes)
    torch.testing.assert_close(together, any_codec.decode(codes), atol=0, rtol=0)
    alone = any_codec.decode(codes[1:2])  # where pulses follow a pitch, a rounded pitch adds up
    assert (together[1:2] - alone).abs().max() < 1e-2 * alone.abs().max()


@pytest.mark.parametrize("frames", [100, 18000])
def test_pulses_hold_every_harmonic_at_amplitude_one_for_minutes(frames):
    pulses, _ = pulse_train(torch.full((1, frames + 2), 200.0), 240, 24000)
    spectrum = torch.fft.rfft(pulses[0, -2400:] * torch.hann_window(2400)).abs() / 600
    assert spectrum[20::20][:55] == pytest.approx(torch.ones(55), abs=0.02)  # 10 Hz a bin, up to 11,000 Hz
    assert spectrum[30::20].max() < 0.02 and spectrum[1140:].max() < 0.02


def test_a_harmonic_decoder_says_the_pitch_that_it_follows(harmonic):
    features = noise(2, 16, 20)
    waveform, f0 = harmonic.vocos.synthesize(features)
    assert f0.shape == (2, 40) and 20 < f0.min() and f0.max() < 1110
    torch.testing.assert_close(harmonic.vocos.synthesize(features, f0=f0)[0], waveform)
    other, _ = harmonic.vocos.synthesize(features, f0=1.3 * f0)
    assert (other - waveform).abs().max() > 0.1 * waveform.abs().max()


def test_a_longer_text_begins_as_a_shorter_one(harmonic):
    codes = harmonic.encode(noise(1, 48000))
    whole, part = harmonic.decode(codes), harmonic.decode(codes[..., :60])
    torch.testing.assert_close(whole[:, : 50 * 480], part[:, : 50 * 480], atol=1e-4, rtol=1e-3)


@pytest.mark.parametrize("wrong", [{"excitation": "pulse"}, {"excitation": "harmonic", "padding": "center"}])
def test_excitations_are_checked(wrong):
    with pytest.raises(ValueError, match="excitation"):
        VocosConfig(**wrong)


def test_encodec_codec_saves_and_loads(encodec, tmp_path):
    encodec.save_pretrained(tmp_path)
    loaded = load_codec(str(tmp_path))
    codes = encodec.encode(noise(1, 3200))
    assert isinstance(loaded, EncodecCodec) and codes.shape == (1, 4, 10)
    assert torch.equal(loaded.decode(codes), encodec.decode(codes)) and loaded.identity == encodec.identity
    assert loaded.encodec.device.type == "meta"  # nothing but the codebooks was loaded so far
    assert torch.equal(loaded.encode(noise(1, 3200)), codes) and loaded.encodec.device.type == "cpu"
    moved = load_codec(str(tmp_path)).to(torch.float32)
    assert not any(tensor.is_meta for tensor in (*moved.parameters(), *moved.buffers()))
    assert torch.equal(moved.encode(noise(1, 3200)), codes)


def original_state(vocos):
    """The state dict that the vocos package would hold for the same weights."""
    return {**vocos.state_dict(), "head.istft.window": torch.hann_window(1280), "feature_extractor.x": torch.zeros(1)}


def test_original_vocos_checkpoint_converts(encodec, tmp_path):
    vocos, features = encodec.vocos, noise(1, 16, 6)
    torch.save(original_state(vocos), tmp_path / "pytorch_model.bin")
    head = "head:\n  init_args:\n    dim: 8\n    n_fft: 1280\n    hop_length: 320\n    padding: same\n"
    (tmp_path / "config.yaml").write_text("backbone:\n  init_args:\n    dim: 8\n" + head)
    converted = load_vocos(str(tmp_path))
    assert converted.config.num_bandwidths == 4 and converted.config.padding == "same"
    assert torch.equal(converted(features, 1), vocos(features, 1))


@pytest.mark.parametrize(
    "waveform, lengths, message",
    [
        (torch.zeros(100), None, "batch dimension"),
        (torch.zeros(1, 1, 100), None, "expected"),
        (torch.zeros(1, 100, dtype=torch.int16), None, "32768"),
        (torch.zeros(1, 0), None, "nothing to encode"),
        (torch.full((1, 100), float("nan")), None, "NaN"),
        (torch.zeros(2, 100), [100, 0], "lengths"),
        (torch.zeros(2, 100), [100, 101], "lengths"),
        (torch.zeros(2, 100), [100], "lengths"),
        (torch.zeros(2, 100), [100.0, 50.5], "lengths are torch.float"),
        (None, None, "waveform is NoneType"),
        ("audio", None, "waveform is str"),
    ],
)
def test_bad_audio_is_refused(any_codec, waveform, lengths, message):
    with pytest.raises(ValueError, match=message):
        any_codec.encode(waveform, lengths)


@pytest.mark.parametrize(
    "codes, message",
    [
        (lambda q, k: torch.zeros(1, q + 1, 4, dtype=torch.int64), "shape"),
        (lambda q, k: torch.zeros(q, 4, dtype=torch.int64), "shape"),
        (lambda q, k: torch.zeros(1, q, 0, dtype=torch.int64), "shape"),
        (lambda q, k: torch.zeros(1, q, 4), "integers"),
        (lambda q, k: torch.full((1, q, 4), k), "special tokens"),
        (lambda q, k: torch.full((1, q, 4), -1), "special tokens"),
        (lambda q, k: None, "codes is NoneType"),
        (lambda q, k: torch.zeros(1, q, 4, dtype=torch.complex64), "integers"),
    ],
)
def test_bad_codes_are_refused(any_codec, codes, message):
    with pytest.raises(ValueError, match=message):
        any_codec.decode(codes(any_codec.num_codebooks, any_codec.codebook_size))


def test_unknown_codecs_are_refused(tmp_path):
    with pytest.raises(ValueError, match="no codec at"):
        load_codec(str(tmp_path / "nowhere"))
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "mimi"}))
    with pytest.raises(ValueError, match="mimi"):
        load_codec(str(tmp_path))


@pytest.mark.parametrize(
    "wrong",
    [
        {"num_codebooks": 0},
        {"hop_length": "long"},
        {"mel_hop_length": 0},
        {"latent_size": 2.0},
        {"mel_floor": -1.0},
    ],
)
def test_codecs_of_impossible_sizes_are_refused(wrong):
    with pytest.raises(ValueError, match=f"{next(iter(wrong))}.*expected"):
        SmallECodecConfig(**wrong)


def test_bad_sizes_are_refused():
    with pytest.raises(ValueError, match="hidden_size=-1: expected"):
        VocosConfig(hidden_size=-1)
    with pytest.raises(ValueError, match="hop_length"):
        SmallECodecConfig(hop_length=500)
    with pytest.raises(ValueError, match="no backbone"):
        convert_original({"weight": torch.zeros(1)})
    with pytest.raises(ValueError, match="bandwidth_id"):
        Vocos(VocosConfig(hidden_size=8, intermediate_size=8, num_hidden_layers=1))(torch.zeros(1, 128, 2), 1)


def test_shipped_codec_for_people_codes_narrow_recordings():
    codec = load_codec("checkpoints/smalle-codec")
    assert codec.config.band_extension and codec.analysis.extension.covariance.diagonal().min() > 0
    codes = codec.encode(low_passed(noise(1, 24000), 8000))
    assert codes.shape == (1, 8, 50) and codec.decode(codes[:, :6]).isfinite().all()
    assert codec.identity == "7d5d0809c23dcd78"
