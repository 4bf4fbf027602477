"""A crowd of speakers for a plan of Kokoro. Alone they did not teach cloning (docs/training-log.md): heard for seconds
each, they are hardly nearer to themselves than strangers.

Kokoro's own 54 voices are few, and blends of them stay near their middle. A voice is two halves, how it sounds and how
it is spoken. Here the first comes from two voices of any language, pushed apart or mixed, the second from an English
voice of the same sex, so that voices of other languages lend their sound and not their accent.
"""

import random

from train.texts import HELD_OUT_VOICES, UNBLENDED

NOISY = ("zf_xiaoyi", "zf_xiaoxiao", "zm_yunxia", "jf_nezumi")  # DistillMOS below 3 with an English prosody
SHORTEST, LONGEST = 30, 80  # characters: many speakers rather than many words
BRITISH = 0.25  # share of the speakers


def usable_voices(voices):
    """Those of the voices' names that a speaker may be made of: {sex: names}."""
    left_out = {*HELD_OUT_VOICES, *UNBLENDED, *NOISY}
    return {sex: sorted(name for name in voices if name[1] == sex and name not in left_out) for sex in "fm"}


def blend(rng, names, low, high):
    """Two of the names, the first by a weight of `low` to `high`, the second by the rest of 1, negative or not."""
    first, second = rng.sample(names, 2)
    weight = round(rng.uniform(low, high), 2)
    return {first: weight, second: round(1 - weight, 2)}


def in_crowd(rows, count, each, voices, seed=0):
    """`count` speakers with `each` rows of a plan, a speaker's one behind the other; fewer where the texts run out."""
    rng, by_sex, turns = random.Random(f"crowd {seed}"), usable_voices(voices), []
    short = [row for row in rows if SHORTEST <= len(row["text"]) <= LONGEST]
    texts = {accent: [row for row in short if {name[0] for name in row["voice"]} == {accent}] for accent in "ab"}
    for accent in "ab":
        rng.shuffle(texts[accent])
    for number in range(count):
        sex, accent = rng.choice("fm"), "b" if rng.random() < BRITISH else "a"
        sound = blend(rng, by_sex[sex], 0.6, 1.25)
        prosody = blend(rng, [name for name in by_sex[sex] if name[0] == accent], 0.5, 1.0)
        pace = round(rng.uniform(0.92, 1.12), 2)
        for _ in range(min(each, len(texts[accent]))):
            turns.append({**texts[accent].pop(), "speaker": f"crowd{number:04d}", "voice": sound, "prosody": prosody,
                          "speed": pace})  # fmt: skip
    return turns
