"""Texts for synthetic training speech: collects sentences, finds their phonemes, gives each a speaker, writes a plan.

``python -m smalle.corpus.texts PLAN.jsonl --lj lj_texts.tsv --wordnet DIR --sentences FOLDER ... --exclude FILE ... --seed 0``
writes one JSON line for each utterance, ``{"id", "text", "phonemes", "speaker", "voice": {name: weight}, "speed"}``,
and ``PLAN.speakers.json`` with every speaker's voice, accent, speed and share. The lines are shuffled so that every
prefix of the plan has the same mixture of sources, lengths and speakers: synthesis may stop anywhere.

Sources and licences:

- LJ Speech texts (``--lj``, id and text separated by a tab): books in the public domain.
- WordNet 3.0 (``--wordnet``, the folder of ``data.noun`` and so on; Debian ``wordnet-base``): example sentences and
  definitions. WordNet licence (permissive, notice of Princeton University to be kept).
- Everyday requests and dialogue turns (``--sentences``, folders of .json, .csv or .txt files): CLINC150
  (clinc/oos-eval, CC BY 3.0), Banking77, NLU++ and RESTAURANTS-8K (PolyAI-LDN/task-specific-datasets, CC BY 4.0),
  Taskmaster-4 (google-research-datasets/Taskmaster, CC BY 4.0). Any other folder of sentences will do.
- Sentences of ``corpus/templates.py`` and the most frequent single words of all of the above: the project's own.

Phonemes are misaki's alphabet, by the G2P of ``hibari-tts`` (Apache-2.0), British where the speaker is. A sentence with
a word that its lexicons do not know is left out, for a wrong pronunciation teaches nothing; only the many names in the
LJ texts are read by its network.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import random
import re
import sys
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from functools import lru_cache
from itertools import islice
from pathlib import Path

from tqdm import tqdm

from smalle.hub_smalle import write_json, write_jsonl

from . import templates
from .templates import spell_number, spell_ordinal, spell_year

MIN_LENGTH, MAX_LENGTH = 2, 220  # characters of a text
SHORT, LONG = 20, 90  # below: a short text; from here: a long one
SHORT_SHARE, LONG_SHARE = 0.10, 0.35
ALLOWED = re.compile(r"""[A-Za-z .,;:?!'"()-]+""")

# Kept for listening tests of voice cloning: speakers that no model has heard, not even as a part of a blend.
HELD_OUT_VOICES = ("af_sky", "am_puck", "bf_lily", "bm_fable", "af_river", "am_liam", "bf_alice", "bm_lewis")
# Kokoro's other English voices; a = American, b = British, f = female, m = male. Value: share of the utterances.
PURE_VOICES = {
    "af_heart": 0.05,
    "am_michael": 0.05,
    "af_bella": 0.03,
    "bf_emma": 0.03,
    "bm_george": 0.03,
    "am_fenrir": 0.03,
    "af_alloy": 0.01,
    "af_aoede": 0.01,
    "af_jessica": 0.01,
    "af_kore": 0.01,
    "af_nova": 0.01,
    "af_sarah": 0.01,
    "am_adam": 0.01,
    "am_echo": 0.01,
    "am_eric": 0.01,
    "am_onyx": 0.01,
    "am_santa": 0.005,
    "bf_isabella": 0.01,
    "bm_daniel": 0.01,
    "af_nicole": 0.005,
}
UNBLENDED = ("af_nicole",)  # whispers; half a whisper is noise
BLENDS = 400


# ---------------------------------------------------------------------------------------------------------- cleaning
CURRENCIES = {"$": "dollars", "£": "pounds", "€": "euros"}


def _spell_integer(digits: str) -> str:
    if digits[0] == "0" or len(digits) > 7:
        return " ".join(spell_number(int(digit)) for digit in digits)
    return spell_year(int(digits)) if re.fullmatch(r"(1[1-9]|20)\d\d", digits) else spell_number(int(digits))


def _spell_time(match: re.Match) -> str:
    hour, minute, half = match.group("hour"), match.groupdict().get("minute"), match.group("half")
    text = _spell_integer(hour)
    if minute and minute != "00":
        text += f" oh {_spell_integer(minute[1])}" if minute[0] == "0" else f" {_spell_integer(minute)}"
    elif not half:
        text += " o'clock"
    return f"{text} {half[0].upper()}M" if half else text


def spell_digits(text: str) -> str:
    """Numbers in digits to words, as far as their reading is plain: integers, years, prices, percents, times."""

    def money(match: re.Match) -> str:
        return f"{_spell_integer(match.group(2))} {CURRENCIES[match.group(1)]}"

    text = re.sub(r"(?<=\d),(?=\d{3}\b)", "", text)
    half = r"(?P<half>[ap](\.m\b\.?|m\b))"
    text = re.sub(rf"\b(?P<hour>\d{{1,2}}):(?P<minute>\d\d)(\s?{half})?", _spell_time, text, flags=re.I)
    text = re.sub(rf"(?<!:)\b(?P<hour>\d{{1,2}})\s?{half}", _spell_time, text, flags=re.I)
    text = re.sub(r"\b([1-9]\d?)(?:st|nd|rd|th)\b", lambda match: spell_ordinal(int(match.group(1))), text)
    text = re.sub(r"([$£€])(\d{1,7})(?![\d.]*\d)", money, text)
    text = re.sub(r"(?<![\d.])(\d{1,7})\s?%", lambda match: f"{_spell_integer(match.group(1))} percent", text)
    plain = r"(?<![\w.,/$£€-])(\d{1,9})(?![\w/%-]|[.,:]\d)"
    return re.sub(plain, lambda match: _spell_integer(match.group(1)), text)


PROPER = {
    name.lower(): name
    for name in templates.DAYS
    + templates.SLOTS["city"]
    + templates.SLOTS["country"]
    + templates.SLOTS["language"]
    + [month for month in templates.MONTHS if month not in ("March", "May", "August")]
    if name not in ("Turkey", "China", "Chile", "Polish", "Phoenix", "Nice")
}
PROPER_RE = re.compile(rf"\b({'|'.join(map(re.escape, PROPER))})\b")
WITHOUT_APOSTROPHE = {
    word.replace("'", ""): word
    for word in """don't doesn't didn't can't isn't aren't wasn't haven't hasn't couldn't wouldn't shouldn't
                      what's where's that's there's i'm i've you're they're""".split()
}
APOSTROPHE_RE = re.compile(rf"\b({'|'.join(WITHOUT_APOSTROPHE)})\b")
QUESTION_RE = re.compile(
    r"(what|who|whose|where|when|why|how|which|is|are|can|could|do|does|did|will|would|should|am|"
    r"was|were|may|has|have)(n't|'s|'re)?\b",
    re.I,
)
FOLD = str.maketrans({"’": "'", "‘": "'", "`": "'", "“": '"', "”": '"', "–": "-", "—": ", ", "…": ".", "\t": " "})


def clean(text: str) -> str | None:
    """A text in the allowed characters, of an allowed length, capital first; None where that cannot be had."""
    text = text.translate(FOLD).replace("--", ", ").replace(" - ", ", ")
    text = "".join(char for char in unicodedata.normalize("NFKD", text) if not unicodedata.combining(char))
    if any(char.isdigit() for char in text):
        text = spell_digits(text)
    text = re.sub(r"\.{2,}", ".", re.sub(r"\s+", " ", text)).strip()
    text = re.sub(r"\s+([,.;:?!])", r"\1", re.sub(r"[,;:-]+(?=[,.;:?!])|\.(?=[?!])", "", text))
    text = re.sub(r"([?!])[?!.]+", r"\1", text)
    text = re.sub(r"(?<=[a-z])([.,;:?!])(?=[A-Za-z]{2})", r"\1 ", text)
    if not MIN_LENGTH <= len(text) <= MAX_LENGTH or not ALLOWED.fullmatch(text) or not re.search("[A-Za-z]", text):
        return None
    return text


def as_sentence(text: str, question: bool = False) -> str | None:
    """`clean`, with a capital and a final mark; ``question`` lets the first word decide between . and ?"""
    text = re.sub(r"\bi\b(?!\.)", "I", text.strip().rstrip(",;:- "))
    text = clean(text)
    if not text or text.count('"') % 2 or text.count("(") != text.count(")"):
        return None
    text = re.sub(r'^("?)([a-z])', lambda match: match.group(1) + match.group(2).upper(), text)
    if text[-1] not in '.?!"':
        text += "?" if question and QUESTION_RE.match(text) else "."
    return text if MIN_LENGTH <= len(text) <= MAX_LENGTH else None


def words_of(text: str) -> tuple[str, ...]:
    """Lower-case words without marks: what two texts are compared by."""
    return tuple(re.findall(r"[a-z']+", text.lower().replace("’", "'")))


class Exclusion:
    """Sentences that must not be trained on, and their near copies: the same words, or five-word runs of theirs that
    cover 60 % of a text or that a text has 60 % of."""

    def __init__(self, sentences: Iterable[str], cover: float = 0.6):
        self.sentences = {words for sentence in sentences if (words := words_of(sentence))}
        self.grams = {gram for words in self.sentences for gram in self._grams(words)}
        self.cover = cover

    @staticmethod
    def _grams(words: tuple[str, ...]) -> list[tuple[str, ...]]:
        return [words[i : i + 5] for i in range(len(words) - 4)]

    def _covered(self, words: tuple[str, ...], grams: set) -> bool:
        hit = {j for i, gram in enumerate(self._grams(words)) if gram in grams for j in range(i, i + 5)}
        return len(hit) >= self.cover * len(words)

    def __contains__(self, text: str) -> bool:
        words = words_of(text)
        if words in self.sentences:
            return True
        shared = self.grams.intersection(self._grams(words))
        return bool(shared) and (
            self._covered(words, self.grams)
            or any(self._covered(other, shared) for other in self.sentences if len(other) > 4)
        )


# ----------------------------------------------------------------------------------------------------------- sources
def lj_texts(path: Path) -> list[str]:
    """Texts of an LJ list; they keep their own beginnings and ends, which are often no sentence's."""
    rows = (line.rstrip("\n").split("\t") for line in path.read_text(encoding="utf-8").splitlines())
    return [text for row in rows if (text := clean(row[-1]))]


OFFENSIVE = re.compile(r"offensive|obscene|vulgar|disparag|ethnic slur|derogat|insult|sexual|penis|vagina")
TAXON = re.compile(r"\b(genus|family|suborder|subfamily|phylum)\b")


def wordnet_sentences(folder: Path) -> tuple[list[str], list[str]]:
    """(examples, definitions) of WordNet's data files; nothing of entries that it marks as offensive."""
    examples, definitions = [], []
    for part in ("noun", "verb", "adj", "adv"):
        for line in (folder / f"data.{part}").read_text(encoding="utf-8").splitlines():
            if line.startswith("  ") or "|" not in line:
                continue
            gloss = line.split("|", 1)[1].strip()
            if OFFENSIVE.search(gloss):
                continue
            # A quotation's author follows its closing mark: "..."- Shakespeare; those are another's words.
            examples += re.findall(r'"([^"`]+)"(?!\s*-)', gloss)
            definition = re.sub(r"\([^)]*\)", "", gloss.split('"')[0]).split(";")[0].strip(" :;,")
            if 12 <= len(definition) <= 150 and not TAXON.search(definition):
                definitions.append(definition)
    pairs = [[text for raw in texts if (text := as_sentence(raw))] for texts in (examples, definitions)]
    return pairs[0], pairs[1]


def _json_texts(value) -> Iterator[str]:
    """Every outermost "text" value, and the first of every [text, label] pair in a list of them."""
    if isinstance(value, dict):
        if isinstance(value.get("text"), str):
            yield value["text"]
        else:
            for item in value.values():
                yield from _json_texts(item)
    elif isinstance(value, list):
        for item in value:
            if isinstance(item, list) and len(item) == 2 and all(isinstance(part, str) for part in item):
                yield item[0]
            else:
                yield from _json_texts(item)


def everyday_sentences(folder: Path) -> list[str]:
    """Sentences of a folder's files: .json ("text" values or [text, label] pairs), .csv (column text), .txt (lines)."""
    raw: list[str] = []
    for path in sorted(folder.rglob("*")):
        if path.suffix == ".json":
            raw += _json_texts(json.loads(path.read_text(encoding="utf-8")))
        elif path.suffix == ".csv":
            with path.open(encoding="utf-8", newline="") as file:
                raw += [row["text"] for row in csv.DictReader(file)]
        elif path.suffix == ".txt":
            raw += path.read_text(encoding="utf-8").splitlines()
    if not raw:
        raise ValueError(f"no sentence in {folder}: expected .json, .csv or .txt files with texts in it")
    texts = []
    for text in raw:
        text = APOSTROPHE_RE.sub(lambda match: WITHOUT_APOSTROPHE[match.group()], text)
        text = PROPER_RE.sub(lambda match: PROPER[match.group()], text)
        if sentence := as_sentence(text, question=True):
            texts.append(sentence)
    return texts


def frequent_words(texts: Iterable[str], count: int, rng: random.Random) -> list[str]:
    """The most frequent words, each as a text of its own: "Window."""
    counts = Counter(word for text in texts for word in re.findall(r"(?<![\w'-])[a-z]{2,}(?![\w'-])", text))
    return [f"{word.capitalize()}{rng.choice('.......??!')}" for word, _ in counts.most_common(count)]


# ------------------------------------------------------------------------------------------------------------- choice
def compose(sentences: Iterator[str], count: int, short: float, long: float, rng: random.Random) -> Iterator[str]:
    """``count`` texts of the asked shares of short and long ones; sentences in a row make the missing long texts.

    Fewer where the sentences run out.
    """
    room = {"short": round(count * short), "long": round(count * long)}
    room["medium"] = count - sum(room.values())
    waiting: list[str] = []
    for text in sentences:
        kind = "short" if len(text) < SHORT else "long" if len(text) >= LONG else "medium"
        if room[kind] > 0:
            room[kind] -= 1
            yield text
        elif kind != "long" and room["long"] > 0:
            goal = rng.randint(LONG, 180)
            waiting.append(text)
            length = sum(map(len, waiting)) + len(waiting) - 1
            if length > 200:
                waiting.pop(0)
            elif length >= goal:
                room["long"] -= 1
                yield " ".join(waiting)
                waiting = []
        if not any(room.values()):
            return


def collect(args: argparse.Namespace, accept: Callable[[str, bool], bool], rng: random.Random) -> list[tuple[str, str]]:
    """(source, text) of the whole plan, shuffled."""
    seen: set[str] = set()

    def usable(texts: Iterable[str], guess: bool = False) -> Iterator[str]:
        for text in texts:
            key = text.lower()
            if key not in seen:
                seen.add(key)
                if accept(text, guess):
                    yield text

    def shuffled(texts: list[str]) -> list[str]:
        return rng.sample(texts, len(texts))

    lj = usable(shuffled(lj_texts(args.lj)), guess=True) if args.lj else ()
    rows = [("lj", text) for text in tqdm(lj, "lj", file=sys.stderr)]
    wordnet = list(wordnet_sentences(args.wordnet)) if args.wordnet else [[], []]
    everyday = {folder.name: everyday_sentences(folder) for folder in args.sentences}
    corpus = [text for _, text in rows] + wordnet[0] + wordnet[1] + sum(everyday.values(), [])
    rows += [("words", text) for text in usable(frequent_words(corpus, args.total // 35, rng))]

    left = max(args.total - len(rows), 0)
    lengths = [len(text) for _, text in rows]
    short = min(max(SHORT_SHARE * args.total - sum(n < SHORT for n in lengths), 0) / max(left, 1), 1)
    long = min(max(LONG_SHARE * args.total - sum(n >= LONG for n in lengths), 0) / max(left, 1), 1 - short)

    def take(source: str, texts: Iterable[str], count: int) -> None:
        made = compose(usable(texts), count, short, long, rng)
        rows.extend((source, text) for text in tqdm(made, source, total=count, file=sys.stderr))

    if args.wordnet:  # examples are the better sentences: all of them, definitions for the rest
        definitions = rng.sample(wordnet[1], min(len(wordnet[1]), 2 * len(wordnet[0])))
        take(
            "wordnet",
            shuffled(wordnet[0] + definitions[: len(wordnet[0])]) + definitions[len(wordnet[0]) :],
            min(round(args.total * 0.45), left),
        )
    available = sum(map(len, everyday.values()))
    for source, texts in everyday.items():
        # Joined texts use up two or three sentences each, so no folder gives as many texts as sentences.
        take(source, shuffled(texts), min(round(args.total * 0.3 * len(texts) / available), len(texts) // 2))
    take("templates", islice(templates.sentences(rng), 20 * args.total), max(args.total - len(rows), 0))
    return rng.sample(rows, min(len(rows), args.total))


# ----------------------------------------------------------------------------------------------------------- phonemes
class Phonemizer:
    """misaki phonemes by hibari's G2P; knows which words it had to guess."""

    def __init__(self, british: bool):
        try:
            from hibari.g2p import ASSETS, G2P, normalize
            from hibari.g2p.oov import OOV
        except ImportError:
            raise ValueError("the phonemes need the package hibari-tts: pip install hibari-tts") from None
        network = OOV(os.path.join(ASSETS, "oov_gb.onnx" if british else "oov.onnx"))
        self._g2p, self._normalize = G2P(british=british, oov=lru_cache(None)(network)), normalize

    def __call__(self, text: str, guess: bool = False) -> str | None:
        """Phonemes of a text; None where a word is in no lexicon, unless ``guess`` lets a network read names."""
        tokens = self._g2p.phonemize_tokens(self._g2p.tokenize(self._normalize(text)))
        for token in tokens:
            known = token.phonemes and (token.rating or 0) > 2
            if any(map(str.isalpha, token.text)) and not known and not (guess and re.fullmatch(r"[\w'-]+", token.text)):
                return None
        return "".join((token.phonemes or "") + (" " if token.whitespace else "") for token in tokens).strip()


# ----------------------------------------------------------------------------------------------------------- speakers
def _blend(rng: random.Random) -> dict[str, float]:
    """Weights of a new speaker: two voices (60 %), three, or one pushed away from another of its sex."""
    voices = [voice for voice in PURE_VOICES if voice not in UNBLENDED]
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
    if kind >= 0.8 or rng.random() < 0.6:  # mixed sexes in four blends of ten at most
        sex = chosen[0][1]
        chosen = chosen[:1] + rng.sample([v for v in voices if v[1] == sex and v != chosen[0]], len(weights) - 1)
    rounded = [round(weight, 2) for weight in weights]
    rounded[0] = round(1 - sum(rounded[1:]), 2)
    return dict(zip(chosen, rounded, strict=True))


def make_speakers(seed: int) -> dict[str, dict]:
    """name -> {"voice": {Kokoro voice: weight}, "british": bool, "speed": pace, "share": part of the utterances}."""
    rng = random.Random(f"speakers {seed}")
    voices = {name: {name: 1.0} for name in PURE_VOICES}
    known: set = set()
    while len(voices) < len(PURE_VOICES) + BLENDS:
        voice = _blend(rng)
        key = frozenset((name, round(weight * 8)) for name, weight in voice.items())  # no two that sound the same
        if key not in known:
            known.add(key)
            voices[f"blend{len(voices) - len(PURE_VOICES):03d}"] = voice
    rest = (1 - sum(PURE_VOICES.values())) / BLENDS
    return {
        name: {
            "voice": voice,
            "british": sum(weight for part, weight in voice.items() if part[0] == "b") > 0.5,
            "speed": round(rng.uniform(0.9, 1.15), 2),
            "share": PURE_VOICES.get(name, rest),
        }
        for name, voice in voices.items()
    }


def deal(shares: dict[str, float], count: int, rng: random.Random) -> list[str]:
    """``count`` names in the given shares, each spread evenly, so that any prefix holds the same shares."""
    turns = []
    for name, share in shares.items():
        step, phase = 1 / share, rng.random()
        turns += [((phase + i) * step, name) for i in range(int(count * share + 1) + 1)]
    return [name for _, name in sorted(turns)[:count]]


# ---------------------------------------------------------------------------------------------------------------- plan
def make_plan(args: argparse.Namespace) -> tuple[list[dict], dict[str, dict], Counter]:
    """(rows, speakers, texts for each source)."""
    excluded = Exclusion(line for path in args.exclude for line in path.read_text(encoding="utf-8").splitlines())
    phonemize = {british: Phonemizer(british) for british in (False, True)}

    def accept(text: str, guess: bool) -> bool:
        return text not in excluded and all(reader(text, guess) is not None for reader in phonemize.values())

    rng = random.Random(args.seed)
    texts = [(source, text) for source, text in collect(args, accept, rng) if text not in excluded]
    speakers = make_speakers(args.seed)
    names = deal({name: speaker["share"] for name, speaker in speakers.items()}, len(texts), rng)
    rows, sources = [], Counter()
    for (source, text), name in tqdm(list(zip(texts, names, strict=True)), "phonemes", file=sys.stderr):
        speaker = speakers[name]
        phonemes = phonemize[speaker["british"]](text, source == "lj")
        if phonemes is None:  # a joined text may read another way than its parts
            continue
        speed = round(min(max(speaker["speed"] * rng.uniform(0.97, 1.03), 0.88), 1.18), 2)
        sources[source] += 1
        rows.append(
            {
                "id": f"t{len(rows):06d}",
                "text": text,
                "phonemes": phonemes,
                "speaker": name,
                "voice": speaker["voice"],
                "speed": speed,
            }
        )
    return rows, speakers, sources


def parse(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m smalle.corpus.texts", description=__doc__.split("\n\n")[0])
    parser.add_argument("out", type=Path, help="the plan to write, .jsonl")
    parser.add_argument("--lj", type=Path, help="id and text, separated by a tab")
    parser.add_argument("--wordnet", type=Path, help="WordNet's folder, with data.noun, data.verb, data.adj, data.adv")
    parser.add_argument("--sentences", type=Path, nargs="*", default=[], help="folders of everyday sentences")
    parser.add_argument("--exclude", type=Path, nargs="*", default=[], help="files of sentences never to be spoken")
    parser.add_argument("--total", type=int, default=110_000, help="texts in all (default: 110000)")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args(argv)
    if args.total < 1:
        raise ValueError(f"--total is {args.total}, expected at least 1")
    for path in [args.lj, args.wordnet, *args.sentences, *args.exclude]:
        if path is not None and not path.exists():
            raise ValueError(f"{path} does not exist: give the path of a file or folder that does")
    return args


def main(argv: list[str] | None = None) -> int:
    try:
        args = parse(argv)
        rows, speakers, sources = make_plan(args)
    except ValueError as error:
        print(f"smalle.corpus.texts: {error}", file=sys.stderr)
        return 2
    args.out.parent.mkdir(parents=True, exist_ok=True)
    write_jsonl(args.out, rows)
    write_json(args.out.with_suffix(".speakers.json"), speakers)
    characters = sum(len(row["text"]) for row in rows)
    print(
        f"{len(rows)} texts, {characters} characters, about {characters / 17 / 3600:.0f} hours; "
        + ", ".join(f"{source} {count}" for source, count in sources.most_common())
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
