"""Markup in texts: pauses, voices and speeds, in plain text or in a subset of SSML 1.1.

`parse` splits a text into segments with one style each; `smalle.reading.speech.speak` speaks them.
"""

import re
import unicodedata
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from xml.etree import ElementTree

from ..text_tables_smalle import DIGITS, MONTHS

MAX_PAUSE = 60.0  # seconds
MIN_RATE, MAX_RATE = 0.25, 4.0
PARAGRAPH_PAUSE, SENTENCE_PAUSE = 0.5, 0.15  # seconds
PAUSE = re.compile(
    r"(?P<pause>\[pause(?P<time>[ \t]+[.\d][^\[\]\n]{0,40})?\])"
    r"|<break\b(?P<attributes>[^<>]{0,200}?)/?>(?:</break>)?|\n\s*\n",
    re.IGNORECASE,
)
ATTRIBUTE = re.compile(r"""([\w:-]+)\s*=\s*(?:"([^"]*)"|'([^']*)')""")
TIME = re.compile(r"\s*(\d{1,6}(?:\.\d{0,6})?|\.\d{1,6})\s*(ms|s)\s*", re.IGNORECASE)
PERCENT = re.compile(r"\s*([+-]?)(\d{1,4}(?:\.\d{0,4})?)%\s*")

# --- segments


@dataclass(frozen=True)
class Segment:
    """A part of a text with one style.

    Attributes:
        text: the text to speak; "" for silence only.
        pause: seconds of silence after it.
        voice: name of a voice; None: the voice of the whole text.
        rate: relative speed; 1 is the natural speed of the voice.
    """

    text: str = ""
    pause: float = 0.0
    voice: str | None = None
    rate: float = 1.0


def has_words(text: str) -> bool:
    """Whether a text contains more than punctuation and spaces."""
    return any(unicodedata.category(c)[0] in "LNS" for c in text)


class Segments:
    """A list of segments under construction."""

    def __init__(self):
        self.segments: list[Segment] = []

    def say(self, text: str, style: Segment) -> None:
        """Adds text with the voice and the rate of `style`; extends the last segment if it has the same style."""
        last = self.segments[-1] if self.segments else None
        if last is not None and (last.pause, last.voice, last.rate) == (0.0, style.voice, style.rate):
            self.segments[-1] = replace(last, text=last.text + text)
        else:
            self.segments.append(replace(style, text=text, pause=0.0))

    def pause(self, seconds: float) -> None:
        """Adds silence."""
        if not self.segments:
            self.segments.append(Segment())
        last = self.segments[-1]
        self.segments[-1] = replace(last, pause=check_pause(last.pause + seconds))

    def end_paragraph(self, seconds: float) -> None:
        """Makes the pause after the last segment at least `seconds` long."""
        if self.segments and (self.segments[-1].text.strip() or self.segments[-1].pause):
            last = self.segments[-1]
            self.segments[-1] = replace(last, pause=max(last.pause, seconds))

    def finish(self) -> list[Segment]:
        """The segments. Text without words is dropped; its pause is added to the segment before."""
        done: list[Segment] = []
        for segment in self.segments:
            segment = replace(segment, text=segment.text.strip() if has_words(segment.text) else "")
            if segment.text or not done:
                done.append(segment)
            else:
                done[-1] = replace(done[-1], pause=check_pause(done[-1].pause + segment.pause))
        return done


# --- values


def check_pause(seconds: float) -> float:
    if seconds > MAX_PAUSE:
        raise ValueError(f"A pause of {seconds:g} s: expected at most {MAX_PAUSE:g} s at one place.")
    return seconds


def parse_time(value: str) -> float:
    """Converts "0.5s" or "500ms" to seconds."""
    found = TIME.fullmatch(value)
    if not found:
        raise ValueError(f"The time {value.strip()!r}: expected a number with a unit, such as 0.5s or 500ms.")
    return check_pause(float(found[1]) / (1000 if found[2].lower() == "ms" else 1))


def parse_rate(value: str) -> float:
    """Converts "slow", "80%", "+20%" or "1.2" to a relative speed."""
    if value in RATES:
        return RATES[value]
    percent = PERCENT.fullmatch(value)
    if percent:
        sign, number = percent[1], float(percent[2]) / 100
        return check_rate(number if not sign else 1 + number if sign == "+" else 1 - number)
    try:
        return check_rate(float(value))
    except ValueError as error:
        raise ValueError(
            f"rate={value!r}: expected a percentage, or a number from {MIN_RATE:g} to {MAX_RATE:g}, or one of "
            f"{', '.join(RATES)}."
        ) from error


def check_rate(rate: float) -> float:
    if not MIN_RATE <= rate <= MAX_RATE:
        raise ValueError(f"rate={rate:g}: expected {MIN_RATE:g} to {MAX_RATE:g}.")
    return rate


RATES = {"x-slow": 0.5, "slow": 0.75, "medium": 1.0, "default": 1.0, "fast": 1.25, "x-fast": 1.5}
STRENGTHS = {"none": 0.0, "x-weak": 0.1, "weak": 0.2, "medium": 0.4, "strong": 0.7, "x-strong": 1.2}  # seconds


def break_seconds(attributes: Mapping[str, str]) -> float:
    """The length of a <break> in seconds."""
    if "time" in attributes:
        return parse_time(attributes["time"])
    strength = attributes.get("strength", "medium")
    if strength not in STRENGTHS:
        raise ValueError(f"strength={strength!r}: expected one of {', '.join(STRENGTHS)}.")
    return STRENGTHS[strength]


# --- say-as

DIGIT_NAMES = dict(zip("0123456789", DIGITS))
SIGNS = {"-": "dash", ".": "dot", "@": "at", "_": "underscore", "/": "slash", "+": "plus", "#": "hash", "&": "and"}
DATE_FORMATS = ("mdy", "dmy", "ymd", "md", "dm", "ym", "my", "m", "d", "y")


def spell_characters(text: str) -> str:
    """ "A7-x" as "A, seven, dash, X"."""
    return ", ".join(DIGIT_NAMES.get(c) or SIGNS.get(c) or c.upper() for c in text if not c.isspace())


def spell_digits(text: str) -> str:
    """ "42-1" as "four two, one"."""
    groups = re.findall(r"[0-9]+", text)
    if not groups:
        raise ValueError(f"say-as digits of {text!r}: expected digits 0 to 9.")
    return ", ".join(" ".join(DIGIT_NAMES[digit] for digit in group) for group in groups)


def spell_date(text: str, order: str = "") -> str:
    """A date in a form that the text normalization reads. order: one of `DATE_FORMATS`; "": leave it unchanged."""
    if not order:
        return text
    numbers = re.findall(r"[0-9]+", text)
    if order not in DATE_FORMATS or len(numbers) != len(order):
        raise ValueError(
            f"say-as date of {text!r} with format={order!r}: expected one of {', '.join(DATE_FORMATS)} and one "
            "number for each letter of it."
        )
    parts = dict(zip(order, map(int, numbers)))
    if not 1 <= parts.get("m", 1) <= 12 or not 1 <= parts.get("d", 1) <= 31:
        raise ValueError(
            f"say-as date of {text!r} with format={order!r}: expected a month from 1 to 12 and a day from 1 to 31."
        )
    month = MONTHS[parts["m"] - 1] if "m" in parts else ""
    day = spell_ordinal(str(parts["d"])) if "d" in parts else ""
    year = str(parts["y"]) if "y" in parts else ""
    return ", ".join(filter(None, (f"{month} {day}".strip(), year))) if day else f"{month} {year}".strip()


def spell_ordinal(text: str) -> str:
    """ "3" as "3rd"."""
    number = text.strip()
    if not re.fullmatch("[0-9]{1,9}", number):
        raise ValueError(f"say-as ordinal of {text!r}: expected a whole number.")
    teen = number[-2:-1] == "1"
    return number + ("th" if teen else {"1": "st", "2": "nd", "3": "rd"}.get(number[-1], "th"))


SAY_AS: dict[str, Callable[[str, str], str]] = {
    "characters": lambda text, _: spell_characters(text),
    "spell-out": lambda text, _: spell_characters(text),
    "digits": lambda text, _: spell_digits(text),
    "date": spell_date,
    "ordinal": lambda text, _: spell_ordinal(text),
    "cardinal": lambda text, _: text,  # the text normalization reads it
    "telephone": lambda text, _: text,
}

# --- plain text


def parse(
    text: str, ssml: bool | None = None, unknown: str = "refuse", paragraph_pause: float = PARAGRAPH_PAUSE
) -> list[Segment]:
    """Splits a text into segments.

    In plain text, `[pause 0.5s]`, `<break time="500ms"/>` and empty lines are pauses. docs/markup.md describes SSML.

    Args:
        text: the text to speak.
        ssml: whether `text` is SSML; None: if it starts with <speak.
        unknown: what to do with unsupported SSML: "refuse" it, or read its content as "plain" text.
        paragraph_pause: seconds of silence between paragraphs.

    Returns:
        Segments, at least one of them with words.

    Raises:
        ValueError: the markup is damaged or unsupported, or there are no words.
    """
    if unknown not in ("refuse", "plain"):
        raise ValueError(f"unknown={unknown!r}: expected 'refuse' or 'plain'.")
    if ssml is None:
        ssml = text.lstrip("\ufeff \t\r\n").startswith("<speak")
    segments = parse_ssml(text, unknown, paragraph_pause) if ssml else parse_plain(text, paragraph_pause)
    if not any(segment.text for segment in segments):
        raise ValueError(f"text={text[:100]!r} has no words: expected at least one word besides pauses and markup.")
    return segments


def parse_plain(text: str, paragraph_pause: float = PARAGRAPH_PAUSE) -> list[Segment]:
    """The segments of a plain text, which may be only silence."""
    segments, style, end = Segments(), Segment(), 0
    for mark in PAUSE.finditer(text):
        segments.say(text[end : mark.start()], style)
        end = mark.end()
        if mark["pause"]:
            segments.pause(parse_time(mark["time"]) if mark["time"] else STRENGTHS["medium"])
        elif mark["attributes"] is not None:
            segments.pause(break_seconds(break_attributes(mark)))
        else:
            segments.end_paragraph(paragraph_pause)
    segments.say(text[end:], style)
    return segments.finish()


def break_attributes(mark: re.Match) -> dict[str, str]:
    """The attributes of <break .../> in plain text."""
    written = mark["attributes"].strip()
    found = {name.lower(): double or single for name, double, single in ATTRIBUTE.findall(written)}
    if ATTRIBUTE.sub("", written).strip() or found.keys() - {"time", "strength"}:
        raise ValueError(f'{mark[0]}: expected <break time="500ms"/> or <break strength="weak"/>.')
    return found


# --- SSML

MAX_DEPTH = 32
NAMESPACE = "{http://www.w3.org/XML/1998/namespace}"
ATTRIBUTES = {  # supported elements, and their attributes
    "speak": ("version", f"{NAMESPACE}lang", "{http://www.w3.org/2001/XMLSchema-instance}schemaLocation"),
    "p": (f"{NAMESPACE}lang",),
    "s": (f"{NAMESPACE}lang",),
    "break": ("time", "strength"),
    "sub": ("alias",),
    "say-as": ("interpret-as", "format"),
    "voice": ("name",),
    "prosody": ("rate",),
}


class SSMLReader:
    """The target of an XML parser that converts SSML into segments.

    stack: name, attributes and style of each open element. text: pieces of the current text, which the parser splits at
    entities. content: collects the text that say-as interprets or sub replaces.
    """

    def __init__(self, unknown: str, paragraph_pause: float):
        self.unknown, self.paragraph_pause = unknown, paragraph_pause
        self.segments = Segments()
        self.stack: list[tuple[str, Mapping[str, str], Segment]] = []
        self.text: list[str] = []
        self.content: list[str] | None = None

    def start(self, tag: str, attributes: Mapping[str, str]) -> None:
        self.flush()
        name = tag.rpartition("}")[2]
        if len(self.stack) == MAX_DEPTH:
            raise ValueError(f"The SSML is nested too deeply: expected at most {MAX_DEPTH} levels.")
        if (name == "speak") == bool(self.stack):
            raise ValueError(f"<{name}> at depth {len(self.stack)}: expected a single <speak> around everything.")
        name, attributes = self.supported(name, attributes)
        if self.content is not None and name:
            raise ValueError(f"<{name}> inside <{self.stack[-1][0]}>: expected only text.")
        style = self.stack[-1][2] if self.stack else Segment()
        if name in ("p", "s"):
            self.end_block(name)
        elif name == "break":
            self.segments.pause(break_seconds(attributes))
        elif name in ("sub", "say-as"):
            self.content = []
        elif name == "voice" and "name" in attributes:
            style = replace(style, voice=attributes["name"].strip())
        elif name == "prosody" and "rate" in attributes:
            style = replace(style, rate=check_rate(style.rate * parse_rate(attributes["rate"])))
        self.stack.append((name, attributes, style))

    def data(self, text: str) -> None:
        (self.text if self.content is None else self.content).append(text)

    def flush(self) -> None:
        """Adds the collected pieces of text to the segments."""
        if self.text:
            self.say("".join(self.text))
            self.text = []

    def end(self, tag: str) -> None:
        self.flush()
        name, attributes, _ = self.stack[-1]
        if name in ("sub", "say-as"):
            text, self.content = "".join(self.content or ()), None
            self.say(attributes["alias"] if name == "sub" else self.interpret(text, attributes))
        elif name in ("p", "s"):
            self.end_block(name)
        self.stack.pop()

    def say(self, text: str) -> None:
        self.segments.say(re.sub(r"\s+", " ", text), self.stack[-1][2])

    def end_block(self, name: str) -> None:
        self.segments.end_paragraph(self.paragraph_pause if name == "p" else min(SENTENCE_PAUSE, self.paragraph_pause))

    def interpret(self, text: str, attributes: Mapping[str, str]) -> str:
        try:
            return SAY_AS[attributes["interpret-as"]](text, attributes.get("format", ""))
        except ValueError:
            if self.unknown == "refuse":
                raise
            return text

    def supported(self, name: str, attributes: Mapping[str, str]) -> tuple[str, Mapping[str, str]]:
        """Name and supported attributes of an element; ("", {}) for an unsupported element."""
        if name not in ATTRIBUTES:
            self.refuse(f"<{name}>", ATTRIBUTES)
            return "", {}
        known = {key: value for key, value in attributes.items() if key in ATTRIBUTES[name]}
        for key in attributes.keys() - known.keys():
            self.refuse(f"<{name} {key.replace(NAMESPACE, 'xml:')}>", ATTRIBUTES[name])
        if not known.get(f"{NAMESPACE}lang", "en").lower().startswith("en"):
            self.refuse(f'xml:lang="{known[f"{NAMESPACE}lang"]}"', ["en"])
        needed = {"sub": "alias", "say-as": "interpret-as"}.get(name)
        if needed and needed not in known:
            self.refuse(f"<{name}> without {needed}", [needed])
            return "", {}
        if name == "say-as" and known["interpret-as"] not in SAY_AS:
            self.refuse(f'interpret-as="{known["interpret-as"]}"', SAY_AS)
            return "", {}
        return name, known

    def refuse(self, what: str, expected: Iterable[str]) -> None:
        if self.unknown == "refuse":
            names = ", ".join(name.rpartition("}")[2] for name in expected)
            raise ValueError(
                f"{what} is not supported: expected {names}; unknown='plain' reads its content as plain text."
            )


def parse_ssml(text: str, unknown: str = "refuse", paragraph_pause: float = PARAGRAPH_PAUSE) -> list[Segment]:
    """The segments of an SSML document. Arguments and errors as in `parse`."""
    if re.search(r"<!(DOCTYPE|ENTITY)", text, re.IGNORECASE):  # entities could expand to gigabytes
        raise ValueError("The SSML has a DOCTYPE or entity definitions; expected neither.")
    reader = SSMLReader(unknown, paragraph_pause)
    parser = ElementTree.XMLParser(target=reader)
    try:
        parser.feed(text.strip("\ufeff \t\r\n"))
        parser.close()
        return reader.segments.finish()
    except (ElementTree.ParseError, UnicodeEncodeError) as error:
        raise ValueError(
            f"The SSML is damaged ({error}): expected <speak>, with &lt; and &amp; for < and &."
        ) from error
