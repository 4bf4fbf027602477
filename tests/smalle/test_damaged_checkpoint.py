"""Files of a checkpoint that are damaged or hold nonsense: one line names the file, and the key where there is one."""

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

from smalle import SmallEConfig, SmallEForTextToSpeech, SmallEProcessor
from smalle.cli import main as cli
from smalle.codec_smalle import load_codec
from smalle.native_smalle import load_library

TEXT = torch.tensor([[1, 9, 8, 2]])
NONSENSE = {  # file, what stands in it or which keys change, what the line says beside the file
    "configuration of a list": ("config.json", [], "holds []"),
    "configuration of a number": ("config.json", 5, "holds 5"),
    "width of a word": ("config.json", {"hidden_size": "wide"}, "hidden_size='wide'"),
    "sizes of another model": ("config.json", {"intermediate_size": 64}, "does not match the shapes"),
    "empty tokenizer": ("tokenizer.json", "{}", "added_tokens and model"),
    "tokenizer of a list": ("tokenizer.json", [], "holds []"),
    "tokenizer's settings of a list": ("tokenizer_config.json", [], "holds []"),
    "processor of a list": ("processor_config.json", [], "holds []"),
    "processor cut short": ("processor_config.json", '{"voices": [', "not a valid JSON"),
    "voices of a number": ("processor_config.json", {"voices": 5}, "voices=5"),
    "voice that is a path": ("processor_config.json", {"voices": ["../me"]}, "'../me'"),
    "default that is no voice": ("processor_config.json", {"default_voice": []}, "default_voice=[]"),
    "sampling rate of 0": ("processor_config.json", {"sampling_rate": 0}, "sampling_rate=0"),
    "codec of a number": ("processor_config.json", {"codec": 5}, "codec=5"),
    "identity of a number": ("processor_config.json", {"codec_id": 5}, "codec_id=5"),
    "hot": ("generation_config.json", {"temperature": "hot", "do_sample": True}, "temperature='hot'"),
    "too many candidates": ("generation_config.json", {"best_of": 100_000}, "best_of=100000"),
    "frames in words": ("generation_config.json", {"max_new_tokens": "many"}, "'str'"),
    "settings of a list": ("generation_config.json", [], "holds []"),
    "codec's configuration of a list": ("codec/config.json", [], "expected 'smalle_codec'"),
    "codec of nonsense": ("codec/config.json", {"num_codebooks": "many"}, "num_codebooks='many'"),
}


@pytest.fixture
def copied(tiny_checkpoint, tmp_path):
    return shutil.copytree(tiny_checkpoint, tmp_path / "damaged")


@pytest.mark.parametrize("file, content, message", NONSENSE.values(), ids=NONSENSE)
def test_nonsense_gives_one_line_that_names_file_and_key(copied, tmp_path, capsys, file, content, message):
    path = copied / file
    if isinstance(content, dict):
        content = {**json.loads(path.read_text()), **content}
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    code = cli.main(["say", "Hello.", "--model", str(copied), "-o", str(tmp_path / "a.wav")])
    line = capsys.readouterr().err.rpartition("\r")[2].strip()
    assert code == 2 and line.startswith("smalle: ") and "\n" not in line and not (tmp_path / "a.wav").exists()
    assert message in line and file in line


def test_sizes_of_another_codec_are_refused(copied):
    path = copied / "codec" / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "codebook_size": 21}))
    with pytest.raises(ValueError, match="codec/config.json .* does not match the shapes"):
        assert SmallEProcessor.from_pretrained(copied).codec


@pytest.mark.parametrize("part", [".", "codec"])
def test_weights_are_never_unpickled(copied, part):
    path = copied / part / "model.safetensors"
    torch.save(load_file(path), copied / part / "pytorch_model.bin")
    path.unlink()
    with pytest.raises(OSError, match="model.safetensors"):
        SmallEForTextToSpeech.from_pretrained(copied)
        assert SmallEProcessor.from_pretrained(copied).codec


@pytest.mark.parametrize("part", [".", "codec"])
def test_a_weight_that_is_missing_is_named(copied, tmp_path, capsys, part):
    tensors = load_file(path := copied / part / "model.safetensors")
    del tensors[name := sorted(tensors)[-1]]
    save_file(tensors, path, metadata={"format": "pt"})
    code = cli.main(["say", "Hello.", "--model", str(copied), "-o", str(tmp_path / "a.wav")])
    assert code == 2 and name in capsys.readouterr().err and not (tmp_path / "a.wav").exists()


def test_an_error_that_no_file_explains_stays_as_it_is(tiny_checkpoint):
    with pytest.raises(TypeError, match="colour"):
        SmallEForTextToSpeech.from_pretrained(tiny_checkpoint, colour="red")
    with pytest.raises(OSError):
        SmallEProcessor.from_pretrained("./nowhere")
    with pytest.raises(OSError):
        SmallEConfig.from_pretrained("./nowhere")


@pytest.mark.parametrize("number", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("file, name", [("model", "head.weight"), ("codec/model", "")])
def test_weights_that_are_no_numbers_are_refused_by_name(copied, file, name, number):
    path = copied / f"{file}.safetensors"
    tensors = load_file(path)
    name = name or next(key for key in tensors if tensors[key].is_floating_point() and tensors[key].numel())
    tensors[name].view(-1)[-1] = number
    save_file(tensors, path, metadata={"format": "pt"})
    with pytest.raises(ValueError, match=f"{name} holds NaN or infinity: download"):
        load_codec(str(copied), "codec") if "codec" in file else SmallEForTextToSpeech.from_pretrained(copied)


def test_the_native_runtime_packs_numbers_alone(make_tiny):
    if load_library()[0] is None:
        pytest.skip(load_library()[1])
    model = make_tiny()
    model.head.weight.data[3, 3] = torch.nan
    with pytest.raises(ValueError, match="head.weight holds NaN"):
        model.generate(TEXT, max_new_tokens=2)


def test_speakers_that_are_no_numbers_are_refused(make_tiny):
    model = make_tiny(speaker_layers=1)
    embedding = torch.zeros(1, model.config.hidden_size)
    model.generate(TEXT, speaker_embeddings=embedding, max_new_tokens=2)
    embedding[0, 5] = torch.inf
    with pytest.raises(ValueError, match="speaker_embeddings holds NaN or infinity"):
        model.generate(TEXT, speaker_embeddings=embedding, max_new_tokens=2)
