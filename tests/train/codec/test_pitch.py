"""The fundamental frequency that codecs with a harmonic excitation learn from."""

import numpy as np
import pytest
import torch
from smalle.train.codec.pitch import PitchTrack, bridge, find_f0

RATE = 24000


def tone(seconds, frequency, silence=0.0):
    """Pulses of a frequency between silences, int16."""
    time = np.arange(int(seconds * RATE)) / RATE
    wave = sum(np.sin(2 * np.pi * h * frequency * time) / h for h in range(1, 20))
    return np.pad(wave * 6000, int(silence * RATE)).astype(np.int16)


def test_track_follows_the_pitch_of_voiced_frames():
    audio = [tone(0.5, 120.0, silence=0.3), tone(0.5, 240.0), np.zeros(50, np.int16)]
    track = PitchTrack(audio, RATE, "cpu")
    middles = torch.tensor([[RATE // 2, RATE // 20], [RATE // 4, RATE // 5], [10, 40]])
    f0, voiced = track.at(torch.arange(3), middles)
    assert voiced.tolist() == [[True, False], [True, True], [False, False]]
    assert f0[0].tolist() == [pytest.approx(120, rel=0.01), pytest.approx(120, rel=0.05)]  # bridged before the onset
    assert f0[1].tolist() == pytest.approx([240, 240], rel=0.01) and f0[2].tolist() == [150, 150]


def test_quiet_frames_are_unvoiced():
    loud, quiet = tone(0.5, 150.0), tone(0.5, 150.0) // 60  # 36 dB below
    f0 = find_f0(np.concatenate([loud, quiet]), RATE)
    assert len(f0) == 201 and f0[20:80].all() and not f0[120:180].any()


def test_bridges_are_linear_in_log_frequency():
    f0 = bridge(np.array([0, 100, 0, 400, 0], np.float32))
    assert f0.tolist() == pytest.approx([100, 100, 200, 400, 400])
