"""English text as it is spoken: dates, times, money, numbers, units and abbreviations become words.

num2words says the numbers; without it, digits are read one by one. What can be read in two ways is read as Americans
do.
"""

import re
import unicodedata

try:
    from num2words import num2words
except ImportError:
    num2words = None

DIGITS = "zero one two three four five six seven eight nine".split()
LONGEST = 15  # digits; more are no number but a row of digits, as is what begins with a zero
MONTHS = "January February March April May June July August September October November December".split()
MONEY = {  # one, several, a hundredth, several of them
    "$": ("dollar", "dollars", "cent", "cents"),
    "€": ("euro", "euros", "cent", "cents"),
    "£": ("pound", "pounds", "penny", "pence"),
    "₹": ("rupee", "rupees", "paisa", "paise"),
    "¥": ("yen", "yen", "sen", "sen"),
}
SCALES = {"k": "thousand", "m": "million", "bn": "billion"}
UNITS = {  # after a number; capitals matter
    "kg": "kilogram",
    "mg": "milligram",
    "km": "kilometer",
    "cm": "centimeter",
    "mm": "millimeter",
    "ml": "milliliter",
    "lb": "pound",
    "lbs": "pound",
    "oz": "ounce",
    "mph": "mile per hour",
    "km/h": "kilometer per hour",
    "min": "minute",
    "hr": "hour",
    "hrs": "hour",
    "Hz": "hertz",
    "kHz": "kilohertz",
    "MHz": "megahertz",
    "GHz": "gigahertz",
    "kB": "kilobyte",
    "KB": "kilobyte",
    "MB": "megabyte",
    "GB": "gigabyte",
    "TB": "terabyte",
    "kW": "kilowatt",
    "°C": "degree Celsius",
    "°F": "degree Fahrenheit",
    "°": "degree",
}
TITLES = {  # before a name or a word: their dot, where they have one, ends no sentence; capitals matter
    "Mr": "Mister",
    "Mrs": "Missus",
    "Ms": "Miz",
    "Dr": "Doctor",
    "Prof": "Professor",
    "vs": "versus",
    "e.g.": "for example",
    "i.e.": "that is",
    "approx.": "approximately",
    "dept.": "department",
    "Dept.": "Department",
    "Mt.": "Mount",
    "Gen.": "General",
    "Col.": "Colonel",
    "Capt.": "Captain",
    "Lt.": "Lieutenant",
    "Sgt.": "Sergeant",
    "Rev.": "Reverend",
}
ENDINGS = {  # behind one
    "etc.": "et cetera",
    "Jr.": "Junior",
    "Sr.": "Senior",
    "St.": "Street",
    "Ave.": "Avenue",
    "Blvd.": "Boulevard",
    "Rd.": "Road",
    "Inc.": "Incorporated",
    "Ltd.": "Limited",
    "Corp.": "Corporation",
    "Co.": "Company",
}

FRACTIONS = {"1/2": "one half", "1/3": "one third", "2/3": "two thirds", "1/4": "one quarter", "3/4": "three quarters"}
SIGNS = {"&": " and ", "%": " percent", "+": " plus ", "=": " equals ", "@": " at "}
MARKS = str.maketrans("‘’ʼ“”–—", "'''\"\"--")

NUMBER = r"\d+(?:,\d{3}(?!\d))*(?:\.\d+)?"
MONTH = rf"\b(?P<month>{'|'.join(f'{name[:3]}(?:{name[3:]})?' for name in MONTHS)}|Sept)\b\.?"
DAY, YEAR = r"(?P<day>0?[1-9]|[12]\d|3[01])(?:st|nd|rd|th)?", r"(?P<year>1[1-9]\d\d|20\d\d)"
HALF = r"(?P<half>[apAP])(?:\.\s?[mM]\.?|[mM]\b\.?)"


def one_by_one(digits):
    return " ".join("point" if c == "." else DIGITS[int(c)] for c in digits)


def spell(digits, to="cardinal"):
    """A number in digits as words; to: "cardinal", "ordinal" or "year", as num2words knows them."""
    digits = digits.replace(",", "")
    if num2words is None or len(digits) > LONGEST or re.match(r"0\d", digits):
        return one_by_one(digits)
    whole, point, decimals = digits.partition(".")
    words = num2words(int(whole), to="cardinal" if point else to).replace(",", "")
    return f"{words} {one_by_one(point + decimals)}" if point else words


def plural(words):
    """The plural of the last word of a number: nineteen nineties, two thousands."""
    return f"{words[:-1]}ies" if words.endswith("y") else f"{words}s"


def spell_date(match):
    """A date: the month by its name or number, the year where it is said."""
    parts = match.groupdict()
    month, day, year = parts["month"], parts["day"], parts["year"]
    if month.isdigit():
        month, day = (day, month) if int(month) > 12 >= int(day) else (month, day)
        if not 1 <= int(month) <= 12 or int(day) > 31:
            return match[0]
        month = MONTHS[int(month) - 1]
    else:
        month = next(name for name in MONTHS if name[:3] == month[:3])
    day = spell(str(int(day)), "ordinal")
    date = f"{parts['the']}{day} of {month}" if parts.get("the") else f"{month} {day}"
    return f"{date}, {spell(year, 'year')}" if year else date


def full_stop(match):
    """The dot of an abbreviation where it ends a sentence, too."""
    return "." if match[0].endswith(".") and re.match(r"\s*$|\s+[A-Z]", match.string[match.end() :]) else ""


def spell_time(match):
    """A time of day: three oh five p m, fifteen thirty, ten o'clock."""
    parts = match.groupdict()
    minute, half = parts.get("minute") or "00", parts["half"]
    words = [spell(str(int(parts["hour"])))]
    if minute != "00":
        words += ["oh", spell(minute[1])] if minute[0] == "0" else [spell(minute)]
    elif not half:
        words.append("o'clock")
    return " ".join([*words, *([half.lower(), "m"] if half else [])]) + full_stop(match)


def spell_money(match):
    """An amount of money: one dollar, two pounds and fifty pence, one point five million euros."""
    parts = match.groupdict()
    one, several, cent, cents = MONEY[parts["sign"]]
    whole, _, part = parts["amount"].replace(",", "").partition(".")
    if parts.get("scale"):
        return f"{spell(parts['amount'])} {SCALES.get(parts['scale'].lower(), parts['scale'])} {several}"
    if len(part) not in (0, 2):
        return f"{spell(parts['amount'])} {several}"
    words = [f"{spell(whole)} {one if int(whole) == 1 else several}"] if int(whole) or not int(part or 0) else []
    if int(part or 0):
        words.append(f"{spell(str(int(part)))} {cent if int(part) == 1 else cents}")
    return " and ".join(words)


def spell_unit(match):
    """A measure: five kilograms, one mile per hour."""
    first, *others = UNITS[match["unit"]].split()
    if match["amount"] != "1" and first != "hertz" and not first.endswith("hertz"):
        first += "s"
    return " ".join([match["amount"], first, *others])


def any_of(words):
    """A pattern of any of these words, the longest first."""
    return "|".join(re.escape(word) for word in sorted(words, key=len, reverse=True))


RULES = [
    (re.compile(pattern), say)
    for pattern, say in [
        (rf"\b{YEAR}-(?P<month>0[1-9]|1[0-2])-(?P<day>0[1-9]|[12]\d|3[01])\b", spell_date),
        (rf"(?<![\d/])(?P<month>\d{{1,2}})/(?P<day>\d{{1,2}})/{YEAR}(?![\d/])", spell_date),
        (rf"\b(?P<the>(?:[Tt]he )?){DAY} (?:of )?{MONTH}(?:,? {YEAR}\b(?!\.\d))?", spell_date),
        (rf"{MONTH} {DAY}\b(?![\d:]|,\d|\.\d)(?:,? {YEAR}\b(?!\.\d))?", spell_date),
        (rf"(?<![\d:.])(?P<hour>[01]?\d|2[0-3]):(?P<minute>[0-5]\d)(?:\s?{HALF}|(?![\d:]))", spell_time),
        (rf"(?<![\d:.])(?P<hour>1[0-2]|0?[1-9])\s?{HALF}", spell_time),
        (
            rf"(?P<sign>[{''.join(MONEY)}])\s?(?P<amount>{NUMBER})"
            r"(?:\s?(?P<scale>thousand|million|billion|trillion|bn|[kKmM])\b)?",
            spell_money,
        ),
        (rf"(?P<amount>{NUMBER})\s?(?P<sign>[{''.join(MONEY)}])", spell_money),
        (rf"(?P<amount>{NUMBER})\s?(?P<unit>{any_of(UNITS)})(?![\w°])", spell_unit),
        (r"\bSt\.(?= [A-Z][a-z])", lambda match: "Saint"),
        (rf"(?<![\w.])({any_of(TITLES)})(?:(?<=\.)|\.|\b)(?!\w)", lambda match: TITLES[match[1]]),
        (rf"(?<![\w.])(?:{any_of(ENDINGS)})(?!\w)", lambda match: ENDINGS[match[0]] + full_stop(match)),
        (r"\b[Nn]o\. ?(?=\d)|#(?=\d)", lambda match: "number "),
        (r"\b(?:[A-Za-z]\.){2,}", lambda match: " ".join(match[0].replace(".", " ").split()) + full_stop(match)),
        (r"(?<![\d-])(?:\d{3}-)?\d{3}-\d{4}(?![\d-])", lambda match: ", ".join(map(one_by_one, match[0].split("-")))),
        (r"\d+(?:\.\d+){2,}", lambda match: match[0].replace(".", " point ")),
        (r"(?<=\d):(?=\d)", lambda match: " "),
        (rf"(?<![\d/])(?:{any_of(FRACTIONS)})(?![\d/])", lambda match: FRACTIONS[match[0]]),
        (r"\b(1[1-9]\d0|20\d0)s\b", lambda match: plural(spell(match[1], "year"))),
        (r"['’]?\b([2-9]0)s\b", lambda match: plural(spell(match[1]))),
        (
            r"\b((?:1[1-9]|20)\d\d)\s?[-–]\s?((?:1[1-9]|20)\d\d)\b",
            lambda match: f"{spell(match[1], 'year')} to {spell(match[2], 'year')}",
        ),
        (r"(?<=[^\W\d_])(?=\d)|(?<=\d)(?!(?:st|nd|rd|th)\b)(?=[^\W\d_])", lambda match: " "),  # A4, 5x
        (r"(?<=\d)\s?–\s?(?=\d)", lambda match: " to "),
        (r"(?<![\w)])[-−](?=\d)", lambda match: "minus "),
        (rf"({NUMBER})(?:st|nd|rd|th)\b", lambda match: spell(match[1], "cardinal" if "." in match[1] else "ordinal")),
        (rf"(?<![\d,.-]){YEAR}(?![\d%]|[,.-]\d)", lambda match: spell(match["year"], "year")),
        (NUMBER, lambda match: spell(match[0])),
    ]
]


def spell_out(text):
    """A text without a digit, a sign or an abbreviation that a reader would say as a word."""
    text = unicodedata.normalize("NFKD", re.sub(r"(?<=\d)(?=[¼-¾⅐-⅞])", " and ", text)).replace("⁄", "/")
    text = "".join(c for c in text if unicodedata.category(c) not in ("Mn", "Cf"))  # accents, what cannot be seen
    for pattern, say in RULES:
        text = pattern.sub(say, text)
    for sign, word in SIGNS.items():
        text = text.replace(sign, word)
    return text.translate(MARKS)


def normalize(text, known):
    """A text spelled out, in characters that are `known` (lower-case), with a mark at its end; gaps for all others."""
    text = text.strip()
    spelled = spell_out(text + "." if text and text[-1].isalnum() else text)
    spelled = " ".join("".join(c if c.lower() in known else " " for c in spelled).split())
    return spelled + "." if spelled[-1:].isalpha() else spelled
