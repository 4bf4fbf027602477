"""Plans synthetic training speech: collects sentences, finds their phonemes and assigns speakers.

  python -m smalle.corpus.texts PLAN.jsonl [--lj lj_texts.tsv] [--wordnet DIR] [--sentences FOLDER ...]
           [--exclude FILE ...] [--total 110000] [--seed 0]

Writes one line of JSON per utterance, {"id", "text", "phonemes", "speaker", "voice": {name: weight}, "speed"}, and
PLAN.speakers.json with the voice, accent, speed and share of every speaker. Every prefix of the plan has the same
mixture of sources, lengths and speakers, so synthesis may stop anywhere.

Sources and licences:

- LJ Speech texts (--lj): books in the public domain.
- WordNet 3.0 (--wordnet; Debian `wordnet-base`): example sentences and definitions. WordNet licence (permissive, notice
  of Princeton University to be kept).
- Everyday requests and dialogue turns (--sentences): CLINC150 (clinc/oos-eval, CC BY 3.0), Banking77, NLU++ and
  RESTAURANTS-8K (PolyAI-LDN/task-specific-datasets, CC BY 4.0), Taskmaster-4 (google-research-datasets/Taskmaster,
  CC BY 4.0), or any other folder of sentences.
- The project's own: sentences of corpus/templates.py, and the most frequent words of all sources, each alone.

The G2P of hibari-tts (Apache-2.0) makes the phonemes, in misaki's alphabet, and in British English for British
speakers. Sentences with a word that its lexicons lack are left out, because the model would learn a wrong
pronunciation. Only in the LJ texts, which have many names, its network guesses such words.
"""

import argparse
import csv
import json
import os
import random
import re
import sys
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import lru_cache
from itertools import islice
from pathlib import Path

from tqdm import tqdm

from smalle.cli.command import command_parser, run_command
from smalle.saving_smalle import write_json, write_jsonl
from smalle.text_normalization_smalle import MONTHS, spell_out

from . import templates
from .speakers import assign, make_speakers

MIN_LENGTH, MAX_LENGTH = 2, 220  # characters of a text
SHORT, LONG = 20, 90  # texts below SHORT are short, from LONG on long
SHORT_SHARE, LONG_SHARE = 0.10, 0.35
ALLOWED = re.compile(r"""[A-Za-z .,;:?!'"()-]+""")
FOLD = str.maketrans({"’": "'", "‘": "'", "`": "'", "“": '"', "”": '"', "–": "-", "—": ", ", "…": ".", "\t": " "})
QUESTION = re.compile(
    r"(what|who|whose|where|when|why|how|which|is|are|can|could|do|does|did|will|would|should|am|"
    r"was|were|may|has|have)(n't|'s|'re)?\b",
    re.I,
)


def any_word(words: Iterable[str]) -> re.Pattern:
    """A pattern that matches any of these words."""
    return re.compile(rf"\b({'|'.join(map(re.escape, words))})\b")


AMBIGUOUS = {
    "March",
    "May",
    "August",
    "Turkey",
    "China",
    "Chile",
    "Polish",
    "Phoenix",
    "Nice",
}  # words in lower case too
NAMES = {
    *templates.DAYS,
    *MONTHS,
    *(name for slot in ("city", "country", "language") for name in templates.SLOTS[slot]),
}
REPAIRS = {name.lower(): name for name in sorted(NAMES - AMBIGUOUS)} | {
    word.replace("'", ""): word
    for word in "don't doesn't didn't can't isn't aren't wasn't haven't hasn't couldn't wouldn't shouldn't what's "
    "where's that's there's i'm i've you're they're".split()
}
REPAIRED = any_word(REPAIRS)


def clean(text: str) -> str | None:
    """The normalized text; None if it has other than the allowed characters or lengths."""
    text = text.translate(FOLD).replace("--", ", ").replace(" - ", ", ")
    text = "".join(char for char in unicodedata.normalize("NFKD", text) if not unicodedata.combining(char))
    text = re.sub(r"\.{2,}", ".", re.sub(r"\s+", " ", spell_out(text))).strip()
    text = re.sub(r"\s+([,.;:?!])", r"\1", re.sub(r"[,;:-]+(?=[,.;:?!])|\.(?=[?!])", "", text))
    text = re.sub(r"([?!])[?!.]+", r"\1", text)
    text = re.sub(r"(?<=[a-z])([.,;:?!])(?=[A-Za-z]{2})", r"\1 ", text)
    if MIN_LENGTH <= len(text) <= MAX_LENGTH and ALLOWED.fullmatch(text) and re.search("[A-Za-z]", text):
        return text
    return None


def as_sentence(text: str, questions: bool = False) -> str | None:
    """`clean` with a capital and a final mark; with `questions`, the first word decides between . and ?"""
    cleaned = clean(re.sub(r"\bi\b(?!\.)", "I", text.strip().rstrip(",;:- ")))
    if not cleaned or cleaned.count('"') % 2 or cleaned.count("(") != cleaned.count(")"):
        return None
    sentence = re.sub(r'^("?)([a-z])', lambda match: match[1] + match[2].upper(), cleaned)
    if sentence[-1] not in '.?!"':
        sentence += "?" if questions and QUESTION.match(sentence) else "."
    return sentence if MIN_LENGTH <= len(sentence) <= MAX_LENGTH else None


class Exclusion:
    """Sentences that must not be trained on.

    `text in exclusion` also finds near copies: texts with the same words, and texts whose five-word runs in common with
    an excluded sentence cover 60 % of either.
    """

    def __init__(self, sentences: Iterable[str], cover: float = 0.6):
        self.sentences = {words for sentence in sentences if (words := self._words(sentence))}
        self.grams = {gram for words in self.sentences for gram in self._grams(words)}
        self.cover = cover

    @staticmethod
    def _words(text: str) -> tuple[str, ...]:
        return tuple(re.findall(r"[a-z']+", text.lower().replace("’", "'")))

    @staticmethod
    def _grams(words: tuple[str, ...]) -> list[tuple[str, ...]]:
        return [words[i : i + 5] for i in range(len(words) - 4)]

    def _covered(self, words: tuple[str, ...], grams: set) -> bool:
        hit = {j for i, gram in enumerate(self._grams(words)) if gram in grams for j in range(i, i + 5)}
        return len(hit) >= self.cover * len(words)

    def __contains__(self, text: str) -> bool:
        words = self._words(text)
        if words in self.sentences:
            return True
        shared = self.grams.intersection(self._grams(words))
        return bool(shared) and (
            self._covered(words, self.grams)
            or any(self._covered(other, shared) for other in self.sentences if len(other) > 4)
        )


# --- sources


def lj_texts(path: Path) -> list[str]:
    """Texts of lines "id<TAB>text". They often start and end within a sentence."""
    return [text for line in path.read_text(encoding="utf-8").splitlines() if (text := clean(line.split("\t")[-1]))]


OFFENSIVE = re.compile(r"offensive|obscene|vulgar|disparag|ethnic slur|derogat|insult|sexual|penis|vagina")
TAXON = re.compile(r"\b(genus|family|suborder|subfamily|phylum)\b")


def wordnet_sentences(folder: Path) -> tuple[list[str], list[str]]:
    """(examples, definitions) of WordNet's data files, without entries that it marks as offensive."""
    examples, definitions = [], []
    for part in ("noun", "verb", "adj", "adv"):
        for line in (folder / f"data.{part}").read_text(encoding="utf-8").splitlines():
            gloss = line.partition("|")[2].strip()
            if line.startswith("  ") or not gloss or OFFENSIVE.search(gloss):
                continue
            examples += re.findall(r'"([^"`]+)"(?!\s*-)', gloss)  # without quotations: "..."- Shakespeare
            definition = re.sub(r"\([^)]*\)", "", gloss.split('"')[0]).split(";")[0].strip(" :;,")
            if 12 <= len(definition) <= 150 and not TAXON.search(definition):
                definitions.append(definition)
    return list(filter(None, map(as_sentence, examples))), list(filter(None, map(as_sentence, definitions)))


def _json_texts(value) -> Iterator[str]:
    """Every outermost "text" value, and the first of every [text, label] pair in a list of them."""
    if isinstance(value, dict) and isinstance(value.get("text"), str):
        yield value["text"]
    elif isinstance(value, dict | list):
        for item in value.values() if isinstance(value, dict) else value:
            if isinstance(value, list) and isinstance(item, list) and list(map(type, item)) == [str, str]:
                yield item[0]
            else:
                yield from _json_texts(item)


def everyday_sentences(folder: Path) -> list[str]:
    """Sentences of a folder's .json ("text" values or [text, label] pairs), .csv (column text) and .txt files (lines).

    Restores capitals, apostrophes and question marks of lower-case texts. Raises ValueError if there are none."""
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
    repaired = (REPAIRED.sub(lambda match: REPAIRS[match[0]], text) for text in raw)
    return [sentence for text in repaired if (sentence := as_sentence(text, questions=True))]


def frequent_words(texts: Iterable[str], count: int, rng: random.Random) -> list[str]:
    """The most frequent words, each as its own text: "Window."""
    counts = Counter(word for text in texts for word in re.findall(r"(?<![\w'-])[a-z]{2,}(?![\w'-])", text))
    return [f"{word.capitalize()}{rng.choice('.......??!')}" for word, _ in counts.most_common(count)]


# --- the plan


def compose(sentences: Iterable[str], count: int, short: float, long: float, rng: random.Random) -> Iterator[str]:
    """`count` texts with these shares of short and long ones; joins sentences if there are too few long texts.

    Returns fewer if the sentences run out.
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
            length = len(" ".join(waiting))
            if length > 200:
                waiting.pop(0)
            elif length >= goal:
                room["long"] -= 1
                yield " ".join(waiting)
                waiting = []
        if not any(room.values()):
            return


def collect(args: argparse.Namespace, accept: Callable[[str, bool], bool], rng: random.Random) -> list[tuple[str, str]]:
    """(source, text) of the whole plan, shuffled. accept: (text, whether words may be guessed) -> bool."""
    seen: set[str] = set()

    def accepted(texts: Iterable[str], guess: bool = False) -> Iterator[str]:
        for text in texts:
            if text.lower() not in seen:
                seen.add(text.lower())
                if accept(text, guess):
                    yield text

    def shuffled(texts: list[str]) -> list[str]:
        return rng.sample(texts, len(texts))

    lj = accepted(shuffled(lj_texts(args.lj)), guess=True) if args.lj else ()
    rows = [("lj", text) for text in tqdm(lj, "lj", file=sys.stderr)]
    examples, definitions = wordnet_sentences(args.wordnet) if args.wordnet else ([], [])
    everyday = {folder.name: everyday_sentences(folder) for folder in args.sentences}
    all_texts = [text for _, text in rows] + examples + definitions + sum(everyday.values(), [])
    rows += [("words", text) for text in accepted(frequent_words(all_texts, args.total // 35, rng))]

    left = max(args.total - len(rows), 0)
    lengths = [len(text) for _, text in rows]
    short = min(max(SHORT_SHARE * args.total - sum(n < SHORT for n in lengths), 0) / max(left, 1), 1)
    long = min(max(LONG_SHARE * args.total - sum(n >= LONG for n in lengths), 0) / max(left, 1), 1 - short)

    def take(source: str, texts: Iterable[str], count: int) -> None:
        made = compose(accepted(texts), count, short, long, rng)
        rows.extend((source, text) for text in tqdm(made, source, total=count, file=sys.stderr))

    if args.wordnet:  # examples are better sentences: takes all of them, then definitions
        drawn, mixed = rng.sample(definitions, min(len(definitions), 2 * len(examples))), len(examples)
        texts = shuffled(examples + drawn[:mixed]) + drawn[mixed:]
        take("wordnet", texts, min(round(args.total * 0.45), left))
    available = sum(map(len, everyday.values()))
    for source, texts in everyday.items():  # at most half as many: joined texts need two or three sentences
        take(source, shuffled(texts), min(round(args.total * 0.3 * len(texts) / available), len(texts) // 2))
    take("templates", islice(templates.sentences(rng), 20 * args.total), max(args.total - len(rows), 0))
    return rng.sample(rows, min(len(rows), args.total))


class Phonemizer:
    """Phonemes of texts by hibari's G2P, American or British. Raises ValueError if hibari-tts is missing."""

    def __init__(self, british: bool):
        try:
            from hibari.g2p import ASSETS, G2P, normalize
            from hibari.g2p.oov import OOV
        except ImportError:
            raise ValueError("phonemes need the package hibari-tts: pip install hibari-tts") from None
        network = OOV(os.path.join(ASSETS, "oov_gb.onnx" if british else "oov.onnx"))
        self._g2p, self._normalize = G2P(british=british, oov=lru_cache(None)(network)), normalize

    def __call__(self, text: str, guess: bool = False) -> str | None:
        """Phonemes of a text; None if a word is in no lexicon, unless `guess` lets the network read it."""
        tokens = self._g2p.phonemize_tokens(self._g2p.tokenize(self._normalize(text)))
        for token in tokens:
            known = token.phonemes and (token.rating or 0) > 2
            if any(map(str.isalpha, token.text)) and not known and not (guess and re.fullmatch(r"[\w'-]+", token.text)):
                return None
        return "".join((token.phonemes or "") + (" " if token.whitespace else "") for token in tokens).strip()


def make_plan(args: argparse.Namespace) -> tuple[list[dict], dict[str, dict], Counter]:
    """(rows, speakers, number of texts of each source)."""
    excluded = Exclusion(line for path in args.exclude for line in path.read_text(encoding="utf-8").splitlines())
    phonemize = {british: Phonemizer(british) for british in (False, True)}

    def accept(text: str, guess: bool) -> bool:
        return text not in excluded and all(reader(text, guess) is not None for reader in phonemize.values())

    rng = random.Random(args.seed)
    texts = [(source, text) for source, text in collect(args, accept, rng) if text not in excluded]
    speakers = make_speakers(args.seed)
    names = assign({name: speaker["share"] for name, speaker in speakers.items()}, len(texts), rng)
    rows: list[dict] = []
    sources: Counter[str] = Counter()
    for (source, text), name in tqdm(list(zip(texts, names, strict=True)), "phonemes", file=sys.stderr):
        speaker = speakers[name]
        phonemes = phonemize[speaker["british"]](text, source == "lj")
        if phonemes is None:  # words may have other phonemes in a joined text
            continue
        sources[source] += 1
        row = {"id": f"t{len(rows):06d}", "text": text, "phonemes": phonemes, "speaker": name}
        row["voice"] = speaker["voice"]
        row["speed"] = round(min(max(speaker["speed"] * rng.uniform(0.97, 1.03), 0.88), 1.18), 2)
        rows.append(row)
    return rows, speakers, sources


def parse(argv: Sequence[str] | None = None) -> argparse.Namespace:
    parser = command_parser("python -m smalle.corpus.texts", __doc__)
    parser.add_argument("out", type=Path, metavar="PLAN", help="the plan to write, .jsonl")
    parser.add_argument("--lj", type=Path, metavar="FILE", help="LJ Speech's texts: one id<TAB>text per line")
    parser.add_argument(
        "--wordnet", type=Path, metavar="FOLDER", help="folder with WordNet's data.noun, data.verb, data.adj, data.adv"
    )
    parser.add_argument(
        "--sentences", type=Path, nargs="*", default=[], metavar="FOLDER", help="folders of everyday sentences"
    )
    parser.add_argument(
        "--exclude",
        type=Path,
        nargs="*",
        default=[],
        metavar="FILE",
        help="sentences that must not be in the plan, such as those of evaluations",
    )
    parser.add_argument("--total", type=int, default=110_000, help="number of texts (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="seed of all random choices (default: 0)")
    args = parser.parse_args(argv)
    if args.total < 1:
        raise ValueError(f"--total is {args.total}: expected at least 1")
    for path in [args.lj, args.wordnet, *args.sentences, *args.exclude]:
        if path is not None and not path.exists():
            raise ValueError(f"{path} does not exist: give the path of a file or folder that does")
    return args


def main(argv: Sequence[str] | None = None) -> None:
    args = parse(argv)
    rows, speakers, sources = make_plan(args)
    args.out.parent.mkdir(parents=True, exist_ok=True)
    write_jsonl(args.out, rows)
    write_json(args.out.with_suffix(".speakers.json"), speakers)
    hours = sum(len(row["text"]) for row in rows) / 17 / 3600
    counts = ", ".join(f"{source} {count}" for source, count in sources.most_common())
    print(f"{len(rows)} texts, about {hours:.0f} hours; {counts}")


if __name__ == "__main__":
    sys.exit(run_command("texts", main))
