"""Samples of a training run: recordings, pictures of alignments, scores."""

import io
import json
import types

import numpy as np
import pytest
import torch
from smalle.train.data.dataset import CodesDataset
from smalle.train.data.prepare import write_codes
from smalle.train.evaluation.report import alignment_picture, png
from smalle.train.model import audio_samples as samples
from smalle.train.model.recipe import SampleOptions

from smalle import SmallEConfig, SmallEForTextToSpeech

SCORER = """
import argparse, json, pathlib
p = argparse.ArgumentParser(); p.add_argument("manifest"); p.add_argument("--out"); p.add_argument("--threads")
a = p.parse_args()
rows = [json.loads(line) for line in pathlib.Path(a.manifest).read_text().splitlines()]
assert all((pathlib.Path(a.manifest).parent / row[key]).is_file() for row in rows for key in ("audio", "reference"))
pathlib.Path(a.out).write_text(json.dumps({"summary": {"wer": 50.0, "skips": 1, "repeats": 2}, "rows": rows}))
"""


def test_a_picture_shows_the_text_upwards_and_time_to_the_right():
    alignment = np.zeros((30, 7))
    alignment[:, 0] = 0.2
    alignment[25:, 6] = 1.0
    picture = alignment_picture(alignment, 90, 40)
    height, width, _ = picture.shape
    assert width >= 90 and height >= 40 and width % 30 == 0 and height % 7 == 0
    assert (picture[0, :-20] == 255).all() and (picture[0, -1] < 150).all()  # the last token, late
    assert (picture[-1] < 250).all() and (picture[-1] > picture[0, -1]).all()  # the first one, always, but faintly
    image = pytest.importorskip("PIL.Image")
    assert np.array_equal(np.asarray(image.open(io.BytesIO(png(picture)))), picture)


@pytest.fixture(params=[0, 4], ids=["", "with speaker encoder"])
def data(request, tmp_path):
    """Evaluation data: two speakers with two utterances each, one with one."""
    random = np.random.default_rng(0)
    rows = [
        {
            "text": text,
            "speaker": speaker,
            "duration": 0.4,
            "words": [],
            "codes": random.integers(0, 20, 60).astype(np.uint16),
        }
        for text, speaker in (("Fox.", "a"), ("Box.", "b"), ("The fox.", "a"), ("A box!", "b"), ("Dog.", "c"))
    ]
    return CodesDataset(write_codes(rows, tmp_path / "eval.parquet"), 3, 50.0, speaker_frames=request.param)


@pytest.mark.parametrize("architecture", ["small-e", "decoder-only"])
def test_samples_are_synthesized_scored_and_logged(
    data, architecture, tiny_codec, tiny_tokenizer, tmp_path, monkeypatch
):
    tiny_codec.save_pretrained(tmp_path / "codec")
    (tmp_path / "scorer.py").write_text(SCORER)
    monkeypatch.setattr(samples, "MAX_SECONDS", 1)
    options = SampleOptions(str(tmp_path / "codec"), scorer=str(tmp_path / "scorer.py"))
    callback = samples.AudioSamples(data, tiny_tokenizer, str(tmp_path / "out"), options)
    assert sorted(callback.pairs) == [[0, 2], [1, 3]]
    state = types.SimpleNamespace(is_world_process_zero=True, global_step=7, log_history=[])
    model = SmallEForTextToSpeech(
        SmallEConfig(
            vocab_size=64,
            hidden_size=32,
            intermediate_size=48,
            text_layers=1,
            num_attention_heads=2,
            mixer_heads=2,
            audio_encoder_layers=1,
            audio_decoder_layers=1,
            position_size=16,
            num_codebooks=3,
            codebook_size=20,
            frame_rate=50.0,
            architecture=architecture,
        )
    ).eval()
    before = torch.get_rng_state()
    callback.on_evaluate(None, state, None, model=model)
    assert torch.equal(before, torch.get_rng_state())  # the run continues as without samples
    folder = tmp_path / "out" / "samples" / "7"
    reads = architecture != "decoder-only"
    names = {path.name for path in folder.iterdir()}
    assert {"0001.wav", "0002.wav", "reference-0001.wav", "manifest.jsonl", "report.json"} <= names
    assert ("0001.png" in names) == reads
    (row,) = state.log_history
    assert (row["step"], row["samples_wer"], row["samples_skips"], row["samples_repeats"]) == (7, 50.0, 1, 2)
    assert ("samples_monotonicity" in row) == reads
    texts = [json.loads(line)["text"] for line in (folder / "manifest.jsonl").read_text().splitlines()]
    assert texts == ["The fox.", "A box!"]
    board = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    events = board.EventAccumulator(str(tmp_path / "out" / "runs" / "samples"))
    events.Reload()
    tags = events.Tags()
    assert tags["audio"] == ["0001", "0002"] and tags["images"] == (["0001", "0002"] if reads else [])
    assert "samples/skips" in tags["scalars"]


def test_data_without_two_utterances_of_a_speaker_are_refused(data, tiny_tokenizer, tmp_path, monkeypatch):
    monkeypatch.setattr(samples, "MAX_SECONDS", 0.1)
    with pytest.raises(ValueError, match="no speaker of data.eval"):
        samples.AudioSamples(data, tiny_tokenizer, str(tmp_path), SampleOptions("codec"))
