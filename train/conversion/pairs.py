"""Makes pairs of a recording and the same text read by one voice: mel frames of both, f0 and phones.

  python -m smalle.train.conversion.pairs CORPUS OUT.safetensors --codec CODEC [--max-hours HOURS] [--min-snr DB]

CORPUS is a corpus with transcripts in any layout that `smalle prepare` reads. The reading voice is hibari's (package
hibari-tts, Apache-2.0). It speaks about 100 times as fast as real time on one core, and reports the time of each phone.
"""

import json
import random
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor
from tqdm import tqdm

from smalle.audio_smalle import to_speech_level
from smalle.cli.command import command_parser, run_command
from smalle.codec_smalle import MelAnalysis, SmallECodec, load_codec
from smalle.saving_smalle import atomic_write

from ..codec.data import list_clips
from ..codec.pitch import find_f0
from ..data.audio import Problem, QualityGate
from ..data.prepare import read_ahead
from .phones import Reading, phone_sequence, phones_at
from .voice import HibariVoice

SECONDS = 1.0, 17.0  # duration of the recordings to use
COLUMNS = "mel", "source", "f0", "phones", "spoken"


@dataclass
class Pair:
    """One recording and its reading.

    mel (T, num_mels), source (S, num_mels): log-mel frames of the recording and of the reading, float16. f0 (T,): Hz, 0
    if unvoiced. phones (N,): phones of the text, with optional silences. spoken (S / 2,): the phone of each codec frame
    of the reading. symbols: phones, stress and punctuation of the text, with PHRASE_END.
    """

    speaker: str
    symbols: str
    mel: Tensor
    source: Tensor
    f0: Tensor
    phones: Tensor
    spoken: Tensor


def cosines(count: int, num_mels: int) -> Tensor:
    """Orthonormal cosines (count, num_mels), which map frames to cepstra."""
    angles = torch.outer(torch.arange(count), torch.arange(num_mels) + 0.5) * (torch.pi / num_mels)
    return angles.cos() * (2 / num_mels) ** 0.5


def mel_frames(analysis: MelAnalysis, waveform: np.ndarray, fill: bool) -> Tensor:
    """Log-mel frames (T, num_mels) of a waveform (L,); `fill`: estimates the bands that the recording lacks."""
    hop = analysis.config.hop_length
    x = torch.from_numpy(waveform[None, : len(waveform) // hop * hop])
    mel = analysis.mel(x)
    bands = analysis.occupied_bands(mel, torch.tensor([x.shape[1]])) if fill else None
    return analysis.features(mel, bands).view(-1, analysis.config.num_mels)


@torch.no_grad()
def make_pair(analysis: MelAnalysis, speaker: str, waveform: np.ndarray, reading: Reading) -> Pair:
    """The pair of a recording (L,) and its reading, float32 waveforms at the codec's sampling rate."""
    rate, (symbols, starts, speech) = analysis.config.sampling_rate, reading
    mel = mel_frames(analysis, waveform, True)
    source = mel_frames(analysis, to_speech_level(speech).astype(np.float32), False)
    f0 = find_f0(np.round(waveform * 32767).astype(np.int16), rate)[1::2]  # at the centres of the frames
    f0 = np.pad(f0, (0, max(0, len(mel) - len(f0))))[: len(mel)]
    spoken = phones_at(symbols, starts, len(source) // 2)
    phones = torch.from_numpy(phone_sequence(symbols)), torch.from_numpy(spoken)
    return Pair(speaker, symbols, mel.half(), source.half(), torch.from_numpy(f0), *phones)


def load_own_codec(path: str) -> SmallECodec:
    """Loads the codec of a folder. Raises ValueError for a codec of another kind."""
    codec = load_codec(path)
    if not isinstance(codec, SmallECodec):
        raise ValueError(f"--codec {path}: expected a codec of this project, such as checkpoints/smalle-codec.")
    return codec


def make_pairs(
    corpus: str,
    codec: SmallECodec,
    read: Callable[[str], Reading],
    max_hours: float = float("inf"),
    min_snr: float = QualityGate.min_snr_db,
) -> Iterator[Pair]:
    """Pairs of a corpus in a random order, up to `max_hours` of recordings.

    read: speaks a text at 24 kHz. min_snr: dB, see `QualityGate`.
    """
    rate, gate, spent = codec.sampling_rate, QualityGate(min_snr_db=min_snr), 0.0
    clips = [clip for clip in list_clips([corpus]) if clip.text]
    random.Random(0).shuffle(clips)
    for clip, waveform in tqdm(read_ahead(clips, rate, 1), "pairs", len(clips), unit="file"):
        usable = not isinstance(waveform, Problem) and SECONDS[0] * rate <= len(waveform) <= SECONDS[1] * rate
        if not usable or (waveform := gate(waveform)) is None:
            continue
        reading = read(clip.text or "")
        if len(reading[2]) >= SECONDS[0] * rate / 2:
            yield make_pair(codec.analysis, clip.speaker, waveform.astype(np.float32), reading)
            spent += len(waveform) / rate / 3600
        if spent >= max_hours:
            return


def save_pairs(path: str, pairs: Sequence[Pair]) -> None:
    """Writes pairs to one safetensors file. Raises ValueError if there are none."""
    if not pairs:
        raise ValueError(
            f"no pairs for {path}: expected transcripts, and recordings of {SECONDS[0]:g} to {SECONDS[1]:g} s that are "
            "neither quiet, noisy nor clipped; --min-snr accepts noisier ones."
        )
    tensors = {name: torch.cat([getattr(pair, name) for pair in pairs]) for name in COLUMNS}
    tensors["lengths"] = torch.tensor([[len(getattr(pair, name)) for name in COLUMNS] for pair in pairs])
    with atomic_write(path) as temporary:
        names = {"speakers": [pair.speaker for pair in pairs], "symbols": [pair.symbols for pair in pairs]}
        save_file(tensors, temporary, metadata={name: json.dumps(values) for name, values in names.items()})


def load_pairs(paths: Sequence[str]) -> list[Pair]:
    """Reads pairs from files. Prefixes speakers with the name of their file."""
    found = []
    for path in paths:
        with safe_open(path, "pt") as file:
            data = {name: file.get_tensor(name) for name in file.keys()}
            speakers, symbols = (json.loads(file.metadata()[name]) for name in ("speakers", "symbols"))
        columns = [data[name].split(sizes) for name, sizes in zip(COLUMNS, data["lengths"].T.tolist())]
        found += [Pair(f"{path}/{speaker}", *row) for speaker, *row in zip(speakers, symbols, *columns)]
    return found


def main(argv: Sequence[str] | None = None) -> None:
    """Runs the command. Raises ValueError for a corpus without usable recordings."""
    parser = command_parser("python -m smalle.train.conversion.pairs", __doc__)
    parser.add_argument("corpus", help="recordings with transcripts")
    parser.add_argument("out", help="file to write")
    parser.add_argument("--codec", required=True, help="folder of the codec, such as checkpoints/smalle-codec")
    parser.add_argument("--max-hours", type=float, default=float("inf"), help="hours of recordings (default: all)")
    parser.add_argument(
        "--min-snr",
        type=float,
        default=QualityGate.min_snr_db,
        help="smallest distance between loud and quiet frames in dB (default: %(default)s); 0 for synthesizers",
    )
    arguments = parser.parse_args(argv)
    codec = load_own_codec(arguments.codec)
    read = HibariVoice().read
    pairs = list(make_pairs(arguments.corpus, codec, read, arguments.max_hours, arguments.min_snr))
    save_pairs(arguments.out, pairs)
    hours = sum(len(pair.mel) for pair in pairs) / 360000
    print(f"{arguments.out}: {len(pairs)} pairs, {hours:.2f} hours")


if __name__ == "__main__":
    sys.exit(run_command("pairs", main))
