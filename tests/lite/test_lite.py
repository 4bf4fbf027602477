"""smalle.lite speaks what the native runtime behind PyTorch speaks, without PyTorch, and refuses damaged files."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file, save_file
from safetensors.torch import save_file as save_tensors

from smalle import SmallEConfig, SmallEForTextToSpeech, SmallEProcessor
from smalle.codec_smalle import SmallECodecConfig
from smalle.lite import TextToSpeech
from smalle.lite.model import DEFAULTS
from smalle.lite.speech import CODEC_DEFAULTS
from smalle.lite.tensors import as_floats, read_voice
from smalle.native_smalle import bits64, load_library, mersenne_twister, noise_table
from smalle.voices_smalle import save_voice

CHECKPOINT = Path(__file__).parents[2] / "checkpoints" / "smalle-mini"
LONG = (
    "The first sentence is here, and it goes on for a while without saying much. Then a second one follows, which is "
    "long enough to be a piece of its own. At last a third one ends it all."
)

pytestmark = pytest.mark.skipif(not CHECKPOINT.exists(), reason="checkpoints/smalle-mini is not there")


@pytest.fixture(scope="module")
def lite():
    if load_library()[0] is None:
        pytest.skip("the C library is not there")
    return TextToSpeech.load(CHECKPOINT)


@pytest.fixture(scope="module")
def reference():
    """The processor and the model, by the native runtime."""
    model = SmallEForTextToSpeech.from_pretrained(CHECKPOINT).eval()
    model.step_runtime = "native"
    return SmallEProcessor.from_pretrained(CHECKPOINT), model


def joined(chunks):
    return np.concatenate(list(chunks))


@pytest.mark.parametrize(
    "text, voice, seed", [("Good morning.", None, 1), ("It costs $3.50!", "emma", 2), ("Who?", "daniel", 2**62)]
)
def test_a_seed_gives_the_codes_of_generate(lite, reference, text, voice, seed):
    processor, model = reference
    expected = model.generate(**processor(text, voice=voice), seed=seed, max_retries=0)[0].numpy()
    assert np.array_equal(joined(lite.generate(text, voice, seed)), expected)


def test_a_long_text_is_the_stream_of_the_processor(lite, reference):
    processor, model = reference
    expected = torch.cat(list(processor.stream(model, LONG, seed=5))).numpy()
    assert len(lite.split(LONG, lite.get_voice("heart"))) == 3
    assert np.array_equal(lite.speak(LONG, seed=5), expected)


def test_a_voice_file_speaks_as_its_preset(lite, tmp_path):
    voice = lite.get_voice("heart")
    save_voice(tmp_path / "copy.safetensors", torch.from_numpy(voice.codes), voice.text, codec=voice.codec)
    speech = lite.speak("Yes.", tmp_path / "copy.safetensors", seed=3)
    assert np.array_equal(speech, lite.speak("Yes.", "heart", seed=3))


def test_a_stream_begins_before_it_ends_and_joins_to_the_whole(lite):
    chunks = list(lite.stream("Good morning to all of you.", seed=1))
    assert len(chunks) > 2 and np.array_equal(np.concatenate(chunks), lite.speak("Good morning to all of you.", seed=1))
    assert not np.array_equal(lite.speak("Yes."), lite.speak("Yes."))  # without a seed


PROGRAM = """
import sys
from smalle.lite import TextToSpeech
assert len(TextToSpeech.load(sys.argv[1]).speak("Good morning. The train leaves at noon.", seed=1)) > 24000
print(sorted({name.partition(".")[0] for name in sys.modules} & {"torch", "transformers", "huggingface_hub"}))
print(next(line.split()[1] for line in open("/proc/self/status") if line.startswith("VmHWM")))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="memory is measured as Linux counts it")
def test_it_speaks_without_pytorch_in_150_megabytes(lite):
    done = subprocess.run([sys.executable, "-c", PROGRAM, CHECKPOINT], capture_output=True, text=True, check=True)
    modules, memory = done.stdout.split("\n")[:2]
    assert modules == "[]" and int(memory) < 150 * 1024


def test_random_numbers_are_pytorchs():
    for seed in (0, 1, 2**32 + 5, 2**62):
        generator, ours = torch.Generator().manual_seed(seed), mersenne_twister(seed)
        for count in (1027, 5):
            expected = torch.empty(count, dtype=torch.int64).random_(generator=generator)
            assert np.array_equal(bits64(ours, count) & (2**63 - 1), expected)
    noise = torch.randn(1024, 11, 2, generator=torch.Generator().manual_seed(0)).numpy()
    np.testing.assert_allclose(noise_table(11), noise, atol=1e-5)


@pytest.mark.parametrize("kind", [torch.float16, torch.bfloat16, torch.float32])
def test_weights_of_every_kind_are_read(kind):
    numbers = torch.randn(3, 5, generator=torch.Generator().manual_seed(0)).to(kind)
    name = {torch.float16: "F16", torch.bfloat16: "BF16", torch.float32: "F32"}[kind]
    data = numbers.view(torch.uint8).numpy().tobytes()
    assert np.array_equal(as_floats(name, [3, 5], data), numbers.float().numpy())


# --- wrong input


@pytest.mark.parametrize("kind", [torch.bfloat16, torch.float8_e4m3fn, torch.float32, torch.uint64, torch.bool])
def test_a_voice_of_other_numbers_is_refused(tmp_path, kind):
    save_tensors({"codes": torch.zeros(5, 6, dtype=kind)}, tmp_path / "v.safetensors", {"text": "", "version": "1"})
    with pytest.raises(ValueError, match="integers"):
        read_voice(tmp_path / "v.safetensors")


@pytest.mark.parametrize(
    "arguments, message",
    [
        (("Hello.", "nobody"), "'nobody'"),
        (("",), "nothing to speak"),
        (("!!!",), "nothing to speak"),
        ((5,), "expected a string"),
        (("Hello.", None, -1), "seed=-1"),
        (("Hello.", None, True), "seed=True"),
    ],
)
def test_wrong_input_is_refused_at_once(lite, arguments, message):
    with pytest.raises(ValueError, match=message):
        lite.stream(*arguments)


def cut(path):
    path.write_bytes(path.read_bytes()[:-100])


def with_nan(path):
    tensors = load_file(path)
    name = sorted(tensors)[3]
    tensors[name] = np.full_like(tensors[name], np.nan)
    save_file(tensors, path)


NAMES = "pwconv1.weight", "audio_decoder.1.mlp.up_proj.weight"  # of a layer in the codec, in the model


def without_a_tensor(path):
    tensors = load_file(path)
    del tensors[next(name for name in tensors if name.endswith(NAMES))]
    save_file(tensors, path)


def without_a_bias(path):
    tensors = load_file(path)
    del tensors[next(name for name in tensors if name.endswith(("text_norm.bias", "final_layer_norm.bias")))]
    save_file(tensors, path)


def of_another_shape(path):
    tensors = load_file(path)
    name = next(name for name in tensors if name.endswith(NAMES))
    tensors[name] = np.ascontiguousarray(tensors[name][:, :-1])
    save_file(tensors, path)


def empty(path):
    path.write_bytes(b"")


@pytest.mark.parametrize("damage", [cut, with_nan, without_a_tensor, without_a_bias, of_another_shape, empty])
@pytest.mark.parametrize("part", ["model.safetensors", "codec/model.safetensors"])
def test_damaged_weights_are_refused(lite, tmp_path, part, damage):
    folder = shutil.copytree(CHECKPOINT, tmp_path / "damaged", ignore=shutil.ignore_patterns("*.py", "voices"))
    damage(folder / part)
    with pytest.raises(ValueError):
        TextToSpeech.load(folder)


@pytest.mark.parametrize(
    "name, changes",
    [
        ("config.json", {"mixer": "rwkv6"}),
        ("config.json", {"hidden_size": "wide"}),
        ("codec/config.json", {"vocos_n_fft": 1920}),
        ("codec/config.json", {"model_type": "encodec"}),
        ("generation_config.json", {"top_p": 0.5}),
    ],
)
def test_what_it_does_not_compute_is_refused(lite, tmp_path, name, changes):
    folder = shutil.copytree(CHECKPOINT, tmp_path / "other", ignore=shutil.ignore_patterns("*.py", "voices"))
    path = folder / name
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))
    with pytest.raises(ValueError):
        TextToSpeech.load(folder)


@pytest.mark.parametrize(
    "name, changes",
    [
        ("config.json", {"num_attention_heads": 0}),
        ("config.json", {"hidden_size": None}),
        ("config.json", {"norm_eps": float("nan")}),
        ("config.json", {"speaker_center": 5}),
        ("codec/config.json", {"hop_length": 0}),
        ("processor_config.json", {"default_voice": []}),
        ("processor_config.json", {"voices": ["../me"]}),
        ("generation_config.json", {"max_new_tokens": "many"}),
        ("generation_config.json", {"num_beams": 4}),
        ("generation_config.json", {"max_time": 1.0}),
    ],
)
def test_a_value_that_is_refused_is_named_with_its_file(lite, tmp_path, name, changes):
    folder = shutil.copytree(CHECKPOINT, tmp_path / "other", ignore=shutil.ignore_patterns("*.py"))
    path = folder / name
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))
    with pytest.raises(ValueError) as error:
        TextToSpeech.load(folder)
    (key,) = changes
    assert str(path) in str(error.value) and key in str(error.value)


def test_a_folder_without_a_checkpoint_is_refused(tmp_path):
    with pytest.raises(ValueError, match="config.json"):
        TextToSpeech.load(tmp_path)


def test_defaults_are_those_of_the_configurations():
    for defaults, config in ((DEFAULTS, SmallEConfig()), (CODEC_DEFAULTS, SmallECodecConfig())):
        assert defaults == {name: getattr(config, name) for name in defaults}
