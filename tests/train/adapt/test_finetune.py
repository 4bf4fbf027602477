"""Fine-tuning and cloning: a new voice as a tuned state, with LoRA, and in the weights."""

import contextlib
import copy
import io
import json
import pathlib

import numpy as np
import pytest
import torch
from smalle.train import assemble
from smalle.train.adapt import clone, finetune
from smalle.train.adapt.finetune import Adapter, FinetuneRecipe
from smalle.train.data.corpora import read_metadata
from smalle.train.data.prepare import encode_corpora
from smalle.train.model.recipe import read_recipe
from transformers import pipeline

from benchmarks import finetuned_voice
from smalle import SmallEConfig, SmallEForTextToSpeech, SmallEProcessor
from smalle.cache_smalle import join_state
from smalle.voices_smalle import Voice, load_voice

RECIPES = pathlib.Path(__file__).parents[3] / "train" / "recipes"
TEXTS = ["Hello you.", "How are you?", "It is late.", "We go home.", "No, not yet!", "The 3rd door.", "Who is it?"]
QUICK = [
    "data.frames_per_batch=150",
    "data.max_seconds=2",
    "data.eval_batches=2",
    "training.logging_steps=4",
    "training.warmup_steps=1",
    "objective.ema_decay=0.5",
]
STEPS = {
    "state": ["training.max_steps=12", "training.learning_rate=0.2"],
    "lora": ["training.max_steps=12", "training.learning_rate=0.02", "adapter.rank=4"],
}
FIXED = {"generate_kwargs": {"max_new_tokens": 8, "min_new_tokens": 8, "do_sample": False}}


@pytest.fixture(scope="module")
def base(tmp_path_factory, make_base):
    return make_base(tmp_path_factory.mktemp("base"))


@pytest.fixture(scope="module")
def make_base(tiny_codec, tiny_tokenizer, record):
    """Writes a tiny checkpoint with one voice."""

    def make(work, **changes):
        torch.manual_seed(0)
        sizes = dict(
            vocab_size=64,
            hidden_size=32,
            intermediate_size=48,
            text_layers=1,
            num_attention_heads=2,
            mixer_heads=2,
            audio_encoder_layers=1,
            audio_decoder_layers=1,
            expand_k=0.5,
            expand_v=1.0,
            position_size=16,
            num_codebooks=3,
            codebook_size=20,
            frame_rate=50.0,
            initializer_range=0.2,
        )
        SmallEForTextToSpeech(SmallEConfig(**{**sizes, **changes})).save_pretrained(work / "model")
        tiny_tokenizer.save_pretrained(work / "model")
        tiny_codec.save_pretrained(work / "codec")
        record(work / "anna.wav", 0.5, 200)
        voices = {"default": "anna", "voices": {"anna": {"audio": str(work / "anna.wav"), "text": "It is a door."}}}
        voices["generation"] = {"max_seconds": 6}
        (work / "voices.yaml").write_text(json.dumps(voices))
        assemble.assemble(work / "model", work / "codec", work / "voices.yaml", work / "tiny")
        return str(work / "tiny")

    return make


@pytest.fixture(scope="module")
def corpus(tmp_path_factory, record):
    """Recordings beside text files; each text is spoken twice."""
    folder = tmp_path_factory.mktemp("corpora") / "carl"
    folder.mkdir()
    for index, text in enumerate(TEXTS * 2):
        record(folder / f"{index:02}.wav", 0.4 + 0.05 * index, 110)
        (folder / f"{index:02}.txt").write_text(text + "\n")
    return folder


@pytest.fixture(scope="module", params=["state", "lora"])
def tuned(request, base, corpus, tmp_path_factory):
    """Method, its folder, the whole checkpoint and what the command printed."""
    work, method = tmp_path_factory.mktemp(request.param), request.param
    command = [f"{RECIPES}/finetune-{method}.yaml", str(corpus), base, str(work / "out"), *QUICK, *STEPS[method]]
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(io.StringIO()) as printed:
        patch.setattr(torch.cuda, "is_available", lambda: False)
        finetune.main([*command, "--save-checkpoint", str(work / "whole")])
    return method, work / "out", work / "whole", printed.getvalue().splitlines()


def test_loss_on_held_out_recordings_falls(tuned):
    (line,) = [line for line in tuned[3] if "held-out" in line]
    before, after = (float(word) for word in line.replace(",", "").split() if word[0].isdigit())
    assert after < before - 0.02


def test_folder_is_small_and_holds_what_the_method_needs(tuned, base):
    method, out, *_ = tuned
    files = {str(path.relative_to(out)) for path in out.rglob("*") if path.is_file()}
    assert {"voices/carl.safetensors", f"finetune-{method}.yaml"} <= files
    assert ("adapter_model.safetensors" in files) == (method == "lora")
    assert not any(name.endswith((".bin", ".pt", ".parquet")) for name in files)
    assert sum((out / name).stat().st_size for name in files) < 80_000


def test_voice_is_a_tuned_state_or_after_lora_nothing_but_the_model(tuned):
    method, out, whole, _ = tuned
    voice = load_voice(out / "voices" / "carl.safetensors")
    assert voice.codes is None and voice.text == "" and join_state(voice.state).any() == (method == "state")
    if method == "lora":
        processor, model = SmallEProcessor.from_pretrained(whole), SmallEForTextToSpeech.from_pretrained(whole).eval()
        inputs, way = processor("Hello."), FIXED["generate_kwargs"]
        alone = {name: inputs[name] for name in ("input_ids", "attention_mask")}
        assert torch.equal(model.generate(**inputs, **way), model.generate(**alone, **way))


@pytest.mark.parametrize("method", ["state", "lora"])
def test_a_model_with_speaker_encoder_keeps_one_of_the_recordings(method, corpus, make_base, tmp_path):
    base = make_base(tmp_path, speaker_layers=1)
    recipe = read_recipe(FinetuneRecipe, RECIPES / f"finetune-{method}.yaml", [*QUICK, *STEPS[method]])
    model, voice, losses = finetune.finetune(recipe, corpus, base)
    assert losses[1] < losses[0] and voice.text == "" and voice.codes.shape[1] == 3
    assert hasattr(model, "merge_and_unload") == (method == "lora")
    finetune.write_checkpoint(model, voice, "carl", base, tmp_path / "whole")
    inputs = SmallEProcessor.from_pretrained(tmp_path / "whole")("Hello.")
    assert torch.equal(inputs["speaker_codes"][0], voice.codes) and "audio_codes" not in inputs
    SmallEForTextToSpeech.from_pretrained(tmp_path / "whole").eval().generate(**inputs, **FIXED["generate_kwargs"])


def test_a_fraction_of_what_lora_changed_is_kept(base):
    model = finetune.adapt(SmallEForTextToSpeech.from_pretrained(base), Adapter("lora", 2))
    before = {name: x.clone() for name, x in SmallEForTextToSpeech.from_pretrained(base).state_dict().items()}
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter)
    whole, half = (copy.deepcopy(model) for _ in range(2))
    half = finetune.scale_change(half, {}, 0.5)
    whole, half = (one.merge_and_unload().state_dict() for one in (whole, half))
    for name, x in before.items():
        torch.testing.assert_close(half[name] - x, (whole[name] - x) / 2, atol=1e-5, rtol=1e-4)
    assert any(not torch.equal(whole[name], x) for name, x in before.items())


def test_one_recording_is_enough_with_recombination(make_base, record, tmp_path, monkeypatch):
    base, corpus = make_base(tmp_path, speaker_layers=1), tmp_path / "dora"
    corpus.mkdir()
    record(corpus / "1.wav", 2.0, 90)
    (corpus / "1.txt").write_text("It is late and we go home to the open door.")
    quick = [*QUICK, "training.max_steps=12", "training.learning_rate=0.01", "data.recombined=20", "data.max_seconds=4"]
    command = [f"{RECIPES}/finetune-recording.yaml", str(corpus), base, str(tmp_path / "out"), *quick]
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ValueError, match="with --save-checkpoint"):
        finetune.main(command)
    changed = {}
    for scale in (1.0, 0.5):
        finetune.main([*command, f"adapter.scale={scale}", "--save-checkpoint", str(tmp_path / str(scale))])
        weights = SmallEForTextToSpeech.from_pretrained(tmp_path / str(scale)).state_dict()
        original = SmallEForTextToSpeech.from_pretrained(base).state_dict()
        changed[scale] = {name: x - original[name] for name, x in weights.items() if not torch.equal(x, original[name])}
    assert changed[1.0].keys() == changed[0.5].keys() and "head.weight" in changed[1.0]
    assert all(name == "head.weight" or "audio_" in name and "_proj." in name for name in changed[1.0])
    for name, change in changed[1.0].items():  # weights are kept in half precision
        torch.testing.assert_close(changed[0.5][name], change / 2, atol=1e-3, rtol=1e-2)
    processor = SmallEProcessor.from_pretrained(tmp_path / "1.0")
    assert processor.default_voice == "dora" and processor("Hello.")["speaker_codes"].shape[2] == 3


def test_clone_writes_a_complete_checkpoint_or_nothing(make_base, record, tmp_path, monkeypatch):
    base = make_base(tmp_path, speaker_layers=1)
    record(tmp_path / "dora.wav", 2.0, 90)
    quick = [*QUICK, "training.max_steps=3", "data.recombined=20", "data.max_seconds=4"]
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    command = [str(tmp_path / "dora.wav"), "It is late and we go home to the open door.", base, str(tmp_path / "dora")]
    clone.main([*command, *quick, "--codec-minutes", "0"])
    assert SmallEProcessor.from_pretrained(tmp_path / "dora").default_voice == "dora"
    assert SmallEForTextToSpeech.from_pretrained(tmp_path / "dora").generation_config.best_of == 4
    there = {path.name for path in tmp_path.iterdir()}
    for recording, text, out in (("dora", "Text.", "dora"), ("nobody", "Text.", "new"), ("dora", " ", "new")):
        with pytest.raises(ValueError, match="exists: name|expected a sound file"):
            clone.clone(str(tmp_path / f"{recording}.wav"), text, base, tmp_path / out, "dora", 0)
    monkeypatch.setattr(clone, "finetune", lambda *inputs: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        clone.clone(command[0], command[1], base, tmp_path / "new", "dora", 0)
    assert {path.name for path in tmp_path.iterdir()} == there


def test_pipeline_speaks_with_the_adapter_as_with_the_complete_checkpoint(tuned, base):
    method, out, whole, _ = tuned
    small = pipeline("text-to-speech", model=base if method == "state" else str(out))
    voice = {"preprocess_params": {"voice": f"{out}/voices/carl.safetensors"}}
    speech = small("Hello.", **voice, **FIXED)["audio"]
    assert speech.shape[-1] == 8 * 480
    alone = pipeline("text-to-speech", model=str(whole))
    assert alone.processor.default_voice == "carl" and alone.processor.voices == ["anna", "carl"]
    if method == "state":  # LoRA merged into half precision rounds
        assert (alone("Hello.", **FIXED)["audio"] == speech).all()
    assert not (pipeline("text-to-speech", model=base)("Hello.", **FIXED)["audio"] == speech).all()
    assert (whole / "modeling_smalle.py").is_file() and (whole / "codec" / "model.safetensors").is_file()


def test_a_tuned_state_leaves_the_weights_as_they_were(tuned, base):
    method, _, whole, _ = tuned
    old, new = (SmallEForTextToSpeech.from_pretrained(path).state_dict() for path in (base, whole))
    assert all(torch.equal(old[name], new[name]) for name in old) == (method == "state")


def test_lora_reaches_the_heads_where_it_is_asked_to(base):
    model = SmallEForTextToSpeech.from_pretrained(base)
    adapted = finetune.adapt(model, Adapter("lora", 2, heads=True))
    names = [name for name, _ in adapted.named_parameters() if "lora" in name]
    assert any(".head.lora_A" in name for name in names)
    assert not any("text_" in name or "cross_attention" in name or "embedding" in name for name in names)
    assert sum(".audio_decoder.0.mlp.down_proj." in name for name in names) == 2


def test_one_speaker_of_a_corpus_is_learned_from(base, record, tmp_path):
    lines = []
    for index, text in enumerate(TEXTS):
        record(tmp_path / f"{index}.wav", 0.5, 110)
        lines.append({"file_name": f"{index}.wav", "text": text, "speaker": "anna" if index else "ben"})
    (tmp_path / "metadata.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    codec = SmallEProcessor.from_pretrained(base).codec
    rows = list(encode_corpora([tmp_path], codec, "anna"))
    assert {row["text"] for row in rows} == set(TEXTS[1:])
    some = [list(encode_corpora([tmp_path], codec, "anna", 2)) for _ in range(2)]
    assert len(some[0]) == 2 and [row["text"] for row in some[0]] == [row["text"] for row in some[1]]
    with pytest.raises(ValueError, match="speaker='carl'.*anna, ben"):
        list(encode_corpora([tmp_path], codec, "carl"))


def test_checkpoint_takes_a_codec_with_a_tuned_decoder_and_no_other(base, tiny_codec, tmp_path):
    codec, model = copy.deepcopy(tiny_codec), SmallEForTextToSpeech.from_pretrained(base)
    codec.vocos.head.out.bias.data += 1
    codec.save_pretrained(tmp_path / "codec")
    voice = load_voice(f"{base}/voices/anna.safetensors")
    finetune.write_checkpoint(
        finetune.adapt(model, Adapter("lora", 2)), voice, "carl", base, tmp_path / "whole", tmp_path / "codec"
    )
    whole = SmallEProcessor.from_pretrained(tmp_path / "whole")
    assert torch.allclose(whole.codec.vocos.head.out.bias, codec.vocos.head.out.bias, atol=1e-2)
    whole("Hello.", voice="anna")  # her codes still mean what they meant
    codec.quantizer.codebooks.add_(1)
    codec.save_pretrained(tmp_path / "codec")
    with pytest.raises(ValueError, match="not those of the base"):
        finetune.load_tuned_codec(tmp_path / "codec", whole)


def test_tuned_states_are_kept_only_with_the_weights_they_were_tuned_for(base, tmp_path):
    model, voice = SmallEForTextToSpeech.from_pretrained(base), Voice(state={"state_0": torch.ones(4)})
    finetune.write_checkpoint(model, voice, "ben", base, tmp_path / "with-ben")
    for adapted, voices in (
        (model, ["anna", "ben", "carl"]),
        (finetune.adapt(model, Adapter("lora", 2)), ["anna", "carl"]),
    ):
        finetune.write_checkpoint(adapted, voice, "carl", str(tmp_path / "with-ben"), tmp_path / "whole")
        processor = SmallEProcessor.from_pretrained(tmp_path / "whole")
        assert processor.voices == voices and processor.default_voice == "carl"


SCORER = """
import argparse, json, pathlib
p = argparse.ArgumentParser(); p.add_argument("manifest"); p.add_argument("--out"); p.add_argument("--threads")
a = p.parse_args()
rows = [json.loads(line) for line in pathlib.Path(a.manifest).read_text().splitlines()]
for row in rows:
    assert (pathlib.Path(a.manifest).parent / row["audio"]).is_file() and pathlib.Path(row["reference"]).is_file()
    row |= {"errors": 1, "words": 4, "similarity": 0.5, "distillmos": 3.0}
pathlib.Path(a.out).write_text(json.dumps({"summary": {}, "rows": rows}))
"""


def test_one_command_tunes_and_compares(base, record, tmp_path, monkeypatch):
    corpus = tmp_path / "anna"
    corpus.mkdir()
    for index, text in enumerate([*TEXTS, "We came back.", "It was a long way.", "Nobody knew."]):
        record(corpus / f"{index:02}.wav", 0.4 + 0.05 * index, 110)
        (corpus / f"{index:02}.txt").write_text(text)
    (tmp_path / "scorer.py").write_text(SCORER)
    (tmp_path / "lines.txt").write_text("A door.\nA room.\n")
    command = [
        corpus,
        base,
        tmp_path / "out",
        *QUICK,
        "training.max_steps=2",
        "--sentences",
        tmp_path / "lines.txt",
        "--scorer",
        tmp_path / "scorer.py",
        "--count",
        "2",
        "--joined",
        "1",
        "--methods",
        "lora",
        "--codec-minutes",
        "0.01",
        "--generate",
        "max_new_tokens=8",
        "--threads",
        "1",
    ]
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    finetuned_voice.main(list(map(str, command)))
    table = (tmp_path / "out" / "table.md").read_text().splitlines()
    assert [row.split("|")[1].strip() for row in table[2:]] == [
        "recordings",
        "recordings through the codec",
        "recordings through the tuned codec",
        "base, default voice",
        "base, a recording as prompt",
        "LoRA",
    ]
    assert all(row.endswith("| 0.50 | 25.0 % | 25.0 % | 25.0 % | 3.00 |") for row in table[5:])
    assert all(
        row.endswith("| 0.50 | 25.0 % |  | 25.0 % | 3.00 |") for row in table[2:5]
    )  # the held-out sentences alone


def test_word_times_are_estimated_where_the_recordings_have_none(base, tiny_tokenizer, tmp_path):
    rows = [
        {"text": text, "speaker": "a", "duration": 2.0, "codes": np.zeros(300, np.uint16), "words": words}
        for text, words in (("Hello you.", [0.1, 0.5, 0.6, 1.2]), ("How are you?", []))
    ]
    known, told = (row["words"] for row in finetune.add_word_times(rows, base, tiny_tokenizer, tmp_path))
    assert known == rows[0]["words"]
    assert len(told) == 6 and (np.diff(told) >= 0).all() and 0 <= told[0] and told[-1] <= 2.0


def test_held_out_rows_share_no_text_with_training():
    rows = [{"text": f"{n % 10}"} for n in range(30)]
    train, evaluation = finetune.split_rows(rows, 20)
    assert len(evaluation) == 6 and len(train) == 24  # two texts of ten, each three times
    assert not {row["text"] for row in train} & {row["text"] for row in evaluation}


def test_corpus_needs_no_metadata(corpus, tmp_path):
    rows = read_metadata(corpus)
    assert [row["text"] for row in rows] == TEXTS * 2 and {row["speaker"] for row in rows} == {"carl"}
    assert [round(row["duration"], 2) for row in rows] == [round(0.4 + 0.05 * n, 2) for n in range(14)]
    with pytest.raises(ValueError, match="NAME.txt"):
        read_metadata(tmp_path)


def test_wrong_settings_are_refused(corpus, make_base, tmp_path):
    recipe = read_recipe(FinetuneRecipe, RECIPES / "finetune-state.yaml", QUICK)
    for wrong, message in (
        ("method=prefix", "'prefix'.*state, lora, full"),
        ("method=lora", "rank=None"),
        ("scale=1.5", "scale=1.5.*up to 1"),
    ):
        with pytest.raises(ValueError, match=message):
            read_recipe(FinetuneRecipe, RECIPES / "finetune-state.yaml", [f"adapter.{wrong}"])
    with pytest.raises(ValueError, match="two or more"):
        finetune.split_rows([{"text": "One."}] * 3, 1)
    with pytest.raises(ValueError, match="choose lora"):
        finetune.finetune(recipe, corpus, make_base(tmp_path, architecture="decoder-only", decoder_layers=1))
