"""Word errors of recognized text against the intended text."""

import itertools
import re
from collections.abc import Sequence

from num2words import num2words

Pairs = list[tuple[str | None, str | None]]  # (reference, recognized); None on one side: a deletion or an insertion


def words(text: str) -> list[str]:
    """Lower-case words without punctuation, with numbers spelled out."""
    text = re.sub(r"(?<=\d),(?=\d{3})", "", text.lower().replace("’", "'").replace("&", " and "))
    text = re.sub(r"\d+", lambda number: f" {num2words(int(number[0]))} ", text)
    return re.findall(r"[^\W_]+(?:'[^\W_]+)*", text)


def align(reference: Sequence[str], heard: Sequence[str]) -> Pairs:
    """Aligns two sequences with the fewest substitutions, deletions and insertions."""
    costs = [list(range(len(heard) + 1))]
    for row, word in enumerate(reference, 1):
        costs.append([row])
        for column, other in enumerate(heard, 1):
            substitution = costs[row - 1][column - 1] + (word != other)
            costs[row].append(min(substitution, costs[row - 1][column] + 1, costs[row][column - 1] + 1))
    row, column = len(reference), len(heard)
    pairs: Pairs = []
    while row or column:
        differ = bool(row and column) and reference[row - 1] != heard[column - 1]
        if row and column and costs[row][column] == costs[row - 1][column - 1] + differ:
            row, column = row - 1, column - 1
            pairs.append((reference[row], heard[column]))
        elif row and costs[row][column] == costs[row - 1][column] + 1:
            row -= 1
            pairs.append((reference[row], None))
        else:
            column -= 1
            pairs.append((None, heard[column]))
    return pairs[::-1]


def errors(pairs: Pairs) -> int:
    """The number of substitutions, deletions and insertions."""
    return sum(word != other for word, other in pairs)


def skips(pairs: Pairs) -> bool:
    """Whether the last word or two words in a row are missing."""
    missing = [other is None for word, other in pairs if word is not None]
    return any(map(all, zip(missing, missing[1:]))) or bool(missing and missing[-1])


def repeats(pairs: Pairs) -> bool:
    """Whether an inserted word also occurs within two words of it."""
    heard = [(word, other) for word, other in pairs if other is not None]
    return any(
        word is None and other in [near for _, near in heard[max(0, n - 2) : n] + heard[n + 1 : n + 3]]
        for n, (word, other) in enumerate(heard)
    )


def runs_on(pairs: Pairs) -> bool:
    """Whether two or more words were inserted after the last correct one."""
    after = itertools.takewhile(lambda pair: pair[0] != pair[1], reversed(pairs))
    return sum(word is None for word, _ in after) > 1


def count_errors(rows: Sequence[dict]) -> dict:
    """Counts the errors in rows {"text", "heard", "seconds", ...}.

    Returns:
        {"summary": word and character error rate in percent, numbers of utterances with an error, "rows": each row with
        its "words", "errors", "skip", "repeat" and "wer"}.
    """
    totals, scored = dict.fromkeys(("words", "errors", "characters", "character_errors"), 0), []
    for row in rows:
        reference, heard = words(row["text"]), words(row["heard"])
        pairs, characters = align(reference, heard), " ".join(reference)
        row = {**row, "words": len(reference), "errors": errors(pairs), "skip": skips(pairs), "repeat": repeats(pairs)}
        scored.append({**row, "wer": round(100 * row["errors"] / max(1, len(reference)), 1)})
        wrong = errors(align(characters, " ".join(heard)))
        counts = len(reference), row["errors"], len(characters), wrong
        totals = {name: total + count for (name, total), count in zip(totals.items(), counts)}
    return {
        "summary": {
            "utterances": len(scored),
            "wer": round(100 * totals["errors"] / max(1, totals["words"]), 2),
            "cer": round(100 * totals["character_errors"] / max(1, totals["characters"]), 2),
            "skips": sum(row["skip"] for row in scored),
            "repeats": sum(row["repeat"] for row in scored),
            "silent": sum(not row["heard"] for row in scored),
            "seconds": round(sum(row["seconds"] for row in scored), 1),
        },
        "rows": scored,
    }
