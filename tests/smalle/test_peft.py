"""LoRA: default targets of every mixer and baseline, saved, loaded, merged, and spoken through the pipeline."""

import json

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import pipeline

from smalle import SmallEForTextToSpeech
from smalle.mixers_smalle import MIXERS

KINDS = [{"mixer": mixer} for mixer in sorted(MIXERS)] + [
    {"cross_attention": "plain"},
    {"architecture": "decoder-only", "decoder_layers": 2},
]


def inputs(config):
    generator = torch.Generator().manual_seed(0)
    return {
        "input_ids": torch.randint(3, config.vocab_size, (2, 7), generator=generator),
        "decoder_input_ids": torch.randint(
            3, config.audio_vocab_size, (2, 9, config.num_codebooks), generator=generator
        ),
    }


def logits(model):
    with torch.no_grad():
        return model(**inputs(model.config)).logits


def with_lora(model, **settings):
    """The model with an adapter that changes what it says."""
    torch.manual_seed(1)
    adapted = get_peft_model(model, LoraConfig(r=2, **settings))
    with torch.no_grad():
        for name, parameter in adapted.named_parameters():
            if "lora_" in name:
                parameter.normal_(std=0.3)
    return adapted.eval()


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: next(iter(kind.values())))
def test_default_targets_are_the_projections_of_the_audio_side_and_all_of_them_learn(make_tiny, kind):
    model = make_tiny(**kind)
    adapted = with_lora(model)
    names = {name for name, parameter in adapted.named_parameters() if parameter.requires_grad}
    assert names and all("lora_" in name for name in names)
    for part in ("text_encoder", "cross_attention", "head", "embedding"):
        assert not any(part in name for name in names)
    blocks = {tuple(name.split(".")[3:6]) for name in names}
    config = model.config
    layers = config.audio_encoder_layers + config.audio_decoder_layers
    assert len({block[:2] for block in blocks}) == (1 if config.architecture == "decoder-only" else layers)
    data = inputs(config)
    adapted(**data, labels=data["decoder_input_ids"]).loss.backward()
    for name, parameter in adapted.named_parameters():
        if parameter.requires_grad:
            assert parameter.grad is not None and parameter.grad.any(), name


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: next(iter(kind.values())))
def test_merged_equals_adapted_and_a_new_adapter_changes_nothing(make_tiny, kind):
    plain = logits(make_tiny(**kind))
    assert torch.equal(logits(get_peft_model(make_tiny(**kind), LoraConfig(r=2)).eval()), plain)
    adapted = with_lora(make_tiny(**kind))
    changed = logits(adapted)
    assert not torch.allclose(changed, plain, atol=1e-2)
    merged = adapted.merge_and_unload()
    assert type(merged) is SmallEForTextToSpeech
    assert torch.allclose(logits(merged), changed, atol=1e-4)


@pytest.fixture
def adapter(tiny_checkpoint, tmp_path):
    """Folder of an adapter to the tiny checkpoint, and the adapted model."""
    adapted = with_lora(SmallEForTextToSpeech.from_pretrained(tiny_checkpoint))
    adapted.save_pretrained(tmp_path / "adapter")
    return tmp_path / "adapter", adapted


def test_adapter_folder_is_small_and_loads_in_every_way(adapter, tiny_checkpoint):
    folder, adapted = adapter
    expected = logits(adapted)
    assert json.loads((folder / "adapter_config.json").read_text())["base_model_name_or_path"] == str(tiny_checkpoint)
    assert sum(path.stat().st_size for path in folder.iterdir()) < 60_000
    base = SmallEForTextToSpeech.from_pretrained(tiny_checkpoint)
    assert torch.equal(logits(PeftModel.from_pretrained(base, folder)), expected)
    assert torch.equal(logits(SmallEForTextToSpeech.from_pretrained(folder)), expected)
    model = SmallEForTextToSpeech.from_pretrained(tiny_checkpoint)
    plain = logits(model)
    model.load_adapter(str(folder))
    assert torch.equal(logits(model), expected)
    try:
        model.disable_adapters()
    except ValueError as error:
        if "version of PEFT" not in str(error):
            raise
        pytest.skip(f"transformers wants a newer PEFT than there is: {error}")
    assert torch.equal(logits(model), plain)


def test_merged_model_is_saved_and_loads_as_any_other(adapter, tmp_path):
    _, adapted = adapter
    expected = logits(adapted)
    adapted.merge_and_unload().save_pretrained(tmp_path / "merged")
    assert not (tmp_path / "merged" / "adapter_config.json").exists()
    assert torch.allclose(logits(SmallEForTextToSpeech.from_pretrained(tmp_path / "merged")), expected, atol=1e-4)


def test_pipeline_speaks_through_an_adapter_folder(adapter):
    folder, adapted = adapter
    speak = pipeline("text-to-speech", model=str(folder))
    length = {"max_new_tokens": 8, "min_new_tokens": 8, "do_sample": False}
    speech = speak("Hello.", generate_kwargs=length)
    said = adapted.generate(**speak.processor("Hello."), **length)
    assert torch.equal(torch.from_numpy(speech["audio"]).flatten(), speak.processor.decode(said)[0])


def test_helper_names_the_targets_where_the_table_of_peft_does_not(tiny_model, tiny_checkpoint):
    model = SmallEForTextToSpeech.from_pretrained(tiny_checkpoint)
    named = get_peft_model(model, LoraConfig(r=2, target_modules=model.lora_targets))
    default = get_peft_model(SmallEForTextToSpeech.from_pretrained(tiny_checkpoint), LoraConfig(r=2))
    assert named.state_dict().keys() == default.state_dict().keys()
