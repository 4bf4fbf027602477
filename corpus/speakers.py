"""Speakers for Kokoro: its English voices, blends of them and sampled speakers; and held-out voices.

A voice's name begins with its accent (a American, b British, others other languages) and sex (f, m). Its style has two
halves, sound and prosody; a speaker has weights of voices for each.
"""

import random
from collections.abc import Iterable

# Speakers of listening tests. They are in no training data, not even as a part of a blend.
HELD_OUT_VOICES = ("af_sky", "am_puck", "bf_lily", "bm_fable", "af_river", "am_liam", "bf_alice", "bm_lewis")
# Kokoro's other English voices, and the share of the utterances of each.
VOICES = dict.fromkeys(
    "af_heart am_michael af_bella bf_emma bm_george am_fenrir af_alloy af_aoede af_jessica af_kore af_nova af_sarah "
    "am_adam am_echo am_eric am_onyx am_santa bf_isabella bm_daniel af_nicole".split(),
    0.01,
)
VOICES |= dict.fromkeys(("af_heart", "am_michael"), 0.05)
VOICES |= dict.fromkeys(("af_bella", "bf_emma", "bm_george", "am_fenrir"), 0.03)
VOICES |= dict.fromkeys(("am_santa", "af_nicole"), 0.005)
WHISPERING = ("af_nicole",)  # in no blend, because half a whisper is noise
NOISY = ("zf_xiaoyi", "zf_xiaoxiao", "zm_yunxia", "jf_nezumi")  # DistillMOS below 3 with English prosody
BLENDS = 400

MIN_LENGTH, MAX_LENGTH = 30, 80  # characters of a sampled speaker's texts: short, for more speakers per hour
BRITISH = 0.4  # share of the sampled speakers
SPREAD = 1.0  # of the sampled timbres, in standard deviations of the voices
NOISE = {"voice": 0.75, "prosody": 0.35}  # length of the random part of a style; voices are 1.5 from their mean


def blend_voices(rng: random.Random) -> dict[str, float]:
    """Weights of a blend: of two voices (60 %), of three, or of one extrapolated away from another of its sex."""
    voices = [voice for voice in VOICES if voice not in WHISPERING]
    kind = rng.random()
    if kind < 0.6:
        first = rng.uniform(0.3, 0.7)
        weights = [first, 1 - first]
    elif kind < 0.8:
        parts = [rng.uniform(0.2, 0.6) for _ in range(3)]
        weights = [part / sum(parts) for part in parts]
    else:
        push = rng.uniform(0.15, 0.35)
        weights = [1 + push, -push]
    chosen = rng.sample(voices, len(weights))
    if kind >= 0.8 or rng.random() < 0.6:  # at most four blends of ten mix the sexes
        sex = chosen[0][1]
        chosen = chosen[:1] + rng.sample([v for v in voices if v[1] == sex and v != chosen[0]], len(weights) - 1)
    rounded = [round(weight, 2) for weight in weights]
    rounded[0] = round(1 - sum(rounded[1:]), 2)
    return dict(zip(chosen, rounded, strict=True))


def make_speakers(seed: int) -> dict[str, dict]:
    """Voices and blends by name: {"voice": {Kokoro voice: weight}, "british", "speed", "share" of the utterances}."""
    rng = random.Random(f"speakers {seed}")
    voices = {name: {name: 1.0} for name in VOICES}
    known: set = set()
    while len(voices) < len(VOICES) + BLENDS:
        voice = blend_voices(rng)
        key = frozenset((name, round(weight * 8)) for name, weight in voice.items())  # redraws near duplicates
        if key not in known:
            known.add(key)
            voices[f"blend{len(voices) - len(VOICES):03d}"] = voice
    rest = (1 - sum(VOICES.values())) / BLENDS
    return {
        name: {
            "voice": voice,
            "british": sum(weight for part, weight in voice.items() if part[0] == "b") > 0.5,
            "speed": round(rng.uniform(0.9, 1.15), 2),
            "share": VOICES.get(name, rest),
        }
        for name, voice in voices.items()
    }


def assign(shares: dict[str, float], count: int, rng: random.Random) -> list[str]:
    """`count` names with these shares, spread evenly, so that every prefix has the same shares."""
    turns = []
    for name, share in shares.items():
        step, phase = 1 / share, rng.random()
        turns += [((phase + i) * step, name) for i in range(int(count * share + 1) + 1)]
    return [name for _, name in sorted(turns)[:count]]


def rows_by_accent(rows: Iterable[dict]) -> dict[str, list[dict]]:
    """Rows of a plan whose voices are all American ("a") or all British ("b")."""
    rows = list(rows)
    return {accent: [row for row in rows if {voice[0] for voice in row["voice"]} == {accent}] for accent in "ab"}


def sample_sound(rng: random.Random, by_sex: dict[str, list[str]], sex: str) -> dict[str, float]:
    """Weights of all voices, summing to 1, for a normally distributed timbre around the mean of a sex.

    The timbre is that mean plus, for each voice, its distance from the mean of its own sex times a normal number.
    """
    count, weights = sum(map(len, by_sex.values())), {}
    for other, names in by_sex.items():
        normal = [rng.gauss(0, SPREAD / count**0.5) for _ in names]
        middle = (sum(normal) - (other == sex)) / len(names)
        weights.update({name: round(number - middle, 4) for name, number in zip(names, normal, strict=True)})
    return weights


def sample_speakers(rows: list[dict], count: int, texts_each: int, voices: Iterable[str], seed: int = 0) -> list[dict]:
    """Rows of a plan for `count` new speakers with `texts_each` of its texts; fewer if the texts run out.

    Kokoro has only 54 voices, and blends lie between them: a model generalizes to new blends better than to new voices
    (dev/training-log.md). Timbres are therefore drawn from a normal distribution as wide as the voices of all
    languages, plus a random part. Prosodies are blends of two English voices of the same sex, plus a smaller one.

    Speakers come in pairs, "~a" and "~b", that say the same texts with the same prosody, and so with the same timing.
    """
    left_out = {*HELD_OUT_VOICES, *WHISPERING, *NOISY}
    by_sex = {sex: sorted(name for name in voices if name[1] == sex and name not in left_out) for sex in "fm"}
    rng = random.Random(f"crowd {seed}")  # the seed that the published corpora were drawn with
    sampled: list[dict] = []
    texts = rows_by_accent(row for row in rows if MIN_LENGTH <= len(row["text"]) <= MAX_LENGTH)
    for accent in "ab":
        rng.shuffle(texts[accent])
    for number in range(-(-count // 2)):
        sex, accent = rng.choice("fm"), "b" if rng.random() < BRITISH else "a"
        first, second = rng.sample([name for name in by_sex[sex] if name[0] == accent], 2)
        weight = round(rng.uniform(0.5, 1.0), 2)
        prosody = {first: weight, second: round(1 - weight, 2)}
        speed = round(rng.uniform(0.92, 1.12), 2)
        prosody_noise = [rng.getrandbits(32), NOISE["prosody"]]
        spoken = [texts[accent].pop() for _ in range(min(texts_each, len(texts[accent])))]
        for name in "ab":
            speaker = {
                "speaker": f"sampled{seed}_{number:04d}~{name}",
                "voice": sample_sound(rng, by_sex, sex),
                "prosody": prosody,
                "speed": speed,
                "noise": {"voice": [rng.getrandbits(32), NOISE["voice"]], "prosody": prosody_noise},
            }
            sampled.extend({**row, **speaker} for row in spoken)
    return sampled
