"""Makes a tokenizer read letters that stand alone by their names: "F B I" as "eff bee I".

  python -m smalle.train.data.letter_names CHECKPOINT

A model whose training had few letters reads "C" as in "cat". The names are words to it. They are put in front of the
tokenizer's normalizer, so that texts and word times keep the letters. I stays, and A that is not behind a letter: they
are words. So do small letters ("p m"). benchmarks/letters.py measures it.
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
    """Puts the names of letters in front of what a tokenizer does. Raises ValueError where they are there."""
    if tokenizer.normalizer is not None and tokenizer.normalizer.normalize_str("F") == NAMES["F"]:
        raise ValueError("The tokenizer names letters: expected one that does not.")
    names = [
        normalizers.Replace(Regex(rf"{'(?<=[A-Z] )' * (letter == 'A')}(?<!\w)(?<!\w'){letter}(?!\w|'(?!s\b|\W))"), name)
        for letter, name in NAMES.items()
    ]
    tokenizer.normalizer = normalizers.Sequence([*names, *filter(None, [tokenizer.normalizer])])


def main(argv: Sequence[str] | None = None) -> None:
    parser = command_parser("python -m smalle.train.data.letter_names", __doc__)
    parser.add_argument("checkpoint", type=Path, help="folder with tokenizer.json, which is changed")
    file = parser.parse_args(argv).checkpoint / "tokenizer.json"
    tokenizer = Tokenizer.from_file(str(file))
    name_letters(tokenizer)
    write_text(file, tokenizer.to_str(pretty=True))
    print(f"{file} names {len(NAMES)} letters")


if __name__ == "__main__":
    sys.exit(run_command("letter_names", main))
