"""Training samples: utterances of one speaker after each other, delayed codes, batches of nearly equal lengths."""

import random

import numpy as np
import pyarrow.parquet
import torch

from smalle.configuration_smalle import AUDIO_PAD, AUDIO_TAIL
from smalle.delay_smalle import delay

from .alignment import token_windows


class CodesDataset(torch.utils.data.Dataset):
    """Prepared codes (train.prepare) in memory.

    An item is (text, codes (T, Q), words (W, 2): seconds at which each word begins and ends, NaN where unknown) of the
    utterances in a tuple, joined.
    Joined utterances teach the model to go on in the voice of a prompt, and to read long texts.
    """

    def __init__(self, path, num_codebooks, frame_rate):
        self.frame_rate = frame_rate
        with open(path, "rb") as file:
            table = pyarrow.parquet.ParquetFile(file).read().combine_chunks()
        column = table.column("codes").chunk(0)
        self.offsets = column.offsets.to_numpy() // num_codebooks
        self.codes = column.values.to_numpy().reshape(-1, num_codebooks)
        self.texts, self.speakers = table.column("text").to_pylist(), table.column("speaker").to_pylist()
        self.words = [self._timed(*row) for row in zip(self.texts, table.column("words").to_pylist())]

    @staticmethod
    def _timed(text, times):
        """(W, 2) of a text, NaN where the corpus does not say."""
        count = len(text.split())
        return np.array(times, np.float32).reshape(-1, 2) if times else np.full((count, 2), np.nan, np.float32)

    def __len__(self):
        return len(self.texts)

    @property
    def lengths(self):
        """Frames of each utterance."""
        return np.diff(self.offsets)

    def __getitem__(self, utterances):
        text = " ".join(self.texts[i] for i in utterances)
        codes = np.concatenate([self.codes[self.offsets[i] : self.offsets[i + 1]] for i in utterances])
        starts = np.cumsum([0, *(self.offsets[i + 1] - self.offsets[i] for i in utterances[:-1])]) / self.frame_rate
        words = np.concatenate([self.words[i] + start for i, start in zip(utterances, starts)])
        return text, torch.from_numpy(codes.astype(np.int64)), words


class SpeakerBatchSampler:
    """Endless batches of samples; a sample is a tuple of utterances of one speaker.

    Each epoch takes every utterance once, in a new order: a speaker's utterances are shuffled and cut into samples of
    up to `max_frames`, samples of similar length share a batch of at most `frames_per_batch` (padding counted), and
    the batches are shuffled. The seed fixes everything, so that a resumed run sees what an uninterrupted one saw.
    """

    def __init__(self, lengths, speakers, frames_per_batch, max_frames, seed=0, single=0.35):
        self.lengths, self.frames_per_batch, self.max_frames = lengths, frames_per_batch, max_frames
        self.seed, self.single = seed, single
        self.by_speaker = {}
        for index, speaker in enumerate(speakers):
            if lengths[index] <= max_frames:
                self.by_speaker.setdefault(speaker, []).append(index)

    def samples(self, rng):
        """One epoch's samples: a share of single utterances, the others joined up to a random length."""
        for speaker in sorted(self.by_speaker):
            order = rng.sample(self.by_speaker[speaker], len(self.by_speaker[speaker]))
            while order:
                sample = [order.pop()]
                goal = 0 if rng.random() < self.single else rng.uniform(0.2, 1.0) * self.max_frames
                frames = self.lengths[sample[0]]
                while order and frames + self.lengths[order[-1]] <= goal:
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
        number = 0
        while True:
            yield from self.epoch(number)
            number += 1


class Collator:
    """(text, codes, words) to a batch of the model: the grid of delayed codes but its last step in, but its first out.

    Beside it token_windows (B, N, 2), the frames in which each token is read, for the loss on the maps of the text.
    text_dropout: share of samples whose text is left out, which lets generation be guided by the text; the batch seeds
    which, so that a resumed run leaves out the same.
    """

    def __init__(self, tokenizer, num_codebooks, frame_rate, text_dropout=0.0):
        self.tokenizer, self.num_codebooks, self.frame_rate = tokenizer, num_codebooks, frame_rate
        self.text_dropout = text_dropout

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
        windows = [self._windows(t, words, o) for t, (*_, words), o in zip(texts, samples, text["offset_mapping"])]
        windows = torch.stack(windows).masked_fill(text["attention_mask"][..., None] == 0, torch.inf)  # never read
        grids = []
        for _, codes, _ in samples:
            grid = delay(codes)
            grids.append(torch.cat((grid, grid.new_full((1, self.num_codebooks), AUDIO_TAIL))))
        longest = max(map(len, grids))
        shape = (len(grids), longest, self.num_codebooks)
        inputs, labels = torch.full(shape, AUDIO_PAD), torch.full(shape, -100)
        for row, grid in enumerate(grids):
            inputs[row, : len(grid)] = labels[row, : len(grid)] = grid
        for q in range(1, self.num_codebooks):  # heads are sure: nothing to learn
            labels[:, : q + 1, q] = -100
        mask = labels[:, 1:, 0] != -100
        return {
            "input_ids": text["input_ids"], "attention_mask": text["attention_mask"],
            "token_windows": windows, "audio_codes": inputs[:, :-1],
            "audio_attention_mask": mask.long(), "labels": labels[:, 1:],
        }  # fmt: skip
