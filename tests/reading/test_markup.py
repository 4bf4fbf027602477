"""Marks in a text become segments; what is not supported is refused, or read plainly."""

import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from smalle.reading.markup import MAX_PAUSE, Segment, has_words, parse
from smalle.text_tables_smalle import read_lexicon, respell

WORDS = st.text("abc XYZ.,!'", min_size=1).filter(has_words)


def ssml(content):
    return f'<speak version="1.1">{content}</speak>'


def test_pauses_in_plain_text():
    text = "Hello [pause 0.5s] you. <break time='1500ms'/>\n\nNext.\n\n\n [pause 2s]<break strength=\"none\"/> [pause] "
    assert parse(text) == [Segment("Hello", 0.5), Segment("you.", 1.5), Segment("Next.", 2.9)]


@pytest.mark.parametrize("text", ["<breakfast> at [pauses].", "[pause for effect]", "a < b > c", "Hello.\nYou."])
def test_what_only_looks_like_a_mark_is_text(text):
    assert parse(text) == [Segment(text)]


@given(st.lists(st.tuples(WORDS, st.floats(0.001, 10)), min_size=1))
def test_each_pause_stands_behind_its_text(parts):
    segments = parse("".join(f"{text}[pause {pause:.3f}s]" for text, pause in parts))
    assert [segment.text for segment in segments] == [text.strip() for text, _ in parts]
    assert [segment.pause for segment in segments] == [float(f"{pause:.3f}") for _, pause in parts]


@given(st.text())
def test_any_plain_text_keeps_its_words_or_is_refused(text):
    try:
        segments = parse(text, ssml=False)
    except ValueError:
        assert not has_words(text) or "[pause" in text.lower() or "<break" in text.lower()
    else:
        assert all(0 <= segment.pause <= MAX_PAUSE for segment in segments)
        if "[pause" not in text.lower() and "<break" not in text.lower():
            assert "".join("".join(segment.text for segment in segments).split()) in "".join(text.split())


@given(st.text("<>/=\"'& speakbroidtmv-1s%", max_size=80))
def test_any_ssml_gives_segments_or_a_value_error(content):
    for unknown in ("refuse", "plain"):
        try:
            assert parse(ssml(content), unknown=unknown)
        except ValueError as error:
            assert "expected" in str(error)


def test_ssml():
    text = ssml(
        'Hello <break time="500ms"/> <say-as interpret-as="characters">A7-x</say-as> and '
        '<sub alias="World Wide Web">WWW</sub>. <p><s>One</s> <s>Two.</s></p> '
        '<voice name="kore">I am <prosody rate="80%">slow</prosody></voice> on '
        '<say-as interpret-as="date" format="dmy">5/3/2026</say-as>, the <say-as interpret-as="ordinal">22</say-as>.'
    )
    assert parse(text) == [
        Segment("Hello", 0.5),
        Segment("A, seven, dash, X and World Wide Web.", 0.5),
        Segment("One", 0.15),
        Segment("Two.", 0.5),
        Segment("I am", voice="kore"),
        Segment("slow", voice="kore", rate=0.8),
        Segment("on March 5th, 2026, the 22nd."),
    ]


@pytest.mark.parametrize(
    "content, spoken",
    [
        ('<say-as interpret-as="digits">40-2</say-as>', "four zero, two"),
        ('<say-as interpret-as="spell-out">a b</say-as>', "A, B"),
        ('<say-as interpret-as="date" format="my">3/2026</say-as>', "March 2026"),
        ('<say-as interpret-as="date" format="md">12/24</say-as>', "December 24th"),
        ('<say-as interpret-as="ordinal">112</say-as>', "112th"),
        ('<say-as interpret-as="cardinal">12</say-as>', "12"),
        ("a &lt; b &amp; c", "a < b & c"),
    ],
)
def test_what_ssml_says(content, spoken):
    assert parse(ssml(content)) == [Segment(spoken)]


@pytest.mark.parametrize(
    "rate, expected", [("slow", 0.75), ("120%", 1.2), ("+20%", 1.2), ("-20%", 0.8), ("1.5", 1.5), ("default", 1.0)]
)
def test_rates(rate, expected):
    (segment,) = parse(ssml(f'<prosody rate="{rate}">x</prosody>'))
    assert segment.rate == pytest.approx(expected)


UNSUPPORTED = [
    "x<emphasis>y</emphasis>z",
    'x<prosody pitch="high">y</prosody>z',
    'x<voice gender="female">y</voice>z',
    'x<say-as interpret-as="currency">y</say-as>z',
    'x<say-as interpret-as="digits">y</say-as>z',
    "x<sub>y</sub>z",
    'x<s xml:lang="de">y</s>z',
    'x<audio src="file:///etc/passwd">y</audio>z',
]


@pytest.mark.parametrize("content", UNSUPPORTED)
def test_ssml_that_is_not_supported_is_refused_or_read_plainly(content):
    with pytest.raises(ValueError, match="expected"):
        parse(ssml(content))
    assert "".join(segment.text for segment in parse(ssml(content), unknown="plain")) == "xyz"


@pytest.mark.parametrize(
    "text",
    [
        "[pause 61s] x",
        "[pause 40s][pause 40s] x",
        "[pause 3 minutes] x",
        "x <break time='soon'/>",
        "x <break duration='1s'/>",
        "...",
        "",
        "[pause 1s]",
        "<speak>",
        "<speak>a & b</speak>",
        "<speak/>",
        ssml('<prosody rate="9">x</prosody>'),
        ssml('<prosody rate="30%"><prosody rate="30%">x</prosody></prosody>'),
        ssml('<say-as interpret-as="date" format="mdy">13/1/2026</say-as>'),
        ssml("<p>" * 40 + "x" + "</p>" * 40),
        ssml("<speak>x</speak>"),
        '<!DOCTYPE speak [<!ENTITY a "b">]><speak>&a;</speak>',
    ],
)
def test_wrong_marks_are_refused(text):
    with pytest.raises(ValueError, match="expected"):
        parse(text, ssml="speak" in text or None)


def test_entities_take_time_in_proportion_to_their_number():
    def seconds(entities: int) -> float:
        begun = time.process_time()
        parse(f"<speak>{'a &amp; ' * entities}</speak>")
        return time.process_time() - begun

    assert seconds(200_000) < 20 * seconds(25_000) + 0.1  # of eight times as many; 64 times where it is quadratic


def test_a_lexicon_respells_whole_words(tmp_path):
    path = tmp_path / "names.txt"
    path.write_text("# names\nSiobhan = shivawn\nSiobhan Roy=shivawn roy  # longer\n\nC++ = see plus plus\n")
    lexicon = read_lexicon(path)
    assert (
        respell("Siobhan's, SIOBHAN ROY, Siobhanna: C++!", lexicon)
        == "shivawn's, shivawn roy, Siobhanna: see plus plus!"
    )
    assert respell("Text.", {}) == "Text."


@pytest.mark.parametrize("line", ["no equals", "= b", "a ="])
def test_a_damaged_lexicon_is_refused(tmp_path, line):
    path = tmp_path / "names.txt"
    path.write_text(f"a = b\n{line}\n")
    with pytest.raises(ValueError, match="names.txt, line 2.*expected WORD = RESPELLING"):
        read_lexicon(path)
    with pytest.raises(ValueError, match="cannot be read"):
        read_lexicon(tmp_path / "missing")
