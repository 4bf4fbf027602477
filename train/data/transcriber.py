"""Transcribes recordings with a speech recognizer of transformers."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import soxr


class Transcriber:
    """A speech recognizer: a folder or Hub name. The paper used jbetker/wav2vec2-large-robust-ft-libritts-voxpopuli."""

    def __init__(self, name: str, device: str = "cpu", batch_size: int = 8):
        from transformers import pipeline

        make_pipeline: Any = pipeline  # its pipelines are annotated for one recording
        self.recognize = make_pipeline("automatic-speech-recognition", name, device=device)
        self.batch_size = batch_size
        self.sampling_rate = self.recognize.feature_extractor.sampling_rate

    def __call__(self, waves: Sequence[np.ndarray], sampling_rate: int) -> list[str]:
        """The transcripts of waveforms float32 (L,); "" if nothing was recognized."""
        inputs = [
            {"raw": soxr.resample(wave, sampling_rate, self.sampling_rate), "sampling_rate": self.sampling_rate}
            for wave in waves
        ]
        return [" ".join(result["text"].split()) for result in self.recognize(inputs, batch_size=self.batch_size)]
