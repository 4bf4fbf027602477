"""Rows of a corpus that are trained on."""

import json

import pytest

from train.data.select import select

ROWS = [
    {"file_name": "1.wav", "text": "one", "speaker": "anna", "group": "train"},
    {"file_name": "2.wav", "text": "two", "speaker": "blend", "group": "train", "logprob": -0.7},
    {"file_name": "3.wav", "text": "three", "speaker": "ben", "group": "test"},
    {"file_name": "4.wav", "text": "", "speaker": "anna", "group": "train"},
]


@pytest.fixture
def corpus(tmp_path):
    lines = "".join(json.dumps(row) + "\n" for row in ROWS)
    (tmp_path / "metadata.jsonl").write_text(lines, encoding="utf-8")
    (tmp_path / "speakers.json").write_text('{"blend": [["cleo", 0.5], ["anna", 0.5]]}', encoding="utf-8")
    return tmp_path


def chosen(corpus, **options):
    return [row["file_name"].removeprefix(f"{corpus.resolve()}/") for row in select(corpus, **options)]


def test_rows_without_text_are_never_selected(corpus):
    assert chosen(corpus) == ["1.wav", "2.wav", "3.wav"]


def test_columns_confidence_and_blends_decide(corpus):
    assert chosen(corpus, where=[("group", "train")]) == ["1.wav", "2.wav"]
    assert chosen(corpus, min_logprob=-0.5) == ["1.wav", "3.wav"]
    assert chosen(corpus, exclude=["cleo"]) == ["1.wav", "3.wav"]


def test_nothing_selected_is_an_error(corpus):
    with pytest.raises(ValueError, match="group"):
        select(corpus, where=[("group", "dev")])
