"""The benchmark of quality, with a tiny checkpoint and a scorer that recognizes every word."""

import json
import types

import pytest
import torch
from smalle.corpus.speakers import HELD_OUT_VOICES
from smalle.train.evaluation import synthesis

from benchmarks import quality, timing
from smalle import SmallEForTextToSpeech
from smalle.configuration_smalle import AUDIO_EOS

SCORER = """
import argparse, json, pathlib
p = argparse.ArgumentParser(); p.add_argument("manifest"); p.add_argument("--out"); p.add_argument("--threads")
a = p.parse_args()
rows = [json.loads(line) for line in pathlib.Path(a.manifest).read_text().splitlines()]
rows = [{**row, "heard": row["text"] + (" and so on" if row["text"] == "Two." else "")} for row in rows]
like = 0.5 if all(row.get("reference") for row in rows) else None
summary = {"wer": 12.5, "cer": 5.0, "skips": 0, "repeats": 0, "silent": 0, "distillmos": 3.0, "similarity": like}
pathlib.Path(a.out).write_text(json.dumps({"summary": summary, "rows": rows}))
"""


@pytest.fixture
def place(tiny_checkpoint, record, tmp_path, monkeypatch):
    """Lists, recordings of two held-out speakers, a scorer, and a results.jsonl of their own; gives the arguments."""
    monkeypatch.setattr(timing, "RESULTS", tmp_path / "results.jsonl")
    monkeypatch.setattr(quality, "TEXTS", tmp_path)
    lists = {
        "sentences": [f"Line {n}." for n in range(24)],
        "hard": ["One.", "Two.", "Three."],
        "words": ["Yes.", "No."],
        "paragraph": ["It is a door. Nobody asked. " * 4],
    }
    for name, texts in lists.items():
        (tmp_path / f"{name}.txt").write_text("\n".join(texts) + "\n")
    corpus(tmp_path / "corpus", record, {"af_sky": [4, 0.5], "bm_lewis": [0.5, 3, 0.6], "somebody": [4, 4]})
    (tmp_path / "scorer.py").write_text(SCORER)
    return [
        str(tiny_checkpoint),
        str(tmp_path / "out"),
        "--eval",
        str(tmp_path),
        "--corpus",
        str(tmp_path / "corpus"),
        "--scorer",
        str(tmp_path / "scorer.py"),
        "--sentences",
        "3",
        "--generate",
        "max_new_tokens=4",
    ]


def corpus(folder, record, speakers):
    """Writes a folder of recordings of so many seconds."""
    folder.mkdir()
    rows = []
    for speaker, lengths in speakers.items():
        for n, seconds in enumerate(lengths):
            record(folder / f"{speaker}-{n}.wav", seconds)
            rows.append({"file_name": f"{speaker}-{n}.wav", "text": f"Text {n}.", "speaker": speaker})
    (folder / "metadata.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def table(text):
    """{part: {title: value}} of the table that is printed."""
    header, _, *rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines() if line]
    return {row[0]: dict(zip(header[1:], row[1:], strict=True)) for row in rows}


def test_all_parts_stand_in_one_table_and_are_not_done_again(place, tmp_path, capsys, monkeypatch):
    quality.main(place)
    text = capsys.readouterr().out
    rows = table(text)
    counts = {part: int(row["utterances"]) for part, row in rows.items()}
    assert counts == {
        "sentences": 3,
        "hard": 3,
        "preset anna (default)": 3,
        "preset ben": 3,
        "cloning, 2 of 8 held-out speakers": 6,
        "words": 2,
        "paragraph": 1,
    }
    assert {part: row["run on"] for part, row in rows.items() if row["run on"] != "0"} == {"hard": "1"}
    assert rows["cloning, 2 of 8 held-out speakers"]["ECAPA"] == "0.5" and rows["hard"]["ECAPA"] == "–"
    assert all(0 <= int(row["cut"]) <= counts[part] and row["WER %"] == "12.5" for part, row in rows.items())
    recorded = [json.loads(line) for line in timing.RESULTS.read_text().splitlines()]
    assert [row["part"] for row in recorded] == [part for part in rows if "default" not in part]  # it is `sentences`
    assert all(row["generate"] == {"max_new_tokens": 4} and row["scorer"] == "scorer.py" for row in recorded)

    (tmp_path / "scorer.py").write_text("raise SystemExit(1)")
    monkeypatch.setattr(synthesis, "load", None)
    quality.main(place)
    assert capsys.readouterr().out == text == (tmp_path / "out" / "table.md").read_text()
    assert len(timing.RESULTS.read_text().splitlines()) == len(recorded)


def test_a_model_with_speaker_encoder_also_clones_without_transcripts(place, tmp_path, tiny_config):
    tiny_config.__class__(**{**tiny_config.to_dict(), "speaker_layers": 1}).save_pretrained(tmp_path / "model")
    arguments = quality.parse([str(tmp_path / "model"), *place[1:]])
    (told, prompts), (untold, heard) = quality.cloning_lists(arguments)
    assert untold == f"{told}, without transcripts"
    prompts, heard = ([json.loads(line) for line in path.read_text().splitlines()] for path in (prompts, heard))
    assert heard == [{key: row[key] for key in ("audio", "text", "reference")} for row in prompts] and len(heard) == 6


def test_each_speaker_has_a_prompt_another_recording_and_sentences_of_its_own(record, tmp_path):
    corpus(tmp_path / "a", record, {"af_sky": [1, 5.9, 4, 11], "am_puck": [1, 2], "somebody": [6, 1]})
    corpus(tmp_path / "b", record, {"bm_lewis": [5.5], "bf_lily": [1, 5.5]})
    found = quality.find_speakers([tmp_path / "a", tmp_path / "b"])
    chosen = {name: (prompt["file_name"], reference) for name, (prompt, reference) in found.items()}
    assert chosen == {
        "af_sky": ("af_sky-1.wav", str(tmp_path / "a" / "af_sky-3.wav")),
        "bf_lily": ("bf_lily-1.wav", str(tmp_path / "b" / "bf_lily-0.wav")),
    }
    rows = quality.cloning_rows(found, [str(n) for n in range(100)], 5)
    assert len({row["text"] for row in rows}) == len(rows) == 10
    assert all(row["audio"] != row["reference"] and row["audio_text"] == "Text 1." for row in rows)
    everybody = quality.cloning_rows(dict.fromkeys(HELD_OUT_VOICES, found["af_sky"]), [str(n) for n in range(100)], 5)
    assert rows[0] in everybody  # a speaker's sentences are the same whoever else is found
    with pytest.raises(ValueError, match="no recording of 3 to 10 s.*af_sky.*held_out_speakers.jsonl"):
        quality.find_speakers([])


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (["--asr", "ears"], "--scorer or --asr"),
        (["--scorer", "nothing.py"], "nothing.py does not exist"),
        (["--sentences", "0"], "expected 1 or more"),
        (["--only", "poems"], "invalid choice"),
    ],
)
def test_bad_arguments_are_named(place, capsys, change, says):
    with pytest.raises(SystemExit) as stopped:
        quality.main([*place, *change])
    assert stopped.value.code == 2 and says in capsys.readouterr().err


def test_a_row_is_cut_where_it_had_not_ended(tiny_checkpoint, processor):
    model = SmallEForTextToSpeech.from_pretrained(tiny_checkpoint).eval()
    inputs = processor(["It is a door."] * 3, return_tensors="pt")

    def end(tokens, scores):  # the first row says at its fourth frame that it ends, the second after its eighth
        scores[:, AUDIO_EOS] = -torch.inf
        for row, last in enumerate((3, 8)):
            if tokens.shape[1] == last:
                scores[row] = -torch.inf
                scores[row, AUDIO_EOS] = 0
        return scores

    output = model.generate(**inputs, max_new_tokens=8, logits_processor=[end], return_dict_in_generate=True)
    assert synthesis.were_cut(output) == [False, False, True]
    assert output.lengths.tolist() == [3, 8, 8]


def test_a_stream_is_cut_where_one_of_its_pieces_was(tiny_checkpoint, processor):
    model = SmallEForTextToSpeech.from_pretrained(tiny_checkpoint).eval()
    utterance = types.SimpleNamespace(text="It is a door. Nobody asked. " * 5, audio=None)
    watched = synthesis.CutRecorder(model)
    list(processor.stream(watched, utterance.text, seed=0, max_characters=30, max_new_tokens=6))
    assert len(watched.cut) >= 5 and any(watched.cut) and not all(watched.cut)
    assert synthesis.stream(processor, model, utterance, "ben", 0, max_characters=30, max_new_tokens=6).cut
    assert not synthesis.stream(processor, model, utterance, "ben", 0, max_characters=30, max_new_tokens=300).cut
