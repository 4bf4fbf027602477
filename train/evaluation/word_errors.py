"""What was heard against what should have been said: errors of words and characters, skips and repeats."""

import itertools
import re

from num2words import num2words


def words(text):
    """Lower-case words, numbers written out, without punctuation."""
    text = re.sub(r"(?<=\d),(?=\d{3})", "", text.lower().replace("’", "'").replace("&", " and "))
    text = re.sub(r"\d+", lambda number: f" {num2words(int(number[0]))} ", text)
    return re.findall(r"[^\W_]+(?:'[^\W_]+)*", text)


def align(reference, heard):
    """Pairs (of the reference or None, of what was heard or None) with the fewest substitutions, gaps and additions."""
    costs = [list(range(len(heard) + 1))]
    for row, said in enumerate(reference, 1):
        costs.append([row])
        for column, other in enumerate(heard, 1):
            costs[row].append(
                min(
                    costs[row - 1][column - 1] + (said != other), costs[row - 1][column] + 1, costs[row][column - 1] + 1
                )
            )
    row, column, pairs = len(reference), len(heard), []
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


def errors(pairs):
    """How many pairs differ."""
    return sum(said != other for said, other in pairs)


def skips(pairs):
    """Whether two words in a row are missing, or the last one."""
    missing = [other is None for said, other in pairs if said is not None]
    return any(map(all, zip(missing, missing[1:]))) or bool(missing and missing[-1])


def repeats(pairs):
    """Whether an added word stands within two words of itself."""
    heard = [(said, other) for said, other in pairs if other is not None]
    return any(
        said is None and word in [other for _, other in heard[max(0, n - 2) : n] + heard[n + 1 : n + 3]]
        for n, (said, word) in enumerate(heard)
    )


def runs_on(pairs):
    """Whether two words or more were added behind the last one that was heard right."""
    behind = itertools.takewhile(lambda pair: pair[0] != pair[1], reversed(pairs))
    return sum(said is None for said, _ in behind) > 1


def judge(rows):
    """{"summary", "rows"} of rows {"text", "heard", "seconds", ...}, each with its errors; rates in percent."""
    totals = {"words": 0, "errors": 0, "characters": 0, "character_errors": 0}
    for row in rows:
        said, heard = words(row["text"]), words(row["heard"])
        pairs, letters = align(said, heard), " ".join(said)
        row |= {"words": len(said), "errors": errors(pairs), "skip": skips(pairs), "repeat": repeats(pairs)}
        row["wer"] = round(100 * row["errors"] / max(1, len(said)), 1)
        counts = len(said), row["errors"], len(letters), errors(align(letters, " ".join(heard)))
        totals = {name: total + count for (name, total), count in zip(totals.items(), counts)}
    return {
        "summary": {
            "utterances": len(rows),
            "wer": round(100 * totals["errors"] / max(1, totals["words"]), 2),
            "cer": round(100 * totals["character_errors"] / max(1, totals["characters"]), 2),
            "skips": sum(row["skip"] for row in rows),
            "repeats": sum(row["repeat"] for row in rows),
            "silent": sum(not row["heard"] for row in rows),
            "seconds": round(sum(row["seconds"] for row in rows), 1),
        },
        "rows": rows,
    }
