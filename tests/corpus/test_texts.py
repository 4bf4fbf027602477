"""The plan of a synthetic corpus: what may be spoken, by whom, in which mixture."""

import json
import random
from collections import Counter
from itertools import islice

import pytest
from smalle.corpus import templates
from smalle.corpus.speakers import HELD_OUT_VOICES, VOICES, assign, make_speakers
from smalle.corpus.texts import (
    ALLOWED,
    LONG,
    SHORT,
    Exclusion,
    as_sentence,
    clean,
    compose,
    everyday_sentences,
    main,
    wordnet_sentences,
)

from smalle.cli.command import run_command

EXCLUDED = ["The ferry to the island leaves at seven every morning.", "Stop!"]
LJ = ["the bench was carried off by two tall men,", "It was a plain box of no great value.", EXCLUDED[0]]
GLOSSES = """  1 a licence line
00001740 03 n 01 entity 0 001 @ 00001930 n 0000 | a small boat; "they took the boat out"; "to be or not to be"- Hamlet
00001741 03 n 01 entity 0 001 @ 00001930 n 0000 | (offensive) a rude name; "he used the rude name"
"""


@pytest.fixture
def sources(tmp_path):
    """Command line arguments of tiny sources."""
    (tmp_path / "lj.tsv").write_text("".join(f"LJ{i}\t{text}\n" for i, text in enumerate(LJ)))
    (tmp_path / "wordnet").mkdir()
    for part in ("noun", "verb", "adj", "adv"):
        (tmp_path / f"wordnet/data.{part}").write_text(GLOSSES if part == "noun" else "")
    (tmp_path / "requests").mkdir()
    pairs = [[f"can i pay for {i} tickets at the door", "pay"] for i in range(2, 12)] + [["stop", "stop"]]
    pairs += [["the ferry to the island leaves at seven every day", "ferry"]]
    (tmp_path / "requests/data.json").write_text(json.dumps({"train": pairs, "labels": ["pay", "ferry"]}))
    (tmp_path / "exclude.txt").write_text("\n".join(EXCLUDED))
    return [
        "--lj",
        f"{tmp_path}/lj.tsv",
        "--wordnet",
        f"{tmp_path}/wordnet",
        "--sentences",
        f"{tmp_path}/requests",
        "--exclude",
        f"{tmp_path}/exclude.txt",
        "--total",
        "60",
    ]


def plan(out, sources, *more):
    pytest.importorskip("hibari", reason="the phonemes of a plan need hibari-tts")
    main([str(out), *sources, *more])
    return [json.loads(line) for line in out.read_text().splitlines()]


def test_plan_has_whole_rows_and_no_excluded_sentence(tmp_path, sources):
    rows = plan(tmp_path / "plan.jsonl", sources)
    speakers = json.loads((tmp_path / "plan.speakers.json").read_text())
    excluded = Exclusion(EXCLUDED)
    assert len(rows) == 60
    for row in rows:
        assert list(row) == ["id", "text", "phonemes", "speaker", "voice", "speed"]
        assert row["text"] not in excluded and ALLOWED.fullmatch(row["text"]) and row["phonemes"]
        assert 2 <= len(row["text"]) <= 220 and 0.88 <= row["speed"] <= 1.18
        assert speakers[row["speaker"]]["voice"] == row["voice"] and not set(row["voice"]) & set(HELD_OUT_VOICES)
    texts = [row["text"] for row in rows]
    assert {LJ[0], LJ[1]} <= set(texts) and any("I pay for" in text for text in texts) and len(set(texts)) == len(texts)


def test_plan_is_deterministic(tmp_path, sources):
    first, again, other = (plan(tmp_path / f"{i}.jsonl", sources, "--seed", seed) for i, seed in enumerate("001"))
    assert first == again != other


def test_exclusion_finds_same_words_and_near_copies():
    excluded = Exclusion(EXCLUDED)
    assert "the ferry to the island leaves at seven every morning" in excluded
    assert "Today the ferry to the island leaves at seven, every single morning." in excluded
    assert "STOP." in excluded
    assert "The ferry to the mainland leaves at seven." not in excluded
    assert "Stop the car." not in excluded


def test_clean_keeps_allowed_characters_only():
    assert clean("“It’s a café” – she said…") == '"It\'s a cafe", she said.'
    assert clean("a/b") is None and clean("naïve <b>") is None and clean("x" * 221) is None
    assert as_sentence("where can i park", questions=True) == "Where can I park?"
    assert as_sentence("park here ,", questions=True) == "Park here."


def test_texts_are_spelled_out_as_the_processor_spells_them():
    assert clean("At 8:05 on the 3rd, 1,200 people paid $5 in 1999.") == (
        "At eight oh five on the third, one thousand two hundred people paid five dollars in nineteen ninety-nine."
    )


def test_wordnet_gives_examples_and_definitions_without_quotations_and_offence(tmp_path, sources):
    assert wordnet_sentences(tmp_path / "wordnet") == (["They took the boat out."], ["A small boat."])


def test_folder_without_sentences_is_an_error(tmp_path):
    with pytest.raises(ValueError, match="no sentence"):
        everyday_sentences(tmp_path)


def test_missing_file_exits_with_2_and_leaves_nothing(tmp_path, capsys):
    assert run_command("texts", main, [str(tmp_path / "plan.jsonl"), "--lj", str(tmp_path / "none.tsv")]) == 2
    assert "none.tsv does not exist" in capsys.readouterr().err and not list(tmp_path.iterdir())


def test_templates_fill_every_slot_with_allowed_characters():
    rng = random.Random(0)
    for sentence in islice(templates.sentences(rng), 3 * len(templates.TEMPLATES)):
        assert ALLOWED.fullmatch(sentence), sentence
        assert sentence.lstrip('"')[0].isupper() and sentence[-1] in '.?!"', sentence


def test_compose_meets_the_asked_lengths():
    rng = random.Random(0)
    texts = list(compose(templates.sentences(rng), 1000, 0.1, 0.35, rng))
    assert sum(len(text) < SHORT for text in texts) == 100
    assert sum(len(text) >= LONG for text in texts) == 350
    assert len(texts) == 1000 and max(map(len, texts)) <= 220


def test_speakers_are_pure_and_blended_but_never_held_out():
    speakers = make_speakers(0)
    assert len(speakers) == 420 and speakers == make_speakers(0) != make_speakers(1)
    assert sum(VOICES.values()) == pytest.approx(0.35)
    assert sum(speaker["share"] for speaker in speakers.values()) == pytest.approx(1)
    for name, speaker in speakers.items():
        assert sum(speaker["voice"].values()) == pytest.approx(1) and 0.9 <= speaker["speed"] <= 1.15
        assert (len(speaker["voice"]) > 1) == name.startswith("blend")
        assert not set(speaker["voice"]) & set(HELD_OUT_VOICES)


def test_every_prefix_has_the_shares_of_the_speakers():
    shares = {name: speaker["share"] for name, speaker in make_speakers(0).items()}
    names = assign(shares, 20_000, random.Random(0))
    for length in (2000, 10_000, 20_000):
        counts = Counter(names[:length])
        assert all(abs(counts[name] - share * length) <= 1.5 for name, share in shares.items())
