"""The fundamental frequency that codecs with pulses learn from."""

import numpy as np
import pytest
import torch
from smalle.train.codec.pitch import PitchTrack, bridge

pytest.importorskip("parselmouth")

RATE = 24000


def tone(seconds, frequency, silence=0.0):
    """Pulses of a frequency between silences, int16."""
    time = np.arange(int(seconds * RATE)) / RATE
    wave = sum(np.sin(2 * np.pi * h * frequency * time) / h for h in range(1, 20))
    return np.pad(wave * 6000, int(silence * RATE)).astype(np.int16)


def test_track_follows_the_pitch_where_there_is_one():
    audio = [tone(0.5, 120.0, silence=0.3), tone(0.5, 240.0), np.zeros(50, np.int16)]
    track = PitchTrack(audio, RATE, "cpu")
    middles = torch.tensor([[RATE // 2, RATE // 20], [RATE // 4, RATE // 5], [10, 40]])
    f0, voiced = track.at(torch.arange(3), middles)
    assert voiced.tolist() == [[True, False], [True, True], [False, False]]
    assert f0[0].tolist() == pytest.approx([120, 120], rel=0.01)  # bridged before the voice begins
    assert f0[1].tolist() == pytest.approx([240, 240], rel=0.01) and f0[2].tolist() == [150, 150]


def test_bridges_are_straight_in_log_frequency():
    f0 = bridge(np.array([0, 100, 0, 400, 0], np.float32))
    assert f0.tolist() == pytest.approx([100, 100, 200, 400, 400])
