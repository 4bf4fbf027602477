"""A plan of texts of one word or two, of which books and dialogues have hardly any: models guess what they seldom read.

usage: python -m train.few_words PLAN.jsonl OUT.jsonl [--exclude FILE ...] [--words 1100] [--pairs 700] [--seed 0]

The phrases and words of few_words.txt, the words as statement, question and call, beside words of PLAN's texts alone
and in pairs. OUT is for train.fast_voices; it has no phonemes.
"""

import argparse
import collections
import json
import pathlib
import random
import re

from .files import write_lines
from .texts import Exclusion, words_of

FREQUENT = 6000  # words of a plan that are said alone
FIRST_OF_A_PAIR = 300


def phrases_and_words():
    """Those of few_words.txt."""
    text = pathlib.Path(__file__).with_suffix(".txt").read_text(encoding="utf-8")
    _, phrases, words = text.strip().split("\n\n")
    return [" ".join(phrase.split()) for phrase in phrases.split("|")], words.split()


def few_words(texts, words, pairs, seed=0):
    """Texts of one word or two: those of few_words.txt, then so many `words` of `texts` alone and in `pairs`."""
    rng, (made, calls) = random.Random(seed), phrases_and_words()
    made += [f"{word.capitalize()}{mark}" for word in calls for mark in ".?!"]
    counts = collections.Counter(word for text in texts for word in re.findall(r"[a-z]{2,}", text.lower()))
    frequent = [word for word, _ in counts.most_common()]
    alone = frequent[:FREQUENT]
    made += [f"{word.capitalize()}{rng.choice('...?!')}" for word in rng.sample(alone, min(words, len(alone)))]
    for _ in range(pairs if frequent else 0):
        first, second = rng.choice(frequent[:FIRST_OF_A_PAIR]), rng.choice(frequent)
        made.append(f"{first.capitalize()} {second}{rng.choice('...?!')}")
    rng.shuffle(made)
    return made


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("plan", type=pathlib.Path)
    parser.add_argument("out", type=pathlib.Path)
    parser.add_argument("--exclude", type=pathlib.Path, nargs="*", default=[], help="texts to be evaluated on")
    parser.add_argument("--words", type=int, default=1100)
    parser.add_argument("--pairs", type=int, default=700)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    texts = [json.loads(line)["text"] for line in arguments.plan.read_text(encoding="utf-8").splitlines()]
    left_out = Exclusion(line for path in arguments.exclude for line in path.read_text(encoding="utf-8").splitlines())
    made = few_words(texts, arguments.words, arguments.pairs, arguments.seed)
    made = [text for text in made if words_of(text) and text not in left_out]
    write_lines(arguments.out, ({"id": f"w{n:05}", "text": text} for n, text in enumerate(made)))
    print(f"{len(made)} texts of few words in {arguments.out}")


if __name__ == "__main__":
    main()
