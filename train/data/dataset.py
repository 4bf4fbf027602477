"""Training samples from prepared codes: joined utterances of a speaker, and a reference recording of that speaker."""

import itertools
import os
import pathlib
import random
import re
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np
import pyarrow.compute
import pyarrow.ipc
import pyarrow.parquet
import torch

from smalle.saving_smalle import atomic_write

COLUMNS = "text", "speaker", "duration", "words", "codes", "reference"
Paths = str | os.PathLike | Sequence[str | os.PathLike]  # one split or several


class Sample(NamedTuple):
    """Joined utterances of one speaker: T frames of Q codes, W words."""

    text: str
    codes: torch.Tensor  # (T, Q)
    words: np.ndarray  # (W, 2): start and end of each word in seconds, NaN where unknown
    speaker_codes: torch.Tensor | None = None  # (P, Q), other utterances of the speaker; P may be 0
    past: torch.Tensor | None = None  # (T, Q), decoder inputs if they differ from codes


def shards(path: str | os.PathLike) -> list[pathlib.Path]:
    """The files of a split: PATH.parquet or PATH-*.parquet. Raises ValueError if there are none, or both."""
    path = pathlib.Path(path)
    found = sorted(path.parent.glob(f"{path.name.removesuffix('.parquet')}-*.parquet"))
    if path.is_file():
        if found:
            raise ValueError(f"there are both {path} and {found[0]}: delete the old one, or use another folder")
        return [path]
    if not found:
        raise ValueError(f"neither {path} nor shards of that name exist: prepare codes with `smalle prepare` first")
    return found


def read_table(path: Paths, cache: str | os.PathLike | None = None) -> pyarrow.Table:
    """All shards as one table. With a folder `cache`, they are converted to Arrow files there and memory-mapped."""
    tables, paths = [], [path] if isinstance(path, (str, os.PathLike)) else path
    for shard in itertools.chain.from_iterable(map(shards, paths)):
        stat = shard.stat()
        cached = cache and pathlib.Path(cache) / f"{shard.stem}-{stat.st_size}-{stat.st_mtime_ns}.arrow"
        if not cached or not cached.is_file():
            with open(shard, "rb") as file:
                names = [name for name in COLUMNS if name in pyarrow.parquet.read_schema(file).names]
                table = pyarrow.parquet.ParquetFile(file).read(columns=names).replace_schema_metadata()
        if cached:
            if not cached.is_file():
                cached.parent.mkdir(parents=True, exist_ok=True)
                with atomic_write(cached) as temporary, pyarrow.ipc.new_file(temporary, table.schema) as writer:
                    writer.write_table(table)
            table = pyarrow.ipc.open_file(pyarrow.memory_map(str(cached))).read_all()
        tables.append(table)
    return pyarrow.concat_tables(tables, promote_options="default")


def speaker_frames(config: Any, seconds: float = 5.0) -> int:
    """The number of frames for the speaker encoder; 0 for a model without one.

    Raises ValueError for an impossible length."""
    frames = int(seconds * config.frame_rate) if isinstance(seconds, int | float) else 0
    if not 2 <= frames <= config.max_audio_frames:
        raise ValueError(f"data.speaker_seconds={seconds!r}: expected a number of seconds, usually 3 to 10.")
    return frames if config.speaker_layers else 0


def parallel_utterances(texts: Iterable[str], speakers: Iterable[str]) -> dict[int, list[int]]:
    """Groups of utterances with the same words at the same relative times: {index: all indices of its group}.

    Single utterances are left out. A group consists of the speeds of one recording (smalle.train.data.prepare --speeds)
    or of a pair of speakers of smalle.corpus.speakers.sample_speakers. Its utterances have the same text and, without
    suffixes as in "s0_0001~a x0.91", the same speaker name.
    """
    groups: dict[tuple[str, str], list[int]] = {}
    for index, (text, speaker) in enumerate(zip(texts, speakers)):
        groups.setdefault((text, re.sub(r"(~[ab])?( x[\d.]+)?$", "", speaker)), []).append(index)
    return {index: group for group in groups.values() if len(group) > 1 for index in group}


class CodesDataset(torch.utils.data.Dataset):
    """Prepared codes of a split (`shards`), in memory or, with `cache`, on disk.

    dataset[(index, ...)] is the `Sample` of these utterances, joined. Joined samples teach the model to continue a
    prompt in its voice, and to read long texts. With `speaker_frames`, a sample has speaker_codes, up to this many
    frames of other utterances of the speaker, and `past`, the decoder inputs: with `voice_swap_probability` the codes
    of `parallel_utterances`, so that only speaker_codes determine the voice; otherwise the sample's own codes.

    Raises ValueError if the lengths of the codes do not fit `num_codebooks` and `frame_rate`.
    """

    def __init__(
        self,
        path: Paths,
        num_codebooks: int,
        frame_rate: float,
        cache: str | os.PathLike | None = None,
        speaker_frames: int = 0,
        voice_swap_probability: float = 0.0,
        home_recording_probability: float = 0.0,
    ):
        self.num_codebooks, self.frame_rate = num_codebooks, frame_rate
        self.home_recording_probability = home_recording_probability
        self.speaker_frames, self.voice_swap_probability = speaker_frames, voice_swap_probability
        table = read_table(path, cache)
        self.texts, self.words, self.codes = (table.column(name) for name in ("text", "words", "codes"))
        self.references = table.column("reference") if "reference" in table.column_names else None
        self.speakers = table.column("speaker").to_pylist()
        self.by_speaker: dict[str, list[int]] = {}
        for index, speaker in enumerate(self.speakers if speaker_frames else ()):
            self.by_speaker.setdefault(speaker, []).append(index)
        self.parallel = parallel_utterances(self.texts.to_pylist(), self.speakers) if voice_swap_probability else {}
        self.lengths = pyarrow.compute.list_value_length(self.codes).to_numpy() // num_codebooks
        seconds = pyarrow.compute.sum(table.column("duration")).as_py()
        if abs(self.lengths.sum() / frame_rate - seconds) > 0.2 * seconds:
            raise ValueError(
                f"{path} has {seconds:.0f} s of audio, but {self.lengths.sum() / frame_rate:.0f} s with "
                f"{num_codebooks} codebooks at {frame_rate} frames/s: model.frame_rate and model.num_codebooks must "
                "match the codec."
            )

    def __len__(self) -> int:
        return len(self.texts)

    def _utterance(self, index: int) -> tuple[str, np.ndarray, np.ndarray]:
        """Text, codes (T, Q) and word times (W, 2) of an utterance."""
        text, times = self.texts[index].as_py(), self.words[index].as_py()
        words = np.array(times, np.float32).reshape(-1, 2) if times else np.full((len(text.split()), 2), np.nan)
        return text, self._codes(index), words.astype(np.float32)

    def _codes(self, index: int) -> np.ndarray:
        return self.codes[index].values.to_numpy().reshape(-1, self.num_codebooks)

    def __getitem__(self, utterances: Sequence[int]) -> Sample:
        texts, codes, words = zip(*map(self._utterance, utterances))
        starts = np.cumsum([0, *(len(one) for one in codes[:-1])]) / self.frame_rate
        words = np.concatenate([one + np.float32(start) for one, start in zip(words, starts)])
        joined = torch.from_numpy(np.concatenate(codes).astype(np.int64))
        if not self.speaker_frames:
            return Sample(" ".join(texts), joined, words)
        past = self._past(utterances, codes, joined)
        return Sample(" ".join(texts), joined, words, self._speaker_codes(utterances), past)

    def _past(self, utterances: Sequence[int], codes: Sequence[np.ndarray], joined: torch.Tensor) -> torch.Tensor:
        """The decoder inputs (T, Q): `joined`, or with `voice_swap_probability` codes of parallel utterances."""
        rng = random.Random(f"past {utterances}")  # seeded by the utterances, so that a resumed run gets the same
        if rng.random() >= self.voice_swap_probability:
            return joined
        swapped = []
        for index, own in zip(utterances, codes):
            others = [other for other in self.parallel.get(index, ()) if other != index]
            other = self._codes(rng.choice(others)) if others else own
            swapped.append(other[np.arange(len(own)) * len(other) // len(own)])
        return torch.from_numpy(np.concatenate(swapped).astype(np.int64))

    def _reference(self, index: int, rng: random.Random) -> np.ndarray:
        """Codes (P, Q) of an utterance, or with `home_recording_probability` those of its home recording."""
        share = self.home_recording_probability
        if share and self.references is not None and rng.random() < share:
            if (reference := self.references[index]).is_valid and len(reference):
                return reference.values.to_numpy().reshape(-1, self.num_codebooks)
        return self._codes(index)

    def _speaker_codes(self, utterances: Sequence[int]) -> torch.Tensor:
        """A random part (P, Q) of other utterances of the same speaker."""
        rng, spoken = random.Random(f"heard {utterances}"), self.by_speaker[self.speakers[utterances[0]]]
        drawn = rng.sample(spoken, min(len(spoken), len(utterances) + 3))
        others = [self._reference(index, rng) for index in drawn if index not in utterances][:3]
        if not others and self.home_recording_probability:  # its own utterances are better than no reference
            others = [self._reference(index, rng) for index in utterances]
        codes = np.concatenate([np.zeros((0, self.num_codebooks), np.uint16), *others])
        length = rng.randint(min(len(codes), self.speaker_frames) // 2, min(len(codes), self.speaker_frames))
        begin = rng.randint(0, len(codes) - length)
        return torch.from_numpy(codes[begin : begin + length].astype(np.int64))
