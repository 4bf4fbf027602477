"""Text as it is spoken: what a reader says for digits, signs and abbreviations, in characters that are known."""

import re
import time

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from smalle import text_normalization_smalle
from smalle.text_normalization_smalle import RULES, normalize

KNOWN = set("!\"'(),-.:;?abcdefghijklmnopqrstuvwxyz")
SPOKEN = {
    # numbers
    "It costs 1,234 now": "It costs one thousand two hundred and thirty-four now.",
    "1,234.5 m": "one thousand two hundred and thirty-four point five m.",
    "In 12, or 3.50": "In twelve, or three point five zero.",
    "1,2": "one,two.",
    "The 3rd of 21, A4, 5x": "The third of twenty-one, A four, five x.",
    "9" * 20: " ".join(["nine"] * 20) + ".",
    "Agent 007, -5 or \u22125": "Agent zero zero seven, minus five or minus five.",
    "5\u201310, version 3.5.2": "five to ten, version three point five point two.",
    "1/2 cup, 5\u00bd, 24/7": "one half cup, five and one half, twenty-four seven.",
    "Call 555-1234": "Call five five five, one two three four.",
    "No. 1, #2": "number one, number two.",
    # years, dates, times
    "In 1999, 2005 and 1,999": "In nineteen ninety-nine, two thousand and five and one thousand nine hundred and "
    "ninety-nine.",
    "The 1990s, the \u201990s, 80s": "The nineteen nineties, the nineties, eighties.",
    "1914-1918": "nineteen fourteen to nineteen eighteen.",
    "On Nov. 20, 2026": "On November twentieth, twenty twenty-six.",
    "2026-11-20, 11/20/2026, 20/11/2026": ", ".join(["November twentieth, twenty twenty-six"] * 3) + ".",
    "the 20th of May, May 5 and 3 Sept. 2020": "the twentieth of May, May fifth and September third, twenty twenty.",
    "May 5,000 people": "May five thousand people.",
    "13/13/2026": "thirteen thirteen twenty twenty-six.",
    "At 3:05 p.m. We left at 10:00": "At three oh five p m. We left at ten o'clock.",
    "15:30, 9am and 12 PM": "fifteen thirty, nine a m and twelve p m.",
    # money and units
    "$5.20, $1, \u00a32.50": "five dollars and twenty cents, one dollar, two pounds and fifty pence.",
    "\u20ac0.01, 5 \u20ac, \u00a51,000": "one cent, five euros, one thousand yen.",
    "$1.5bn, \u20ac3 million, $5k": "one point five billion dollars, three million euros, five thousand dollars.",
    "5kg, 1 km/h, 3 MHz": "five kilograms, one kilometer per hour, three megahertz.",
    "20 \u00b0C, \u2103, 90\u00b0": "twenty degrees Celsius, C, ninety degrees.",
    # abbreviations
    "Dr. Smith vs. Mr Brown": "Doctor Smith versus Mister Brown.",
    "Etc. Apples, etc. Pears, etc., too": "Etc. Apples, et cetera. Pears, et cetera, too.",
    "St. Paul, Main St.": "Saint Paul, Main Street.",
    "In the U.S. today, e.g. here": "In the U S today, for example here.",
    "It is in the U.S. We are not": "It is in the U S. We are not.",
    # characters
    "Tom & Jerry, 5% + 1 = 2": "Tom and Jerry, five percent plus one equals two.",
    "Na\u00efve caf\u00e9s": "Naive cafes.",
    "\u201cWhy?\u201d it\u2019s": '"Why?" it\'s.',
    "a\u2014b\u2026": "a-b...",
    "and/or, snow \u2603 \u4f60\u597d man": "and or, snow man.",
    "soft\u00adhyphen": "softhyphen.",
    "  two\n\nlines\t": "two lines.",
    "[EOS] a": "EOS a.",
    "Is it?": "Is it?",
}


@pytest.mark.parametrize("text", SPOKEN)
def test_spoken(text):
    assert normalize(text, KNOWN) == SPOKEN[text]


@settings(max_examples=300, deadline=None)
@given(st.text("abXY 0123456789.,:!?'-/$\u20ac%\u00e9\u00bd\u00b2\u2665&\n", max_size=30) | st.text(max_size=20))
@example("5 etc")
@example("$1,0")
def test_any_text_ends_up_in_known_characters(text):
    spoken = normalize(text, KNOWN)
    assert any(c in spoken.lower() for c in "abcdefghijklmnopqrstuvwxyz") or not set(text) & set("ab0123456789XY&%")
    assert set(spoken.lower()) <= KNOWN | {" "} and "  " not in spoken


@pytest.mark.parametrize("text", SPOKEN)
def test_normalizing_twice_changes_nothing(text):
    assert normalize(SPOKEN[text], KNOWN) == SPOKEN[text]


def test_without_the_library_digits_are_read_one_by_one(monkeypatch):
    monkeypatch.setattr(text_normalization_smalle, "num2words", None)
    spoken = "In one nine nine nine, five dollars and two zero cents, three point five."
    assert normalize("In 1999, $5.20, 3.5", KNOWN) == spoken


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.name)
def test_each_rule_reads_its_example(rule):
    assert re.search(rule.pattern, rule.example)


REPEATED = [
    "7",
    ",111",
    "$1",
    "1.",
    "1-",
    "1:",
    "1/",
    "a.",
    "etc. ",
    "5 kg ",
    "$5m ",
    "May 5 ",
    "U.S. ",
    "\n",
    "\u0301\u0316",
]


@pytest.mark.parametrize("part", REPEATED, ids=ascii)
def test_time_is_proportional_to_the_length_of_a_text(part):
    def seconds(length):
        begun = time.process_time()
        normalize("1" + part * (length // len(part)), KNOWN)
        return time.process_time() - begun

    assert seconds(8000) < 8 * seconds(2000) + 0.1  # 4 times as long; a quadratic rule needs 16 times


def test_ten_thousand_digits_take_less_than_a_second():
    begun = time.process_time()
    assert normalize("7" * 10_000, KNOWN).split()[-1] == "seven."
    assert time.process_time() - begun < 1
