"""Everyday sentences from templates: a small grammar whose slots are filled at random. All of it is this project's own.

In templates.txt, a line "name = one, two" is a slot with its words; any other line is a template, a sentence with
``{slot}`` and ``[one|other]`` parts; below a heading "# name x3" templates are three times as frequent. Functions here
fill the slots of numbers, times, dates, prices, letters and lists.
"""

import random
import re
from collections.abc import Callable, Iterator
from pathlib import Path

from smalle.text_normalization_smalle import DIGITS, MONTHS, spell_number

DAYS = "Monday Tuesday Wednesday Thursday Friday Saturday Sunday".split()
LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"


def _time(rng: random.Random) -> str:
    hour = rng.randint(1, 12)
    this, following = spell_number(hour), spell_number(hour % 12 + 1)
    clock = [
        f"{this} o'clock",
        f"half past {this}",
        f"a quarter past {this}",
        f"a quarter to {following}",
        f"{rng.choice(['five', 'ten', 'twenty'])} past {this}",
        f"{rng.choice(['five', 'ten', 'twenty'])} to {following}",
        f"{this} {rng.choice(['fifteen', 'twenty', 'thirty', 'forty', 'forty-five', 'fifty', 'oh five'])}",
        f"{this} in the {rng.choice(['morning', 'evening', 'afternoon'])}",
    ]
    return rng.choice(clock * 3 + ["noon", "midnight"])


def _date(rng: random.Random) -> str:
    day, month = spell_number(rng.randint(1, 28), "ordinal"), rng.choice(MONTHS)
    return rng.choice([f"the {day} of {month}", f"{month} {day}", f"{month} the {day}"])


def _price(rng: random.Random) -> str:
    whole = rng.choice([rng.randint(2, 30), 5 * rng.randint(2, 20), 50 * rng.randint(2, 40)])
    cents = 5 * rng.randint(1, 19)
    unit, part = rng.choice([("dollars", "cents"), ("pounds", "pence"), ("euros", "cents")])
    price = f"{spell_number(whole)} {unit}"
    if whole <= 30 and rng.random() < 0.4:
        short = f"{spell_number(whole)} {spell_number(cents)}" if cents >= 10 else price
        return rng.choice([short, f"{price} and {spell_number(cents)} {part}"])
    return price


def _digits(rng: random.Random) -> str:
    return ", ".join(" ".join(rng.choices(DIGITS, k=rng.randint(2, 4))) for _ in range(rng.randint(1, 3)))


def _counting(rng: random.Random) -> str:
    start, step = rng.randint(0, 60), rng.choice([1, 1, 1, 2, 5, 10, -1])
    numbers = [start + step * i for i in range(rng.randint(3, 8)) if start + step * i >= 0]
    return rng.choice([", ", ", ", " "]).join(map(spell_number, numbers))


def _in_a_row(names: list[str]) -> Callable[[random.Random], str]:
    def choose(rng: random.Random) -> str:
        start, count = rng.randrange(len(names)), rng.randint(2, 5)
        return ", ".join(names[(start + i) % len(names)] for i in range(count))

    return choose


def _list_of(slot: str) -> Callable[[random.Random], str]:
    def choose(rng: random.Random) -> str:
        items = rng.sample(SLOTS[slot], rng.randint(3, 6))
        return ", ".join(items[:-1]) + rng.choice([", and ", " and "]) + items[-1]

    return choose


def _big(rng: random.Random) -> str:
    ranges = (1000, 9999, 1), (2, 900, 1000), (2, 90, 10**6), (10_000, 999_999, 1)
    return spell_number(rng.choice([rng.randint(low, high) * unit for low, high, unit in ranges]))


def _spelled_name(rng: random.Random) -> str:
    name = rng.choice(SLOTS["name"] + SLOTS["surname"])
    return f"{name}, {' '.join(name.upper())}"


FUNCTIONS: dict[str, Callable[[random.Random], str]] = {
    "n": lambda rng: spell_number(rng.randint(2, 12)),
    "nn": lambda rng: spell_number(rng.randint(13, 99)),
    "nnn": lambda rng: spell_number(rng.choice([rng.randint(100, 999), rng.randint(2, 99) * 100])),
    "big": _big,
    "nth": lambda rng: spell_number(rng.randint(1, 40), "ordinal"),
    "year": lambda rng: spell_number(rng.randint(1750, 2030), "year"),
    "percent": lambda rng: f"{spell_number(rng.randint(1, 99))} percent",
    "decimal": lambda rng: (
        f"{spell_number(rng.randint(0, 99))} point {' '.join(rng.choices(DIGITS, k=rng.randint(1, 3)))}"
    ),
    "time": _time,
    "date": _date,
    "price": _price,
    "letter": lambda rng: rng.choice(LETTERS),
    "letters": lambda rng: " ".join(rng.choices(LETTERS, k=rng.randint(2, 7))),
    "digits": _digits,
    "counting": _counting,
    "spelled": _spelled_name,
    "days": _in_a_row(DAYS),
    "months": _in_a_row(MONTHS),
    "foods": _list_of("food"),
    "things": _list_of("thing"),
    "animals": _list_of("animal"),
    "cities": _list_of("city"),
    "names": _list_of("name"),
    "colors": _list_of("color"),
    "countries": _list_of("country"),
}


def read_grammar(path: Path) -> tuple[dict[str, list[str]], list[str]]:
    """(slots, templates) of a grammar file; a template is repeated as its heading says."""
    slots, templates, weight = {"day": DAYS, "month": MONTHS}, [], 1
    for line in re.sub(r"\n {4}", " ", path.read_text(encoding="utf-8")).splitlines():
        if line.startswith("#"):
            weight = int(line.rsplit(" x", 1)[1]) if re.search(r" x\d+$", line) else 1
        elif slot := re.match(r"(\w+) = (.*)", line):
            slots[slot[1]] = slot[2].split(", ")
        elif line:
            templates += [line] * weight
    return slots, templates


SLOTS, TEMPLATES = read_grammar(Path(__file__).with_name("templates.txt"))
PART = re.compile(r"\{(\w+)\}|\[([^\]]+)\]")


def fill(template: str, rng: random.Random) -> str:
    """One sentence of a template, with a capital first; no word of a slot twice, if there are enough."""
    used: set[str] = set()

    def part(match: re.Match) -> str:
        slot, choices = match.groups()
        if choices:
            return rng.choice(choices.split("|"))
        if slot in FUNCTIONS:
            return FUNCTIONS[slot](rng)
        choice = rng.choice([value for value in SLOTS[slot] if value not in used] or SLOTS[slot])
        used.add(choice)
        # A phrase such as "Thank you" loses its capital within a sentence.
        middle = match.start() and not re.search(r'[.?!:] $|"$', template[: match.start()])
        if slot in ("short", "phrase", "opener") and middle and not re.match(r"I\b|Merry", choice):
            choice = choice[0].lower() + choice[1:]
        return choice

    text = PART.sub(part, template)
    return re.sub(r'(^"?|(?<=[.?!] )"?)([a-z])', lambda match: match[1] + match[2].upper(), text)


def sentences(rng: random.Random) -> Iterator[str]:
    """Endless sentences, every template equally often; may repeat."""
    while True:
        for template in rng.sample(TEMPLATES, len(TEMPLATES)):
            yield fill(template, rng)
