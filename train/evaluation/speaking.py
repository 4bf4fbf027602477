"""What smalle.train.evaluation.evaluate has a checkpoint say: batches of texts, clones, texts of any length as a stream."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import soundfile
import torch


@dataclass(frozen=True)
class Utterance:
    """One recording to make: its text, the prompt whose voice it takes, a recording to compare it with."""

    text: str
    audio: Path | None = None
    audio_text: str | None = None
    reference: Path | None = None


@dataclass(frozen=True)
class Speech:
    """What was said: float32 (samples,); whether it was cut off before its end; its alignment (frames, tokens)."""

    wave: np.ndarray
    cut: bool
    alignment: np.ndarray | None = None


def encode(processor, batch: list[Utterance], voice: str | None):
    """The processor's inputs for one batch; a batch of clones holds one utterance."""
    if batch[0].audio is None:
        return processor([u.text for u in batch], return_tensors="pt", **({"voice": voice} if voice else {}))
    (utterance,) = batch
    return processor(utterance.text, **recorded(utterance), return_tensors="pt")


def recorded(utterance: Utterance) -> dict:
    """The recording that an utterance is to sound like, as the processor takes it."""
    wave, sampling_rate = soundfile.read(utterance.audio, dtype="float32", always_2d=True)
    return {"audio": wave.mean(axis=1), "audio_text": utterance.audio_text, "sampling_rate": sampling_rate}


@torch.no_grad()
def speak(processor, model, inputs, **options) -> list[Speech]:
    """One speech at `processor.sampling_rate` for each row; no alignments of a model that has no map of the text."""
    config = getattr(model, "config", None)
    if getattr(config, "has_alignment", False):
        options["output_alignments"] = True
    try:
        output = model.generate(**inputs.to(model.device), return_dict_in_generate=True, **options)
    except ValueError as error:  # a fault of the model's, to be seen with its traceback
        raise RuntimeError(f"generation failed: {error}") from error
    # Each row alone and cut to its length: padding never reaches the codec.
    lengths = output.lengths.tolist()
    waves = [processor.decode(codes[None, :length])[0] for codes, length in zip(output.sequences, lengths, strict=True)]
    maps = [None] * len(waves)
    if "output_alignments" in options:
        rows = zip(output.alignments, lengths, inputs["attention_mask"].bool().to(output.lengths.device))
        maps = [rows_map[:length][:, mask].float().cpu().numpy() for rows_map, length, mask in rows]
    return [Speech(*row) for row in zip(waves, were_cut(output), maps, strict=True)]


def were_cut(output) -> list[bool]:
    """Of each row of what generate() gave whether it was still speaking."""
    return (output.cache.remaining < 0).tolist()


class Watched:
    """A model for `processor.stream`; `cut` says of each piece that it spoke whether it was still speaking."""

    def __init__(self, model):
        self.model, self.cut = model, []

    def __getattr__(self, name):
        return getattr(self.model, name)

    def stream(self, **call):
        for output in self.model.stream(**call):
            yield output
        self.cut += were_cut(output)

    def generate(self, **call):
        output = self.model.generate(**call)
        self.cut += were_cut(output)
        return output


def stream(processor, model, utterance: Utterance, voice: str | None, seed: int, **options) -> Speech:
    """The speech of a text of any length."""
    watched = Watched(model)
    sound = recorded(utterance) if utterance.audio else {"voice": voice}
    waves = list(processor.stream(watched, utterance.text, seed=seed, **sound, **options))
    return Speech(torch.cat(waves).numpy(), any(watched.cut))
