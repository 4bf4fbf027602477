"""Trains a checkpoint's codec to speak as its voice converter does, at the cost of the codec alone.

  python -m smalle.train.conversion.decoder CHECKPOINT PLAN.jsonl CORPUS ... --output OUT [--minutes 40]

The speech of the converter sounds more natural than that of the codec that it converts, also in the voice that it
converts. The model reads texts of PLAN (smalle.corpus.texts) in its default voice. The converter turns the speech into
that of the same voice, and a new refiner learns to make the same latents of the codes. From recordings of CORPUS it
learns to make of their codes their own latents, so that it decodes other voices, too. OUT is the checkpoint's codec,
with the same codebooks, with this refiner and with the converter's Vocos. The command resumes when it is run again.
"""

import copy
import random
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from tqdm import tqdm

from smalle import SmallEForTextToSpeech, SmallEProcessor
from smalle.cli.command import command_parser, run_command
from smalle.codec_smalle import FrameNetwork, LatentRefiner, SmallECodec, SmallECodecConfig
from smalle.voices_smalle import VoiceConverter

from ..assemble import save_half
from ..codec.data import list_clips
from ..codec.recipe import StageOptions
from ..data.audio import Problem, QualityGate
from ..data.corpora import read_json_lines
from ..data.prepare import read_ahead
from .assemble import source_frames
from .converter import CHANNEL, SPEAKER_SIZE, Adversary
from .source import LONGEST
from .stage import ConversionStage, kl_divergence, run_stage

FRAMES = 100  # of the codec, of a sample
CONVERTED_SHARE = 0.6  # of the samples
CHANGE_WEIGHT, LATENT_WEIGHT, SOUNDS_WEIGHT, ADVERSARIAL_WEIGHT, MATCHING_WEIGHT = 0.5, 0.3, 0.5, 0.1, 1.0
ADVERSARIAL_STEPS = 1500  # until the discriminator counts in full
LAYERS = 6  # of the refiner

# codes (Q, T), the latents (D, T) that they should become, and log-mel frames (T, F) of the same sounds; both as half
Example = tuple[Tensor, Tensor, Tensor]


def own_conversion(converter: VoiceConverter, waveform: Tensor) -> dict[str, Tensor]:
    """The conversion, not tuned, to the voice itself that is converted, of its speech (L,)."""
    recording = converter.analyze_recording(waveform)
    return {"condition": recording.condition[0], "pitch": recording.pitch, "converter": converter.signature()}


@torch.no_grad()
def converted_latents(converter: VoiceConverter, mel: Tensor, network: FrameNetwork, pitch: Tensor) -> Tensor:
    """Latents (1, D, T) that a converter makes of log-mel frames (1, T, F) of the voice that it converts, with the
    network and the pitch of a conversion."""
    content, f0 = converter.source_content(mel)
    inputs = converter.inputs(content, converter.move_pitch(f0, pitch))
    return network.apply_blocks(inputs)[0] * converter.latent_scale[:, None]


@torch.no_grad()
def converted_examples(
    processor: SmallEProcessor, model: SmallEForTextToSpeech, texts: Sequence[str], batch_size: int = 8
) -> Iterator[Example]:
    """Examples of texts that the model reads in its default voice."""
    converter, target = processor.converter, None
    for first in range(0, len(texts), batch_size):
        inputs = processor(list(texts[first : first + batch_size]), return_tensors="pt", padding=True)
        output: Any = model.generate(**inputs, return_dict_in_generate=True, seed=first)
        waves = processor.decode(output.sequences)
        if target is None:
            conversion = own_conversion(converter, torch.cat(waves).float())
            target = converter.network_of(conversion), conversion["pitch"]
        for codes, wave in zip(output.sequences, waves):
            mel = source_frames(converter, wave)
            latents = converted_latents(converter, mel, *target)
            yield codes[: mel.shape[1]].T, latents[0].half(), mel[0].half()


@torch.no_grad()
def recorded_examples(processor: SmallEProcessor, corpora: Sequence[str]) -> Iterator[Example]:
    """Examples of recordings, in a random order."""
    codec, converter, gate = processor.codec, processor.converter, QualityGate()
    clips = list_clips(corpora)
    random.Random(0).shuffle(clips)
    for _, read in read_ahead(clips, codec.sampling_rate, 1):
        waveform = None if isinstance(read, Problem) else gate(read)
        if waveform is None:
            continue
        samples = torch.from_numpy(waveform.astype(np.float32))
        samples = samples[: len(samples) // codec.hop_length * codec.hop_length]
        mel = converter.recording_mel(samples)
        yield codec.encode(samples[None])[0], converter.analysis.project(mel)[0].half(), mel[0].half()


def take(examples: Iterator[Example], hours: float, frame_rate: float, name: str) -> list[Example]:
    """The first examples that are long enough, up to `hours`. Raises ValueError if there are none."""
    found, total = [], 0.0
    with tqdm(total=hours, desc=name, unit="h", mininterval=2) as bar:
        for codes, latents, mel in examples:
            if codes.shape[1] >= FRAMES:
                found.append((codes.to(torch.int16), latents, mel))
                total += codes.shape[1] / frame_rate / 3600
                bar.update(codes.shape[1] / frame_rate / 3600)
            if total >= hours:
                break
    if not found:
        raise ValueError(
            f"no {name} speech of {FRAMES / frame_rate:g} s or more: expected longer texts and recordings."
        )
    return found


class DecoderStage(ConversionStage):
    """Trains a refiner: L1 of frames, of their changes and of latents, a discriminator, and what the converter's
    encoder hears (Kullback-Leibler divergence from what it hears in frames of the same sounds)."""

    betas = (0.8, 0.98)

    def __init__(
        self,
        codec: SmallECodec,
        converter: VoiceConverter,
        converted: Sequence[Example],
        recorded: Sequence[Example],
        options: StageOptions,
    ):
        kept = {name: getattr(codec.config, name) for name in SmallECodecConfig.__annotations__}
        layers = {"refiner_num_layers": LAYERS, "vocos_num_layers": converter.codec_config.vocos_num_layers}
        self.codec = SmallECodec(SmallECodecConfig(**{**kept, **layers})).eval().requires_grad_(False)
        for part, source in (("analysis", codec), ("quantizer", codec), ("vocos", converter)):
            getattr(self.codec, part).load_state_dict(getattr(source, part).state_dict())
        assert self.codec.refiner is not None
        self.refiner: LatentRefiner = self.codec.refiner
        super().__init__(converter, nn.ModuleDict({"refiner": self.refiner}), options)
        self.converted, self.recorded = converted, recorded
        self.adversary = Adversary(converter.analysis)
        self.saved |= self.adversary.saved
        with torch.no_grad():
            codes, latents, _ = self.samples(np.random.default_rng(0), 200, 200)
            quantized = codec.quantizer.decode(codes)
            for scale, values in (("latent_scale", quantized), ("rest_scale", latents - quantized)):
                getattr(self.refiner, scale).copy_(values.transpose(0, 1).flatten(1).std(1))
            self.latent_size = latents.transpose(0, 1).flatten(1).std(1)[:, None]

    def samples(self, random: np.random.Generator, count: int, converted: int) -> tuple[Tensor, Tensor, Tensor]:
        """Codes (B, Q, T), latents (B, D, T) and frames (B, T, F) of parts of examples, the first `converted` of them
        of conversions."""
        parts = []
        for number in range(count):
            rows = self.converted if number < converted else self.recorded
            codes, latents, mel = rows[int(random.integers(len(rows)))]
            start = int(random.integers(codes.shape[1] - FRAMES + 1))
            part = slice(start, start + FRAMES)
            parts.append((codes[:, part].long(), latents[:, part].float(), mel[part].float()))
        codes, latents, frames = (torch.stack(values) for values in zip(*parts))
        return codes, latents, frames

    def step(self, step: int, progress: float) -> dict[str, Tensor]:
        count = self.options.batch_size
        converted = round(CONVERTED_SHARE * count)
        codes, meant, spoken = self.samples(self.begin(step), count, converted)
        quantized, restore = self.codec.quantizer.decode(codes), self.converter.analysis.restore
        with torch.autocast("cpu", torch.bfloat16):
            rest, _ = self.refiner.rest(quantized)
        latents = quantized + rest.float() * self.refiner.rest_scale[:, None]
        frames, wanted = restore(latents), restore(meant)
        distance = (frames - wanted).abs().mean()
        change = (frames.diff(dim=1) - wanted.diff(dim=1)).abs().mean()
        gap = ((latents - meant) / self.latent_size).abs().mean()
        sounds = self.sounds(frames, spoken)
        kinds = torch.zeros(count, SPEAKER_SIZE + CHANNEL)
        kinds[:converted, 0] = 1
        deceit, matching = self.adversary.compete(frames, wanted, kinds)
        weight = min(1.0, step / ADVERSARIAL_STEPS)
        loss = distance + CHANGE_WEIGHT * change + LATENT_WEIGHT * gap + SOUNDS_WEIGHT * sounds
        loss = loss + weight * (ADVERSARIAL_WEIGHT * deceit + MATCHING_WEIGHT * matching)
        self.update(loss, step, progress)
        return {"l1": distance, "change": change, "sounds": sounds, "adversarial": deceit, "matching": matching}

    def sounds(self, frames: Tensor, spoken: Tensor) -> Tensor:
        """How much the converter's encoder hears other sounds in frames (B, T, F) than in those of the speech."""
        with torch.autocast("cpu", torch.bfloat16):
            heard = self.converter.heard_classes(frames)
            with torch.no_grad():
                meant = self.converter.heard_classes(spoken)
        return kl_divergence(heard, meant)

    def save(self, folder: Path) -> None:
        """Writes the codec, in half precision, with the averaged weights."""
        with self.average.applied():
            save_half(copy.deepcopy(self.codec), folder)


def train(checkpoint: str, plan: Path, corpora: Sequence[str], hours: float, options: StageOptions) -> None:
    """Trains the codec of a checkpoint, or goes on with it; hours: of speech of either kind."""
    torch.manual_seed(0)
    processor = SmallEProcessor.from_pretrained(checkpoint)
    model = SmallEForTextToSpeech.from_pretrained(checkpoint).eval()
    texts = [row["text"] for row in read_json_lines(plan) if len(row["text"]) <= LONGEST]
    rate = processor.codec.frame_rate
    recorded = take(recorded_examples(processor, corpora), hours, rate, "recorded")
    converted = take(converted_examples(processor, model, texts), hours, rate, "converted")
    stage = DecoderStage(processor.codec, processor.converter, converted, recorded, options)
    run_stage(stage, options, {"stage": "decoder", "codec": checkpoint}, FRAMES)


def main(argv: Sequence[str] | None = None) -> None:
    """Runs the command."""
    parser = command_parser("python -m smalle.train.conversion.decoder", __doc__)
    parser.add_argument("checkpoint", help="folder of the checkpoint")
    parser.add_argument("plan", type=Path, help="rows with text, as python -m smalle.corpus.texts writes them")
    parser.add_argument("corpora", nargs="+", help="recordings of other voices")
    parser.add_argument("--output", required=True, help="folder of the codec to write")
    parser.add_argument("--hours", type=float, default=4, help="of speech of either kind (default: %(default)s)")
    parser.add_argument("--minutes", type=float, default=40, help="training time (default: %(default)s)")
    arguments = parser.parse_args(argv)
    options = StageOptions(arguments.output, arguments.minutes, 24, 1.5e-3, 100, 0.998, checkpoint_seconds=240)
    train(arguments.checkpoint, arguments.plan, arguments.corpora, arguments.hours, options)


if __name__ == "__main__":
    sys.exit(run_command("decoder", main))
