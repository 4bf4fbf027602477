"""Phones of texts, their times in the speech of a reading voice, and their alignment with recordings."""

from collections.abc import Iterable, Sequence

import numpy as np

FRAME = 0.02  # seconds
SILENCE = 0  # may occur between any two words
MERGED = dict(zip("ᵊᵻQɐʔaɒɚrg", "əɪOətæɑɜɹɡ"))  # in the alphabet of misaki
ALPHABET = "bdfhjklmnpstvwzɡŋðθɹɾʃʒʤʧAIOWYiuæɑɔəɛɜɪʊʌ"
NUM_PHONES = 1 + len(ALPHABET)
PAUSE = 0.06  # seconds; shorter pauses are divided between their neighbours
PHRASE_END = "\n"  # among symbols
Reading = tuple[str, Sequence[float], np.ndarray]  # symbols of phones, their starts in seconds, a waveform (L,)
STRESSES, LONG = "ˈˌ", "ː"  # signs
DRIFT = 0.3  # share of the phones by which an alignment may leave the diagonal


def phone_of(symbol: str) -> int | None:
    """Index of a phone; SILENCE for spaces and punctuation, None for stress and length marks."""
    return None if symbol in STRESSES + LONG else 1 + ALPHABET.find(MERGED.get(symbol, symbol))


def phone_sequence(symbols: Iterable[str]) -> np.ndarray:
    """Indices (N,) of phones, with silences at both ends and between words."""
    numbers = [SILENCE]
    for number in map(phone_of, symbols):
        if number is not None and (number != SILENCE or numbers[-1] != SILENCE):
            numbers.append(number)
    return np.array([*numbers, SILENCE][: len(numbers) + (numbers[-1] != SILENCE)])


def phones_at(symbols: Sequence[str], starts: Sequence[float], count: int) -> np.ndarray:
    """Indices (count,) of the phones at the centres of frames, from the start times of symbols in seconds.

    The time of stress marks and short pauses is divided between their neighbours.
    """
    spans: list[list] = [[SILENCE, 0.0]]  # index, start
    for symbol, start, end in zip(symbols, starts, [*starts[1:], count * FRAME]):
        number = phone_of(symbol)
        if number is None or (number == SILENCE and end - start < PAUSE):
            spans.append([spans[-1][0], start])
            spans.append([None, (start + end) / 2])
        elif spans[-1][0] is None:
            spans[-1][0] = number
        else:
            spans.append([number, start])
    kept = [(number, start) for number, start in spans if number is not None]
    numbers, begins = (np.array(column) for column in zip(*kept))
    return numbers[np.searchsorted(begins, (np.arange(count) + 0.5) * FRAME, side="right").clip(1) - 1]


def align(log_probabilities: np.ndarray, phones: np.ndarray) -> tuple[np.ndarray, float]:
    """Aligns frames with log_probabilities (T, NUM_PHONES) to a sequence of phones (N,), whose silences are optional.

    Returns the most likely index in the sequence for each frame (T,), and the mean log probability per frame.
    """
    frames, count = len(log_probabilities), len(phones)
    scores = np.full(count, -np.inf)
    scores[: 1 + (phones[0] == SILENCE)] = log_probabilities[0, phones[: 1 + (phones[0] == SILENCE)]]
    steps = np.zeros((frames, count), np.int8)
    skippable = np.zeros(count, bool)
    skippable[2:] = phones[1:-1] == SILENCE
    places = np.arange(count)
    for frame in range(1, frames):
        one = np.concatenate(([-np.inf], scores[:-1]))
        two = np.where(skippable, np.concatenate(([-np.inf, -np.inf], scores[:-2]))[:count], -np.inf)
        choices = np.stack((scores, one, two))
        steps[frame] = choices.argmax(0)
        near = np.abs(places - frame * count / frames) <= DRIFT * count + 15
        scores = np.where(near, choices.max(0) + log_probabilities[frame, phones], -np.inf)
    place = count - 1 - int(phones[-1] == SILENCE and count > 1 and scores[-2] > scores[-1])
    mean, path = float(scores[place] / frames), np.zeros(frames, np.int64)
    for frame in range(frames - 1, -1, -1):
        path[frame] = place
        place -= int(steps[frame, place])
    return path, mean


def corresponding(path: np.ndarray, other: np.ndarray) -> np.ndarray:
    """For each frame of a path (T,), the fractional frame of another path (S,) at the same part of the same phone.

    If the other path lacks a silence, the frame at its position.
    """
    first = np.searchsorted(path, path, side="left")
    length = np.searchsorted(path, path, side="right") - first
    begin = np.searchsorted(other, path, side="left")
    lasts = np.searchsorted(other, path, side="right") - begin
    part = (np.arange(len(path)) - first + 0.5) / length
    return (begin + part * lasts - 0.5).clip(0, len(other) - 1)
