"""Samples as bytes: what is beyond full scale or no number, and files of every length."""

import io
import struct
import wave

import numpy as np
import pytest
import soundfile
import torch

from smalle.audio_smalle import MAX_SAMPLES, load_waveform, pcm16, speech_level, streaming_wav_header, write_wav


def test_samples_beyond_full_scale_are_clipped_and_do_not_wrap():
    values = [0.0, 1.0, -1.0, 1.5, -1.5, 1e9, -1e9, np.inf, -np.inf, np.nan, 0.5]
    expected = [0, 32767, -32767, 32767, -32767, 32767, -32767, 32767, -32767, 0, 16383]
    for make in (torch.tensor, np.array, list):
        assert np.frombuffer(pcm16(make(values)), np.int16).tolist() == expected


def test_both_channels_of_a_recording_are_heard():
    left, right = np.full(100, 0.5, "float32"), np.full(100, -0.25, "float32")
    assert load_waveform(np.stack([left, right]), 24000, 24000).tolist() == [0.125] * 100
    assert load_waveform(np.stack([0 * left, right]), 24000, 24000).tolist() == [-0.125] * 100


@pytest.mark.parametrize("length", [0, 1, 24000])
def test_a_wav_and_a_streamed_wav_hold_the_same_samples(tmp_path, length):
    samples = torch.linspace(-1, 1, length)
    assert write_wav(tmp_path / "a.wav", samples.split(7000) if length else [samples], 24000) == length
    with wave.open(str(tmp_path / "a.wav")) as file:
        parameters = file.getparams()
        assert file.readframes(length) == pcm16(samples) and parameters[:4] == (1, 2, 24000, length)
    with wave.open(io.BytesIO(streaming_wav_header(24000) + pcm16(samples))) as file:
        assert file.getparams()[:3] == parameters[:3] and file.readframes(length + 9) == pcm16(samples)


@pytest.mark.parametrize("channels", [1, 2])
def test_a_header_that_claims_gigabytes_is_refused_before_anything_is_allocated(channels):
    size = 2 * channels * (MAX_SAMPLES + 1)
    kind = struct.pack("<HHIIHH", 1, channels, 24000, 48000 * channels, 2 * channels, 16)
    header = struct.pack("<4sI8sI16s4sI", b"RIFF", size + 36, b"WAVEfmt ", 16, kind, b"data", size)
    with pytest.raises(ValueError, match="too long|nothing|shape|cannot be read"):
        load_waveform(header, None, 24000)


def test_a_flac_that_claims_gigabytes_is_refused_before_anything_is_allocated():
    """libsndfile believes its header, and shortens that of a wav."""
    soundfile.write(file := io.BytesIO(), np.zeros(2400), 24000, format="FLAC")
    data = bytearray(file.getvalue())
    data[21] |= 0x0F  # of STREAMINFO: the number of samples has 36 bits
    data[22:26] = b"\xff" * 4
    with pytest.raises(ValueError, match="too long"):
        load_waveform(bytes(data), None, 24000)


def test_the_level_of_speech_is_that_of_its_loud_frames():
    loud = 0.1 * np.random.default_rng(0).normal(size=24000)
    level, depth = speech_level(np.concatenate((loud, 0.001 * loud)))
    assert abs(level + 20) < 0.1 and 59 < depth < 63  # dB; the mean of both halves is 3 lower
