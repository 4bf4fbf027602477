"""Captions hold the words as they are written, with the times at which they are said, as the standards want it."""

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from smalle.reading.audiobook import HEADING_PAUSE
from smalle.reading.captions import LINE, MAX_SECONDS, Word, captions, srt, textgrid, vtt, written_words

TOKENS = st.text("abcdeé'-.,!?\"&<>—7", min_size=1, max_size=12)
CLOCK = re.compile(r"(\d\d):(\d\d):(\d\d)[.,](\d\d\d)")


def spoken(text, length=1.0):
    return [{"word": word, "start": n * length, "end": (n + 1) * length} for n, word in enumerate(text.split())]


def seconds(clock):
    hours, minutes, rest, milliseconds = map(int, CLOCK.fullmatch(clock).groups())
    return hours * 3600 + minutes * 60 + rest + milliseconds / 1000


@st.composite
def said_words(draw):
    """Words in order, with gaps between some."""
    words, now = [], 0.0
    for text in draw(st.lists(TOKENS, min_size=1, max_size=40)):
        start = now + draw(st.sampled_from([0, 0, 0, 0.2, 3]))
        now = start + draw(st.floats(0, 2))
        words.append(Word(text, start, now))
    return words


def test_numbers_and_abbreviations_have_the_time_of_what_is_said_for_them():
    said = spoken("In twenty twenty-six Doctor Smith paid five dollars for it well known")
    assert written_words("In 2026, Dr. Smith — paid $5 for it: well—known!", said) == [
        ("In", 0, 1), ("2026,", 1, 3), ("Dr.", 3, 4), ("Smith —", 4, 5), ("paid", 5, 6), ("$5", 6, 8), ("for", 8, 9),
        ("it:", 9, 10), ("well—known!", 10, 12),
    ]  # fmt: skip


def test_words_that_disagree_share_the_time_between():
    assert written_words("a xx yyyy b", spoken("a one b", 3.0))[1:3] == [("xx", 3, 4), ("yyyy", 4, 6)]
    assert written_words("", spoken("a")) == [] and written_words("a b", []) == [("a", 0, 0), ("b", 0, 0)]


def test_a_long_number_does_not_lose_the_rest():
    digits = " ".join(["seven"] * 30)
    assert written_words(f"call {'7' * 30} or not", spoken(f"call {digits} or not"))[-1] == ("not", 32, 33)


@given(st.lists(TOKENS, max_size=30), st.lists(TOKENS, max_size=30))
def test_written_words_keep_order_and_text(written, said):
    words = written_words(" ".join(written), spoken(" ".join(said)))
    times = [time for word in words for time in (word.start, word.end)]
    assert times == sorted(times)
    assert " ".join(word.text for word in words) in " ".join(written)


def test_a_heading_is_a_caption_of_its_own():
    title, text = Word("The Old Bailey", 0, 1.5), Word("In", 1.5 + HEADING_PAUSE, 3)
    assert captions([title, text]) == [[title], [text]]


@given(said_words())
def test_captions_hold_all_words_in_short_lines(words):
    made = captions(words)
    assert [word for caption in made for word in caption] == words
    for caption in made:
        assert len(caption) == 1 or caption[-1].end - caption[0].start <= MAX_SECONDS + 1e-9
    blocks = srt(words).strip("\n").split("\n\n")
    assert len(blocks) == len(made)
    last = 0.0
    for number, block in enumerate(blocks, 1):
        head, span, *lines = block.split("\n")
        start, end = map(seconds, span.split(" --> "))
        assert int(head) == number and last <= start + 1e-9 and start < end and 1 <= len(lines) <= 2
        assert all(len(line) <= LINE + 8 for line in lines)
        last = start


@given(said_words())
def test_webvtt_has_growing_times_and_escaped_words(words):
    text = vtt(words)
    assert text.startswith("WEBVTT\n\n")
    for block in text.strip("\n").split("\n\n")[1:]:
        span, *lines = block.split("\n")
        start, end = span.split(" --> ")
        body = "\n".join(lines)
        times = [seconds(start), *map(seconds, re.findall(r"<([\d:.]+)>", body)), seconds(end)]
        assert all(a < b for a, b in zip(times, times[1:]))
        assert not re.search(r"[<>]", re.sub(r"<[\d:.]+>", "", body)) and not re.search(r"&(?!amp;|lt;|gt;)", body)


@given(said_words())
def test_a_textgrid_covers_the_sound_without_gaps(words):
    grid = textgrid(words, words[-1].end + 1)
    intervals = re.findall(r'xmin = ([\d.]+)\n +xmax = ([\d.]+)\n +text = "((?:[^"]|"")*)"', grid)
    assert float(intervals[0][0]) == 0 and float(intervals[-1][1]) == pytest.approx(words[-1].end + 1, abs=1e-3)
    assert all(a[1] == b[0] for a, b in zip(intervals, intervals[1:]))
    assert f"intervals: size = {len(intervals)}" in grid
    assert [text.replace('""', '"') for *_, text in intervals if text] == [w.text for w in words if w.end > w.start]


def test_a_caption_ends_with_its_sentence_and_not_with_a_title():
    words = written_words("Dr. Smith came. He left.", spoken("Doctor Smith came he left"))
    assert srt(words) == (
        "1\n00:00:00,000 --> 00:00:03,000\nDr. Smith came.\n\n2\n00:00:03,000 --> 00:00:05,000\nHe left.\n"
    )
