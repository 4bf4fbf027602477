"""How well the words of captions are timed: their starts against those that a recognizer hears.

  smalle read alice.epub -o OUT --textgrid
  python benchmarks/caption_times.py OUT

Whisper base (tests/recognizer.py) gives the start of each word that it hears; words that both have in the same order
are compared. Whisper's own word times are off by about a tenth of a second. Prints a table and appends a row to
benchmarks/results.jsonl.
"""

import argparse
import json
import re
import statistics
import sys
from collections.abc import Iterator
from pathlib import Path

import soundfile
import soxr

sys.path.insert(0, str(Path(__file__).parents[1]))
from benchmarks.timing import markdown, record  # noqa: E402
from smalle.reading.captions import WORD, common_words, fold  # noqa: E402
from tests.recognizer import SAMPLING_RATE, recognizer  # noqa: E402

INTERVAL = re.compile(r'xmin = ([\d.]+)\s+xmax = [\d.]+\s+text = "((?:[^"]|"")+)"')


def captions_of(path: Path) -> list[tuple[str, float]]:
    """Words of a TextGrid and their starts."""
    intervals = INTERVAL.findall(path.read_text(encoding="utf-8"))
    return [(fold(word[0]), float(start)) for start, text in intervals if (word := WORD.search(text))]


def heard_in(path: Path) -> list[tuple[str, float]]:
    """Words that the recognizer hears in a sound file, and their starts."""
    wave, rate = soundfile.read(path, dtype="float32")
    segments, _ = recognizer().transcribe(
        soxr.resample(wave, rate, SAMPLING_RATE), language="en", word_timestamps=True, condition_on_previous_text=False
    )
    return [(fold(match[0]), word.start) for x in segments for word in x.words if (match := WORD.search(word.word))]


def differences(folder: Path) -> Iterator[float]:
    """Seconds by which captions are later than what is heard, of each word that both have."""
    for chapter in json.loads((folder / "book.json").read_text(encoding="utf-8"))["chapters"].values():
        path = folder / chapter["file"]
        written, heard = captions_of(path.with_suffix(".TextGrid")), heard_in(path)
        for i, j in common_words([word for word, _ in written], [word for word, _ in heard]):
            if written[i][0] == heard[j][0]:
                yield written[i][1] - heard[j][1]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="written by `smalle read --textgrid`")
    found = sorted(differences(parser.parse_args().folder))
    row = {
        "words": len(found),
        "median_error_s": round(statistics.median(map(abs, found)), 3),
        "within_150_ms": round(sum(abs(x) <= 0.15 for x in found) / len(found), 3),
        "median_s": round(statistics.median(found), 3),
        "lowest_tenth_s": round(found[len(found) // 10], 3),
        "highest_tenth_s": round(found[-1 - len(found) // 10], 3),
    }
    print(markdown(list(row), [list(row.values())]))
    record("caption_times", **row)


if __name__ == "__main__":
    main()
