"""Writes down what is said in recordings without a transcript, with a speech recognizer of transformers by name."""

import soxr


class Transcriber:
    """A model on the Hub or in a folder; the paper used jbetker/wav2vec2-large-robust-ft-libritts-voxpopuli."""

    def __init__(self, name, device="cpu", batch_size=8):
        from transformers import pipeline

        self.recognize, self.batch_size = pipeline("automatic-speech-recognition", name, device=device), batch_size
        self.sampling_rate = self.recognize.feature_extractor.sampling_rate

    def __call__(self, waves, sampling_rate):
        """Waveforms float32 (L,) -> texts; "" where nothing is heard."""
        inputs = [
            {"raw": soxr.resample(wave, sampling_rate, self.sampling_rate), "sampling_rate": self.sampling_rate}
            for wave in waves
        ]
        return [" ".join(heard["text"].split()) for heard in self.recognize(inputs, batch_size=self.batch_size)]
