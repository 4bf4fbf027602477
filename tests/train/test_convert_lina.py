"""Checkpoints of lina-speech beta speak here as there: against logits of the original's code (tests/lina_oracle.py)."""

import json
from pathlib import Path

import pytest
import torch
import yaml
from safetensors import safe_open
from smalle.train.convert_lina import convert, main
from transformers import AutoModelForTextToWaveform

import smalle  # noqa: F401  registers the classes
from smalle.cli.command import run_command

GOLDEN = {path.stem.removeprefix("lina-"): path for path in (Path(__file__).parents[1] / "golden").glob("lina-*")}


def read(kind):
    """Weights by the original's names, and what it computes; its configuration."""
    with safe_open(GOLDEN[kind], "pt") as file:
        tensors = {name: file.get_tensor(name) for name in file.keys()}
        config = yaml.safe_load(file.metadata()["config"])
    weights = {name.removeprefix("weights/"): tensors[name] for name in tensors if name.startswith("weights/")}
    return weights, {name: tensors[name] for name in ("text", "codes", "logits")}, config


def write(folder, weights, config, key="model"):
    """Checkpoint and configuration, as the original's inference reads them."""
    torch.save({key: weights} if key else weights, folder / "model.pt")
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    return str(folder / "model.pt"), str(folder / "config.yaml")


@pytest.fixture(scope="module", params=sorted(GOLDEN))
def converted(request, tmp_path_factory):
    """The folder that the command writes, and what the original computes."""
    folder = tmp_path_factory.mktemp("lina")
    weights, expected, config = read(request.param)
    main([*write(folder, weights, config), str(folder / "out")])
    return folder / "out", expected


def test_all_kinds_have_a_golden_file():
    assert sorted(GOLDEN) == [
        "gla-blind",
        "gla-plain",
        "mamba-blind",
        "mamba-plain",
        "rwkv6-blind",
        "rwkv6-light-plain",
    ]


def test_logits_are_those_of_the_original(converted):
    folder, expected = converted
    model = AutoModelForTextToWaveform.from_pretrained(folder).eval()
    logits = model(input_ids=expected["text"], decoder_input_ids=expected["codes"]).logits
    torch.testing.assert_close(logits, expected["logits"], atol=1e-4, rtol=0)


@torch.no_grad()
def test_step_by_step_and_padded_as_the_whole(converted):
    folder, expected = converted
    model = AutoModelForTextToWaveform.from_pretrained(folder).eval()
    text, codes = torch.nn.functional.pad(expected["text"], (3, 0)), expected["codes"]
    text_mask = torch.nn.functional.pad(torch.ones_like(expected["text"]), (3, 0))
    waiting = torch.zeros_like(codes[:, :2])  # two padded steps, then one at a time
    out = model(
        input_ids=text,
        attention_mask=text_mask,
        decoder_input_ids=torch.cat((waiting, codes[:, :1]), 1),
        decoder_attention_mask=torch.tensor([[0, 0, 1]] * 2),
        use_cache=True,
    )
    logits = [out.logits[:, -1:]]
    for t in range(1, codes.shape[1]):
        out = model(decoder_input_ids=codes[:, t : t + 1], cache=out.cache, use_cache=True)
        logits.append(out.logits)
    torch.testing.assert_close(torch.cat(logits, 1), expected["logits"], atol=1e-4, rtol=0)


def test_converted_models_speak(converted):
    model = AutoModelForTextToWaveform.from_pretrained(converted[0])
    output = model.generate(input_ids=converted[1]["text"], max_new_tokens=4, seed=0)
    assert output.shape[0] == 2 and output.shape[2] == 2


def test_a_checkpoint_of_training_and_one_without_a_key_convert_too(tmp_path):
    weights, expected, config = read("mamba-plain")
    config["model"] = config["model"]["init_args"]  # as jsonargparse prints it for one class
    config["model"]["attentive_rnn"]["init_args"]["d_model"] = "${model.d_model}"
    for key in ("state_dict", None):
        model = convert(*write(tmp_path, weights, config, key))
        logits = model(input_ids=expected["text"], decoder_input_ids=expected["codes"]).logits
        torch.testing.assert_close(logits, expected["logits"], atol=1e-4, rtol=0)


def test_codebooks_other_than_the_first_are_warned_of(tmp_path):
    weights, _, config = read("gla-plain")
    config["data"]["init_args"]["quant_layer"] = [0, 2]
    with pytest.warns(UserWarning, match=r"quant_layer is \[0, 2\]"):
        convert(*write(tmp_path, weights, config))


def test_with_the_tokenizer_the_folder_has_a_processor(tmp_path, tiny_tokenizer):
    weights, _, config = read("gla-plain")
    file = tmp_path / "bpe.json"
    tiny_tokenizer.backend_tokenizer.save(str(file))
    main([*write(tmp_path, weights, config), str(tmp_path / "out"), "--tokenizer", str(file)])
    processor = smalle.SmallEProcessor.from_pretrained(tmp_path / "out")
    ids = processor("a door")["input_ids"][0].tolist()
    assert ids[0] == 1 and ids[-1] == 2 and processor.codec_name == "encodec"
    code = {path.name for path in Path(smalle.__file__).parent.glob("*_smalle.py")}
    assert {path.name for path in (tmp_path / "out").glob("*.py")} == code  # it is a whole repository


class Unknown:
    pass


def change(part, **values):
    """A change of the configuration's arguments of the model, or of one of its parts."""

    def apply(config):
        target = config["model"]["init_args"]
        (target[part]["init_args"] if part else target).update(values)

    return apply


@pytest.mark.parametrize(
    "wrong, message",
    [
        (change(None, n_special_token_out=2), "n_special_token"),
        (change(None, d_context=32), "wide"),
        (change("txt_encoder", dim=32), "wide"),
        (change("attentive_rnn", blind=False), "not the model that"),
        (change("attentive_rnn", n_layer=2), "not the model that"),
        (change("attentive_rnn", heads=3), "mixer_heads"),
        (change("attentive_rnn", heads=0), "mixer_heads"),
        (change("txt_encoder", heads="two"), "num_attention_heads='two'"),
        (change(None, attentive_rnn="AttentiveGLA"), "class_path and init_args"),
        (lambda config: config.update(data=["a"]), "class_path and init_args"),
        (change(None, attentive_rnn={"class_path": "MixedGLA", "init_args": {"heads": 2, "n_layer": 1}}), "MixedGLA"),
        (change(None, attentive_rnn={"class_path": "AttentiveGLA"}), "heads, n_layer"),
        (lambda config: config["model"]["init_args"].pop("n_codebook"), "n_codebook"),
        (lambda config: config.pop("model"), "part `model`"),
        (change("attentive_rnn", heads="${data.heads}"), "KeyError('heads')"),
    ],
)
def test_other_configurations_are_refused(wrong, message, tmp_path, capsys):
    weights, _, config = read("gla-blind")
    wrong(config)
    assert run_command("convert_lina", main, [*write(tmp_path, weights, config), str(tmp_path / "out")]) == 2
    assert message in capsys.readouterr().err and not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "content, message",
    [
        ({"model": Unknown()}, "Python objects"),
        ({"model": {}}, "dictionary of tensors"),
        ([1, 2], "dictionary of tensors"),
        ({"model": {"decoder.weight": torch.zeros(2)}}, "lina-speech beta"),
        (b"not a checkpoint", "checkpoint"),
        (None, "No such file"),
    ],
)
def test_other_checkpoints_are_refused(content, message, tmp_path, capsys):
    _, _, config = read("gla-blind")
    path, config = write(tmp_path, {}, config)
    if isinstance(content, bytes):
        Path(path).write_bytes(content)
    elif content is None:
        Path(path).unlink()
    else:
        torch.save(content, path)
    assert run_command("convert_lina", main, [path, config, str(tmp_path / "out")]) == 2
    assert message in capsys.readouterr().err and not (tmp_path / "out").exists()


def test_learned_rotary_frequencies_are_refused(tmp_path):
    weights, _, config = read("gla-blind")
    weights["attentive_rnn.cross_att.rotary.freqs"] *= 2
    with pytest.raises(ValueError, match="rotary.freqs"):
        convert(*write(tmp_path, weights, config))


def test_weights_that_have_no_place_are_refused(tmp_path):
    weights, _, config = read("gla-blind")
    weights["attentive_rnn.encoder.0.tmix.h_conv1d.weight"] = torch.zeros(2)
    with pytest.raises(ValueError, match="h_conv1d"):
        convert(*write(tmp_path, weights, config))


def test_the_original_s_norms_and_blocks_are_in_the_configuration(converted):
    config = json.loads((converted[0] / "config.json").read_text())
    assert "text" not in config["final_norms"] and config["cross_rotary_size"] > 0
