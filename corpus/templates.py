"""Everyday sentences from templates: a small grammar that fills slots at random.

``templates.txt`` holds the grammar. A line "name = one, two" is a slot with its words; any other line is a template, a
sentence with ``{slot}`` and ``[one|other]`` parts; a heading "# name x3" makes the templates below it three times as
frequent. Numbers, times, dates, prices and letters are slots that a function here fills. All is the project's own.
"""

from __future__ import annotations

import random
import re
from collections.abc import Iterator
from pathlib import Path

ONES = (
    "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen "
    "seventeen eighteen nineteen"
).split()
TENS = "_ _ twenty thirty forty fifty sixty seventy eighty ninety".split()
ORDINALS = (
    "first second third fourth fifth sixth seventh eighth ninth tenth eleventh twelfth thirteenth fourteenth "
    "fifteenth sixteenth seventeenth eighteenth nineteenth twentieth"
).split()
DAYS = "Monday Tuesday Wednesday Thursday Friday Saturday Sunday".split()
MONTHS = "January February March April May June July August September October November December".split()
LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"


def spell_number(number: int) -> str:
    """The words of an integer from 0 to 999,999,999, as in "three hundred and five"; ValueError outside of that."""
    if not 0 <= number < 10**9:
        raise ValueError(f"number is {number}, expected 0 to 999,999,999: spell larger ones by hand")
    if number < 20:
        return ONES[number]
    if number < 100:
        return TENS[number // 10] + (f"-{ONES[number % 10]}" if number % 10 else "")
    for size, name in ((10**6, "million"), (1000, "thousand"), (100, "hundred")):
        if number >= size:
            rest = number % size
            link = " and " if rest < 100 else " "
            return f"{spell_number(number // size)} {name}" + (link + spell_number(rest) if rest else "")
    raise AssertionError(number)


def spell_year(year: int) -> str:
    """The words of a year from 1000 to 2099, as it is read aloud: "nineteen oh five", "two thousand and one"."""
    century, rest = divmod(year, 100)
    if 2000 <= year < 2010:
        return spell_number(year)
    if rest == 0:
        return f"{spell_number(century)} hundred"
    return f"{spell_number(century)} " + (f"oh {ONES[rest]}" if rest < 10 else spell_number(rest))


def spell_ordinal(number: int) -> str:
    """The ordinal of 1 to 99: "thirty-first"."""
    if number <= 20:
        return ORDINALS[number - 1]
    if number % 10 == 0:
        return TENS[number // 10][:-1] + "ieth"
    return f"{TENS[number // 10]}-{ORDINALS[number % 10 - 1]}"


def _time(rng: random.Random) -> str:
    hour = rng.randint(1, 12)
    following = ONES[hour % 12 + 1]
    clock = [
        f"{ONES[hour]} o'clock",
        f"half past {ONES[hour]}",
        f"a quarter past {ONES[hour]}",
        f"a quarter to {following}",
        f"{rng.choice(['five', 'ten', 'twenty'])} past {ONES[hour]}",
        f"{rng.choice(['five', 'ten', 'twenty'])} to {following}",
        f"{ONES[hour]} {rng.choice(['fifteen', 'twenty', 'thirty', 'forty', 'forty-five', 'fifty', 'oh five'])}",
        f"{ONES[hour]} in the {rng.choice(['morning', 'evening', 'afternoon'])}",
        "noon",
        "midnight",
    ]
    return rng.choice(clock[:8] * 3 + clock[8:])


def _date(rng: random.Random) -> str:
    day, month = spell_ordinal(rng.randint(1, 28)), rng.choice(MONTHS)
    return rng.choice([f"the {day} of {month}", f"{month} {day}", f"{month} the {day}"])


def _price(rng: random.Random) -> str:
    whole = rng.choice([rng.randint(2, 30), 5 * rng.randint(2, 20), 50 * rng.randint(2, 40)])
    cents = 5 * rng.randint(1, 19)
    unit = rng.choice([("dollars", "cents"), ("pounds", "pence"), ("euros", "cents")])
    text = f"{spell_number(whole)} {unit[0]}"
    if whole <= 30 and rng.random() < 0.4:
        return rng.choice(
            [
                f"{spell_number(whole)} {spell_number(cents)}" if cents >= 10 else text,
                f"{text} and {spell_number(cents)} {unit[1]}",
            ]
        )
    return text


def _letters(rng: random.Random) -> str:
    return " ".join(rng.choice(LETTERS) for _ in range(rng.randint(2, 7)))


def _digits(rng: random.Random) -> str:
    groups = [" ".join(rng.choice(ONES[:10]) for _ in range(rng.randint(2, 4))) for _ in range(rng.randint(1, 3))]
    return ", ".join(groups)


def _counting(rng: random.Random) -> str:
    start, step = rng.randint(0, 60), rng.choice([1, 1, 1, 2, 5, 10, -1])
    numbers = [start + step * i for i in range(rng.randint(3, 8)) if 0 <= start + step * i]
    return rng.choice([", ", ", ", " "]).join(spell_number(n) for n in numbers)


def _run(names: list[str], rng: random.Random) -> str:
    start, count = rng.randrange(len(names)), rng.randint(2, 5)
    return ", ".join(names[(start + i) % len(names)] for i in range(count))


def _spelled(rng: random.Random) -> str:
    word = rng.choice(SLOTS["name"] + SLOTS["surname"])
    return f"{word}, {' '.join(word.upper())}"


def _list(slot: str):
    def choose(rng: random.Random) -> str:
        items = rng.sample(SLOTS[slot], rng.randint(3, 6))
        return ", ".join(items[:-1]) + rng.choice([", and ", " and "]) + items[-1]

    return choose


def _decimal(rng: random.Random) -> str:
    return f"{spell_number(rng.randint(0, 99))} point {' '.join(rng.choices(ONES[:10], k=rng.randint(1, 3)))}"


FUNCTIONS = {
    "n": lambda rng: ONES[rng.randint(2, 12)],
    "nn": lambda rng: spell_number(rng.randint(13, 99)),
    "nnn": lambda rng: spell_number(rng.choice([rng.randint(100, 999), rng.randint(2, 99) * 100])),
    "big": lambda rng: spell_number(
        rng.choice(
            [
                rng.randint(1000, 9999),
                rng.randint(2, 900) * 1000,
                rng.randint(2, 90) * 10**6,
                rng.randint(10000, 999999),
            ]
        )
    ),
    "nth": lambda rng: spell_ordinal(rng.randint(1, 40)),
    "year": lambda rng: spell_year(rng.randint(1750, 2030)),
    "percent": lambda rng: f"{spell_number(rng.randint(1, 99))} percent",
    "decimal": _decimal,
    "time": _time,
    "date": _date,
    "price": _price,
    "letters": _letters,
    "digits": _digits,
    "counting": _counting,
    "letter": lambda rng: rng.choice(LETTERS),
    "days": lambda rng: _run(DAYS, rng),
    "months": lambda rng: _run(MONTHS, rng),
    "spelled": _spelled,
    "foods": _list("food"),
    "things": _list("thing"),
    "animals": _list("animal"),
    "cities": _list("city"),
    "names": _list("name"),
    "colors": _list("color"),
    "countries": _list("country"),
}


def read_grammar(path: Path) -> tuple[dict[str, list[str]], list[str]]:
    """(slots, templates) of a grammar file; a template stands as often as its heading says."""
    slots: dict[str, list[str]] = {"day": DAYS, "month": MONTHS}
    templates: list[str] = []
    weight = 1
    for line in re.sub(r"\n {4}", " ", path.read_text(encoding="utf-8")).splitlines():
        if line.startswith("#"):
            weight = int(line.rsplit(" x", 1)[1]) if re.search(r" x\d+$", line) else 1
        elif slot := re.match(r"(\w+) = (.*)", line):
            slots[slot.group(1)] = slot.group(2).split(", ")
        elif line:
            templates += [line] * weight
    return slots, templates


SLOTS, TEMPLATES = read_grammar(Path(__file__).with_name("templates.txt"))
PART = re.compile(r"\{(\w+)\}|\[([^\]]+)\]")


def fill(template: str, rng: random.Random) -> str:
    """One sentence of a template: slots filled, the first letter a capital."""
    used: set[str] = set()

    def part(match: re.Match) -> str:
        if match.group(2):
            return rng.choice(match.group(2).split("|"))
        slot = match.group(1)
        if slot in FUNCTIONS:
            return FUNCTIONS[slot](rng)
        fresh = [value for value in SLOTS[slot] if value not in used] or SLOTS[slot]
        used.add(choice := rng.choice(fresh))
        # A capital that begins a sentence ("Thank you") goes where none begins.
        middle = match.start() and not re.search(r'[.?!:] $|"$', template[: match.start()])
        if slot in ("short", "phrase", "opener") and middle and not re.match(r"I\b|Merry", choice):
            choice = choice[0].lower() + choice[1:]
        return choice

    text = PART.sub(part, template)
    return re.sub(r'(^"?|(?<=[.?!] )"?)([a-z])', lambda match: match.group(1) + match.group(2).upper(), text)


def sentences(rng: random.Random) -> Iterator[str]:
    """Endless sentences, every template as often as every other; may repeat."""
    while True:
        for template in rng.sample(TEMPLATES, len(TEMPLATES)):
            yield fill(template, rng)
