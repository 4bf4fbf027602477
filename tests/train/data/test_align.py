"""Times of words from where a model reads."""

import types

import numpy as np
import pyarrow.parquet
import pytest
import torch
from smalle.train.data.batching import Collator
from smalle.train.data.dataset import Sample
from smalle.train.data.prepare import write_codes
from smalle.train.model.losses import forced_alignments

from smalle import SmallEConfig, SmallEForTextToSpeech
from train.data import align

WORDS = {"A few words here.": [[0.1, 0.2], [0.2, 0.6], [0.8, 1.3], [1.3, 1.8]], "Two more.": [[0.0, 0.5], [0.7, 1.2]]}


def sample(text, seconds=2.0):
    return Sample(text, torch.zeros(round(seconds * 50), 3).long(), np.array(WORDS[text], np.float32))


def test_a_perfect_alignment_gives_the_times_of_words(tiny_tokenizer):
    collator = Collator(tiny_tokenizer, 3, 50.0)

    class Reader:
        config = types.SimpleNamespace(num_codebooks=3, frame_rate=50.0)

        def __call__(self, decoder_input_ids, **inputs):
            windows = collator([sample(text) for text in WORDS])["token_windows"]
            return types.SimpleNamespace(attentions=[None, forced_alignments(windows, decoder_input_ids.shape[1])])

    times = align.find_times(Reader(), collator, [sample(text) for text in WORDS])
    for found, known in zip(times, WORDS.values()):
        assert found[:, 0] == pytest.approx(np.array(known)[:, 0], abs=0.12)  # a pause is read with the word before
        assert (np.diff(found.ravel()) >= 0).all()


def test_known_times_stay_and_missing_ones_are_found(tiny_tokenizer, tmp_path, capsys):
    config = SmallEConfig(
        vocab_size=len(tiny_tokenizer),
        hidden_size=32,
        intermediate_size=48,
        text_layers=1,
        num_attention_heads=2,
        audio_encoder_layers=1,
        audio_decoder_layers=1,
        mixer_heads=2,
        num_codebooks=3,
        codebook_size=24,
        frame_rate=50.0,
    )
    SmallEForTextToSpeech(config).save_pretrained(tmp_path / "model")
    tiny_tokenizer.save_pretrained(tmp_path / "model")
    rows = [
        {
            "text": text,
            "speaker": "a",
            "duration": 2.0,
            "codes": np.zeros(300, np.uint16),
            "words": np.ravel(WORDS[text]).tolist() if n else [],
        }
        for n, text in enumerate(WORDS)
    ]
    before, after = tmp_path / "codes.parquet", tmp_path / "timed.parquet"
    for n, row in enumerate(rows):
        write_codes([row], tmp_path / f"codes-{n:05d}.parquet")  # as smalle.train.data.prepare leaves them
    align.main([str(tmp_path / "model"), str(before), str(after)])
    found, known = pyarrow.parquet.read_table(after)["words"].to_pylist()
    assert known == pytest.approx(rows[1]["words"]) and len(found) == 2 * 4
    assert (np.diff(found) >= 0).all() and 0 <= found[0] and found[-1] <= 2.0
    assert "known times" in capsys.readouterr().out
