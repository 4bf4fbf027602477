"""Makes a tokenizer replace single letters by their names: "F B I" by "eff bee I".

  python -m smalle.train.data.letter_names CHECKPOINT

A model that saw few single letters in training reads "C" as in "cat", but it can read the names as words. The rule is
added before the tokenizer's normalizer, so texts and word times keep the letters. "I" and an "A" that does not follow a
letter are words and stay unchanged, as do lower-case letters ("p m"). benchmarks/letters.py measures the effect.
"""

import sys
from collections.abc import Sequence
from pathlib import Path

from tokenizers import Regex, Tokenizer, normalizers

from smalle.cli.command import command_parser, run_command
from smalle.saving_smalle import write_text

NAMES = dict(
    entry.split("=")
    for entry in (
        "A=eigh B=bee C=see D=dee E=ee F=eff G=jee H=aitch J=jay K=kay L=el M=em N=en O=oh P=pee Q=cue R=are S=ess "
        "T=tee U=you V=vee W=double-you X=ex Y=why Z=zee"
    ).split()
)


def name_letters(tokenizer: Tokenizer) -> None:
    """Adds the letter names to the normalizer of a tokenizer. Raises ValueError if it already has them."""
    if tokenizer.normalizer is not None and tokenizer.normalizer.normalize_str("F") == NAMES["F"]:
        raise ValueError("The tokenizer already replaces letters by names.")
    names = [
        normalizers.Replace(Regex(rf"{'(?<=[A-Z] )' * (letter == 'A')}(?<!\w)(?<!\w'){letter}(?!\w|'(?!s\b|\W))"), name)
        for letter, name in NAMES.items()
    ]
    tokenizer.normalizer = normalizers.Sequence([*names, *filter(None, [tokenizer.normalizer])])


def main(argv: Sequence[str] | None = None) -> None:
    parser = command_parser("python -m smalle.train.data.letter_names", __doc__)
    parser.add_argument("checkpoint", type=Path, help="folder with the tokenizer.json to change")
    file = parser.parse_args(argv).checkpoint / "tokenizer.json"
    tokenizer = Tokenizer.from_file(str(file))
    name_letters(tokenizer)
    write_text(file, tokenizer.to_str(pretty=True))
    print(f"{file} replaces {len(NAMES)} letters by names")


if __name__ == "__main__":
    sys.exit(run_command("letter_names", main))
