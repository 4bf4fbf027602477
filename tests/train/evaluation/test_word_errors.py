"""Word errors, and the page that shows them."""

import html.parser
import json

import numpy as np
import pytest
import soundfile
from hypothesis import given
from hypothesis import strategies as st
from smalle.train.evaluation import scoring
from smalle.train.evaluation.report import results_page
from smalle.train.evaluation.word_errors import align, count_errors, errors, repeats, runs_on, skips, words

sentences = st.lists(st.sampled_from("abcd"), max_size=8)


@given(sentences, sentences)
def test_an_alignment_tells_both_and_costs_the_least(said, heard):
    pairs = align(said, heard)
    assert [word for word, _ in pairs if word] == said and [word for _, word in pairs if word] == heard
    row = list(range(len(heard) + 1))  # the edit distance, once more
    for n, word in enumerate(said, 1):
        last, row = row, [n]
        for m, other in enumerate(heard, 1):
            row.append(min(last[m - 1] + (word != other), last[m] + 1, row[-1] + 1))
    assert errors(pairs) == row[-1]


@pytest.mark.parametrize(
    ("heard", "wrong", "skip", "repeat"),
    [
        ("the door is open now", 0, False, False),
        ("The door's open, now!", 2, False, False),
        ("the is open now", 1, False, False),
        ("the door now", 2, True, False),
        ("the door is open", 1, True, False),
        ("the door the door is open now", 2, False, True),
        ("the door is is open now", 1, False, True),
        ("the door is very open now", 1, False, False),
        ("", 5, True, False),
    ],
)
def test_skips_and_repeats(heard, wrong, skip, repeat):
    pairs = align(words("The door is open now."), words(heard))
    assert (errors(pairs), skips(pairs), repeats(pairs)) == (wrong, skip, repeat)


@pytest.mark.parametrize(
    ("heard", "behind"),
    [
        ("the door is open now", False),
        ("the door is open now now", False),
        ("the door is open now it is", True),
        ("the door is open know and then", True),  # the last word was heard wrong
        ("oh well the door is open now", False),
        ("the door", False),
        ("", False),
    ],
)
def test_speech_that_goes_on_behind_its_text(heard, behind):
    assert runs_on(align(words("The door is open now."), words(heard))) == behind


def test_words_are_compared_as_they_sound():
    assert words("It’s 1,250 — “done” & over.") == "it's one thousand two hundred and fifty done and over".split()
    assert words("Größe: à la carte") == ["größe", "à", "la", "carte"]


def test_rates_are_over_all_words_and_characters():
    rows = [
        {"text": "one two three", "heard": "one two three", "seconds": 1.0},
        {"text": "four", "heard": "for", "seconds": 0.5},
        {"text": "five", "heard": "", "seconds": 0.1},
    ]
    report = count_errors(rows)
    assert report["summary"]["wer"] == 40.0 and report["summary"]["cer"] == round(100 * 5 / 21, 2)
    assert report["summary"]["silent"] == 1 and [row["wer"] for row in report["rows"]] == [0.0, 100.0, 100.0]


class Reader(html.parser.HTMLParser):
    """Every tag with its attributes; open tags have to be closed."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.open, self.text = [], [], ""
        self.feed(text)
        assert not self.open

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))
        if tag not in ("meta", "img", "br"):
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text += data


def test_the_page_shows_every_utterance_worst_first_and_escapes_what_it_shows(tmp_path):
    rows = [
        {"audio": "0001.wav", "text": "Fine <b>words</b>.", "heard": "fine b words b", "wer": 0.0},
        {"audio": "0002.wav", "text": "The door.", "heard": "the <floor>", "wer": 50.0, "reference": "/a b/c.wav"},
    ]
    (tmp_path / "0002.png").write_bytes(b"")
    page = Reader(results_page(tmp_path, rows, {"summary": {"wer": 25.0}, "settings": {"seed": 3}, "scorer": "me"}))
    names = [attributes["src"] for tag, attributes in page.tags if tag == "audio"]
    assert names[0] == "0002.wav" and names[1].endswith("a%20b/c.wav") and names[2] == "0001.wav"
    assert [attributes["src"] for tag, attributes in page.tags if tag == "img"] == ["0002.png"]
    assert not any(tag in ("b", "floor") for tag, _ in page.tags) and "Fine <b>words</b>." in page.text
    assert [tag for tag, _ in page.tags if tag in ("del", "ins")] == ["del", "ins"]
    assert "25.0" in page.text and "me" in page.text


def test_a_recognizer_of_transformers_scores(tmp_path, monkeypatch):
    class Recognizer:
        sampling_rate = 16000

        def __init__(self, name, device):
            assert (name, device) == ("whisper", "cpu")

        def __call__(self, waves, sampling_rate):
            return ["one three"] * len(waves)

    monkeypatch.setattr(scoring, "Transcriber", Recognizer)
    soundfile.write(tmp_path / "a.wav", np.full(24000, 0.1), 24000)
    soundfile.write(tmp_path / "b.wav", np.zeros(24000), 24000)
    rows = [{"audio": name, "text": "One two three."} for name in ("a.wav", "b.wav")]
    (tmp_path / "manifest.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    report = scoring.recognize(tmp_path / "manifest.jsonl", "whisper")
    assert [row["heard"] for row in report["rows"]] == ["one three", ""] and report["summary"]["silent"] == 1
    assert report["rows"][0]["seconds"] == 1.0 and report["summary"]["wer"] == pytest.approx(66.67)
