"""Where the voices lie that a model learned."""

import json

import numpy as np
import pytest
import torch
from smalle.train.data.prepare import write_codes
from smalle.train.speaker_limits import find_limits, main

from smalle import SmallEConfig, SmallEForTextToSpeech


def recordings(count, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randint(20, (12, 3), generator=generator) for _ in range(count)]


def tiny():
    torch.manual_seed(0)
    config = SmallEConfig(
        vocab_size=32, hidden_size=32, intermediate_size=48, text_layers=1, num_attention_heads=2, mixer_heads=2,
        audio_encoder_layers=1, audio_decoder_layers=1, num_codebooks=3, codebook_size=20, speaker_layers=1,
    )  # fmt: skip
    return SmallEForTextToSpeech(config).eval()


def test_most_known_speakers_are_within_the_limits():
    model = tiny()
    center, (furthest, typical) = find_limits(model, recordings(20))
    embeddings = torch.stack([model.model.encode_speaker(codes[None])[0] for codes in recordings(20)])
    distances = (embeddings - center).norm(dim=1)
    assert torch.allclose(center, embeddings.mean(0), atol=1e-6)
    assert (distances <= furthest).float().mean() >= 0.9 and 0 < typical < float(distances.median()) + 0.005


def test_the_configuration_gets_them(tmp_path):
    folder = tmp_path / "checkpoint"
    tiny().save_pretrained(folder)
    rows = [
        {
            "text": "a",
            "speaker": f"s{n}",
            "duration": 12 / 50,
            "words": [],
            "codes": codes.numpy().astype(np.uint16).ravel(),
        }
        for n, codes in enumerate(recordings(6))
    ]
    main([str(folder), str(write_codes(rows, tmp_path / "codes.parquet"))])
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    model = SmallEForTextToSpeech.from_pretrained(folder)
    assert model.config.speaker_limits == config["speaker_limits"] and len(config["speaker_center"]) == 32
    far = model.model.encode_speaker(recordings(1)[0][None])
    center = torch.tensor(config["speaker_center"])
    assert float((far - center).norm().detach()) <= max(config["speaker_limits"]) + 1e-3
    assert pytest.approx(center.tolist(), abs=1e-3) == model.config.speaker_center
