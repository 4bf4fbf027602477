"""Batches of `Sample`s of similar length: choosing the utterances of a batch, and collating them."""

import itertools
import random
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch.nn.utils.rnn import pad_sequence

from smalle.processing_smalle import teacher_forcing

from ..model.losses import token_windows
from .dataset import Sample


class SpeakerBatchSampler:
    """Yields endless batches of samples; a sample is a tuple of utterances of one speaker.

    An epoch uses every utterance once, in a new order. The utterances of a speaker are shuffled and joined into samples
    of up to `max_frames`; a share `single` of the samples consists of one utterance. Samples of similar length form
    batches of at most `frames_per_batch` including padding, in random order. The seed determines everything, so a
    resumed run gets the same batches. Process `rank` of `world` gets every world-th batch, so all processes make the
    same number of steps. At least `reserved` utterances of the speaker are not part of a sample; they are references
    for the speaker encoder.

    left_out: number of utterances longer than `max_frames`. Raises ValueError if all are.
    """

    def __init__(
        self,
        lengths: Sequence[int],
        speakers: Sequence[Any],
        frames_per_batch: int,
        max_frames: int,
        seed: int = 0,
        single: float = 0.35,
        rank: int = 0,
        world: int = 1,
        reserved: int = 0,
    ):
        self.lengths, self.frames_per_batch, self.max_frames = lengths, frames_per_batch, max_frames
        self.seed, self.single, self.rank, self.world, self.reserved = seed, single, rank, world, reserved
        self.by_speaker: dict[Any, list[int]] = {}
        for index, speaker in enumerate(speakers):
            if lengths[index] <= max_frames:
                self.by_speaker.setdefault(speaker, []).append(index)
        self.left_out = len(lengths) - sum(map(len, self.by_speaker.values()))
        if not self.by_speaker:
            raise ValueError(
                f"data.max_seconds is {max_frames} frames, expected more: the shortest of {len(lengths)} "
                f"utterances has {min(lengths, default=0)}. Raise it, or cut the recordings."
            )

    def samples(self, rng: random.Random) -> Iterator[tuple[int, tuple[int, ...]]]:
        """(frames, utterances) of the samples of an epoch; joined ones have random lengths, 0.2 to 1 of max_frames."""
        for speaker in sorted(self.by_speaker):
            order = rng.sample(self.by_speaker[speaker], len(self.by_speaker[speaker]))
            most = len(order) - self.reserved
            while order:
                sample = [order.pop()]
                goal = 0 if rng.random() < self.single else rng.uniform(0.2, 1.0) * self.max_frames
                frames = self.lengths[sample[0]]
                while order and len(sample) < most and frames + self.lengths[order[-1]] <= goal:
                    sample.append(order.pop())
                    frames += self.lengths[sample[-1]]
                yield int(frames), tuple(sample)

    def epoch(self, number: int) -> list[list[tuple[int, ...]]]:
        """The batches of one epoch, for all processes together."""
        rng = random.Random(f"{self.seed}/{number}")
        batches: list[list[tuple[int, ...]]] = []
        rows: list[tuple[int, ...]] = []
        for frames, sample in sorted(self.samples(rng), key=lambda pair: (pair[0] + rng.uniform(0, 10), pair[1])):
            if rows and (frames + 10) * (len(rows) + 1) > self.frames_per_batch:
                batches.append(rows)
                rows = []
            rows.append(sample)
        batches.append(rows)
        rng.shuffle(batches)
        return batches

    def __iter__(self) -> Iterator[list[tuple[int, ...]]]:
        batches = itertools.chain.from_iterable(map(self.epoch, itertools.count()))
        yield from itertools.islice(batches, self.rank, None, self.world)


class Collator:
    """Collates `Sample`s into model inputs: B rows, N tokens, S = T + Q steps of delayed codes.

    input_ids and attention_mask (B, N); decoder_input_ids and labels (B, S, Q), the latter one step ahead;
    decoder_attention_mask (B, S); token_windows (B, N, 2): first and last frame in which each token is read, for the
    alignment loss; with speaker codes, speaker_codes (B, P, Q) and speaker_attention_mask (B, P).

    text_dropout: probability of dropping the text of a sample, for classifier-free guidance. speaker_dropout: of
    dropping its speaker codes. The texts of the batch seed both, so a resumed run drops the same.
    """

    def __init__(
        self,
        tokenizer: Any,
        num_codebooks: int,
        frame_rate: float,
        text_dropout: float = 0.0,
        speaker_dropout: float = 0.0,
    ):
        self.tokenizer, self.num_codebooks, self.frame_rate = tokenizer, num_codebooks, frame_rate
        self.text_dropout, self.speaker_dropout = text_dropout, speaker_dropout

    def __call__(self, samples: Sequence[Sample]) -> dict[str, torch.Tensor]:
        rng = random.Random("/".join(sample.text for sample in samples))
        texts = ["" if rng.random() < self.text_dropout else sample.text for sample in samples]
        text = self.tokenizer(
            texts, padding=True, padding_side="right", return_tensors="pt", return_offsets_mapping=True
        )
        windows = [self._windows(*row) for row in zip(texts, samples, text["offset_mapping"])]
        padding = text["attention_mask"][..., None] == 0
        pasts = [sample.codes if sample.past is None else sample.past for sample in samples]
        return {
            "input_ids": text["input_ids"],
            "attention_mask": text["attention_mask"],
            "token_windows": torch.stack(windows).masked_fill(padding, torch.inf),  # padding has no window
            **teacher_forcing([sample.codes for sample in samples], pasts),
            **self._speakers(samples, texts, rng),
        }

    def _windows(self, text: str, sample: Sample, offsets: torch.Tensor) -> torch.Tensor:
        """token_windows (N, 2) of a padded row; unbounded for a dropped text."""
        if not text:
            return torch.tensor([[-torch.inf, torch.inf]]).expand(len(offsets), 2)
        return torch.from_numpy(token_windows(text, sample.words, offsets.tolist(), self.frame_rate))

    def _speakers(self, samples: Sequence[Sample], texts: list[str], rng: random.Random) -> dict[str, torch.Tensor]:
        """speaker_codes and their mask. A row without text gets no speaker either, as the unconditional rows of
        guidance."""
        if samples[0].speaker_codes is None:
            return {}
        codes = pad_sequence([sample.speaker_codes for sample in samples], batch_first=True, padding_value=-1)
        kept = torch.tensor([[rng.random() >= self.speaker_dropout and text != ""] for text in texts])
        mask = (codes[..., 0] >= 0) & kept
        return {"speaker_codes": codes.clamp(min=0), "speaker_attention_mask": mask.long()}
