"""Files and settings that are damaged in any way: what they hold, or a ValueError.

Texts, recordings in memory and the arguments of generate() are fuzzed in tests/smalle/test_wrong_input.py; requests in
tests/serving. `--hypothesis-profile=long` draws 5,000 examples in place of 100 (docs/reliability.md).
"""

import io

import numpy as np
import pytest
import soundfile
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from smalle import SmallEConfig, SmallEProcessor
from smalle.audio_smalle import load_waveform
from smalle.codec_smalle import SmallECodecConfig
from smalle.voices_smalle import load_voice, save_voice

trial = settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
edits = st.lists(st.tuples(st.integers(0, 10**6), st.integers(0, 255)), max_size=8)
lengths = st.none() | st.integers(0, 10**6)
anything = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=9)
values = anything | st.lists(anything, max_size=3) | st.dictionaries(st.text(max_size=3), anything, max_size=2)


def damaged(data, edits, length):
    """Bytes with some of them replaced, and cut short."""
    data = bytearray(data)
    for place, value in edits:
        data[place % len(data)] = value
    return bytes(data[: None if length is None else length % (len(data) + 1)])


def some_of(names):
    return st.dictionaries(st.sampled_from(sorted(names)), values, min_size=1, max_size=3)


@pytest.fixture(scope="module")
def voice_files(tmp_path_factory):
    """Bytes of voice files with a recording, with a state and with both."""
    path, codes = tmp_path_factory.mktemp("voices") / "me.safetensors", torch.arange(30).view(10, 3) % 20
    state, files = {"state_0": torch.ones(1, 2, 4, 4), "state_1_left": torch.ones(3, 1)}, []
    for parts in ((codes, "So.", None), (None, "", state), (codes, "So.", state)):
        save_voice(path, *parts, codec="0123456789abcdef")
        files.append(path.read_bytes())
    return files


@trial
@given(which=st.integers(0, 2), edits=edits, length=lengths)
def test_voice_files(voice_files, tmp_path, which, edits, length):
    path = tmp_path / "me.safetensors"
    path.write_bytes(damaged(voice_files[which], edits, length))
    try:
        voice = load_voice(path)
    except ValueError as error:
        assert str(path) in str(error)
    else:
        assert voice.codes is None or voice.codes.ndim == 2 and 0 <= voice.codes.min() <= voice.codes.max() < 2**15
        assert all(tensor.isfinite().all() for tensor in (voice.state or {}).values())


@pytest.fixture(scope="module")
def sound_files():
    files, time = [], np.arange(4800) / 24000
    for kind, subtype in (("wav", "PCM_16"), ("flac", "PCM_16"), ("wav", "FLOAT"), ("ogg", "VORBIS"), ("mp3", None)):
        with io.BytesIO() as file:
            soundfile.write(file, 0.3 * np.sin(2000 * time), 24000, format=kind, subtype=subtype)
            files.append(file.getvalue())
    return files


@trial
@given(which=st.integers(0, 4), edits=edits, length=lengths)
def test_sound_files(sound_files, which, edits, length):
    try:
        wave = load_waveform(damaged(sound_files[which], edits, length), None, 24000)
    except ValueError:
        return
    assert wave.ndim == 1 and wave.dtype == np.float32 and np.isfinite(wave).all()


def wrong_value_is_named(make, changes):
    """What a call returns, or None after a ValueError that names one of its arguments."""
    try:
        return make(**changes)
    except ValueError as error:
        assert any(name in str(error) for name in changes) or "expected" in str(error), error


@trial
@given(changes=some_of(SmallEConfig.__annotations__))
def test_configurations(changes):
    config = wrong_value_is_named(SmallEConfig, changes)
    assert config is None or config.hidden_size > 0 and config.num_codebooks > 0


@trial
@given(changes=some_of(SmallECodecConfig.__annotations__))
def test_configurations_of_codecs(changes):
    config = wrong_value_is_named(SmallECodecConfig, changes)
    assert config is None or config.num_codebooks > 0


@trial
@given(changes=some_of(["codec", "voices", "default_voice", "sampling_rate", "codec_id"]))
def test_configurations_of_processors(processor, changes):
    made = wrong_value_is_named(lambda **kwargs: SmallEProcessor(processor.tokenizer, **kwargs), changes)
    assert made is None or made.sampling_rate > 0 and all("/" not in name for name in made.voices)
