"""The evaluation command, with a fake checkpoint that has the public interface of a real one."""

import json
import pathlib
import sys
from types import SimpleNamespace

import numpy as np
import pytest
import soundfile
import torch
from smalle.train.evaluation import evaluate, synthesis
from transformers import BatchFeature

from smalle.cli.command import run_command

SCORER = """
import argparse, json, pathlib
p = argparse.ArgumentParser(); p.add_argument("manifest"); p.add_argument("--out"); p.add_argument("--threads")
a = p.parse_args()
rows = [json.loads(line) for line in pathlib.Path(a.manifest).read_text().splitlines()]
pathlib.Path(a.out).write_text(json.dumps({"summary": {"wer": 0.0, "heard": len(rows)}, "rows": rows}))
"""


class FakeProcessor:
    """Text length as input; decodes one code to 320 samples of its own value."""

    sampling_rate = 24000

    def __init__(self):
        self.calls = []

    def __call__(self, text, voice=None, audio=None, audio_text=None, sampling_rate=None, return_tensors=None):
        if voice == "nobody":
            raise ValueError("voice 'nobody' is not one of ['somebody']")
        texts = [text] if isinstance(text, str) else text
        self.calls.append(SimpleNamespace(texts=texts, voice=voice, audio=audio, audio_text=audio_text))
        return BatchFeature({"input_ids": torch.tensor([[len(t)] for t in texts])})

    def decode(self, sequences, voice=None):
        return [np.repeat(row[:, 0].numpy() / 1000, 320).astype(np.float32) for row in sequences]


class FakeModel(torch.nn.Module):
    """As many random frames as the text has letters, padded on the right; a text of more than 30 has no end."""

    device, config = torch.device("cpu"), SimpleNamespace(speaker_layers=0)

    def generate(self, input_ids, return_dict_in_generate, scale=1000):
        lengths = input_ids[:, 0]
        codes = torch.randint(scale, (len(lengths), int(lengths.max()) + 3, 4))
        reasons = ["length" if length > 30 else "stop" for length in lengths.tolist()]
        return SimpleNamespace(sequences=codes, lengths=lengths, finish_reason=reasons)


@pytest.fixture
def processor(monkeypatch):
    fake = FakeProcessor()
    monkeypatch.setattr(synthesis, "load", lambda settings: (fake, FakeModel()))
    return fake


@pytest.fixture
def sentences(tmp_path):
    path = tmp_path / "lines.txt"
    path.write_text("A sentence of some length.\n\nShort.\nAnother sentence, longer than the first one.\n")
    return path


def run(capsys, *argv):
    assert evaluate.main([str(a) for a in argv]) == 0
    return json.loads(capsys.readouterr().out)


def waves(folder):
    return {path.name: soundfile.read(path)[0] for path in sorted(folder.glob("*.wav"))}


def test_every_line_becomes_a_recording_of_its_own_length(processor, sentences, tmp_path, capsys):
    result = run(capsys, "mini", sentences, tmp_path / "out", "--batch-size", 2)
    folder = tmp_path / "out" / result["folder"].rsplit("/", 1)[1]
    rows = [json.loads(line) for line in (folder / "manifest.jsonl").read_text().splitlines()]
    assert [row["audio"] for row in rows] == ["0001.wav", "0002.wav", "0003.wav"]
    assert [len(wave) for wave in waves(folder).values()] == [320 * len(row["text"]) for row in rows]
    assert result["utterances"] == 3 and result["speed"] > 0
    assert not list(folder.glob(".*"))


def test_sentences_may_name_a_recording_to_be_compared_with(processor, tmp_path, capsys):
    soundfile.write(tmp_path / "her.wav", np.zeros(100), 24000)
    path = tmp_path / "lines.jsonl"
    path.write_text('{"text": "One.", "reference": "her.wav"}\n{"text": "Two."}\n')
    folder = run(capsys, "mini", path, tmp_path / "out", "--voice", "somebody")["folder"]
    with open(f"{folder}/manifest.jsonl", encoding="utf-8") as lines:
        rows = [json.loads(line) for line in lines]
    assert [row["text"] for row in rows] == ["One.", "Two."] and processor.calls[0].voice == "somebody"
    assert [row.get("reference") for row in rows] == [str(tmp_path / "her.wav"), None]


def test_the_embedded_checkpoint_has_a_name_unless_a_folder_has_it(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    parse = evaluate.parse
    embedded = pathlib.Path(parse(["smalle-mini", "lines.txt", "out"]).checkpoint)
    assert embedded.name == "smalle-mini" and (embedded / "config.json").is_file()
    assert parse(["owner/smalle-mini", "lines.txt", "out"]).checkpoint == "owner/smalle-mini"
    (tmp_path / "smalle-mini").mkdir()
    assert parse(["smalle-mini", "lines.txt", "out"]).checkpoint == "smalle-mini"


def test_name_of_the_folder_holds_what_changes_a_number(tmp_path):
    base = evaluate.Settings("a/mini", tmp_path / "lines.txt")
    changes = [
        {"seed": 1},
        {"voice": "x"},
        {"batch_size": 1},
        {"dtype": "bfloat16"},
        {"device": "cuda"},
        {"runtime": "native"},
        {"runtime": "auto"},
        {"generate": {"temperature": 0.5}},
        {"checkpoint": "a/other"},
    ]
    names = {evaluate.Settings(**{"checkpoint": "a/mini", "texts": base.texts, **change}).name for change in changes}
    assert len(names | {base.name}) == len(changes) + 1


def test_recordings_of_another_voice_under_the_same_name_are_not_mixed_in(processor, sentences, tmp_path, capsys):
    voice = tmp_path / "anna.safetensors"
    voice.write_bytes(b"tuned")
    run(capsys, "mini", sentences, tmp_path / "out", "--voice", voice)
    run(capsys, "mini", sentences, tmp_path / "out", "--voice", voice)
    voice.write_bytes(b"tuned for longer")
    assert (
        run_command("smalle", evaluate.main, ["mini", str(sentences), str(tmp_path / "out"), "--voice", str(voice)])
        == 2
    )
    assert "other weights, texts or voices" in capsys.readouterr().err


def test_resumed_run_equals_an_unbroken_one(processor, sentences, tmp_path, capsys):
    folder = tmp_path / "out" / run(capsys, "mini", sentences, tmp_path / "out", "--batch-size", 2)["folder"]
    whole = waves(folder)
    kept = (folder / "0001.wav").stat().st_mtime_ns
    (folder / "0002.wav").unlink()
    run(capsys, "mini", sentences, tmp_path / "out", "--batch-size", 2)
    assert all(np.array_equal(whole[name], wave) for name, wave in waves(folder).items())
    assert (folder / "0001.wav").stat().st_mtime_ns == kept


def test_finished_run_is_scored_without_the_model(processor, sentences, tmp_path, capsys, monkeypatch):
    first = run(capsys, "mini", sentences, tmp_path / "out")
    monkeypatch.setattr(synthesis, "load", None)
    scorer = tmp_path / "scorer.py"
    scorer.write_text(SCORER)
    result = run(capsys, "mini", sentences, tmp_path / "out", "--scorer", scorer, "--scorer-python", sys.executable)
    report = json.loads((tmp_path / "out" / result["folder"] / "report.json").read_text())
    assert result["wer"] == 0.0 and result["heard"] == 3 and result["speed"] == first["speed"]
    assert report["settings"]["seed"] == 0 and len(report["rows"]) == 3


def test_recordings_that_were_cut_off_are_counted_also_when_resumed(processor, sentences, tmp_path, capsys):
    def cut():
        result = run(capsys, "mini", sentences, tmp_path / "out", "--batch-size", 2)
        folder = tmp_path / "out" / result["folder"]
        rows = [json.loads(line) for line in (folder / "manifest.jsonl").read_text().splitlines()]
        return folder, result["cut"], [row.get("cut") for row in rows]

    for name in ("0001.wav", "0002.wav", "cut.json"):
        folder, *counted = cut()
        assert counted == [1, [False, False, True]] and "cut True" in (folder / "index.html").read_text()
        (folder / name).unlink()
    assert cut()[1:] == (None, [None] * 3)  # unknown of recordings that were made without being watched


def test_failing_scorer_keeps_the_recordings(processor, sentences, tmp_path, capsys):
    scorer = tmp_path / "scorer.py"
    scorer.write_text("raise SystemExit(3)")
    assert evaluate.main(["mini", str(sentences), str(tmp_path / "out"), "--scorer", str(scorer)]) == 1
    assert "exit code 3" in capsys.readouterr().err
    assert len(list((tmp_path / "out").rglob("*.wav"))) == 3


def test_prompts_give_prompt_and_reference(processor, tmp_path, capsys):
    soundfile.write(tmp_path / "prompt.wav", np.full((800, 2), 0.25), 16000)
    row = {"audio": "prompt.wav", "audio_text": "What it says.", "text": "What to say.", "reference": "prompt.wav"}
    manifest = tmp_path / "prompts.jsonl"
    manifest.write_text(json.dumps(row) + "\n" + json.dumps({**row, "text": "More.", "reference": None}) + "\n")
    result = run(capsys, "mini", manifest, tmp_path / "out")
    assert sorted(call.texts for call in processor.calls) == [["More."], ["What to say."]]
    assert all(call.audio.shape == (800,) and call.audio_text == "What it says." for call in processor.calls)
    rows = (tmp_path / "out" / result["folder"] / "manifest.jsonl").read_text().splitlines()
    assert json.loads(rows[0])["reference"] == str(tmp_path / "prompt.wav") and "reference" not in json.loads(rows[1])


def test_prompts_without_transcripts_need_a_speaker_encoder(processor, tmp_path, capsys, monkeypatch):
    soundfile.write(tmp_path / "me.wav", np.full(800, 0.25), 16000)
    manifest, out = tmp_path / "prompts.jsonl", tmp_path / "out"
    manifest.write_text(json.dumps({"audio": "me.wav", "text": "What to say."}) + "\n")
    assert run_command("smalle", evaluate.main, ["mini", str(manifest), str(out)]) == 2
    assert "1 rows without audio_text" in capsys.readouterr().err and not list(out.rglob("*.wav"))
    monkeypatch.setattr(FakeModel.config, "speaker_layers", 1)
    run(capsys, "mini", manifest, out)
    assert processor.calls[-1].audio_text is None
    manifest.write_text(json.dumps({"audio": "me.wav", "audio_text": "So.", "text": "What to say."}) + "\n")
    assert run_command("smalle", evaluate.main, ["mini", str(manifest), str(out)]) == 2
    assert "other weights, texts or voices" in capsys.readouterr().err


def test_options_reach_generate(processor, sentences, tmp_path, capsys):
    result = run(capsys, "mini", sentences, tmp_path / "out", "--generate", "scale=1")
    assert all(not wave.any() for wave in waves(tmp_path / "out" / result["folder"]).values())
    assert result["folder"].endswith("scale-1")


def test_samples_that_are_not_finite_become_silence(tmp_path):
    synthesis.write_wav(tmp_path / "a.wav", np.array([np.nan, np.inf, -2.0]), 24000)
    assert soundfile.read(tmp_path / "a.wav")[0] == pytest.approx([0, 1, -1], abs=1e-3)


@pytest.mark.parametrize("change", [{"dtype": "bfloat16"}, {"device": "cuda"}])
def test_the_native_runtime_is_for_single_precision_on_the_cpu(tmp_path, change, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    with pytest.raises(ValueError, match="--runtime native runs in float32 on the CPU"):
        synthesis.load(evaluate.Settings("mini", tmp_path, runtime="native", **change))


@pytest.mark.parametrize(
    ("argv", "says"),
    [
        (["mini", "OUT"], "the following arguments are required: out"),
        (["mini", "PROMPTS", "OUT", "--voice", "somebody"], "already names a recording for each voice"),
        (["mini", "missing.txt", "OUT"], "missing.txt cannot be read"),
        (["mini", "EMPTY", "OUT"], "contains no text"),
        (["mini", "NUMBERS", "OUT"], "line 2: expected a JSON object"),
        (["mini", "LOST", "OUT"], "lost.wav does not exist"),
        (["mini", "LINES", "OUT", "--batch-size", "0"], "at least 1, got 0"),
        (["mini", "LINES", "OUT", "--generate", "temperature"], "expected KEY=VALUE"),
        (["mini", "LINES", "OUT", "--scorer", "nothing.py"], "scorer nothing.py does not exist"),
        (["mini", "LINES", "OUT", "--voice", "nobody"], "voice 'nobody' is not one of"),
    ],
)
def test_bad_input_is_named_and_exits_with_2(processor, sentences, tmp_path, capsys, argv, says):
    contents = {
        "EMPTY": "\n",
        "NUMBERS": '{"text": "One."}\n2\n',
        "LOST": '{"text": "One.", "audio": "lost.wav"}',
        "PROMPTS": '{"text": "One.", "audio": "NUMBERS.jsonl"}',
    }
    places = {"OUT": tmp_path / "out", "LINES": sentences}
    for name, content in contents.items():
        places[name] = tmp_path / f"{name}.jsonl"
        places[name].write_text(content)
    try:
        code = run_command("smalle", evaluate.main, [str(places.get(a, a)) for a in argv])
    except SystemExit as stopped:  # of argparse
        code = stopped.code
    assert code == 2 and says in capsys.readouterr().err
    assert not list(tmp_path.rglob("*.wav"))


def test_recordings_of_other_texts_are_not_mixed_in(processor, sentences, tmp_path, capsys):
    run(capsys, "mini", sentences, tmp_path / "out")
    sentences.write_text("Something else.\n")
    assert run_command("smalle", evaluate.main, ["mini", str(sentences), str(tmp_path / "out")]) == 2
    assert "other weights, texts or voices" in capsys.readouterr().err
