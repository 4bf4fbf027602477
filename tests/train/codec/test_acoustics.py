"""Microphones, rooms, noise and levels of segments; the gate of recordings."""

import numpy as np
import torch
from smalle.train.codec.acoustics import Acoustics, rms
from smalle.train.data.audio import QualityGate


def generator():
    return torch.Generator().manual_seed(0)


def clicks():
    """(8, 4800) with a click in the middle of each."""
    segments = torch.zeros(8, 4800)
    segments[:, 2400] = 0.5
    return segments


def test_the_default_changes_nothing():
    assert torch.equal(Acoustics()(clicks(), generator()), clicks())


def test_reverberation_follows_the_direct_sound():
    changed = Acoustics(room_share=1.0)(clicks(), generator())
    assert changed[:, :2390].abs().max() < 1e-4 and (changed.abs().argmax(1) == 2400).all()
    assert (changed[:, 2430:].square().sum(1) > 1e-3 * changed.square().sum(1)).all()


def test_noise_and_gain_have_their_levels():
    segments = 0.1 * torch.randn(8, 4800, generator=generator())
    noisy = Acoustics(noise_share=1.0, snr_db=(20.0, 20.0))(segments, generator())
    torch.testing.assert_close(rms(noisy - segments) / rms(segments), torch.full((8, 1), 0.1), atol=2e-3, rtol=0)
    quiet = Acoustics(gain_db=(-6.0, -6.0))(segments, generator())
    torch.testing.assert_close(rms(quiet) / rms(segments), torch.full((8, 1), 0.501), atol=2e-3, rtol=0)


def test_microphones_keep_the_level():
    segments = 0.1 * torch.randn(8, 4800, generator=generator())
    changed = Acoustics(microphone_share=1.0)(segments, generator())
    torch.testing.assert_close(rms(changed), rms(segments), atol=1e-4, rtol=0)
    assert not torch.allclose(changed, segments, atol=1e-3)


def test_half_of_the_segments_are_changed_at_a_share_of_a_half():
    segments = 0.1 * torch.randn(200, 480, generator=generator())
    changed = (Acoustics(noise_share=0.5)(segments, generator()) != segments).any(1).float().mean()
    assert 0.4 < changed < 0.6


def test_the_gate_levels_speech_and_refuses_quiet_noisy_and_clipped_recordings():
    time = np.arange(24000) / 24000
    speech, gate = np.sin(2 * np.pi * 200 * time) * (time % 0.5 < 0.3), QualityGate()
    for level in (0.02, 0.3):
        assert 0.08 < abs(gate(speech * level)).max() < 0.12
    assert gate(speech * 0.0005) is None
    assert gate((speech * 3).clip(-1, 1)) is None
    assert gate(np.random.default_rng(0).uniform(-0.3, 0.3, 24000)) is None
