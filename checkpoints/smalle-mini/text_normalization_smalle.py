"""Normalizes English text: dates, times, money, numbers, units, addresses and abbreviations become words.

num2words spells the numbers; without it, digits are read one by one. Ambiguous dates and times are read the American
way. Every rule takes time in proportion to the length of the text: a pattern starts where a number or a word starts,
takes what it can without going back, and looks back and ahead over a fixed number of characters.
"""

import functools
import re
import unicodedata
import warnings
from collections.abc import Collection

import regex  # as in text_tables_smalle

from .text_tables_smalle import (
    ABBREVIATIONS,
    ADDRESS_RULES,
    AMBIGUOUS_STATES,
    CHARACTERS,
    COMPARED,
    COMPASS,
    CURRENCIES,
    DIGITS,
    ELEMENTS,
    ENDINGS,
    FRACTIONS,
    INTERJECTIONS,
    KINGS,
    MONTHS,
    NOT_A_STREET,
    NUMBERED,
    NUMBERED_ROMAN,
    ROMAN,
    RULERS,
    SCALES,
    SHOUTED,
    SIGNS,
    SMALL_MONEY,
    SOUNDS,
    SPECIAL,
    SPELLED,
    STATES,
    STREETS,
    TITLES,
    UNITS,
    UNSAYABLE,
    WEEKDAYS,
    WORDY_UNITS,
    Rule,
    any_of,
    in_ascii,
    in_pairs,
    left_of,
    pauses_at_line_ends,
    plural,
    right_of,
    roman_value,
    spell_digits,
    spell_groups,
    spell_number,
    without_markup,
)

# Patterns start with a character or a look-ahead for one, which rules out most positions quickly.
NUMBER = r"\d\d*+(?:,\d{3}(?!\d))*+(?:\.\d++)?+"
START = r"(?<![\w])(?<!\d[.,])"  # of a number
WHOLE = NUMBER.replace(r"\d", r"\d(?<!\w\d)(?<!\d[.,]\d)", 1)  # a number, from its start
MONTH = rf"\b(?P<month>{'|'.join(f'{name[:3]}(?:{name[3:]})?' for name in MONTHS)}|Sept)\b\.?"
DAY, YEAR = r"(?P<day>0?[1-9]|[12]\d|3[01])(?:st|nd|rd|th)?", r"(?P<year>1[1-9]\d\d|20\d\d)"
LAST_DAY = r"(?P<last>0?[1-9]|[12]\d|3[01])(?:st|nd|rd|th)?"
HALF_DAY = r"(?P<half>[apAP])(?:\.\s?[mM]\.?|[mM]\b\.?)"
SENTENCE_END = re.compile(r"\s*$|\s+(?!(?:[NS][EW]|[A-Z]{1,3}T|UTC|Ltd|Inc|Corp|LLC|Jr|Sr)\b)[A-Z]")


def _full_stop(match: re.Match) -> str:
    """A full stop, if an abbreviation's dot also ends a sentence."""
    return "." if match[0].endswith(".") and SENTENCE_END.match(match.string, match.end()) else ""


def _month(name: str) -> str:
    """January of "Jan" or "1"."""
    return MONTHS[int(name) - 1] if name.isdigit() else next(month for month in MONTHS if month[:3] == name[:3])


def _year(year: str) -> str:
    """Twenty twenty-six of "2026" or "26"."""
    return spell_number(year if len(year) == 4 else f"{19 if int(year) > 49 else 20}{year}", "year")


def _date(match: re.Match) -> str:
    """November twentieth, twenty twenty-six."""
    parts = match.groupdict()
    month, day, year = parts["month"], parts["day"], parts["year"]
    if month.isdigit():
        month, day = (day, month) if int(month) > 12 >= int(day) else (month, day)
        if not 1 <= int(month) <= 12 or not 1 <= int(day) <= 31:
            return match[0]
    month, day = _month(month), spell_number(int(day), "ordinal")
    date = f"{parts['the']}{day} of {month}" if parts.get("the") else f"{month} {day}"
    date += f" to {spell_number(int(parts['last']), 'ordinal')}" if parts.get("last") else ""
    return f"{date}, {_year(year)}" if year else date


def _time(match: re.Match) -> str:
    """Three oh five p m, fifteen thirty, ten o'clock."""
    parts = match.groupdict()
    hour, minute, second, half = int(parts["hour"]), parts.get("minute") or "00", parts.get("second"), parts["half"]
    second = None if second == "00" else second
    words = [spell_number(hour)]
    if minute != "00" or second:
        words += ["oh", spell_number(minute[1])] if minute[0] == "0" else [spell_number(minute)]
    elif not half:
        words = ["midnight"] if hour == 0 else [*words, "hundred"] if hour > 12 else [*words, "o'clock"]
    if second:
        words += ["and", spell_number(int(second)), "second" if second == "01" else "seconds"]
    return " ".join([*words, *([half.lower(), "m"] if half else [])]) + _full_stop(match)


def _iso_time(match: re.Match) -> str:
    """Comma, 15:30, U T C plus two."""
    offset = _offset(match) if match["sign"] else ""
    return f", {match['time']}" + (f", U T C{offset}" if match["zone"] else "")


def _offset(match: re.Match) -> str:
    """U T C plus five thirty."""
    minutes = f" {spell_number(match['minute'])}" if (match["minute"] or "00") != "00" else ""
    sign = "plus" if match["sign"] == "+" else "minus"
    zone = " ".join(match["zone"]) if match["zone"].isalpha() else ""
    return f"{zone} {sign} {spell_number(int(match['hour']))}{minutes}"


def _verse(match: re.Match) -> str:
    """John three two, first Corinthians thirteen four."""
    book = match["book"]
    if book[-1] == ".":
        names = "Genesis Exodus Psalm Proverbs Isaiah Matthew Romans Corinthians Hebrews Revelation".split()
        book = next(name for name in names if name.startswith(book[:-1]))
    part = spell_number(int(match["part"]), "ordinal").capitalize() + " " if match["part"] else ""
    return f"{part}{book} {match['chapter']} "


def _time_of_a_race(match: re.Match) -> str:
    """One oh five point three two."""
    minute, second, part = match.groups()
    second = f"oh {spell_digits(second[1], 'oh')}" if second[0] == "0" else spell_number(second)
    return f"{spell_number(int(minute))} {second} point {spell_digits(part)}"


def _iso_month(match: re.Match) -> str:
    """May 2024; a range such as 2004-05 stays unchanged."""
    month, year = match["month"], match["year"]
    return match[0] if month > year[2:] else f"{MONTHS[int(month) - 1]} {year}"


@functools.cache
def _currency(sign: str) -> tuple[str, str, str, str]:
    """The singular and the plural of a currency and of its hundredth."""
    one, cent = CURRENCIES[sign].split(",")
    return one, plural(one), cent, plural(cent)


def _describes(match: re.Match) -> bool:
    """Whether an amount is between an article and a noun: a five dollar bill, a forty-five degree angle."""
    noun = r"[ -](?!(?:of|to|in|at|for|and|or|from|per|on|with|by|is|was|above|below|away|each|than|as)\b)[A-Za-z]"
    return f" {left_of(match, 3)}".lower().endswith((" a ", " an ")) and bool(re.match(noun, right_of(match, 7)))


def _money(match: re.Match) -> str:
    """One dollar, two pounds and fifty pence, one point five million euros; a five dollar bill."""
    parts = match.groupdict()
    one, several, cent, cents = _currency(parts.get("code") or parts["sign"])
    if _describes(match):
        several, cents = one, cent
    whole, _, part = parts["amount"].replace(",", "").partition(".")
    scale, stop = (parts.get("scale") or "").strip(), _full_stop(match)
    if scale:
        return f"{spell_number(parts['amount'])} {SCALES.get(scale.lower(), scale)} {several}{stop}"
    if len(part) not in (0, 2):
        return f"{spell_number(parts['amount'])} {several}{stop}"
    words = [f"{spell_number(whole)} {one if int(whole) == 1 else several}"] if int(whole) or not int(part or 0) else []
    if int(part or 0):
        words.append(f"{spell_number(int(part))} {cent if int(part) == 1 else cents}")
    return " and ".join(words) + stop


def _small_money(match: re.Match) -> str:
    """Fifty cents, fifty pence."""
    several = match["amount"] != "1" and not _describes(match)
    return f"{match['amount']} {SMALL_MONEY[match['sign'] or 'p'][several]}"


def _cents(match: re.Match) -> str:
    """5¢ for a price; an iPhone 5c stays unchanged."""
    priced = "[Cc]osts?|[Ff]or|[Pp]ay|[Pp]aid|worth|[Ss]aves?|saved|under|over|from|to|tip|charges?|extra"
    sold = r"/[a-zA-Z]| (?:each|apiece|off|extra|more|less|a|an|per|coins?|stamps?|change)\b"
    price = re.search(rf"\b(?:{priced}) $", left_of(match, 9)) or re.match(sold, right_of(match, 10))
    return f"{match['amount']}¢" if price or re.fullmatch("[1-9]9", match["amount"]) else match[0]


def _military_time(match: re.Match) -> str:
    """Oh eight hundred hours."""
    minute = spell_number(int(match[2])) if match[2] != "00" else "hundred"
    return f"{'oh ' if match[1][0] == '0' else ''}{spell_number(int(match[1]))} {minute} {match[3] or 'hours'}"


def _whole_units(match: re.Match) -> str:
    """One thousand two hundred euros and fifty cents of "€1.200,50", with the point of decimals."""
    return f"{match[1].replace('.', '')}.{match[2]}"


def _bare_unit(match: re.Match) -> str:
    """Per square kilometer, in square kilometers."""
    unit = UNITS[match[1] + match[2]]
    return unit if left_of(match, 4) == "per " else plural(unit)


def _per_unit(match: re.Match) -> str:
    """Month, hour, minute."""
    return {"mo": "month", **UNITS}[match[0].rstrip(".")] + _full_stop(match)


def _parts(match: re.Match) -> str:
    """Three a two of "3(a)(ii)"."""
    parts = (part for part in match.groups() if part)
    return "".join(f" {roman_value(part) if re.fullmatch('[ivx]{2,}', part) else part}" for part in parts)


def _initials(match: re.Match) -> str:
    """U S, J R R; a full stop only after what may end a sentence."""
    letters = match[0].replace(".", " ").split()
    return " ".join(letters) + (_full_stop(match) if "".join(letters).upper() in ABBREVIATIONS else "")


def _state(match: re.Match) -> str:
    """Massachusetts oh two one three four."""
    word = re.search(r"(\w+), $", left_of(match))
    plain = word is not None and (word[1].islower() or word[1] in INTERJECTIONS)
    if match["state"] in AMBIGUOUS_STATES and plain and not match["zip"]:
        return match[0]
    codes = (part for part in match.group("zip", "more") if part)
    return " ".join([STATES[match["state"]], *(spell_digits(code, "oh") for code in codes)])


def _money_range(match: re.Match) -> str:
    """The sign of the first amount goes to the second: five to ten dollars."""
    return f"{match['first']} to {match['sign']}{match['second']}"


def _measure(match: re.Match) -> str:
    """5 kilograms, 1 mile per hour, a 10 foot pole."""
    amount, joint, sign = match.group("amount", "joint", "unit")
    if not joint and (sign == "s" and amount[-1] == "0" or sign == "c."):  # a decade, or 5c and a full stop
        return match[0]
    run = re.match(r" ?(?:run|race)", right_of(match)) or re.search(r"\b(?:an?|ran|my|the) $", left_of(match, 6))
    if sign == "K" and (joint != " " or run and int(float(amount.replace(",", ""))) <= 50):
        return match[0]
    if sign[:2] == "pp" and amount.isdigit() and int(amount) > 20:
        return f"{amount} pages{_full_stop(match)}"
    if (
        len(sign) == 1
        and sign.isupper()
        and joint == " "
        and (sign == "A" or re.match(r"\.? [A-Z\d]", right_of(match)))
    ):
        return match[0]
    if joint == "" and re.search(rf"(?:{PLACES}) $", left_of(match, 12)):
        return match[0]
    unit = UNITS[sign]
    noun = unit if match["amount"] == "1" or match["joint"] == "-" or _describes(match) else plural(unit)
    return f"{match['amount']} {noun}{_full_stop(match)}"


def _degrees(match: re.Match) -> str:
    """350 °F; seats and rooms stay unchanged."""
    return match[0] if re.search(rf"(?:{PLACES}) $", left_of(match, 12)) else f"{match[1]} °{match[2]}"


def _fraction(match: re.Match) -> str:
    """One half, five eighths of an inch, two and a half cups, eight out of ten."""
    whole, top, bottom = match["whole"], int(match["top"]), int(match["bottom"])
    unit, word = match["unit"], match["word"]
    one_of_many = top == 1 and bottom > 31 and (bottom != 100 or unit or match["th"])
    out_of = bottom == 10 and top > 1 and not whole and not match["th"]
    if not 0 < top < bottom or bottom not in FRACTIONS and not one_of_many or out_of:
        return match[0]
    name = FRACTIONS.get(bottom) or spell_number(bottom, "ordinal")
    if whole:
        article = "an" if name[0] == "e" else "a"
        part = f"{article} {name}" if top == 1 else f"{spell_number(top)} {plural(name)}"
        words = f"{spell_number(whole)} and {'a half' if bottom == 2 else part}"
        return f"{words} {plural(UNITS[unit])}" if unit else f"{words}{match['joint']}{word}" if word else words
    halves = "halves" if bottom == 2 else plural(name)
    words = f"one {name}" if top == 1 else f"{spell_number(top)} {halves}"
    words += " " * (right_of(match, 1).isalpha())
    noun = UNITS[unit] if unit else word
    if noun and match["joint"] == "-":
        return f"{spell_number(top)} {name} {noun}"
    if noun and (top > 1 or bottom > 31):
        return f"{words} of {'an' if noun[0] in 'aeio' or noun == 'hour' else 'a'} {noun}"
    return f"{words} {noun}" if noun else words


def _dimension(match: re.Match) -> str:
    """Three by four; three times four, if no unit follows the multiplication sign."""
    measure = rf" ?{NUMBER}[ -]?(?:(?:{UNIT})(?!\w)|inch|feet|pixel)"
    times = re.match(rf" ?{NUMBER} ?(?:k?g|ml|mL|cl|l|L|oz|lb|[GT]B|mg)\b", right_of(match))
    by = not times and match["sign"] == "x" or re.match(measure, right_of(match)) and not times
    return " by " if by else " times "


def _screen(match: re.Match) -> str:
    """Nineteen twenty by ten eighty."""
    sizes = [divmod(int(size), 100) for size in match.group("width", "height")]
    words = (f"{spell_number(a)} {spell_number(b)}" if a and b > 9 else spell_number(100 * a + b) for a, b in sizes)
    return " by ".join(words)


def _feet(match: re.Match) -> str:
    """Five foot ten, six feet, twelve inches; a quotation mark after a number stays unchanged."""
    feet, inches = match["feet"], match["inches"]
    if feet and inches:
        return f"{feet} foot {inches}"
    if len(re.findall(r"(?<!\d)\"" if inches else " '", left_of(match, 200))) % 2:
        return match[0]
    one, several = ("inch", "inches") if inches else ("foot", "feet")
    noun = one if "1" in (feet, inches) or _describes(match) else several
    return f"{inches or feet} {noun}"


def _coordinates(match: re.Match) -> str:
    """40.7 degrees north, 73.9 degrees west."""
    latitude, pole, longitude, side = match.groups()
    return f"{latitude} degrees {COMPASS[pole].lower()}, {longitude} degrees {COMPASS[side].lower()}"


def _coordinate(match: re.Match) -> str:
    """Forty degrees, forty-two minutes north."""
    names = zip(match.group("degree", "minute", "second"), ("degree", "minute", "second"))
    words = [f"{n} {name if n == '1' else plural(name)}" for n, name in names if n]
    return ", ".join(words) + f" {COMPASS[match['pole']].lower()}"


def _years(match: re.Match) -> str:
    """Nineteen fourteen to eighteen."""
    first, last = match["first"], match["last"]
    if len(last) == 2 and int(last) <= int(first[2:]):
        return match[0]
    last = f"oh {last[1]}" if len(last) == 2 and last[0] == "0" else last
    return f"{spell_number(first, 'year')} to {spell_number(last, 'year') if last.isdigit() else last}"


def _decade(words: str) -> str:
    """Nineteen nineties, two thousands."""
    return f"{words[:-1]}ies" if words.endswith("y") else f"{words}s"


def _hundreds(match: re.Match) -> str:
    """Hundreds, five hundreds, thousands."""
    words = spell_number(match[0][:-1])
    return f"{words.removeprefix('one ')}s"


def _several(match: re.Match) -> str:
    """M P threes, F-sixteens."""
    return (match[1] or " ") + _decade(in_pairs(match[2])).replace("sixs", "sixes")


def _number(match: re.Match) -> str:
    """One thousand two hundred, third, nineteen ninety-nine; in ten sixty-six."""
    amount = match["amount"]
    if match["ending"]:
        return spell_number(amount, "cardinal" if "." in amount else "ordinal")
    if len(amount) != 4 or not amount.isdigit():
        return spell_digits(amount) if amount.isdigit() and len(amount) > 10 else spell_number(amount)
    before, after = left_of(match, 3), right_of(match)
    year = before[-1:] not in (*",.-",) and not re.match(r"%|[,.-]\d", after)
    if year and not re.fullmatch(r"1[1-9]\d\d|20\d\d", amount):
        before_a_year = before.lower() == "in " or before[-1:] == "(" and after[:1] == ")"
        year = before_a_year and amount[:2] == "10" and amount[2] != "0" and not re.match(" [a-z]+s\\b", after)
    return spell_number(amount, "year" if year else "cardinal")


def _power(match: re.Match) -> str:
    """X squared, ten to the power of six."""
    sign, digits, space = match["sign"], match["power"], " " if right_of(match, 1).isalnum() else ""
    if not sign and digits in ("2", "3"):
        return (" squared" if digits == "2" else " cubed") + space
    return f" to the power of {'minus ' if sign else ''}{digits}{space}"


def _superscript(match: re.Match) -> str:
    """A superscript as the power of a number or of a variable; after units and words, the plain digits."""
    digits = unicodedata.normalize("NFKD", match[0]).replace("−", "-")
    base = re.split(r"[\W\d_]", left_of(match, 12))[-1]
    number = re.search(rf"\d ?{base}$", left_of(match, 12))
    return (
        digits
        if len(base) > 2 and base not in ("sin", "cos", "tan", "log") or number and base + "2" in UNITS
        else f"^{digits}"
    )


def _cardinal_roman(match: re.Match) -> str:
    """Two of "II"; in brackets of "(ii)"."""
    return re.sub(r"\w+", lambda numeral: spell_number(roman_value(numeral[0])), match[0])


def _numeral_and_letter(match: re.Match) -> str:
    """Part two b, Stage three A."""
    return f"{match[1]} {spell_number(roman_value(match[2]))} {match[3]}"


def _ordinal_roman(match: re.Match) -> str:
    """Eighteenth of "XVIII" or "XVIIIth"."""
    return spell_number(roman_value(match[1]), "ordinal")


def _numbered_roman(match: re.Match) -> str:
    """World War two, Chapters four to six, Books one, two and three."""
    pattern = r"\b[xvi]+\b" if match["numerals"].islower() else rf"\b{ROMAN}\b"
    numerals = match["numerals"].replace("-", " to ")
    numerals = re.sub(pattern, lambda roman: f" {spell_number(roman_value(roman[0]))}", numerals)
    noun = "World War" if match["noun"] == "WW" else match["noun"]
    return f"{noun} {' '.join(numerals.split())}" + (" point " if match["part"] else "")


def _named_roman(match: re.Match) -> str:
    """Henry the eighth, Apollo thirteen; I the word and initials stay."""
    name, numeral, before = match["name"], match["numeral"], left_of(match).split()
    words = {name, *re.findall(r"[A-Z]\w+(?= (?:[A-Z][\w.]* )?$)", left_of(match))}
    value = roman_value(numeral)
    if words & KINGS or words & RULERS or (name.lower() == name and before[-1:] and before[-1] in KINGS):
        # "When I told Henry I was late": a first is followed by a mark or by what a ruler does
        first = not words & RULERS and numeral == "I"
        of_ruler = r" (?!and [A-Z]|of |in |was (?:born|crowned|king|queen|executed)|ruled|reigned|died|became)"
        if first and re.match(of_ruler, right_of(match)):
            return match[0]
        if len(numeral) == 1 and numeral not in "IVX" or value > 39:
            return match[0]
        return f"{name} the {spell_number(value, 'ordinal')}"
    if len(numeral) < 2 or value > 39:
        return match[0]
    return f"{name} {spell_number(value)}"


def _named_twice(match: re.Match) -> str:
    """The seventh and eighth."""
    return f"{match[1]} {spell_number(roman_value(match[2]), 'ordinal')}"


def _letters(match: re.Match) -> str:
    """B B C, T V's, F B I; words in capitals stay unchanged."""
    word, ending = match["word"], match["ending"] or ""
    code = re.match(r"\d" if len(word) == 3 else r"-?\d", right_of(match, 2)) and len(word) < 4  # MI6, AK-47
    sayable = re.search("[AEIOUY]", word) and not UNSAYABLE.match(word)
    if word in SOUNDS or (word not in SPELLED and sayable and not code):
        return match[0]
    around = re.findall(r"[A-Z]{2,}(?=\W*$)", left_of(match, 16)) + re.findall(
        r"^\W*([A-Z]{2,})\b", right_of(match, 16)
    )
    if word in SHOUTED and any(other not in SPELLED and re.search("[AEIOUY]", other) for other in around):
        return match[0]
    return " ".join(word) + (ending if ending == "'d" else "'s" if ending else "")


def _formula(match: re.Match) -> str:
    """H two O, C six H twelve O six."""
    return " ".join(re.findall(r"[A-Z]|[a-z]|\d+", match[0])).upper()


def _ion(match: re.Match) -> str:
    """N A plus, C A two plus."""
    letters = re.findall("[A-Z]|[a-z]|\\d", match[0])
    return " ".join(letters).upper() + (" plus" if match["sign"] == "+" else " minus")


def _compass(match: re.Match) -> str:
    """South of "S. Korea", Northern of "N. Ireland"."""
    return COMPASS[match[1]] + "ern" * right_of(match).startswith(" Ireland")


def _direction(match: re.Match) -> str:
    """I-405 North."""
    return f"{match[1]} {COMPASS[match[2]]}"


def _street(match: re.Match) -> str:
    """Main Street, Mulholland Drive; a saint or a doctor stays unchanged."""
    word, following = match["word"], re.match(r" ([A-Z]\w*)", right_of(match))
    numbered = re.search(r"\d ?(?:[NSEW]\.? |[A-Z]\w+ ){0,3}$", left_of(match, 30))
    if word in NOT_A_STREET or word in TITLES.values():
        return match[0]
    if following and not numbered and not word[0].isdigit() and following[1] not in NOT_A_STREET:
        return match[0]
    return f"{word} {STREETS[match['ending']]}{_full_stop(match)}"


def _saint(match: re.Match) -> str:
    """Saint of "St. Paul" or "in St Andrews"; "Baker St London" stays unchanged."""
    name = re.search(r"\b([A-Z]\w*) $", left_of(match))
    return match[0] if match[0] == "St" and name and name[1] not in NOT_A_STREET else "Saint"


def _junior(match: re.Match) -> str:
    """Senior of "a Sr. Engineer"; "John Smith Sr." stays unchanged."""
    return match[0] if re.search(r"\b[A-Z][\w.]*,? $", left_of(match)) else {"Sr": "Senior", "Jr": "Junior"}[match[1]]


def _dotted_state(match: re.Match) -> str:
    """Massachusetts of "Boston, Mass."."""
    return next(name for name in STATES.values() if name.startswith(match[1])) + _full_stop(match)


def _version(match: re.Match) -> str:
    """Two point one point three, beta two."""
    name = match["name"] or ("version " if match[0][0] in "vV" else "")
    stage, number = match["stage"] and match["stage"].replace("rc", "R C"), match["number"] or ""
    return f"{name}{' point '.join(match['numbers'].split('.'))}" + (f", {stage} {number}".rstrip() if stage else "")


LIVES = {"b": "born ", "d": "died ", "r": "reigned ", "fl": "flourished "}
_SIGNED = "".join(sign for sign in CURRENCIES if len(sign) == 1)
_CODES = any_of(sign for sign in CURRENCIES if len(sign) > 1)
_THREE_LETTERS = "|".join(code for code in CURRENCIES if re.fullmatch("[A-Z]{3}", code))
_PAIR_OF_CURRENCIES = rf"\b({_THREE_LETTERS})/({_THREE_LETTERS})\b"
MONEY = rf"(?P<sign>(?<![A-Za-z])(?:{_CODES})|[{_SIGNED}])"
SCALE = r"(?:\s?(?P<scale>thousand|million|billion|trillion|bn|mn|tn|trn|mm|lakh|crore|[kKmMbBtT])\b)?"
WORDS = (
    "people|users|views|followers|subscribers|downloads|copies|visitors|residents|customers|voters|years|tons|tonnes"
)
INGREDIENTS = (
    "baking|butter|chopped|cinnamon|cocoa|cornstarch|cumin|dried|flour|fresh|garlic|ginger|ground|honey|lemon|milk|oil|olive"
    "|paprika|pepper|salt|soy|sugar|vanilla|vinegar|water|yeast"
)
UNIT = rf"(?=[A-Za-z°])(?:{any_of(UNITS)})"
ABBREVIATED_MONTH = "(?:Jan|Feb|Mar|Apr|Jun|Jul|Aug|Sept?|Oct|Nov|Dec)"
PLACES = (
    "[Rr]oute|[Hh]ighway|[Gg]ate|[Rr]oom|[Ss]eat|[Rr]ow|[Aa]pt\.?|[Ff]lat|[Ss]uite|[Uu]nit|[Bb]us|[Ll]ine|[Pp]latform"
)
WEEKDAY = "(?:Mon|Tues?|Wed|Thu(?:rs?)?|Fri|Sat|Sun)"
ANY_WEEKDAY = rf"(?:{'|'.join(WEEKDAYS)}|{WEEKDAY})"


def _named(match: re.Match) -> str:
    """January of "Jan.", Monday of "Mon"."""
    names = [name for name in MONTHS + WEEKDAYS if name.startswith(match[0][:3])]
    return names[0] + ("" if re.match(f" (?:{'|'.join(MONTHS)})", right_of(match)) else _full_stop(match))


_COORDINATES = r"(?<![\w.])(\d{1,2}(?:\.\d++)?) ?([NS]),? ?(?=\d)(\d{1,3}(?:\.\d++)?) ?([EW])\b"
_COORDINATE = (
    r"(?<![\w.])(?P<degree>\d{1,3}(?:\.\d++)?)° ?(?:(?P<minute>\d{1,2})' ?)?(?:(?P<second>\d{1,2}(?:\.\d+)?)\"? ?)?"
    r"(?P<pole>[NSEW])\b"
)
_DECIMAL_COMMA = (
    r"(?=\d)(?:(?<=€)|(?<![\w.,])(?=[\d.]{1,12},\d\d ?(?:€|EUR\b)))(\d{1,3}(?:\.\d{3})++|\d++),(\d\d)(?!\d|,\d)"
)
_PRESSURE = r"(?<![\d/.])(\d{2,3})/(\d{2,3})(?: ?(?=mm ?Hg)|(?<=pressure \d\d\d/\d\d)|(?<=BP \d\d\d/\d\d))(?![\d/])"
_BOOKS = (
    "Genesis|Exodus|Psalms?|Proverbs|Isaiah|Matthew|Mark|Luke|John|Acts|Romans|Corinthians|Hebrews|James|Revelation|Peter|"
    "Samuel|Kings|Chronicles|Timothy|Thessalonians|(?:Gen|Exod?|Ps|Prov|Isa|Matt|Rom|Cor|Heb|Rev)\\."
)
_ISO_DATE = (
    rf"\b{YEAR}(?P<joint>[-/])(?P<month>0[1-9]|1[0-2]|(?<=/)[1-9])(?P=joint)"
    r"(?P<day>0[1-9]|[12]\d|3[01]|(?<=/)[1-9])(?!\d)"
)
_DAY_MONTH_YEAR = rf"(?<![\w-])(\d{{1,2}})-({ABBREVIATED_MONTH})-(?=\d\d(?:\d\d)?\b)"
_SHORT_YEAR = rf"\b({ABBREVIATED_MONTH}|{'|'.join(MONTHS)})\.? '(?=\d\d\b)"
_ISO_TIME = (
    r"(?<=[a-z])(?:T| (?=[\d:.]{5,12}(?:Z|[+-]\d\d:?\d\d)\b))(?P<time>\d\d:\d\d(?::\d\d)?)(?:\.\d+)?"
    r"(?P<zone>Z\b|(?P<sign>[+-])(?P<hour>\d\d):?(?P<minute>\d\d))?"
)
_DATE_IN_NUMBERS = r"(?<![\d/])(?P<month>\d{1,2})/(?P<day>\d{1,2})/(?P<year>1[1-9]\d\d|20\d\d|\d\d)(?![\d/])"
_DATE_WITH_DOTS = rf"(?<![\d.])(?P<day>\d{{1,2}})\.(?P<month>0?[1-9]|1[0-2])\.{YEAR}(?![\d])"
_DATE_WITH_DASHES = rf"(?<![\d-])(?P<month>\d{{1,2}})-(?P<day>\d{{1,2}})-{YEAR}(?![\d-])"
_MONTH_AND_DAY_IN_NUMBERS = (
    r"(?=\d\d?/\d)(?:(?<=\bon )|(?<=\bdue )|(?<=\buntil )|(?<=(?:Mon|Tue|Wed|Thu|Fri|Sat|Sun|day) )|"
    r"(?<=(?:Mon|ues|Wed|Thu|urs|Fri|Sat|Sun)\. )|(?<![\d/.])(?=0\d/|\d\d/0))"
    r"(?P<month>1[0-2]|0?[1-9])/(?P<day>[12]\d|3[01]|0?[1-9])(?P<year>)(?![\d/])"
)
_DAY_AND_MONTH = rf"\b(?=\d|[Tt]he \d)(?P<the>(?:[Tt]he )?){DAY} (?:of )?{MONTH}(?:,? {YEAR}\b(?!\.\d))?"
_MONTH_AND_DAYS = rf"{MONTH} {DAY}\s?-\s?{LAST_DAY}\b(?![\d:-]|,\d|\.\d)(?:,? {YEAR}\b(?!\.\d))?"
_DATES = rf"(?<=[a-z])\s?-\s?(?={MONTH.replace('?P<month>', '?:')} [a-z]+(?:th|st|nd|rd)\b)"
_MONTHS = rf"\b(?P<name>{ABBREVIATED_MONTH}|{'|'.join(MONTHS)})\.?\s?-\s?(?={MONTH.replace('?P<month>', '?:')})"
_WEEKDAY = (
    rf"\b(?P<name>(?:Mon|Tues?|Wed|Thu(?:rs?)?|Fri)\.(?!\w)|{WEEKDAY}\b\.?(?=,? (?:\d|{'|'.join(MONTHS)})))|(?<= to )"
    rf"{WEEKDAY}\b"
)
_YEARS = r"\b(?P<first>(?:1[1-9]|20)\d\d)\s?-\s?(?P<last>(?:1[1-9]|20)\d\d|\d\d|present|today|now)\b(?![-.]\d)"
_RANGE_OF_MONEY = (
    rf"(?P<sign>[{_SIGNED}])(?P<first>{NUMBER})\s?-\s?(?:(?P=sign)(?={NUMBER}\s?(?:thousand|million|billion"
    r"|trillion|bn|[kKmM]\b)))?(?P<second>\d)"
)
_RANGE = (
    rf"(?=[{_SIGNED}\d]){START}(?P<amount>[{_SIGNED}]?{NUMBER}(?::\d\d)?+(?:\s?(?:[ap]\.?m\.?|[AP]M|%|[¢'\"]|st|nd|rd|th|s|bn"
    rf"|[kKmM]|{UNIT})(?![\w°]))?+)\s?-\s?(?=[{_SIGNED}]?\d)(?!\d++-(?!(?:year|month|week|day|hour|minute|mile|foot|inch)))"
)
_TIME_ZONE = r"\b(?P<zone>UTC|GMT)\s?(?P<sign>[+−-])(?P<hour>\d{1,2})(?::?(?P<minute>\d\d))?\b"
_TIME = (
    r"(?<![\d:.])(?P<hour>[01]?\d|2[0-3]):(?P<minute>[0-5]\d)(?::(?P<second>[0-5]\d)(?:\.\d+)?)?"
    rf"(?:\s?{HALF_DAY}|h\b|(?![\d:]))"
)
_MILITARY_TIME = r"\b([01]\d|2[0-3])([0-5]\d)(?: ?(?:hours|hrs)|(Z))\b"
_MONEY_SIGN_LAST = rf"(?P<amount>{WHOLE}){SCALE}\s?(?P<sign>(?:{_CODES})(?![\w$])|[{_SIGNED}](?!\d))"
_SMALL_MONEY = rf"(?P<amount>{WHOLE})(?:\s?(?P<sign>¢)|(?P<sign2>p)(?!\w|\.\w))"
_CENTS = rf"(?P<amount>{WHOLE})c\b(?!\.\w)"
_FRACTION = (
    rf"(?<![\d/.,-])(?:(?P<whole>\d{{1,4}})[ -])?(?P<top>\d{{1,2}})/(?P<bottom>\d{{1,4}})"
    rf"(?P<th>(?:th|rd|nd)s?\b)?(?![\d/]|\.\d)(?:(?P<joint>[ -]?)(?:"
    rf"(?P<unit>{any_of(UNITS)})|(?P<word>{'|'.join(sorted(WORDY_UNITS))}))(?!\w))?"
)
_OUT_OF = rf"(?P<top>{WHOLE})/(?P<bottom>5|10|20|100)(?![\d/\w]|\.\d)"
_DURATION = r"(?<!\w)(?P<hour>\d{1,2})h ?(?P<minute>\d{1,2})(?:m|min)?(?!\w)"
_DEGREES_OF_AN_OVEN = r"(?<![\w.,])([1-9]\d\d?(?:\.\d)?) ?([FC])(?=[.,;)/]|$| (?:for|and|or|oven|until|in|fan)\b)"
_MILLIONS = rf"(?P<amount>{WHOLE}) ?(?P<scale>M(?!-F)|bn|mn|[mkK](?= (?:{WORDS})\b))(?!\w)"
_INCH = rf"(?P<amount>{WHOLE})(?:in\b| in(?=[,;)]| (?:tall|wide|long|deep|thick|high|by|x|of (?:rain|snow))\b))"
_PER = (
    r"(?<=[a-z%])/(?=(?:month|mo|year|yr|week|wk|day|hour|hr|h|min|minute|second|sec|s|kg|lb|person|night|mile"
    r"|gallon|gal|bbl|user|kWh|piece|dozen|acre|head|ha|oz|L|dL|mL|ml|mol|100 kilometers)\b)"
)
_PER_UNIT = r"(?<= per )(?:mol?|kWh|yr|wk|hr|h|min|sec|s|kg|lb|[dm]?L|ml|gal|ha|oz|bbl)\b\.?"
_STREET_WITHOUT_A_DOT = rf"(?<=[a-z] )(?P<ending>{'|'.join(STREETS)})(?=,|$| (?:Apt|Suite|Unit|[NS][EW]\b))"
_COMPASS_OF_A_NAME = (
    r"\b([NSEW])(?:\.(?= (?:Korea|Ireland|Africa|America|Carolina|Dakota|Yorkshire|Virginia)\b)"
    r"|\.?(?= [A-Z][a-z]+ (?:Street|Avenue|Ave\b|Boulevard|Blvd\b|Road|Rd\b|Drive)))"
)
_STATE = (
    rf"(?=[A-Z])(?:(?<=[a-z], )|(?<=[a-z] )(?=[A-Z]{{2}} \d{{5}}))(?P<state>{'|'.join(STATES)})\b(?!')"
    r"(?: (?P<zip>\d{5})(?:[- ](?P<more>\d{4}))?\b)?"
)
_DOTTED_STATE = (
    r"(?<=[a-z], )(Ala|Ariz|Ark|Colo|Conn|Del|Ill|Ind|Kan|Mass|Mich|Minn|Miss|Neb|Nev|Okla|Ore|Penn|Tenn|Tex|Wash"
    r"|Wis)\."
)
_TITLE = (
    rf"(?<![\w.])({any_of(word for word in TITLES if word[-1] != '/' and '/' not in word)})(?:(?<=\.)|\.|\b)"
    r"(?!\w)"
)
_BEFORE_A_NUMBER = rf"(?<![\w.])({any_of(NUMBERED)}) ?(?=#?\d)"
_BEFORE_A_NUMERAL = r"(?<![\w.])(?:(Vol|Ch|Pt|Sec|Mk|Fig)\.? (?=[IVXLC]+\b)|(pp?)\. (?=[ivx]{2}))"
_ENDING = rf"(?<![\w.])(?:{any_of(ENDINGS)})(?!\w)"
_INITIALS = r"\b(?:[A-Za-z]\.){2,}"
_NUMBERED = (
    rf"\b(?P<noun>{NUMBERED_ROMAN}|(?:act|chapter|part|scene|section|volume)s?(?= [IVXivx]{{2}})) "
    rf"(?P<numerals>{ROMAN}\b(?:(?:, |,? (?:and|or|to) |-){ROMAN}\b)*|"
    rf"(?=[xvi]{{2}})[xvi]{{2,6}}\b(?:-[xvi]{{1,6}}\b)?)(?P<part>\.(?=\d))?"
)
_NUMERAL_AND_LETTER = rf"\b({NUMBERED_ROMAN}) ({ROMAN})([a-f]|(?<=[IVX]{{2}})[A-F]|(?<=I)[AB])\b"
_CENTURY = rf"\b({ROMAN})(?= (?:[Cc]entur|Olympi|Winter Olymp|Army|Corps|Airborne|Legion|Congress|Dynasty))"
_NAMED = rf"\b(?P<name>[A-Z][a-z]+) (?P<numeral>(?=[IVXL]+\b){ROMAN})\b(?!\.[A-Z]|'(?!s\b))"
_YEAR_IN_ROMAN_NUMERALS = rf"\b(?=[MDCLXVI]{{4}})(?P<numeral>M(?=[MCDXLVI]{{3}}){ROMAN[len('(?=[MDCLXVI])') :]})\b"
_FORMULA = (
    rf"(?=[A-Z(])(?<!\w)(?=[A-Za-z()]{{1,12}}\d)(?:(?:\((?:(?:{ELEMENTS})\d{{0,2}}){{1,4}}\)|(?:{ELEMENTS}))\d{{0,2}}){{2,12}}"
    r"(?![\w'])|\b(?:O|H|N|Cl|F)2\b"
)
_ION = rf"\b(?:(?:{ELEMENTS})\d?(?<!\b[BCFINOPS])|[HK]|NH4|OH|SO4|CO3|NO3|HCO3|PO4)\^?\d?(?P<sign>[+−-])(?=[\s,.;)]|$)"
_VERSION = (
    r"(?=[vVPDRNKk\d])(?<!\w)(?<!\d\.)(?:v\.?(?=\d)|V\.?(?=\d++\.\d)|(?P<name>(?:[vV]ersion|Python|Django|Rust|Ruby|Node|Kubernetes"
    r"|kernel) )|(?=\d++(?:\.\d++)++(?:-[abdpr]|rc\d|[ab]\d)))(?P<numbers>\d++(?:\.\d++)*+)"
    r"(?:-?(?P<stage>alpha|beta|dev|pre|rc|[ab](?=\d))(?:\.?(?P<number>\d++))?+(?![\w-]))?"
)
_DECADE_OF_A_CENTURY = r"\b(1[1-9]\d0|20\d0)'?s\b"
_COMPARISON = r"(?<=[\w)]) ?([<>]) ?(?=[\w(.-])|(?<![^\s,])([<>]) ?(?=\d)"
# Applied in this order.
RULES = (
    # marks of feet and inches, which may be quotation marks
    Rule("coordinate", "40°42'46\"N", _COORDINATE, _coordinate),
    Rule("coordinates", "40.7N, 73.9W", _COORDINATES, _coordinates),
    Rule("inches of a fraction", '7/8"', r"(?<=\d/\d)\"(?!\w)|(?<=\d/\d\d)\"(?!\w)", " in."),
    Rule("inches by inches", "1/2 in. x 3/4 in.", r"(?<=in\.) ?[x×] ?(?=\d)", " by "),
    Rule("minutes and seconds", "2'30\"", r"(?<![\w.])(\d{1,2})' ?(1[2-9]|[2-5]\d|0\d)\"(?!\w)", r"\1 min \2 s"),
    Rule("height", "5'10\"", r"(?<![\w.])(?P<feet>\d)' ?(?P<inches>1[01]|\d)(?:\"|''|(?!\w))", _feet),
    Rule(
        "ends of DNA",
        "5'-ATG-3'",
        r"(?<![\w.-])[35](')(?=-[A-Z])|(?<=[A-Z]-)[35](')",
        lambda match: f"{match[0][0]} prime",
    ),
    Rule("feet", "6'", r"(?<![\w.])(?P<feet>\d{1,3})(?P<inches>)'(?![\w'])", _feet),
    Rule("inches", '12"', rf"{START}(?P<feet>)(?P<inches>{NUMBER})\"(?!\w)", _feet),
    *ADDRESS_RULES,
    # dates and times
    Rule("ISO date", "2026-11-20", _ISO_DATE, _date),
    Rule("ISO time", "twenty twenty-sixT15:30Z", _ISO_TIME, _iso_time),
    Rule("date in numbers", "11/20/2026", _DATE_IN_NUMBERS, _date),
    Rule("date with dots", "20.11.2026", _DATE_WITH_DOTS, _date),
    Rule("date with dashes", "11-20-2026", _DATE_WITH_DASHES, _date),
    Rule("month and day in numbers", "on 12/25", _MONTH_AND_DAY_IN_NUMBERS, _date),
    Rule("day, month and year", "1-Apr-2024", _DAY_MONTH_YEAR, r"\1 \2 "),
    Rule("short year", "Apr '24", _SHORT_YEAR, r"\1 20"),
    Rule("years without a century", "'68-'72", r"(?<!\w)'(\d\d)\s?-\s?'?(?=\d\d(?![\w']))", r"\1 to "),
    Rule("year below ten", "in '04", r"(?<=[a-z] )'0(?=\d(?![\w']))", "oh "),
    Rule("year without a century", "class of '98", r"(?<=[a-z] )'(?=\d\d(?![\w']))", ""),
    Rule("days and month", "5-7 May", rf"\b{DAY}\s?-\s?{LAST_DAY} (?:of )?{MONTH}(?:,? {YEAR}\b(?!\.\d))?", _date),
    Rule("day and month", "the 20th of May", _DAY_AND_MONTH, _date),
    Rule("month and days", "May 5-7", _MONTH_AND_DAYS, _date),
    Rule("month and day", "May 5, 2026", rf"{MONTH} {DAY}\b(?![\d:]|,\d|\.\d)(?:,? {YEAR}\b(?!\.\d))?", _date),
    Rule("dates", "May fifth - June second", _DATES, " to "),
    Rule("months", "Jan-Mar", _MONTHS, lambda match: _month(match["name"]) + " to "),
    Rule("month", "Jan.", rf"\b(?P<name>{ABBREVIATED_MONTH})(?:\.(?!\w)|(?= \d{{4}}\b))", _named),
    Rule("end of months", "January to Mar", rf"(?<= to )(?P<name>{ABBREVIATED_MONTH})\b", _named),
    Rule("weekdays", "Mon-Fri", rf"\b{ANY_WEEKDAY}\.?\s?-\s?(?={ANY_WEEKDAY}\b)", lambda match: _named(match) + " to "),
    Rule("weekday", "Mon.", _WEEKDAY, _named),
    Rule("codes of digits", "123-45-6789", r"(?<![\w-])\d{1,9}(?:-\d{1,9}){2,}+(?![\w-])", spell_groups),
    Rule("number of a code", "no. 2024-0098", r"\b[Nn]o\. ?(?=\d++-0)", "number "),
    Rule("ISO month", "2024-05", r"(?<![\w:-])(?P<year>(?:19|20)\d\d)-(?P<month>0[1-9])(?![\w:-]|[.,]\d)", _iso_month),
    Rule("code with a zero", "2024-0098", r"(?<![\w:-])(?!(?:19|20)\d\d-0\d\b)\d{2,}-0\d++(?![\w:-])", spell_groups),
    Rule("card", "4111 1111 1111 1111", r"(?<!\d)\d{4}(?: \d{4}){3}(?!\d)", spell_groups),
    # ranges: a dash between two amounts is a "to"
    Rule("circa", "c. 1450", r"(?<![\w.])ca?\. ?(?=\d{3,4}\b)", "circa "),
    Rule("years", "1914-18", _YEARS, _years),
    Rule("equal parts", "50-50", r"(?<![\w.-])50-50(?![\w-])", "50 50"),
    Rule("from noon", "noon-1pm", r"\b([Nn]oon|[Mm]idnight)\s?-\s?(?=\d)", r"\1 to "),
    Rule("minus of terms", "x − y", r"(?<=[\w)°%]) − (?=[\w(])|(?<![\w)])−(?=[a-z]\b)", " minus "),
    Rule("difference", "5 - 3 = 2", rf"(?<=\d)\s?[-−]\s?(?={NUMBER}\s?=)", " minus "),
    Rule("decimal comma", "€2,50", _DECIMAL_COMMA, _whole_units),
    Rule("ZIP of Washington", "D.C. 20001", r"(?<=D\.C\. )\d{5}\b", lambda match: spell_digits(match[0], "oh")),
    Rule("long ZIP", "MO 63101-1234", r"(?<=\b[A-Z]{2} )(\d{5})-(?=\d{4}(?![\d-]))", r"\1 "),
    Rule("offset", "09:41 -0500", r"(?<=\d:\d\d )(?=[+-](?:0\d|1[0-4])[0-5]0\b)", "UTC"),
    Rule("range of money", "$5-10", _RANGE_OF_MONEY, _money_range),
    Rule("mixed number", "1-1/2", r"(?<![\d/.,-])(\d{1,3})-(?=[1-9]\d?/\d)(?!\d+/\d+/)", r"\1 "),
    Rule("plus or minus", "+/- 5", r"\+/-(?= ?\d)", "±"),
    Rule("range", "10am-2pm", _RANGE, r"\g<amount> to "),
    Rule("time zone", "UTC+5:30", _TIME_ZONE, _offset),
    Rule("verse", "John 3:2", rf"\b(?:(?P<part>[123]) )?(?P<book>{_BOOKS}) (?P<chapter>\d{{1,3}}):(?=\d)", _verse),
    Rule(
        "time of a race",
        "1:05.32",
        r"(?<![\d:.])(\d{1,2}):([0-5]\d)\.(\d{1,3})(?![\w:]|\.\d| ?[ap]\.?m)",
        _time_of_a_race,
    ),
    Rule("parts", "1:2", r"(?<![\d:.])(?!(?:16|21):9)(\d{1,2}):(?=\d(?![\d:]))", r"\1 to "),
    Rule("time", "15:30:05", _TIME, _time),
    Rule("time with a dot", "5.30pm", rf"(?<![\d:.])(?P<hour>1[0-2]|0?[1-9])\.(?P<minute>[0-5]\d)\s?{HALF_DAY}", _time),
    Rule("full hour", "3 p.m.", rf"(?=\d)(?<![\d:.])(?P<hour>1[0-2]|0?[1-9])\s?{HALF_DAY}", _time),
    Rule("military time", "0800 hours", _MILITARY_TIME, _military_time),
    # money
    Rule("each after a price", "$5ea", r"(?<=\d)ea\b\.?", " each"),
    Rule("several for a price", "2/$5", r"(?<=\b\d)/(?=[$£€]\d)", " for "),
    Rule("no cents", "5,-", r"(?<=\d)[.,]-(?!\w)", ""),
    Rule("pence twice", "£5.50p", r"(£\d++\.\d\d)p\b", r"\1"),
    Rule(
        "Indian thousands", "1,50,000", r"(?<![\w.,])\d{1,2}(?:,\d\d)+,\d{3}(?!\d|,\d)", lambda m: m[0].replace(",", "")
    ),
    Rule(
        "pair of currencies", "EUR/USD", _PAIR_OF_CURRENCIES, lambda match: f"{' '.join(match[1])} {' '.join(match[2])}"
    ),
    Rule("minus money", "-$5, $-5", rf"(?<![\w)])[-−](?={MONEY}\s?\d)", "minus "),
    Rule("minus after a sign", "$-5", rf"([{_SIGNED}])[-−](?=\d)", r"minus \1"),
    Rule("money below one", "$.99", r"(?<=[$£€])(?=\.\d)", "0"),
    Rule("money", "US$1.5 million", rf"{MONEY}\s?(?P<amount>{NUMBER}){SCALE}(?: (?P<code>{_CODES})(?![\w$]))?", _money),
    Rule("money, sign last", "5 €", _MONEY_SIGN_LAST, _money),
    Rule("lines of a screen", "1080p", r"(?<![\w.])(4|7|10|14|21)(20|40|60|80)([pi])\b", r"\1 \2 \3"),
    Rule("cents", "5c each", _CENTS, _cents),
    Rule("small money", "50¢", _SMALL_MONEY, _small_money),
    # fractions, measures, powers
    Rule(
        "spoons",
        "3 T. oil",
        r"(?<=\d )([tT])\. ?(?=[a-z])"
        rf"|(?<=\b\d )[tT] (?=(?:{INGREDIENTS})\b)",
        lambda match: "tsp " if match[0][0] == "t" else "Tbsp ",
    ),
    Rule("degrees with a space", "12° C", r"(?<=\d) ?° (?=[CF]\b)", "°"),
    Rule("pressure", "120/80 mmHg", _PRESSURE, r"\1 over \2 "),
    Rule("vision", "20/20 vision", r"\b20/(\d\d)(?= vision)", r"20 \1"),
    Rule("time of music", "6/8 time", r"(?<![\w/.])([2-9]|12)/([248]|16)(?= (?:time|meter)\b)", r"\1 \2"),
    Rule("stars", "3/5 stars", r"(?<![\w/.])(\d)/(?=(?:5|10) stars)", r"\1 out of "),
    Rule("odds", "100/1 odds", r"(?<=\d)/(?=\d{1,2} (?:odds|shot|outsider)\b)", " to "),
    Rule("wickets", "287/6", r"(?<![\w/.,-])(3[2-9]|[4-9]\d|\d{3})/(?=(?:\d|10)\b(?!/|\.\d| ?[=%x×*+]))", r"\1 for "),
    Rule("fraction", "2 1/2 cups", _FRACTION, _fraction),
    Rule("out of", "7.5/10", _OUT_OF, r"\g<top> out of \g<bottom>"),
    Rule("screen", "1920x1080", r"(?<![\w.,])(?P<width>\d{3,4}) ?[x×] ?(?P<height>\d{3,4})(?![\w]|[.,]\d)", _screen),
    Rule("dimension", "3 x 4", r"(?<=[\dmtnhs])(?<!\b0) ?(?P<sign>[x×]) ?(?=\d)", _dimension),
    Rule("ratio of a variable", "1/x", r"(?<=\b\d)/(?=[nxyz]\b)|(?<=\b[nxyz])/(?=\d\b)", " over "),
    Rule("function", "f(x)", r"\b([fgh])\(([a-z])\)", r"\1 of \2"),
    Rule("factorial", "5! = 120", r"(?<=\d)!(?= ?[=+*/×÷-]|\))|(?<=\b[nk])!(?= ?=)", " factorial"),
    Rule("quotient", "6 / 2", r"(?<=\d) / (?=\d)", " divided by "),
    Rule("product", "3 * 4", r"(?<=\d) ?\* ?(?=\d)", " times "),
    Rule("power of ten", "3.0 x 10^8", r"(?<=\d) ?x ?(?=10\^)", " × "),
    Rule("scientific", "3.2e-5", rf"({WHOLE})[eE]\+?(-?\d{{1,3}})(?!\w)", r"\1 × 10^\2"),
    Rule("per area", "5/km^2", r"(?<=[A-Za-z\d])/(?=(?:[cdk]?m|mi|ft)\^[23])", " per "),
    Rule("bare unit", "per km^2", r"\b(k?m|[cm]m|ft|mi|yd)\^([23])(?!\w)", _bare_unit),
    Rule("ion", "Na+", _ION, _ion),
    Rule("power", "x^y", r"\^(?P<open>\()?(?P<sign>-?)(?P<power>\d++|[a-z]++)(?(open)\)?)", _power),
    Rule("several with a number", "MP3s", r"(?<=[A-Z])(-?)(\d{1,3})s\b", _several),
    Rule("duration", "2h30m", _DURATION, r"\g<hour> h \g<minute> min"),
    Rule("degrees of an oven", "350F", _DEGREES_OF_AN_OVEN, _degrees),
    Rule("molar", "0.1 M HCl", r"(?<=\d) ?M (?=(?:HCl|HNO3|H2SO4|NaOH|KOH|NaCl|KCl|EDTA|solution)\b)", " molar "),
    Rule("millions", "5m people", _MILLIONS, lambda match: f"{match['amount']} {SCALES[match['scale'].lower()]}"),
    Rule("feet and inches", "6 ft 2 in", r"(?<=\d)[ -]?(?:ft\.?|feet|foot) (1[01]|\d) ?in\b(?!\.)", r" foot \1 in."),
    Rule("inch", "5in", _INCH, r"\g<amount> in. "),
    Rule(
        "direction of a road", "I-405 N", r"\b((?:I-|US-|[Hh]ighway |[Rr]oute )\d{1,3}) ([NSEW])\b(?!\.\w)", _direction
    ),
    Rule("number of a name", "F-150", r"(?<=[A-Za-z]-)\d{3}(?![\w:-]|[.,]\d)", lambda match: in_pairs(match[0])),
    Rule("airliners", "747s", r"(?<![\w.,$-])7([0-8]7)s\b", lambda match: "seven " + _decade(spell_number(match[1]))),
    Rule("measure", "5 kg", rf"(?P<amount>{WHOLE})(?P<joint>[ -]?)(?P<unit>{UNIT})(?![\w°])", _measure),
    Rule("speed", "in km/h", r"(?<![\w/])km/h\b", "kilometers per hour"),
    Rule("micrometer", "in microm", r"\bmicrom\b", "micrometers"),
    Rule("each", "dollars/ea", r"(?<=[a-z])/ea\b\.?", " each"),
    Rule("per", "dollars/month", _PER, " per "),
    Rule("per unit", "dollars per hr", _PER_UNIT, _per_unit),
    # abbreviations
    Rule("street", "Main St.", r"(?=[A-Z\d])\b(?P<word>[A-Z][a-z]+|\d+(?:st|nd|rd|th)) (?P<ending>St|Dr)\.", _street),
    Rule("street without a dot", "Baker St", _STREET_WITHOUT_A_DOT, lambda match: STREETS[match["ending"]]),
    Rule(
        "compass",
        "123 N. Main",
        r"(?=[A-Z])(?:(?<=\d )|\b(?=..? \d+[snrt][tdh]))"
        r"([NSEW])\.? (?=[A-Z][a-z]|\d)",
        lambda match: f"{COMPASS[match[1]]} ",
    ),
    Rule("compass of a name", "S. Korea", _COMPASS_OF_A_NAME, _compass),
    Rule("state", "Boston, MA", _STATE, _state),
    Rule("dotted state", "Boston, Mass.", _DOTTED_STATE, _dotted_state),
    Rule("saint", "St. Paul", r"\bSt\b\.?(?= [A-Z][a-z])", _saint),
    Rule("Junior before a name", "Sr. Garcia", r"\b([SJ]r)\.(?= [A-Z][a-z])", _junior),
    Rule("title", "Dr. Smith", _TITLE, lambda match: TITLES[match[1]]),
    Rule("against", "Roe v. Wade", r"(?<=[a-z.] )v\. ?(?=[A-Z][a-z])", "versus "),
    Rule("minimum", "min. 3", r"(?<!\d )(?<![\w.])[Mm]in\. ?(?=\d)", "minimum "),
    Rule(
        "with",
        "w/o",
        r"(?<![\w/])w/(o\b|out\b|in\b)?",
        lambda match: {"o": "without", "out": "without", "in": "within"}.get(match[1], "with "),
    ),
    Rule("before a number", "p. 12", _BEFORE_A_NUMBER, lambda match: f"{NUMBERED[match[1]]} "),
    Rule(
        "place",
        "Room 101",
        rf"\b((?:{PLACES}|[Ff]light) )(\d{{3}})\b(?![.,:/-]?\d)",
        lambda match: match[1] + in_pairs(match[2]),
    ),
    Rule("born", "(b. 1950)", r"(?:(?<=[(,;])|(?<=[,;] ))(b|d|r|fl)\. ?(?=\d{3,4}\b)", lambda match: LIVES[match[1]]),
    Rule("before a numeral", "Vol. II", _BEFORE_A_NUMERAL, lambda match: f"{NUMBERED[(match[1] or match[2]) + '.']} "),
    Rule("ending", "Inc.", _ENDING, lambda match: ENDINGS[match[0]] + _full_stop(match)),
    Rule("number sign", "No. 1, #2", rf"\b[Nn]o\.:? ?(?=\d|of |(?:{'|'.join(DIGITS)})\b)|#(?=\d)", "number "),
    Rule("initials", "U.S.", _INITIALS, _initials),
    Rule(
        "initials of a name",
        "H. G. Wells",
        r"\b[A-Z]\.(?: [A-Z]\.){1,3} ?(?=[A-Z][a-z])",
        lambda match: " ".join(match[0].replace(".", " ").split()) + " ",
    ),
    # Roman numerals, acronyms, formulas
    Rule("numeral and a letter", "Part IIb", _NUMERAL_AND_LETTER, _numeral_and_letter),
    Rule("numbered", "Chapter IV", _NUMBERED, _numbered_roman),
    Rule("century after a number", "20th c.", r"(?<=\d(?:th|st|nd|rd) )[cC]\.", "century"),
    Rule("century", "XIX century", _CENTURY, _ordinal_roman),
    Rule("ordinal in Roman numerals", "XVIIIth", rf"\b(?=[XV]|I[XVI])({ROMAN})(?:st|nd|rd|th)\b", _ordinal_roman),
    Rule("named", "Henry VIII", _NAMED, _named_roman),
    Rule(
        "named twice",
        "Edward the seventh and VIII",
        r"\b(the [a-z-]+(?:st|nd|rd|th) (?:and|or|to)) ([IVX]+)\b",
        _named_twice,
    ),
    Rule(
        "heading in Roman numerals",
        "II. Methods",
        rf"(?<![\w.'] )(?<!\S)(?=[IVX]{{2}}){ROMAN}(?=\. [A-Z])",
        _cardinal_roman,
    ),
    Rule("item in Roman numerals", "(ii) second", r"(?<!\S)\((?!x\))[ivx]{1,4}\)(?= )", _cardinal_roman),
    Rule(
        "year in Roman numerals", "MCMXCIV", _YEAR_IN_ROMAN_NUMERALS, lambda m: spell_number(roman_value(m[1]), "year")
    ),
    Rule("special", "PhD", rf"(?<![A-Za-z_])(?:{any_of(SPECIAL)})(?!\w)", lambda match: SPECIAL[match[0]]),
    Rule("formula", "H2SO4", _FORMULA, _formula),
    Rule(
        "letters",
        "BBC, TVs",
        r"(?<![A-Za-z0-9_'])(?P<word>[A-Z]{2,6})(?P<ending>'s|s'?|'S|'d)?(?![A-Za-z_'])",
        _letters,
    ),
    Rule("dash of letters", "U S B-C", r"(?<=\b[A-Z])-(?=[A-Z]\b)", " "),
    # versions, ratios, decades, ordinals and the numbers that are left
    Rule("version", "v2.1.3", _VERSION, _version),
    Rule("any version", "1.x", r"(?<=\d)\.(?=[xX]\b)", " point "),
    Rule("three numbers", "3.5.2", r"(?<!\d)\d++(?:\.\d+){2,}", lambda match: match[0].replace(".", " point ")),
    Rule("ratio", "3:1 ratio", r"(?<=\d):(?=\d++ (?:ratio|odds|scale|mix))", " to "),
    Rule("colon", "13:13", r"(?<=\d):(?=\d)", " "),
    Rule("decade of a century", "1990s", _DECADE_OF_A_CENTURY, lambda match: _decade(spell_number(match[1], "year"))),
    Rule("hundreds", "100s", r"\b(?:[1-9]00|1,?000)s\b", _hundreds),
    Rule("decade", "'90s", r"'?\b([2-9]0)'?s\b", lambda match: _decade(spell_number(match[1]))),
    Rule("grade", "B-", r"\b([A-D])-(?= |[.,;)]|$)", r"\1 minus"),
    Rule(
        "part in brackets",
        "3(a)",
        r"(?<=\d)\(([a-z]|\d\d?|[ivx]{1,4})\)(?:\(([a-z]|[ivx]{1,4}|\d\d?)\)){0,1}(?:\((\d\d?|[ivx]{1,4}|[A-Z])\))?",
        _parts,
    ),
    Rule("comparison", "a < b", _COMPARISON, lambda match: " less than " if "<" in match[0] else " greater than "),
    Rule("signs in a row", "a >= b", r"[<>=!]=|->|=>|&&|(?<= )(?:\|\||-=)(?= )", lambda match: COMPARED[match[0]]),
    Rule("about", "~5", r"(?<!\S)~ ?(?=\d)", "about "),
    Rule("ordinal in capitals", "21ST", r"(?<=\d)(?:ST|ND|RD|TH)\b", lambda match: match[0].lower()),
    Rule("digit and letter", "5x", r"(?<=\d)(?!(?:st|nd|rd|th)\b)(?=[^\W\d_])", " "),
    Rule("letter and digit", "A4", r"(?=\d)(?<=[^\W\d_])", " "),
    Rule("minus", "-5", r"(?<![\w)])[-−](?=\.?\d)", "minus "),
    Rule("point", ".5", r"(?<![\w.])\.(\d++(?:\.\d++)*+)", lambda match: f"point {spell_digits(match[1])}"),
    Rule("number", "1,234.5, 3rd, 1999", rf"(?P<amount>{NUMBER})(?P<ending>(?:st|nd|rd|th)\b)?", _number),
)
# regex quickly skips text without a character that a pattern needs. re is faster at positions that may match, and any
# text has many of these for the following rules.
TRIED = set(
    """host; file; long code; phone; phone in a row; flight; emergency; decimal comma; range of money; range; full hour;
    end of months; money, sign last; small money; screen; scientific; degrees of an oven; millions; inch; measure;
    per unit; state; title; three numbers; digit and letter; letter and digit; number; code; letters; letters and
    a number; version; minus after a sign; out of; street""".replace("\n   ", "").split("; ")
)
PATTERNS = [
    ((re if rule.name in TRIED else regex).compile(rule.pattern), rule.spell, bool(re.search(r"\d", rule.example)))
    for rule in RULES
]
FAR, GROUP = 6, 34  # number of rules with a long look-behind; number of rules to apply between two searches for digits
PLAIN_WORDS = re.compile(r"(?<=[a-z]{3})(?<!lion)(?<!\bper)(?<!I was) (?![ivx]+\b)(?=[a-z]{3})")
NOISE = re.compile(r"[^\w\s\x1e★☆]{5,}")  # signs in a row, which are not read aloud
SUPERSCRIPT = re.compile(r"(?<=[\w)])[⁻⁺]?[⁰¹²³⁴-⁹]+")


def _mark(match: re.Match) -> str:
    """The sentence mark in a row of signs."""
    return next((c for c in match[0] if c in ".!?,"), " ") + " "


def _apply(text: str, rules: list) -> str:
    """Applies rules, those with a digit in their example only around digits, because most text has none."""
    parts = PLAIN_WORDS.split(text)
    digits = [bool(re.search(r"\d", part)) for part in parts]
    for with_digits in (True, False):
        chosen = [i for i, has_digits in enumerate(digits) if has_digits == with_digits]
        joined = " \0 ".join([parts[i] for i in chosen])
        for pattern, spell, needs_digit in rules:
            if joined and (with_digits or not needs_digit):
                joined = pattern.sub(spell, joined)
        for i, part in zip(chosen, joined.split(" \0 ")):
            parts[i] = part
    return " ".join(parts)


def spell_out(text: str, markup: bool = False) -> str:
    """Spells out the digits, signs and abbreviations of a text.

    Args:
        text: The text. Ends of short lines, list items and headings become pauses.
        markup: Whether to remove Markdown and HTML.
    """
    text = re.sub("[^\\S\n]+", " ", text.translate(CHARACTERS))
    if markup:
        text = without_markup(text)
    text = NOISE.sub(_mark, text)
    text = text if text.isascii() else in_ascii(SUPERSCRIPT.sub(_superscript, text))
    text = pauses_at_line_ends(text)
    for pattern, spell, _ in PATTERNS[:FAR]:
        text = pattern.sub(spell, text)
    for i in range(FAR, len(PATTERNS), GROUP):
        text = _apply(text, PATTERNS[i : i + GROUP])
    for sign, word in SIGNS.items():
        text = text.replace(sign, word)
    return text


def normalize(text: str, known: Collection[str], name: str = "text") -> str:
    """Spells out a text, and adds a final mark if there is none. Characters not in `known` become spaces.

    known: lower-case characters. name: what a warning about letters without a reading in English calls the text.
    """
    text = text.strip()
    spelled = spell_out(text + "." if text and text[-1].isalnum() else text, markup=True)
    unknown = {c for c in set(spelled) if c.lower() not in known}
    left_out = sorted(filter(str.isalnum, unknown))
    if left_out:
        warnings.warn(
            f"{name}: {' '.join(left_out[:20])} are not spoken, because they have no reading in English. Write them in "
            "Latin letters, or give a lexicon.",
            stacklevel=2,
        )
    spelled = " ".join(spelled.translate(dict.fromkeys(map(ord, unknown), " ")).split())
    spelled = re.sub(r" ?\( ?\)| (?=[,.;:?!])", "", spelled)
    return spelled + "." if spelled[-1:].isalpha() else spelled
