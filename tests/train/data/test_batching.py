"""Batches: which utterances share one, and what the model gets of them."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from smalle.train.data.batching import Collator, SpeakerBatchSampler
from smalle.train.data.dataset import Sample

from smalle.configuration_smalle import AUDIO_BOS, AUDIO_EOS, AUDIO_PAD, NUM_AUDIO_SPECIALS
from smalle.generation_smalle import delay

LENGTHS = [5, 9, 1]
TEXTS = ["Five frames, a longer text.", "Nine.", "One"]
WORDS = [
    np.array([[0.0, 0.02], [0.02, 0.04], [0.05, 0.06], [0.06, 0.08], [0.08, 0.1]]),
    np.array([[0.02, 0.15]]),
    np.full((1, 2), np.nan),  # unknown times
]
UNBOUNDED = torch.tensor([-torch.inf, torch.inf])


@pytest.fixture
def codes():
    random = torch.Generator().manual_seed(0)
    return [torch.randint(0, 20, (length, 3), generator=random) for length in LENGTHS]


@pytest.fixture
def samples(codes):
    return list(map(Sample, TEXTS, codes, WORDS))


@pytest.fixture
def batch(tiny_tokenizer, samples):
    return Collator(tiny_tokenizer, 3, 50.0)(samples)


def test_labels_are_the_inputs_shifted_by_one(batch):
    ahead, labels = batch["decoder_input_ids"][:, 1:], batch["labels"][:, :-1]
    known = labels != -100
    assert known.sum() > 0 and torch.equal(ahead[known], labels[known])


def test_inputs_are_the_delayed_codes_and_labels_end_with_eos(batch, codes):
    for row, (length, utterance) in enumerate(zip(LENGTHS, codes)):
        steps = length + 3
        assert torch.equal(batch["decoder_input_ids"][row, :steps], delay(utterance))
        assert torch.equal(batch["labels"][row, :length, 0], utterance[:, 0] + NUM_AUDIO_SPECIALS)
        assert (batch["labels"][row, length, 0] == AUDIO_EOS).all()
        assert (batch["labels"][row, steps - 1] == AUDIO_EOS).all()


def test_bos_and_padding_are_no_targets(batch):
    labels = batch["labels"]
    assert not (labels == AUDIO_BOS).any() and not (labels == AUDIO_PAD).any()
    for q in range(3):
        assert (labels[:, :q, q] == -100).all()
    for row, length in enumerate(LENGTHS):
        for q in range(3):
            assert (labels[row, q : length + 3, q] != -100).all()
        assert (labels[row, length + 3 :] == -100).all()
        assert (batch["decoder_input_ids"][row, length + 4 :] == AUDIO_PAD).all()
        assert batch["decoder_attention_mask"][row].tolist() == [1] * (length + 3) + [0] * (max(LENGTHS) - length)


def test_a_row_of_a_batch_equals_the_row_alone(tiny_tokenizer, batch, samples):
    for row, sample in enumerate(samples):
        alone = Collator(tiny_tokenizer, 3, 50.0)([sample])
        for name, value in alone.items():
            assert torch.equal(batch[name][row, : value.shape[1]], value[0]), name
        assert batch["attention_mask"][row].sum() == alone["input_ids"].shape[1]  # text is padded on the right


def test_a_dropped_text_leaves_bos_and_eos(tiny_tokenizer, samples):
    dropped = Collator(tiny_tokenizer, 3, 50.0, text_dropout=1.0)(samples)
    assert dropped["input_ids"].tolist() == [[tiny_tokenizer.bos_token_id, tiny_tokenizer.eos_token_id]] * 3


def test_text_dropout_drops_its_share_and_the_same_of_the_same_batch(tiny_tokenizer, codes):
    collate = Collator(tiny_tokenizer, 3, 50.0, text_dropout=0.3)
    texts = [f"{'a' * (index % 7 + 2)} {'b' * (index // 7 + 2)}" for index in range(140)]
    batches = [[Sample(text, codes[0], np.full((2, 2), np.nan))] * 4 for text in texts]
    kept = [collate(batch)["attention_mask"].sum(1) > 2 for batch in batches]
    assert 0.6 < torch.cat(kept).float().mean() < 0.8
    for batch, first in zip(batches, kept):
        assert torch.equal(collate(batch)["attention_mask"].sum(1) > 2, first)


def test_a_swapped_past_is_read_and_the_own_codes_are_the_labels(tiny_tokenizer, samples):
    collate = Collator(tiny_tokenizer, 3, 50.0)
    pasts = [torch.zeros_like(sample.codes) for sample in samples]
    swapped = collate([sample._replace(past=past) for sample, past in zip(samples, pasts)])
    plain, zeros = collate(samples), collate([sample._replace(codes=past) for sample, past in zip(samples, pasts)])
    assert torch.equal(swapped["labels"], plain["labels"])
    assert torch.equal(swapped["decoder_input_ids"], zeros["decoder_input_ids"])
    assert not torch.equal(swapped["decoder_input_ids"], plain["decoder_input_ids"])


def test_speaker_codes_are_padded_and_dropped_with_their_share_and_with_the_text(tiny_tokenizer):
    samples = [
        Sample(f"{'a' * (n % 5 + 1)} {'b' * n}", torch.zeros(8, 3).long(), np.full((2, 2), np.nan), codes, None)
        for n, codes in enumerate(torch.full((n % 4, 3), n) for n in range(13))
    ]
    batch = Collator(tiny_tokenizer, 3, 50.0)(samples)
    for row, sample in enumerate(samples):
        mask = batch["speaker_attention_mask"][row].bool()
        assert torch.equal(batch["speaker_codes"][row][mask], sample.speaker_codes)
    some = [sample for sample in samples if len(sample.speaker_codes)]
    collate, kept = Collator(tiny_tokenizer, 3, 50.0, speaker_dropout=0.3), []
    for first in range(60):
        drawn = [some[(first * step + step) % len(some)] for step in range(4)]
        kept.append(collate(drawn)["speaker_attention_mask"].any(1))
        assert torch.equal(collate(drawn)["speaker_attention_mask"].any(1), kept[-1])
    assert 0.55 < torch.cat(kept).float().mean() < 0.85
    dropped = Collator(tiny_tokenizer, 3, 50.0, speaker_dropout=1.0)(samples)
    assert not dropped["speaker_attention_mask"].any()
    batch = Collator(tiny_tokenizer, 3, 50.0, text_dropout=0.5)(some)
    speaker, text = batch["speaker_attention_mask"].any(1), batch["attention_mask"].sum(1) > 2
    assert torch.equal(speaker, text) and 0 < text.sum() < len(some)  # guidance leads away from both at once


def test_unknown_times_and_dropped_texts_give_unbounded_windows(tiny_tokenizer, batch, samples):
    assert (batch["token_windows"][2, :2] == UNBOUNDED).all() and batch["token_windows"][0, 1].isfinite().all()
    dropped = Collator(tiny_tokenizer, 3, 50.0, text_dropout=1.0)(samples)
    assert (dropped["token_windows"] == UNBOUNDED).all()


corpora = st.lists(st.tuples(st.integers(1, 300), st.sampled_from("abc")), min_size=1, max_size=60)


@settings(max_examples=60, deadline=None)
@given(corpora, st.integers(0, 9), st.integers(50, 900), st.sampled_from([0.0, 0.35, 1.0]), st.integers(0, 2))
def test_an_epoch_takes_every_utterance_once_within_its_budgets(corpus, seed, budget, single, reserved):
    lengths, speakers = zip(*corpus)
    max_frames = max(lengths)
    sampler = SpeakerBatchSampler(lengths, speakers, budget, max_frames, seed, single, reserved=reserved)
    batches = sampler.epoch(0)
    samples = [sample for batch in batches for sample in batch]
    assert sorted(index for sample in samples for index in sample) == list(range(len(lengths)))
    frames = {sample: sum(lengths[index] for index in sample) for sample in samples}
    for sample in samples:
        assert len({speakers[index] for index in sample}) == 1
        assert frames[sample] <= max_frames and (single < 1 or len(sample) == 1)
        assert len(sample) <= max(1, speakers.count(speakers[sample[0]]) - reserved)
    for batch in batches:
        assert len(batch) == 1 or len(batch) * max(frames[sample] for sample in batch) <= budget


def test_utterances_beyond_the_longest_sample_are_left_out():
    sampler = SpeakerBatchSampler([10, 99, 20], "aba", 100, max_frames=50)
    assert sorted(index for batch in sampler.epoch(0) for sample in batch for index in sample) == [0, 2]
    assert sampler.left_out == 1


def test_a_longest_sample_that_no_utterance_fits_is_refused():
    with pytest.raises(ValueError, match="max_seconds is 50 frames.*shortest of 2 utterances has 60"):
        SpeakerBatchSampler([60, 99], "ab", 100, max_frames=50)


def test_a_seed_fixes_the_batches_and_epochs_differ():
    lengths, speakers = [10 + index % 7 for index in range(60)], [index % 3 for index in range(60)]
    first, again, other = (SpeakerBatchSampler(lengths, speakers, 100, 40, seed) for seed in (1, 1, 2))
    assert first.epoch(0) == again.epoch(0) != other.epoch(0)
    assert first.epoch(0) != first.epoch(1)
    endless = iter(again)
    drawn = [next(endless) for _ in range(len(first.epoch(0)) + len(first.epoch(1)))]
    assert drawn == first.epoch(0) + first.epoch(1)
