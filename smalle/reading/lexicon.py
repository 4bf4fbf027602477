"""A lexicon: how names and other words are to be respelled before they are spoken."""

import os
import re
from collections.abc import Mapping
from pathlib import Path

MAX_ENTRIES = 100_000


def read_lexicon(path: str | os.PathLike) -> dict[str, str]:
    """The entries of a lexicon file: a line `WORD = RESPELLING` each; `#` begins a comment.

    Raises:
        ValueError: the file cannot be read, or a line is something else.
    """
    try:
        lines = Path(path).read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"The lexicon {path} cannot be read: expected a text file in UTF-8.") from error
    entries: dict[str, str] = {}
    for number, line in enumerate(lines, 1):
        if not (line := line.partition("#")[0].strip()):
            continue
        word, equals, respelling = (part.strip() for part in line.partition("="))
        if not (word and equals and respelling):
            raise ValueError(f"{path}, line {number}: {line!r}: expected WORD = RESPELLING, as Siobhan = shivawn.")
        entries[word] = respelling
    if len(entries) > MAX_ENTRIES:
        raise ValueError(f"The lexicon {path} has {len(entries)} entries: expected at most {MAX_ENTRIES}.")
    return entries


def respell(text: str, lexicon: Mapping[str, str]) -> str:
    """A text with the words of the lexicon respelled, in capitals or not; longer entries go before shorter ones."""
    if not lexicon:
        return text
    entries = {word.lower(): respelling for word, respelling in lexicon.items()}
    words = "|".join(re.escape(word) for word in sorted(entries, key=len, reverse=True))
    return re.sub(rf"(?<!\w)(?:{words})(?!\w)", lambda found: entries[found[0].lower()], text, flags=re.IGNORECASE)
