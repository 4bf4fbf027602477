"""Many samples of few recordings: their words in other orders, cut where words begin."""

import random

import numpy as np

RUN = 2, 6  # words that stay together


def cuts(count, rng):
    """Where a text of so many words is cut: runs of 2 to 6 words, no single word at the end."""
    places = [0]
    while places[-1] < count:
        places.append(min(count, places[-1] + rng.randint(*RUN)))
    if len(places) > 2 and places[-1] - places[-2] == 1:
        del places[-2]
    return list(zip(places, places[1:]))


def piece(row, begin, end, frame_rate, num_codebooks):
    """Words `begin` to `end` of a row of codes: (words, their times (W, 2) in it, codes (T, Q)). Before the first word
    and behind the last one all that is there belongs to them."""
    words, codes = row["text"].split(), row["codes"].reshape(-1, num_codebooks)
    times = np.reshape(row["words"], (-1, 2))
    first = 0 if begin == 0 else round(float(times[begin, 0]) * frame_rate)
    last = len(codes) if end == len(words) else max(first + 1, round(float(times[end, 0]) * frame_rate))
    return words[begin:end], times[begin:end] - first / frame_rate, codes[first:last]


def rearranged(rows, count, frame_rate, num_codebooks, whole=0.3, seed=0):
    """`count` rows of codes made of rows whose words' times are known: a share whole, the others some of their runs of
    words in another order."""
    rng, made = random.Random(seed), []
    for _ in range(count):
        row = rng.choice(rows)
        if rng.random() < whole:
            made.append(row)
            continue
        runs = cuts(len(row["text"].split()), rng)
        rng.shuffle(runs)
        parts = [piece(row, *run, frame_rate, num_codebooks) for run in runs[: rng.randint(1, len(runs))]]
        starts = np.cumsum([0, *(len(codes) for *_, codes in parts[:-1])]) / frame_rate
        times = np.concatenate([times + start for (_, times, _), start in zip(parts, starts)]).astype(np.float32)
        codes = np.concatenate([codes for *_, codes in parts])
        made.append(
            {
                **row,
                "text": " ".join(word for words, *_ in parts for word in words),
                "words": times.ravel(),
                "codes": codes.ravel(),
                "duration": len(codes) / frame_rate,
            }
        )
    return made
