"""Sentences of 28 words, which a small model learns to read soon: material for benchmarks/compare_architectures.py.

usage: python benchmarks/few_words_corpus.py PLAN.jsonl [--count 4000] [--seed 0]

Writes rows {"id", "text"} for smalle.corpus.fast_synthesizers, without duplicates. Words often occur twice in a
sentence, so that a model that loses its place continues at another one: that makes skips and repeats.
"""

import argparse
import json
import pathlib
import random

NOUNS = "dog bird horse woman doctor teacher farmer soldier".split()
ADJECTIVES = "old young happy quiet hungry clever".split()
VERBS = "found followed watched helped visited remembered".split()
LINKS = "and", "behind", "without", "before"
DETERMINERS = "the", "my", "our", "every"


def phrase(rng):
    """A noun phrase."""
    adjectives = rng.choices(ADJECTIVES, k=rng.choice((0, 1, 1, 2)))
    return " ".join((rng.choice(DETERMINERS), *adjectives, rng.choice(NOUNS)))


def sentence(rng):
    """A sentence of two or three noun phrases."""
    more = [f"{rng.choice(LINKS)} {phrase(rng)}"] if rng.random() < 0.5 else []
    return " ".join((phrase(rng), rng.choice(VERBS), phrase(rng), *more)).capitalize() + "."


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("plan", type=pathlib.Path)
    parser.add_argument("--count", type=int, default=4000)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    rng, texts = random.Random(arguments.seed), {}
    while len(texts) < arguments.count:
        texts[sentence(rng)] = None
    rows = ({"id": f"t{n:06d}", "text": text} for n, text in enumerate(texts))
    arguments.plan.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


if __name__ == "__main__":
    main()
