"""Home recordings that are made of clean ones."""

import numpy as np
import pytest
import torch
from smalle.train.codec.acoustics import Acoustics
from smalle.train.data.home_recording import HomeRecording

from smalle.codec_smalle import mel_magnitudes, occupied_bands

SHARES = ("cut_share", "pause_share", "narrow_share", "hum_share", "clipped_share", "offset_share")


def only(*shares):
    """A HomeRecording that changes all recordings in these ways and in no others."""
    return HomeRecording(**{share: float(share in shares) for share in SHARES}, acoustics=Acoustics())


@pytest.fixture
def speech():
    """2 s of noise with a gap in the middle, at a tenth of full scale."""
    samples = 0.1 * np.random.default_rng(0).normal(size=48000).astype(np.float32)
    samples[23000:25000] *= 0.01
    return samples


def test_nothing_changes_at_shares_of_zero(speech):
    np.testing.assert_allclose(only()(speech, 0), speech, atol=1e-6)


def test_the_seed_determines_the_recording(speech):
    record = HomeRecording()
    assert np.array_equal(record(speech, 3), record(speech, 3))
    assert len({record(speech, seed).tobytes() for seed in range(8)}) == 8


def test_cuts_leave_half_and_pauses_are_in_the_gap(speech):
    assert all(24000 <= len(only("cut_share")(speech, seed)) < 48000 for seed in range(8))
    longer = only("pause_share")(speech, 0)
    assert len(longer) > 48000 + 4000 and np.abs(longer[23200:28000]).max() < 0.02


def test_band_limit_clipping_hum_and_offset(speech):
    narrow = torch.from_numpy(only("narrow_share")(speech, 0))[None]
    assert occupied_bands(mel_magnitudes(narrow, 1024, 240, 100, 24000)[0]) < 90
    assert (np.abs(only("clipped_share")(speech, 0)) == 1).mean() > 0.001
    assert abs(only("offset_share")(speech, 0).mean()) > 0.005
    hum = np.abs(np.fft.rfft(only("hum_share")(speech, 0) - speech))  # bins of 0.5 Hz
    assert hum.argmax() in (100, 120)
