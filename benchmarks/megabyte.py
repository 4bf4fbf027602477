"""How long a megabyte of text takes to become words: digits, one number, letters and signs, words, blank lines.

  python benchmarks/megabyte.py [CHECKPOINT]

Prints a table in Markdown of the processor time of `SmallEProcessor.spell_out`.
"""

import pathlib
import random
import sys
import time
import warnings
from collections.abc import Iterator

from smalle import SmallEProcessor

SIZE = 1_000_000  # characters
DEFAULT = pathlib.Path(__file__).parents[1] / "checkpoints" / "smalle-mini"


def texts(seed: int = 0) -> Iterator[tuple[str, str]]:
    """Names of texts, and the texts."""
    draw = random.Random(seed)
    yield "digits, commas, full stops", "".join(draw.choices("0123456789 ,.", k=SIZE))
    yield "letters, digits and signs", "".join(draw.choices("abcXYZ0189$%-/., :", k=SIZE))
    yield 'one number, "777..."', "7" * SIZE
    yield "words", "word " * (SIZE // 5)
    yield "blank lines", "\n" * SIZE


def main() -> None:
    processor = SmallEProcessor.from_pretrained(sys.argv[1] if len(sys.argv) > 1 else DEFAULT)
    warnings.simplefilter("ignore")  # of numbers that are too long to be one
    print("| a megabyte of | seconds |\n|---|---|")
    for name, text in texts():
        start = time.process_time()
        processor.spell_out(text)
        print(f"| {name} | {time.process_time() - start:.1f} |", flush=True)


if __name__ == "__main__":
    main()
