"""English text as it is spoken: dates, times, money, numbers, units and abbreviations become words.

num2words spells the numbers; without it, digits are read one by one. Ambiguous dates and times are read the American
way. Every rule takes time in proportion to the length of the text.
"""

import functools
import re
import unicodedata
from collections.abc import Callable, Collection, Iterable
from typing import NamedTuple

try:
    from num2words import num2words
except ImportError:
    num2words = None

DIGITS = "zero one two three four five six seven eight nine".split()
MAX_DIGITS = 15  # of a number; longer ones, and those that begin with a zero, are read digit by digit
MONTHS = "January February March April May June July August September October November December".split()
CURRENCIES = {  # singular and plural, singular and plural of the hundredth
    "$": ("dollar", "dollars", "cent", "cents"),
    "€": ("euro", "euros", "cent", "cents"),
    "£": ("pound", "pounds", "penny", "pence"),
    "₹": ("rupee", "rupees", "paisa", "paise"),
    "¥": ("yen", "yen", "sen", "sen"),
}
SCALES = {"k": "thousand", "m": "million", "bn": "billion"}


def _table(entries: str) -> dict[str, str]:
    """{written: spoken} of "written=spoken; written=spoken"."""
    return dict(entry.strip().split("=") for entry in entries.split(";"))


# After a number; capitals matter.
UNITS = _table("""
    kg=kilogram; mg=milligram; km=kilometer; cm=centimeter; mm=millimeter; ml=milliliter; lb=pound; lbs=pound;
    oz=ounce; mph=mile per hour; km/h=kilometer per hour; min=minute; hr=hour; hrs=hour; Hz=hertz; kHz=kilohertz;
    MHz=megahertz; GHz=gigahertz; kB=kilobyte; KB=kilobyte; MB=megabyte; GB=gigabyte; TB=terabyte; kW=kilowatt;
    °C=degree Celsius; °F=degree Fahrenheit; °=degree
""")
# Before a name or a word; their dot does not end a sentence.
TITLES = _table("""
    Mr=Mister; Mrs=Missus; Ms=Miz; Dr=Doctor; Prof=Professor; vs=versus; e.g.=for example; i.e.=that is;
    approx.=approximately; dept.=department; Dept.=Department; Mt.=Mount; Gen.=General; Col.=Colonel; Capt.=Captain;
    Lt.=Lieutenant; Sgt.=Sergeant; Rev.=Reverend
""")
# After a name or a word; their dot may end a sentence.
ENDINGS = _table("""
    etc.=et cetera; Jr.=Junior; Sr.=Senior; St.=Street; Ave.=Avenue; Blvd.=Boulevard; Rd.=Road; Inc.=Incorporated;
    Ltd.=Limited; Corp.=Corporation; Co.=Company
""")
FRACTIONS = {"1/2": "one half", "1/3": "one third", "2/3": "two thirds", "1/4": "one quarter", "3/4": "three quarters"}
SIGNS = {"&": " and ", "%": " percent", "+": " plus ", "=": " equals ", "@": " at "}
MARKS = str.maketrans("‘’ʼ“”–—", "'''\"\"--")
VULGAR_FRACTION = re.compile(r"(?<=\d)(?=[¼-¾⅐-⅞])")
SENTENCE_END = re.compile(r"\s*$|\s+[A-Z]")

NUMBER = r"\d+(?:,\d{3}(?!\d))*(?:\.\d+)?"
MONTH = rf"\b(?P<month>{'|'.join(f'{name[:3]}(?:{name[3:]})?' for name in MONTHS)}|Sept)\b\.?"
DAY, YEAR = r"(?P<day>0?[1-9]|[12]\d|3[01])(?:st|nd|rd|th)?", r"(?P<year>1[1-9]\d\d|20\d\d)"
HALF_DAY = r"(?P<half>[apAP])(?:\.\s?[mM]\.?|[mM]\b\.?)"


def spell_digits(digits: str) -> str:
    """Digits and decimal points, one by one."""
    return " ".join("point" if c == "." else DIGITS[int(c)] for c in digits)


def spell_number(number: int | str, kind: str = "cardinal") -> str:
    """A number of 0 or more in words.

    Args:
        number: an integer, or its digits, which may have commas and decimals.
        kind: "cardinal", "ordinal" or "year".
    """
    digits = str(number).replace(",", "")
    if num2words is None or len(digits) > MAX_DIGITS or re.match(r"0\d", digits):
        return spell_digits(digits)
    whole, point, decimals = digits.partition(".")
    words = num2words(int(whole), to="cardinal" if point else kind).replace(",", "")
    return f"{words} {spell_digits(point + decimals)}" if point else words


def _full_stop(match: re.Match) -> str:
    """The full stop of a sentence that ends with an abbreviation's dot."""
    return "." if match[0].endswith(".") and SENTENCE_END.match(match.string, match.end()) else ""


def _date(match: re.Match) -> str:
    """November twentieth, twenty twenty-six."""
    parts = match.groupdict()
    month, day, year = parts["month"], parts["day"], parts["year"]
    if month.isdigit():
        month, day = (day, month) if int(month) > 12 >= int(day) else (month, day)
        if not 1 <= int(month) <= 12 or int(day) > 31:
            return match[0]
        month = MONTHS[int(month) - 1]
    else:
        month = next(name for name in MONTHS if name[:3] == month[:3])
    day = spell_number(int(day), "ordinal")
    date = f"{parts['the']}{day} of {month}" if parts.get("the") else f"{month} {day}"
    return f"{date}, {spell_number(year, 'year')}" if year else date


def _time(match: re.Match) -> str:
    """Three oh five p m, fifteen thirty, ten o'clock."""
    parts = match.groupdict()
    minute, half = parts.get("minute") or "00", parts["half"]
    words = [spell_number(int(parts["hour"]))]
    if minute != "00":
        words += ["oh", spell_number(minute[1])] if minute[0] == "0" else [spell_number(minute)]
    elif not half:
        words.append("o'clock")
    return " ".join([*words, *([half.lower(), "m"] if half else [])]) + _full_stop(match)


def _money(match: re.Match) -> str:
    """One dollar, two pounds and fifty pence, one point five million euros; a number without a sign as it is."""
    parts = match.groupdict()
    if parts["sign"] is None:
        return match[0]
    one, several, cent, cents = CURRENCIES[parts["sign"]]
    whole, _, part = parts["amount"].replace(",", "").partition(".")
    if parts.get("scale"):
        return f"{spell_number(parts['amount'])} {SCALES.get(parts['scale'].lower(), parts['scale'])} {several}"
    if len(part) not in (0, 2):
        return f"{spell_number(parts['amount'])} {several}"
    words = [f"{spell_number(whole)} {one if int(whole) == 1 else several}"] if int(whole) or not int(part or 0) else []
    if int(part or 0):
        words.append(f"{spell_number(int(part))} {cent if int(part) == 1 else cents}")
    return " and ".join(words)


def _measure(match: re.Match) -> str:
    """5 kilograms, 1 mile per hour; a number without a unit as it is."""
    if match["unit"] is None:
        return match[0]
    first, *others = UNITS[match["unit"]].split()
    if match["amount"] != "1" and not first.endswith("hertz"):
        first += "s"
    return " ".join([match["amount"], first, *others])


def _decade(words: str) -> str:
    """Nineteen nineties, two thousands."""
    return f"{words[:-1]}ies" if words.endswith("y") else f"{words}s"


def _ordinal(match: re.Match) -> str:
    """First, second; a number without an ending as it is."""
    if match["ending"] is None:
        return match[0]
    return spell_number(match["amount"], "cardinal" if "." in match["amount"] else "ordinal")


def _any_of(words: Iterable[str]) -> str:
    """A pattern of any of these words, the longest first."""
    return "|".join(re.escape(word) for word in sorted(words, key=len, reverse=True))


class Rule(NamedTuple):
    """What a pattern is replaced by, with an example of the text that it reads."""

    name: str
    example: str
    pattern: str
    spell: Callable[[re.Match], str]


# Applied in this order. A suffix that a number may have is optional in its pattern, so that the pattern never fails
# after a long number: else it would try again from each of the digits.
RULES = (
    Rule("ISO date", "2026-11-20", rf"\b{YEAR}-(?P<month>0[1-9]|1[0-2])-(?P<day>0[1-9]|[12]\d|3[01])\b", _date),
    Rule("date in numbers", "11/20/2026", rf"(?<![\d/])(?P<month>\d{{1,2}})/(?P<day>\d{{1,2}})/{YEAR}(?![\d/])", _date),
    Rule(
        "day and month",
        "the 20th of May",
        rf"\b(?P<the>(?:[Tt]he )?){DAY} (?:of )?{MONTH}(?:,? {YEAR}\b(?!\.\d))?",
        _date,
    ),
    Rule("month and day", "May 5, 2026", rf"{MONTH} {DAY}\b(?![\d:]|,\d|\.\d)(?:,? {YEAR}\b(?!\.\d))?", _date),
    Rule(
        "time", "15:30", rf"(?<![\d:.])(?P<hour>[01]?\d|2[0-3]):(?P<minute>[0-5]\d)(?:\s?{HALF_DAY}|(?![\d:]))", _time
    ),
    Rule("full hour", "3 p.m.", rf"(?<![\d:.])(?P<hour>1[0-2]|0?[1-9])\s?{HALF_DAY}", _time),
    Rule(
        "money",
        "$1.5 million",
        rf"(?P<sign>[{''.join(CURRENCIES)}])\s?(?P<amount>{NUMBER})"
        r"(?:\s?(?P<scale>thousand|million|billion|trillion|bn|[kKmM])\b)?",
        _money,
    ),
    Rule("money, sign last", "5 €", rf"(?P<amount>{NUMBER})(?:\s?(?P<sign>[{''.join(CURRENCIES)}]))?", _money),
    Rule("measure", "5 kg", rf"(?P<amount>{NUMBER})(?:\s?(?P<unit>{_any_of(UNITS)})(?![\w°]))?", _measure),
    Rule("saint", "St. Paul", r"\bSt\.(?= [A-Z][a-z])", lambda match: "Saint"),
    Rule(
        "title", "Dr. Smith", rf"(?<![\w.])({_any_of(TITLES)})(?:(?<=\.)|\.|\b)(?!\w)", lambda match: TITLES[match[1]]
    ),
    Rule(
        "ending",
        "Main St.",
        rf"(?<![\w.])(?:{_any_of(ENDINGS)})(?!\w)",
        lambda match: ENDINGS[match[0]] + _full_stop(match),
    ),
    Rule("number sign", "No. 1, #2", r"\b[Nn]o\. ?(?=\d)|#(?=\d)", lambda match: "number "),
    Rule(
        "initials",
        "U.S.",
        r"\b(?:[A-Za-z]\.){2,}",
        lambda match: " ".join(match[0].replace(".", " ").split()) + _full_stop(match),
    ),
    Rule(
        "phone number",
        "555-1234",
        r"(?<![\d-])(?:\d{3}-)?\d{3}-\d{4}(?![\d-])",
        lambda match: ", ".join(map(spell_digits, match[0].split("-"))),
    ),
    Rule("version", "3.5.2", r"(?<!\d)\d++(?:\.\d+){2,}", lambda match: match[0].replace(".", " point ")),
    Rule("colon", "13:13", r"(?<=\d):(?=\d)", lambda match: " "),
    Rule("fraction", "1/2", rf"(?<![\d/])(?:{_any_of(FRACTIONS)})(?![\d/])", lambda match: FRACTIONS[match[0]]),
    Rule(
        "decade of a century", "1990s", r"\b(1[1-9]\d0|20\d0)s\b", lambda match: _decade(spell_number(match[1], "year"))
    ),
    Rule("decade", "'90s", r"['’]?\b([2-9]0)s\b", lambda match: _decade(spell_number(match[1]))),
    Rule(
        "years",
        "1914-1918",
        r"\b((?:1[1-9]|20)\d\d)\s?[-–]\s?((?:1[1-9]|20)\d\d)\b",
        lambda match: f"{spell_number(match[1], 'year')} to {spell_number(match[2], 'year')}",
    ),
    Rule(
        "letter and digit",
        "A4, 5x",
        r"(?<=[^\W\d_])(?=\d)|(?<=\d)(?!(?:st|nd|rd|th)\b)(?=[^\W\d_])",
        lambda match: " ",
    ),
    Rule("range", "5–10", r"(?<=\d)\s?–\s?(?=\d)", lambda match: " to "),
    Rule("minus", "-5", r"(?<![\w)])[-−](?=\d)", lambda match: "minus "),
    Rule("ordinal", "3rd", rf"(?P<amount>{NUMBER})(?P<ending>(?:st|nd|rd|th)\b)?", _ordinal),
    Rule("year", "1999", rf"(?<![\d,.-]){YEAR}(?![\d%]|[,.-]\d)", lambda match: spell_number(match["year"], "year")),
    Rule("number", "1,234.5", NUMBER, lambda match: spell_number(match[0])),
)
PATTERNS = [(re.compile(rule.pattern), rule.spell) for rule in RULES]


@functools.lru_cache(maxsize=4096)
def _plain(character: str) -> str:
    """A character without accents; nothing for what cannot be seen."""
    parts = unicodedata.normalize("NFKD", character).replace("⁄", "/")
    return "".join(part for part in parts if unicodedata.category(part) not in ("Mn", "Cf"))


def spell_out(text: str) -> str:
    """A text whose digits, signs and abbreviations are words."""
    text = "".join(map(_plain, VULGAR_FRACTION.sub(" and ", text)))
    for pattern, spell in PATTERNS:
        text = pattern.sub(spell, text)
    for sign, word in SIGNS.items():
        text = text.replace(sign, word)
    return text.translate(MARKS)


def normalize(text: str, known: Collection[str]) -> str:
    """A text spelled out and ended by a mark; characters that are not `known`, in lower case, become spaces."""
    text = text.strip()
    spelled = spell_out(text + "." if text and text[-1].isalnum() else text)
    spelled = " ".join("".join(c if c.lower() in known else " " for c in spelled).split())
    return spelled + "." if spelled[-1:].isalpha() else spelled
