"""Texts of one word or two."""

import json

from train import few_words
from train.texts import words_of

TEXTS = ["The old bridge was closed.", "The badger dug a hole by the bridge."]


def test_texts_have_few_words_the_listed_ones_and_those_of_the_plan():
    made = few_words.few_words(TEXTS, words=4, pairs=30)
    assert made == few_words.few_words(TEXTS, 4, 30) != few_words.few_words(TEXTS, 4, 30, seed=1)
    phrases, calls = few_words.phrases_and_words()
    assert all(text[-1] in ".?!" and 1 <= len(text.split()) <= 4 for text in made)
    assert set(phrases) <= set(made) and {f"{calls[0].capitalize()}{mark}" for mark in ".?!"} <= set(made)
    others = [text for text in made if text not in phrases and words_of(text)[0] not in calls]
    assert {word for text in others for word in words_of(text)} <= {word for text in TEXTS for word in words_of(text)}
    assert len(made) == len(phrases) + 3 * len(calls) + 4 + 30
    assert len(few_words.few_words([], 4, 30)) == len(phrases) + 3 * len(calls)


def test_one_command_makes_a_plan_without_what_is_to_be_evaluated_on(tmp_path, monkeypatch, capsys):
    phrase = few_words.phrases_and_words()[0][0]
    (tmp_path / "plan.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in TEXTS))
    (tmp_path / "words.txt").write_text(f"{phrase.upper()}\n")
    out = tmp_path / "out.jsonl"
    monkeypatch.setattr("sys.argv", ["few_words", str(tmp_path / "plan.jsonl"), str(out), "--exclude",
                                     str(tmp_path / "words.txt")])  # fmt: skip
    few_words.main()
    rows = [json.loads(line) for line in out.read_text().splitlines()]
    assert len({row["id"] for row in rows}) == len(rows) and phrase not in [row["text"] for row in rows]
    assert f"{len(rows)} texts" in capsys.readouterr().out
