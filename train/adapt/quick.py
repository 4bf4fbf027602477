"""Prepares a voice from one recording, without its transcript, in about 15 seconds on one core.

  python -m smalle.train.adapt.quick RECORDING BASE OUT [--name NAME]

BASE is a checkpoint with a speaker encoder and a codec with a refiner; OUT is the folder of the new checkpoint, whose
default voice is the new one. The audio side of the model is tuned to go on with the recording without any text, and a
part of the change of the weights is kept. The codec's refiner is tuned to the recording, too. `smalle clone` takes two
minutes and the transcript. Use a voice only with the consent of its owner.
"""

import random
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from smalle import SmallEForTextToSpeech, SmallEProcessor
from smalle.checkpoint import find_checkpoint
from smalle.cli.command import command_parser, run_command
from smalle.codec_smalle import SmallECodec
from smalle.configuration_smalle import AUDIO_EOS
from smalle.modeling_smalle import IGNORED, cross_entropy
from smalle.processing_smalle import teacher_forcing
from smalle.saving_smalle import atomic_folder
from smalle.voices_smalle import Voice

from ..model.augmentation import augment
from ..model.recipe import Objective
from .finetune import Adapter, adapt, write_checkpoint

CODEBOOK_WEIGHTS = 0.7  # of each codebook, relative to the one before
REFERENCE_FRAMES = 300  # for the speaker encoder
KEPT = 0.6  # of the change of the weights: with all of it a model reads worse
PAST = Objective(audio_dropout=0.15, span_replacement=0.15)


def draw_parts(codes: Tensor, frames: int, rng: random.Random) -> list[Tensor]:
    """Random parts of a recording (T, Q), of one to five seconds each, `frames` in all."""
    parts: list[Tensor] = []
    while sum(map(len, parts)) < frames:
        length = rng.randint(min(len(codes), 60), min(len(codes), 250))
        begin = rng.randint(0, len(codes) - length)
        parts.append(codes[begin : begin + length])
    return parts


def tune_model(
    model: SmallEForTextToSpeech,
    tokenizer: Any,
    codes: Tensor,
    steps: int = 40,
    frames: int = 600,
    learning_rate: float = 5e-4,
    seed: int = 0,
) -> list[float]:
    """Tunes a model, in place, to go on with a recording (T, Q) without text. Returns the loss of each step."""
    rng, losses = random.Random(seed), []
    torch.manual_seed(seed)
    adapt(model, Adapter("full"))
    tuned = [parameter for parameter in model.parameters() if parameter.requires_grad]
    before = [parameter.detach().clone() for parameter in tuned]
    optimizer = torch.optim.AdamW(tuned, learning_rate, betas=(0.9, 0.95), weight_decay=0.0)
    weights = CODEBOOK_WEIGHTS ** torch.arange(codes.shape[1])
    model.train()
    for step in range(steps):
        batch: dict[str, Tensor] = teacher_forcing(parts := draw_parts(codes, frames, rng))
        labels = batch.pop("labels")
        labels = labels.masked_fill(labels == AUDIO_EOS, IGNORED)  # a part's end is no end of speech
        batch["decoder_input_ids"] = augment(batch["decoder_input_ids"], PAST)
        batch["speaker_codes"] = codes[None, :REFERENCE_FRAMES].expand(len(parts), -1, -1)
        with torch.autocast("cpu", torch.bfloat16):
            logits = model(**tokenizer([""] * len(parts), return_tensors="pt"), **batch).logits
        means = cross_entropy(logits, labels).sum((0, 1)) / (labels != -100).sum((0, 1)).clamp(min=1)
        loss = (means * weights).sum() / weights.sum()
        optimizer.param_groups[0]["lr"] = learning_rate * min(1.0, (step + 1) / 5)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(tuned, 1.0)
        optimizer.step()
        losses.append(float(loss.detach()))
    with torch.no_grad():
        for parameter, old in zip(tuned, before):
            parameter.copy_(torch.lerp(old, parameter, KEPT))
    model.eval().requires_grad_(True)
    return losses


def tune_refiner(
    codec: SmallECodec, waveform: Tensor, steps: int = 60, learning_rate: float = 1e-3, seed: int = 0
) -> list[float]:
    """Tunes a codec's refiner, in place, to a recording (L,). Returns the loss of each step."""
    generator, losses = torch.Generator().manual_seed(seed), []
    refiner: Any = codec.refiner
    with torch.no_grad():
        latents = codec.analysis(waveform[None, : len(waveform) // codec.hop_length * codec.hop_length])
        quantized = codec.quantizer.decode(codec.quantizer.encode(latents))
    size = min(60, latents.shape[2])
    optimizer = torch.optim.AdamW(refiner.parameters(), learning_rate, betas=(0.9, 0.98), weight_decay=0.01)
    for step in range(steps):
        starts = torch.randint(latents.shape[2] - size + 1, (12,), generator=generator).tolist()
        wanted, given = (torch.cat([x[..., n : n + size] for n in starts]) for x in (latents, quantized))
        error = (wanted - given) / refiner.rest_scale[:, None]
        loss = F.mse_loss(refiner.rest(given)[0], error)
        optimizer.param_groups[0]["lr"] = learning_rate * min(1.0, (step + 1) / 10)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    return losses


def prepare_voice(recording: str | Path, base: str, out: str | Path, name: str) -> None:
    """Writes the checkpoint OUT with the voice `name` of a recording; see the module's description.

    Raises ValueError where OUT exists, and for what is no recording of speech.
    """
    if Path(out).exists():
        raise ValueError(f"{out} exists: name a new folder, or delete it.")
    processor = SmallEProcessor.from_pretrained(base)
    codec = processor.codec
    if getattr(codec, "refiner", None) is None:
        raise ValueError(f"{base}: expected a checkpoint whose codec has a refiner.")
    waveform = torch.from_numpy(processor.clean_recording(str(recording)))
    codes = codec.encode(waveform[None])[0].T
    model = SmallEForTextToSpeech.from_pretrained(base, dtype=torch.float32)
    tune_model(model, processor.tokenizer, codes)
    tune_refiner(codec, waveform)
    voice = Voice(codes[:REFERENCE_FRAMES], codec=codec.identity)
    with tempfile.TemporaryDirectory() as tuned, atomic_folder(out) as folder:
        codec.save_pretrained(tuned)
        write_checkpoint(model, voice, name, base, folder, tuned, weights_changed=True)


def main(argv: Sequence[str] | None = None) -> None:
    """Runs the command."""
    parser = command_parser("python -m smalle.train.adapt.quick", __doc__)
    parser.add_argument("recording", help="sound file of 5 to 10 seconds")
    parser.add_argument("base", type=find_checkpoint, help="checkpoint: folder, Hub name or smalle-mini")
    parser.add_argument("out", help="folder of the new checkpoint")
    parser.add_argument("--name", help="name of the voice (default: the name of the folder OUT)")
    arguments = parser.parse_args(argv)
    name = arguments.name or Path(arguments.out).resolve().name
    prepare_voice(arguments.recording, arguments.base, arguments.out, name)
    print(f"{arguments.out} speaks: smalle say TEXT --model {arguments.out}")


if __name__ == "__main__":
    sys.exit(run_command("quick", main))
