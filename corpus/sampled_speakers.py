"""A crowd of speakers for a plan of Kokoro, as different from each other as voices that no training heard.

Kokoro's own 54 voices are few, and each is half outside of what the others span, so mixtures of them are not enough: a
model takes on unheard mixtures better than unheard voices (docs/training-log.md). A voice is two halves, how it sounds
and how it is spoken. Here the first is drawn from a normal distribution as wide as the voices themselves, of all
languages, and a part of it lies in no voice's direction; the second is a mixture of two English voices of the same sex
and a smaller such part, so that voices of other languages lend their sound and not their accent.
"""

import random

from .texts import HELD_OUT_VOICES, UNBLENDED

NOISY = ("zf_xiaoyi", "zf_xiaoxiao", "zm_yunxia", "jf_nezumi")  # DistillMOS below 3 with an English prosody
SHORTEST, LONGEST = 30, 80  # characters: many speakers rather than many words
BRITISH = 0.4  # share of the speakers
SPREAD = 1.0  # of the drawn sounds, in deviations of the voices'
STRAY_SOUND, STRAY_PROSODY = 0.75, 0.35  # length of the part in no voice's direction; voices are 1.5 from their middle


def usable_voices(voices):
    """Those of the voices' names that a speaker may be made of: {sex: names}."""
    left_out = {*HELD_OUT_VOICES, *UNBLENDED, *NOISY}
    return {sex: sorted(name for name in voices if name[1] == sex and name not in left_out) for sex in "fm"}


def drawn(rng, by_sex, sex):
    """Weights of all voices, of a sound about the middle of a sex: each voice's distance from the middle of its own sex
    times a normal number. They sum to 1."""
    count, weights = sum(map(len, by_sex.values())), {}
    for other, names in by_sex.items():
        normal = [rng.gauss(0, SPREAD / count**0.5) for _ in names]
        middle = (sum(normal) - (other == sex)) / len(names)
        weights.update({name: round(number - middle, 4) for name, number in zip(names, normal, strict=True)})
    return weights


def blend(rng, names, low, high):
    """Two of the names, the first by a weight of `low` to `high`, the second by the rest of 1, negative or not."""
    first, second = rng.sample(names, 2)
    weight = round(rng.uniform(low, high), 2)
    return {first: weight, second: round(1 - weight, 2)}


def is_sampled_speaker(rows, count, each, voices, seed=0):
    """`count` speakers with `each` rows of a plan, a speaker's one behind the other; fewer where the texts run out.

    They come in whole pairs, "~a" and "~b", that say the same in the same times and differ in their sound (smalle.train.data.dataset's
    `twins`)."""
    rng, by_sex, turns = random.Random(f"crowd {seed}"), usable_voices(voices), []
    short = [row for row in rows if SHORTEST <= len(row["text"]) <= LONGEST]
    texts = {accent: [row for row in short if {name[0] for name in row["voice"]} == {accent}] for accent in "ab"}
    for accent in "ab":
        rng.shuffle(texts[accent])
    for number in range(-(-count // 2)):
        sex, accent = rng.choice("fm"), "b" if rng.random() < BRITISH else "a"
        manner = {
            "prosody": blend(rng, [name for name in by_sex[sex] if name[0] == accent], 0.5, 1.0),
            "speed": round(rng.uniform(0.92, 1.12), 2),
        }
        stray = [rng.getrandbits(32), STRAY_PROSODY]
        said = [texts[accent].pop() for _ in range(min(each, len(texts[accent])))]
        for name in "ab":
            who = {
                "speaker": f"crowd{seed}_{number:04d}~{name}",
                "voice": drawn(rng, by_sex, sex),
                **manner,
                "stray": {"voice": [rng.getrandbits(32), STRAY_SOUND], "prosody": stray},
            }
            turns.extend({**row, **who} for row in said)
    return turns
