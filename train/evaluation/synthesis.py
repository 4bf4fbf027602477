"""Synthesizes a list of utterances with a checkpoint into a folder of recordings."""

import json
import os
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
import torch
from tqdm import tqdm
from transformers import BatchFeature

from smalle.audio_smalle import write_wav
from smalle.saving_smalle import write_json

from .report import alignment_picture, png

Processor = Any  # SmallEProcessor and SmallEForTextToSpeech, from the code of the checkpoint
Model = Any


@dataclass(frozen=True)
class Settings:
    """Everything that determines the result of an evaluation.

    Attributes:
        checkpoint: Folder or Hub name.
        texts: File of sentences (`evaluate.read_utterances`).
        voice: Name or file of a voice; None: the checkpoint's default.
        stream: Synthesizes texts one by one with the streaming interface, without pictures of alignments.
        generate: Options of `model.generate`.
    """

    checkpoint: str
    texts: Path
    voice: str | None = None
    seed: int = 0
    batch_size: int = 8
    dtype: str = "float32"
    device: str = "cpu"
    runtime: str = "torch"
    stream: bool = False
    generate: dict = field(default_factory=dict)

    @property
    def name(self) -> str:
        """The name of the folder of the results."""
        parts = [
            Path(self.checkpoint).resolve().name,
            self.texts.stem,
            f"voice-{self.voice or 'default'}",
            f"seed-{self.seed}",
            f"batch-{self.batch_size}",
            self.dtype,
            self.device,
            self.runtime,
        ]
        parts += ["stream"] * self.stream
        parts += [f"{key}-{value}" for key, value in sorted(self.generate.items())]
        return "_".join(parts).replace(os.sep, "-")


@dataclass(frozen=True)
class Utterance:
    """A text to synthesize.

    Attributes:
        audio: Recording of the voice to use.
        audio_text: Transcript of that recording.
        reference: Recording of the speaker to compare the result with.
    """

    text: str
    audio: Path | None = None
    audio_text: str | None = None
    reference: Path | None = None


@dataclass(frozen=True)
class Speech:
    """A waveform float32 (L,), whether it was cut off, and its alignment (T, N) if the model has one."""

    wave: np.ndarray
    cut: bool
    alignment: np.ndarray | None = None


def load(settings: Settings) -> tuple[Processor, Model]:
    """Loads a checkpoint with the device, data type and runtime of the settings.

    Raises ValueError if it cannot be loaded or the runtime does not support the device or data type.
    """
    from transformers import AutoModelForTextToWaveform, AutoProcessor

    if settings.device.startswith("cuda") and not torch.cuda.is_available():
        raise ValueError(f"device {settings.device!r} is not available here: use --device cpu")
    if settings.runtime == "native" and (settings.dtype, settings.device) != ("float32", "cpu"):
        raise ValueError(
            f"--runtime native runs in float32 on the CPU, not in {settings.dtype} on {settings.device}: add "
            "--device cpu --dtype float32"
        )
    try:
        processor = AutoProcessor.from_pretrained(settings.checkpoint, trust_remote_code=True)
        model = AutoModelForTextToWaveform.from_pretrained(
            settings.checkpoint, trust_remote_code=True, dtype=getattr(torch, settings.dtype)
        )
    except OSError as error:
        raise ValueError(f"checkpoint {settings.checkpoint!r} cannot be loaded: {error}") from error
    model = model.to(settings.device).eval()
    model.step_runtime = settings.runtime
    return processor, model


def voice_arguments(utterance: Utterance, voice: str | None) -> dict:
    """The processor's arguments for the voice of an utterance: a recording, or the name of a voice."""
    if utterance.audio is None:
        return {"voice": voice} if voice else {}
    wave, sampling_rate = soundfile.read(utterance.audio, dtype="float32", always_2d=True)
    return {"audio": wave.mean(axis=1), "audio_text": utterance.audio_text, "sampling_rate": sampling_rate}


def encode(processor: Processor, batch: list[Utterance], voice: str | None) -> BatchFeature:
    """The model's inputs for a batch; a voice from a recording allows only one utterance."""
    texts = batch[0].text if batch[0].audio else [utterance.text for utterance in batch]
    return processor(texts, return_tensors="pt", **voice_arguments(batch[0], voice))


@torch.no_grad()
def synthesize(
    processor: Processor, model: Model, inputs: BatchFeature, voice: str | None = None, **options
) -> list[Speech]:
    """Generates the speech of each row. voice: of all rows, for `decode`; `options`: of `model.generate`."""
    aligned = getattr(model.config, "has_alignment", False)
    options |= {"output_alignments": True} if aligned else {}
    try:
        output = model.generate(**inputs.to(model.device), return_dict_in_generate=True, **options)
    except ValueError as error:  # not an error of the user: keep the traceback
        raise RuntimeError(f"generation failed: {error}") from error
    # Decodes rows one by one at their own lengths, so that the codec sees no padding.
    lengths = output.lengths.tolist()
    rows = [codes[None, :length] for codes, length in zip(output.sequences, lengths, strict=True)]
    speaker = {"voice": voice} if voice else {}
    waves = [processor.decode(codes, **speaker)[0] for codes in rows]
    alignments: list[np.ndarray | None] = [None] * len(waves)
    if aligned:
        aligned_rows = zip(output.alignments, lengths, inputs["attention_mask"].bool().to(output.lengths.device))
        alignments = [row[:length][:, mask].float().cpu().numpy() for row, length, mask in aligned_rows]
    return [Speech(*row) for row in zip(waves, were_cut(output), alignments, strict=True)]


def were_cut(output) -> list[bool]:
    """For each row of the output of `generate`, whether it was stopped before the model ended it."""
    return [reason not in ("stop", "skipped", "incomplete", None) for reason in output.finish_reason]


class CutRecorder:
    """A model for the streaming interface, which records in `cut` for each piece whether it was cut off."""

    def __init__(self, model: Model):
        self.model = model
        self.cut: list[bool] = []

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


def stream(processor: Processor, model: Model, utterance: Utterance, voice: str | None, seed: int, **options) -> Speech:
    """Synthesizes a text of any length with the streaming interface."""
    recorder = CutRecorder(model)
    waves = processor.stream(recorder, utterance.text, seed=seed, **voice_arguments(utterance, voice), **options)
    return Speech(torch.cat(list(waves)).numpy(), any(recorder.cut))


def wave_path(folder: Path, index: int) -> Path:
    """The recording of an utterance."""
    return folder / f"{index + 1:04d}.wav"


def missing_batches(folder: Path, utterances: list[Utterance], size: int) -> list[list[int]]:
    """Indices of the batches with missing recordings.

    Texts of similar length share a batch. The batches do not depend on the content of the folder, so that a resumed run
    draws the same random numbers.
    """
    order = sorted(range(len(utterances)), key=lambda i: (len(utterances[i].text), i))
    batches = [order[start : start + size] for start in range(0, len(order), size)]
    return [batch for batch in batches if not all(wave_path(folder, i).is_file() for i in batch)]


def make_recordings(settings: Settings, utterances: list[Utterance], folder: Path) -> dict | None:
    """Synthesizes the missing recordings of a folder.

    Returns:
        {"audio_seconds", "work_seconds", "speed"}, or None if nothing was missing. Work is generation and decoding.
        The first batch is a warm-up and counts only if it is the only one.
    """
    batches = missing_batches(folder, utterances, settings.batch_size)
    if not batches:
        return None
    processor, model = load(settings)
    without_text = sum(u.audio is not None and u.audio_text is None for u in utterances)
    if without_text and not model.config.speaker_layers:
        raise ValueError(
            f"{settings.texts}: {without_text} rows without audio_text: {settings.checkpoint} has no speaker encoder "
            "and needs the transcript of each recording"
        )
    times = []
    with tqdm(total=sum(map(len, batches)), desc="synthesizing", unit="utterance") as bar:
        for batch in batches:
            seed = settings.seed + batch[0]
            if settings.stream:
                torch.manual_seed(seed)
                start = time.perf_counter()
                utterance = utterances[batch[0]]
                speeches = [stream(processor, model, utterance, settings.voice, seed, **settings.generate)]
            else:
                inputs = encode(processor, [utterances[i] for i in batch], settings.voice)
                torch.manual_seed(seed)
                start = time.perf_counter()
                speeches = synthesize(processor, model, inputs, settings.voice, **settings.generate)
            seconds = sum(len(speech.wave) for speech in speeches) / processor.sampling_rate
            times.append((seconds, time.perf_counter() - start))
            save_speeches(folder, dict(zip(batch, speeches, strict=True)), processor.sampling_rate)
            bar.update(len(batch))
    audio, work = np.sum(times[1:] or times, axis=0).tolist()
    return {"audio_seconds": round(audio, 2), "work_seconds": round(work, 2), "speed": round(audio / work, 2)}


def save_speeches(folder: Path, speeches: dict[int, Speech], sampling_rate: int) -> None:
    """Writes missing recordings, pictures of alignments, and cut.json, which says which ones were cut off."""
    new = {index: speech for index, speech in speeches.items() if not wave_path(folder, index).is_file()}
    cut = {wave_path(folder, index).name: speech.cut for index, speech in new.items()}
    write_json(folder / "cut.json", {**read_cut(folder), **cut})
    for index, speech in new.items():
        write_wav(wave_path(folder, index), speech.wave, sampling_rate)
    for index, speech in speeches.items():
        if speech.alignment is not None:
            wave_path(folder, index).with_suffix(".png").write_bytes(png(alignment_picture(speech.alignment)))


def read_cut(folder: Path) -> dict[str, bool]:
    """Whether recordings were cut off, by file name."""
    path = folder / "cut.json"
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
