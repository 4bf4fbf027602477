"""Training samples: utterances of one speaker after each other, delayed codes, batches of nearly equal lengths."""

import itertools
import os
import pathlib
import random
import re

import numpy as np
import pyarrow.compute
import pyarrow.ipc
import pyarrow.parquet
import torch
import torch.nn.functional as F

from smalle.configuration_smalle import AUDIO_EOS, AUDIO_PAD
from smalle.generation_smalle import delay

from ..model.losses import token_windows

COLUMNS = "text", "speaker", "duration", "words", "codes"


def shards(path):
    """The files of a prepared split: PATH.parquet itself, or PATH-*.parquet. Raises ValueError where there are none."""
    path = pathlib.Path(path)
    found = sorted(path.parent.glob(f"{path.name.removesuffix('.parquet')}-*.parquet"))
    if path.is_file():
        if found:
            raise ValueError(f"there are {path} and {found[0]}: delete what is old, or name another folder")
        return [path]
    if not found:
        raise ValueError(
            f"{path} is not there, nor shards of that name: prepare codes with smalle.train.data.prepare first"
        )
    return found


def read_table(path, cache=None):
    """All shards as one table. With a `cache` folder it lies there on disk, and memory holds what is being read."""
    tables = []
    for shard in shards(path):
        kept = cache and pathlib.Path(cache) / f"{shard.stem}-{shard.stat().st_size}-{shard.stat().st_mtime_ns}.arrow"
        if not kept or not kept.is_file():
            with open(shard, "rb") as file:
                names = [name for name in COLUMNS if name in pyarrow.parquet.read_schema(file).names]
                table = pyarrow.parquet.ParquetFile(file).read(columns=names).replace_schema_metadata()
        if kept:
            if not kept.is_file():
                kept.parent.mkdir(parents=True, exist_ok=True)
                partial = kept.with_suffix(f".{os.getpid()}")  # every process may come here
                with pyarrow.ipc.new_file(partial, table.schema) as writer:
                    writer.write_table(table)
                os.replace(partial, kept)
            table = pyarrow.ipc.open_file(pyarrow.memory_map(str(kept))).read_all()
        tables.append(table)
    return pyarrow.concat_tables(tables)


def heard_frames(config, seconds=5.0):
    """Frames up to which samples hear another recording of their speaker; 0 for a model without a speaker encoder.

    Raises ValueError for seconds that are no recording."""
    frames = int(seconds * config.frame_rate) if isinstance(seconds, int | float) else 0
    if not 2 <= frames <= config.max_audio_frames:
        raise ValueError(f"data.speaker_seconds={seconds!r}: expected some seconds, 3 to 10 are right.")
    return frames if config.speaker_layers else 0


def twins(texts, speakers):
    """Utterances in the same words and times: {index: indices}, itself among them, of those that have others.

    They are the speeds of one recording (smalle.train.data.prepare --speeds) and the speakers of one pair of a crowd (smalle.corpus.sampled_speakers),
    known by their text and by the speaker's name without what tells these apart, as in "crowd0_0001~a x0.91".
    """
    alike = {}
    for index, (text, speaker) in enumerate(zip(texts, speakers)):
        alike.setdefault((text, re.sub(r"(~[ab])?( x[\d.]+)?$", "", speaker)), []).append(index)
    return {index: group for group in alike.values() if len(group) > 1 for index in group}


class CodesDataset(torch.utils.data.Dataset):
    """Prepared codes (smalle.train.data.prepare): a parquet file or the shards of a split, in memory or, with `cache`, on disk.

    An item is (text, codes (T, Q), words (W, 2): seconds at which each word begins and ends, NaN where unknown) of the
    utterances in a tuple, joined.
    Joined utterances teach the model to go on in the voice of a prompt, and to read long texts.
    With `heard` frames an item has two parts more: up to so many frames (P, Q) of other utterances of the speaker, none
    where there is no other, and the past (T, Q) that the model hears, which for a share `voice_swap_probability` of the items other
    voices say in the same words and times (`twins`), where there are some.
    """

    def __init__(self, path, num_codebooks, frame_rate, cache=None, heard=0, voice_swap_probability=0.0):
        self.num_codebooks, self.frame_rate, self.heard, self.voice_swap_probability = (
            num_codebooks,
            frame_rate,
            heard,
            voice_swap_probability,
        )
        table = read_table(path, cache)
        self.texts, self.words, self.codes = (table.column(name) for name in ("text", "words", "codes"))
        self.speakers = table.column("speaker").to_pylist()
        self.by_speaker = {}
        for index, speaker in enumerate(self.speakers if heard else ()):
            self.by_speaker.setdefault(speaker, []).append(index)
        self.twins = twins(self.texts.to_pylist(), self.speakers) if voice_swap_probability else {}
        self.lengths = pyarrow.compute.list_value_length(self.codes).to_numpy() // num_codebooks
        seconds = pyarrow.compute.sum(table.column("duration")).as_py()
        if abs(self.lengths.sum() / frame_rate - seconds) > 0.2 * seconds:
            raise ValueError(
                f"{path} holds {seconds:.0f} s of audio, but {self.lengths.sum() / frame_rate:.0f} s at {frame_rate} "
                f"frames/s of {num_codebooks} codes: model.frame_rate and model.num_codebooks have to be the codec's."
            )

    def __len__(self):
        return len(self.texts)

    def _utterance(self, index):
        """(text, codes (T, Q), words (W, 2)) of one."""
        text, times = self.texts[index].as_py(), self.words[index].as_py()
        codes = self.codes[index].values.to_numpy().reshape(-1, self.num_codebooks)
        words = np.array(times, np.float32).reshape(-1, 2) if times else np.full((len(text.split()), 2), np.nan)
        return text, codes, words.astype(np.float32)

    def __getitem__(self, utterances):
        texts, codes, words = zip(*map(self._utterance, utterances))
        starts = np.cumsum([0, *(len(one) for one in codes[:-1])]) / self.frame_rate
        words = np.concatenate([one + np.float32(start) for one, start in zip(words, starts)])
        item = " ".join(texts), torch.from_numpy(np.concatenate(codes).astype(np.int64)), words
        return (*item, self._heard(utterances), self._past(utterances, codes, item[1])) if self.heard else item

    def _past(self, utterances, codes, joined):
        """The utterances' `joined` codes (T, Q), or for a share of the items those of twins, as long."""
        rng = random.Random(f"past {utterances}")
        if rng.random() >= self.voice_swap_probability:
            return joined
        said = [self._twin(rng, index, one) for index, one in zip(utterances, codes)]
        return torch.from_numpy(np.concatenate(said).astype(np.int64))

    def _twin(self, rng, index, codes):
        """What a twin of an utterance says at each of its frames."""
        others = [other for other in self.twins.get(index, ()) if other != index]
        if not others:
            return codes
        twin = self._utterance(rng.choice(others))[1]
        return twin[np.arange(len(codes)) * len(twin) // len(codes)]

    def _heard(self, utterances):
        """A piece (P, Q) of recordings of who speaks these, which fix it, so that a resumed run hears the same."""
        rng, spoken = random.Random(f"heard {utterances}"), self.by_speaker[self.speakers[utterances[0]]]
        some = rng.sample(spoken, min(len(spoken), len(utterances) + 3))
        others = [self._utterance(index)[1] for index in some if index not in utterances][:3]
        codes = np.concatenate([np.zeros((0, self.num_codebooks), np.uint16), *others])
        length = rng.randint(min(len(codes), self.heard) // 2, min(len(codes), self.heard))
        begin = rng.randint(0, len(codes) - length)
        return torch.from_numpy(codes[begin : begin + length].astype(np.int64))


class SpeakerBatchSampler:
    """Endless batches of samples; a sample is a tuple of utterances of one speaker.

    Each epoch takes every utterance once, in a new order: a speaker's utterances are shuffled and cut into samples of
    up to `max_frames`, samples of similar length share a batch of at most `frames_per_batch` (padding counted), and
    the batches are shuffled. The seed fixes everything, so that a resumed run sees what an uninterrupted one saw. Of
    `world` processes each takes every world-th batch, so all make the same number of steps and none sees a sample that
    another one sees. A sample has all but `apart` of its speaker's utterances at most, which are left to be heard.
    """

    def __init__(self, lengths, speakers, frames_per_batch, max_frames, seed=0, single=0.35, rank=0, world=1, apart=0):
        self.lengths, self.frames_per_batch, self.max_frames = lengths, frames_per_batch, max_frames
        self.seed, self.single, self.rank, self.world, self.apart = seed, single, rank, world, apart
        self.by_speaker = {}
        for index, speaker in enumerate(speakers):
            if lengths[index] <= max_frames:
                self.by_speaker.setdefault(speaker, []).append(index)
        self.left_out = len(lengths) - sum(map(len, self.by_speaker.values()))
        if not self.by_speaker:
            raise ValueError(
                f"data.max_seconds is {max_frames} frames, expected more: the shortest of {len(lengths)} "
                f"utterances has {min(lengths, default=0)}. Raise it, or cut the recordings."
            )

    def samples(self, rng):
        """One epoch's samples: a share of single utterances, the others joined up to a random length."""
        for speaker in sorted(self.by_speaker):
            order = rng.sample(self.by_speaker[speaker], len(self.by_speaker[speaker]))
            most = len(order) - self.apart
            while order:
                sample = [order.pop()]
                goal = 0 if rng.random() < self.single else rng.uniform(0.2, 1.0) * self.max_frames
                frames = self.lengths[sample[0]]
                while order and len(sample) < most and frames + self.lengths[order[-1]] <= goal:
                    sample.append(order.pop())
                    frames += self.lengths[sample[-1]]
                yield int(frames), tuple(sample)

    def epoch(self, number):
        """The batches of one epoch."""
        rng = random.Random(f"{self.seed}/{number}")
        batches, rows = [], []
        for frames, sample in sorted(self.samples(rng), key=lambda pair: (pair[0] + rng.uniform(0, 10), pair[1])):
            if rows and (frames + 10) * (len(rows) + 1) > self.frames_per_batch:
                batches.append(rows)
                rows = []
            rows.append(sample)
        batches.append(rows)
        rng.shuffle(batches)
        return batches

    def __iter__(self):
        batches = itertools.chain.from_iterable(map(self.epoch, itertools.count()))
        yield from itertools.islice(batches, self.rank, None, self.world)


class Collator:
    """Items of a `CodesDataset` to a batch of the model.

    The grid of delayed codes but its last step goes in, but its first out; what is heard of the speakers, padded, and
    token_windows (B, N, 2), the frames in which each token is read, for the loss on the maps.
    text_dropout: share of samples whose text is left out, which lets generation be guided by the text; the batch seeds
    which, so that a resumed run leaves out the same. speaker_dropout: likewise of samples that do not hear who speaks.
    """

    def __init__(self, tokenizer, num_codebooks, frame_rate, text_dropout=0.0, speaker_dropout=0.0):
        self.tokenizer, self.num_codebooks, self.frame_rate = tokenizer, num_codebooks, frame_rate
        self.text_dropout, self.speaker_dropout = text_dropout, speaker_dropout

    def _windows(self, text, words, offsets):
        """(N, 2) of the padded tokens; endless where the text was left out."""
        if not text:
            return torch.tensor([[-torch.inf, torch.inf]]).expand(len(offsets), 2)
        return torch.from_numpy(token_windows(text, words, offsets.tolist(), self.frame_rate))

    def __call__(self, samples):
        rng = random.Random("/".join(text for text, *_ in samples))
        texts = ["" if rng.random() < self.text_dropout else text for text, *_ in samples]
        text = self.tokenizer(
            texts, padding=True, padding_side="right", return_tensors="pt", return_offsets_mapping=True
        )
        windows = [self._windows(t, sample[2], o) for t, sample, o in zip(texts, samples, text["offset_mapping"])]
        windows = torch.stack(windows).masked_fill(text["attention_mask"][..., None] == 0, torch.inf)  # never read
        labels = self._grids([codes for _, codes, *_ in samples], -100)
        inputs = self._grids([sample[4] if len(sample) > 4 else sample[1] for sample in samples], AUDIO_PAD)
        for q in range(1, self.num_codebooks):  # heads are sure: nothing to learn
            labels[:, : q + 1, q] = -100
        mask = labels[:, 1:, 0] != -100
        return {
            "input_ids": text["input_ids"],
            "attention_mask": text["attention_mask"],
            "token_windows": windows,
            "decoder_input_ids": inputs[:, :-1],
            "decoder_attention_mask": mask.long(),
            "labels": labels[:, 1:],
            **self._heard(samples, texts, rng),
        }

    def _grids(self, codes, padding):
        """Codes (T, Q), delayed and ended, as one padded grid (B, S, Q)."""
        ended = [F.pad(delay(one), (0, 0, 0, 1), value=AUDIO_EOS) for one in codes]
        return torch.nn.utils.rnn.pad_sequence(ended, batch_first=True, padding_value=padding)

    def _heard(self, samples, texts, rng):
        """The pieces of the speakers' recordings, padded, and their mask; nothing where samples have none.

        Who is left without a text hears nobody either: guidance leads away from both."""
        if len(samples[0]) < 4:  # text, codes and words alone
            return {}
        pieces = [sample[3] for sample in samples]
        pieces = torch.nn.utils.rnn.pad_sequence(pieces, batch_first=True, padding_value=-1)
        mask = pieces[..., 0] >= 0
        mask &= torch.tensor([[rng.random() >= self.speaker_dropout and text != ""] for text in texts])
        return {"speaker_codes": pieces.clamp(min=0), "speaker_attention_mask": mask.long()}
