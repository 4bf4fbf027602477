"""The benchmark of fine-tuning: what it holds out, compares and counts."""

import pytest
import soundfile
from smalle.train.evaluation.scoring import read_jsonl as read

from benchmarks import finetuned_voice


def test_held_out_texts_are_spoken_and_never_tuned_on(record, tmp_path):
    (tmp_path / "anna").mkdir()
    for n in range(20):  # ten texts, each twice
        record(tmp_path / "anna" / f"{n}.wav", 0.2)
        (tmp_path / "anna" / f"{n}.txt").write_text(f"Text {n % 10}.")
    (tmp_path / "lines.txt").write_text("".join(f"Line {n}.\n" for n in range(8)))
    for out in (tmp_path / "out", tmp_path / "again"):
        assert finetuned_voice.hold_out(tmp_path / "anna", tmp_path / "lines.txt", 2, out) == 2
    out, again = (read(tmp_path / name / "sentences.jsonl") for name in ("out", "again"))
    kept = read(tmp_path / "out" / "recordings" / "metadata.jsonl")
    held_out = {row["text"]: row["audio"] for row in read(tmp_path / "out" / "held-out" / "manifest.jsonl")}
    assert out == again and [row["text"] for row in out] == [*held_out, "Line 0.", "Line 4."]
    assert len(kept) == 16 and not {row["text"] for row in kept} & set(held_out)
    assert {row["reference"] for row in out} == set(held_out.values())
    assert all(row["reference"] != held_out.get(row["text"]) for row in out)  # of another text
    assert not {row["file_name"] for row in kept} & set(held_out.values())


def test_a_reference_may_be_several_recordings_joined(record, tmp_path):
    (tmp_path / "anna").mkdir()
    for n in range(20):
        record(tmp_path / "anna" / f"{n}.wav", 0.2 + 0.01 * n)
        (tmp_path / "anna" / f"{n}.txt").write_text(f"Text {n}.")
    (tmp_path / "lines.txt").write_text("Line.\n")
    finetuned_voice.hold_out(tmp_path / "anna", tmp_path / "lines.txt", 4, tmp_path / "out", joined=3)
    rows = read(tmp_path / "out" / "held-out" / "manifest.jsonl")
    own = [soundfile.info(row["audio"]).duration for row in rows]
    joined = [soundfile.info(row["reference"]).duration for row in rows]
    assert joined == pytest.approx([sum(own) - one for one in own], abs=0.01)  # of all texts but its own


def test_words_are_counted_over_all_sentences():
    rows = [{"errors": 1, "words": 2, "similarity": 0.4, "distillmos": 3.0}, {"errors": 0, "words": 8}]
    assert finetuned_voice.word_error_rate(rows) == 10
    assert finetuned_voice.table_row("LoRA", rows, 1) == ("LoRA", "0.40", "50.0 %", "0.0 %", "10.0 %", "3.00")
