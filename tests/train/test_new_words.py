"""What a corpus should say next."""

import json

from train import new_words


def test_texts_with_words_that_were_not_said_come_first_and_said_ones_never():
    known = ["The cat sat.", "The cat ran."]
    texts = ["The cat sat.", "The cat ran, the cat sat.", "A badger dug.", "The badger sat.", "A badger dug a hole."]
    order = list(new_words.new_words_first(texts, known))
    assert sorted(order) == [1, 2, 3, 4] and order[0] in (2, 4) and order[-1] == 1


def test_words_of_what_comes_first_are_known_then(monkeypatch):
    monkeypatch.setattr(new_words, "ROUNDS", 100)  # one text a round
    texts = ["Badger mole.", "Mole badger.", "Weasel dog."]  # of these alone the second would come before the third
    assert list(new_words.new_words_first(texts, ["A dog."])) == [0, 2, 1]


def test_one_command_makes_a_plan_of_the_rest(tmp_path, monkeypatch, capsys):
    (tmp_path / "corpus").mkdir()
    said = {"file_name": "a.wav", "text": "Hello you.", "speaker": "a", "duration": 1.0}
    (tmp_path / "corpus" / "metadata.jsonl").write_text(json.dumps(said) + "\n")
    rows = [{"id": str(n), "text": text, "voice": {"a": 1.0}} for n, text in enumerate(["Hello you.", "Who is it?"])]
    (tmp_path / "plan.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    plan, out = str(tmp_path / "plan.jsonl"), tmp_path / "next.jsonl"
    monkeypatch.setattr("sys.argv", ["new_words", plan, str(out), "--known", str(tmp_path / "corpus")])
    new_words.main()
    assert [json.loads(line) for line in out.read_text().splitlines()] == rows[1:]
    assert "1 of 2 texts are new" in capsys.readouterr().out
