"""Recombination: makes many samples from few recordings by reordering runs of words."""

import random
from collections.abc import Sequence

import numpy as np

RUN_WORDS = 2, 6  # shortest and longest run


def split_runs(count: int, rng: random.Random) -> list[tuple[int, int]]:
    """Splits `count` words into runs of 2 to 6 words: (first, end) each. The last run is not a single word."""
    places = [0]
    while places[-1] < count:
        places.append(min(count, places[-1] + rng.randint(*RUN_WORDS)))
    if len(places) > 2 and places[-1] - places[-2] == 1:
        del places[-2]
    return list(zip(places, places[1:]))


def cut(row: dict, begin: int, end: int, frame_rate: float, codes: np.ndarray) -> tuple[list, np.ndarray, np.ndarray]:
    """Words `begin` to `end` of a row: the words, their times (W, 2) in the part, and its codes (T, Q).

    Frames before the first and after the last word of the row belong to these words."""
    words, times = row["text"].split(), np.reshape(row["words"], (-1, 2))
    first = 0 if begin == 0 else round(float(times[begin, 0]) * frame_rate)
    last = len(codes) if end == len(words) else max(first + 1, round(float(times[end, 0]) * frame_rate))
    return words[begin:end], times[begin:end] - first / frame_rate, codes[first:last]


def recombine(
    rows: Sequence[dict], count: int, frame_rate: float, num_codebooks: int, unchanged: float = 0.3, seed: int = 0
) -> list[dict]:
    """Makes `count` rows from rows of codes (smalle.train.data.prepare) with word times.

    A share `unchanged` of them are original rows; each of the others joins some runs of words of one row in random
    order.
    """
    rng, made = random.Random(seed), []
    for _ in range(count):
        row = rng.choice(rows)
        if rng.random() < unchanged:
            made.append(row)
            continue
        runs = split_runs(len(row["text"].split()), rng)
        rng.shuffle(runs)
        codes = row["codes"].reshape(-1, num_codebooks)
        parts = [cut(row, *run, frame_rate, codes) for run in runs[: rng.randint(1, len(runs))]]
        words, times, codes = zip(*parts)
        starts = np.cumsum([0, *map(len, codes[:-1])]) / frame_rate
        joined = np.concatenate(codes)
        made.append(
            {
                **row,
                "text": " ".join(sum(words, [])),
                "words": np.concatenate([one + start for one, start in zip(times, starts)]).astype(np.float32).ravel(),
                "codes": joined.ravel(),
                "duration": len(joined) / frame_rate,
            }
        )
    return made
