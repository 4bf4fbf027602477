"""Word times as captions: SubRip (SRT), WebVTT and Praat's TextGrid."""

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

LINE = 42  # characters per line; a caption has at most two lines
MAX_SECONDS = 7.0  # longest caption
MIN_GAP = 0.9  # seconds of silence that end a caption; the pause after a heading is longer
WINDOW = 40  # words to search for the next match; a long number is spoken in many words
SENTENCE_END = re.compile(r"""\w\w[.!?]["'”’)]*$|[!?]["'”’)]*$""")
ABBREVIATIONS = frozenset(("Mr.", "Mrs.", "Ms.", "Dr.", "St.", "Prof.", "No.", "Capt.", "Col.", "Gen.", "Rev."))
WORD = re.compile(r"\w+(?:['’-]\w+)*")


class Word(NamedTuple):
    """A word as written, with punctuation, and its times in seconds."""

    text: str
    start: float
    end: float


# --- written and spoken words


def written_words(text: str, spoken: Sequence[Mapping[str, Any]]) -> list[Word]:
    """The words of a text as written, with the times of the spoken words.

    Numbers, abbreviations and the like are spoken in other words than they are written. Such words share the time
    between the matching words around them.

    Args:
        text: the text as written.
        spoken: {"word", "start", "end"} of the spoken words in order, in seconds.

    Returns:
        A `Word` for each part of the text between spaces. A part without letters and digits, such as a dash, is joined
        with the part before it.
    """
    parts = text.split()
    keys = [(fold(match[0]), index) for index, part in enumerate(parts) for match in WORD.finditer(part)]
    times: dict[int, tuple[float, float]] = {}
    for (_, index), (start, end) in zip(keys, spread_times([key for key, _ in keys], spoken)):
        times[index] = (times[index][0] if index in times else start, end)
    words: list[Word] = []
    for index, part in enumerate(parts):
        if index in times:
            words.append(Word(part, *times[index]))
        elif words:
            words[-1] = words[-1]._replace(text=f"{words[-1].text} {part}")
    return words


def fold(word: str) -> str:
    return word.lower().replace("’", "'")


def spread_times(keys: Sequence[str], spoken: Sequence[Mapping[str, Any]]) -> list[tuple[float, float]]:
    """(start, end) in seconds of each key: the times of the matching spoken word, or a share of the time in between."""
    said = [fold(word["word"]) for word in spoken]
    times: list[tuple[float, float]] = []
    begin = 0
    for key, word in (*common_words(keys, said), (len(keys), len(said))):
        run = spoken[begin:word]
        now = times[-1][1] if times else (spoken[0]["start"] if spoken else 0.0)
        start, end = (run[0]["start"], run[-1]["end"]) if run else (now, now)
        times += shares(keys[len(times) : key], start, end)
        if word < len(said):
            times.append((spoken[word]["start"], spoken[word]["end"]))
        begin = word + 1
    return times


def common_words(keys: Sequence[str], said: Sequence[str]) -> Iterator[tuple[int, int]]:
    """Yields pairs of positions with equal words, in order; in linear time."""
    i = j = 0
    while i < len(keys) and j < len(said):
        if keys[i] != said[j]:
            i, j = next_common(keys, said, i, j)
        yield i, j
        i, j = i + 1, j + 1


def next_common(keys: Sequence[str], said: Sequence[str], i: int, j: int) -> tuple[int, int]:
    """The next positions from (i, j) with equal words, preferably two in a row; (i, j) if there are none."""
    single = None
    for distance in range(1, WINDOW):
        for ahead in range(distance + 1):
            m, n = i + ahead, j + distance - ahead
            if m < len(keys) and n < len(said) and keys[m] == said[n]:
                if keys[m + 1 : m + 2] == said[n + 1 : n + 2]:
                    return m, n
                single = single or (m, n)
    return single or (i, j)


def shares(keys: Sequence[str], start: float, end: float) -> list[tuple[float, float]]:
    """(start, end) in seconds of words between `start` and `end`, in proportion to their lengths."""
    total, done, times = sum(map(len, keys)), 0, []
    for key in keys:
        times.append((start + (end - start) * done / total, start + (end - start) * (done + len(key)) / total))
        done += len(key)
    return times


# --- captions


def captions(words: Iterable[Word]) -> list[list[Word]]:
    """Groups words into captions of at most two lines and `MAX_SECONDS`; sentences and pauses end a caption."""
    done: list[list[Word]] = []
    caption: list[Word] = []
    for word in words:
        if caption and word.start - caption[-1].end > MIN_GAP:
            done.append(caption)
            caption = []
        while caption and not fits([*caption, word]):
            cut = best_cut(caption)
            done.append(caption[:cut])
            caption = caption[cut:]
        caption.append(word)
        if SENTENCE_END.search(word.text) and word.text not in ABBREVIATIONS:
            done.append(caption)
            caption = []
    return [*done, caption] if caption else done


def fits(caption: Sequence[Word]) -> bool:
    return len(caption_text(caption)) <= 2 * LINE - 8 and caption[-1].end - caption[0].start <= MAX_SECONDS


def best_cut(caption: Sequence[Word]) -> int:
    """The number of words after which to cut a full caption: at the last comma in its second half, else at its end."""
    commas = [n for n, word in enumerate(caption, 1) if word.text[-1] in ",;:—" and 2 * n > len(caption)]
    return commas[-1] if commas else len(caption)


def caption_text(caption: Iterable[Word]) -> str:
    return " ".join(word.text for word in caption)


def break_line(text: str) -> str:
    """Breaks a text that is too long for one line into two lines of similar length."""
    spaces = [match.start() for match in re.finditer(" ", text)]
    if len(text) <= LINE or not spaces:
        return text
    middle = min(spaces, key=lambda space: abs(space - len(text) // 2))
    return f"{text[:middle]}\n{text[middle + 1 :]}"


def clock(seconds: float, point: str) -> str:
    """Seconds as 01:02:03.456; point: the decimal separator, a comma for SRT."""
    milliseconds = round(seconds * 1000)
    minutes, milliseconds = divmod(milliseconds, 60_000)
    return f"{minutes // 60:02}:{minutes % 60:02}:{milliseconds // 1000:02}{point}{milliseconds % 1000:03}"


def span(caption: Sequence[Word], point: str) -> str:
    start = caption[0].start
    return f"{clock(start, point)} --> {clock(max(caption[-1].end, start + 0.001), point)}"


def srt(words: Iterable[Word], duration: float = 0.0) -> str:
    """SubRip captions of words in order. duration is ignored; all writers take it."""
    blocks = [
        f"{number}\n{span(caption, ',')}\n{break_line(caption_text(caption))}\n"
        for number, caption in enumerate(captions(words), 1)
    ]
    return "\n".join(blocks)


def vtt(words: Iterable[Word], duration: float = 0.0) -> str:
    """WebVTT captions of words in order, with the time of each word. duration is ignored; all writers take it."""
    blocks = [f"{span(caption, '.')}\n{timed_text(caption)}\n" for caption in captions(words)]
    return "\n".join(["WEBVTT\n", *blocks])


def timed_text(caption: Sequence[Word]) -> str:
    """The words of a caption with their start times, in WebVTT syntax."""
    lines = break_line(caption_text(caption))
    parts, last, position = [], round(caption[0].start, 3), 0
    for word in caption:
        escaped = word.text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
        now = round(word.start, 3)
        later = last < now < round(caption[-1].end, 3)  # the standard requires increasing times
        before = lines[position - 1] if position else ""
        parts.append(f"{before}<{clock(word.start, '.')}>{escaped}" if later else f"{before}{escaped}")
        position += len(word.text) + 1
        last = max(last, now)
    return "".join(parts)


def textgrid(words: Iterable[Word], duration: float) -> str:
    """A Praat TextGrid with one tier of words. duration: length of the sound in seconds."""
    intervals, end = [], 0.0
    for word in words:
        if word.end <= word.start:
            continue  # intervals cannot be empty
        if word.start > end:
            intervals.append((end, word.start, ""))
        intervals.append((max(word.start, end), word.end, word.text))
        end = word.end
    duration = max(duration, end)
    if duration > end or not intervals:
        intervals.append((end, duration, ""))
    lines = [
        'File type = "ooTextFile"\nObject class = "TextGrid"\n',
        f"xmin = 0\nxmax = {duration:.4f}\ntiers? <exists>\nsize = 1\nitem []:",
        '    item [1]:\n        class = "IntervalTier"\n        name = "words"\n        xmin = 0',
        f"        xmax = {duration:.4f}\n        intervals: size = {len(intervals)}",
    ]
    for number, (start, stop, text) in enumerate(intervals, 1):
        quoted = text.replace('"', '""')
        lines.append(
            f"        intervals [{number}]:\n            xmin = {start:.4f}\n            xmax = {stop:.4f}\n"
            f'            text = "{quoted}"'
        )
    return "\n".join(lines) + "\n"


WRITERS = {"srt": srt, "vtt": vtt, "TextGrid": textgrid}  # by file suffix
