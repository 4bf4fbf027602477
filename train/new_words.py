"""What to say next: the rows of a plan that a corpus has not said, those with the words it lacks first.

usage: python -m train.new_words PLAN.jsonl OUT.jsonl --known CORPUS ...

A model of letters learns each word's sound from hearing it, so new words teach more than new recordings of old ones.
OUT is a plan as any synthesizer here takes it (train.fast_voices, train.synthesize). CORPUS: folders of recordings.
"""

import argparse
import collections
import json
import pathlib

from .audio import metadata_rows
from .files import write_lines
from .hearing import words

ROUNDS = 40  # after each fortieth of the plan its words count as known


def new_words_first(texts, known):
    """Indices of `texts` that are not `known`; words first that are rare in the known ones and in what came before."""
    counts = collections.Counter(word for text in known for word in words(text))
    said, spelled = set(known), [words(text) for text in texts]
    left = [n for n, text in enumerate(texts) if text not in said]
    size = max(1, -(-len(left) // ROUNDS))
    while left:
        left.sort(key=lambda n: -sum(1 / (1 + counts[word]) for word in set(spelled[n])) / (4 + len(spelled[n])))
        first, left = left[:size], left[size:]
        counts.update(word for n in first for word in spelled[n])
        yield from first


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("plan", type=pathlib.Path)
    parser.add_argument("out", type=pathlib.Path)
    parser.add_argument("--known", type=pathlib.Path, nargs="+", required=True)
    arguments = parser.parse_args()
    rows = [json.loads(line) for line in arguments.plan.read_text(encoding="utf-8").splitlines()]
    known = [row["text"] for corpus in arguments.known for row in metadata_rows(corpus)]
    if not known:
        raise ValueError(f"--known {' '.join(map(str, arguments.known))}: no recordings there, so all words are new.")
    order = list(new_words_first([row["text"] for row in rows], known))
    write_lines(arguments.out, (rows[n] for n in order))
    print(f"{len(order)} of {len(rows)} texts are new, in {arguments.out}")


if __name__ == "__main__":
    main()
