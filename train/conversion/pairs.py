"""Pairs of recordings with the same texts read by one voice: mel frames of both, their alignment and f0.

  python -m smalle.train.conversion.pairs CORPUS OUT.safetensors --codec CODEC [--max-hours HOURS]

CORPUS is any that `smalle prepare` reads, with transcripts. The voice is hibari's (package hibari-tts, Apache-2.0),
about 100 times real time on one core.
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
from smalle.voices_smalle import loud_frames

from ..codec.data import list_clips
from ..codec.pitch import find_f0
from ..data.audio import Problem, QualityGate
from ..data.prepare import read_ahead

SECONDS = 1.0, 17.0  # of recordings that are taken
ALIGNED_CEPSTRA = 21
STEP_PENALTY = 0.3  # of steps in one of the two alone
FREE_START = 25  # frames of the reading that may be left out at its beginning


@dataclass
class Pair:
    """One recording and its reading.

    mel (T, num_mels), source (S, num_mels): log-mel frames, float16. f0 (T,): Hz, 0 where unvoiced. places (T / 2,):
    the codec frame of the reading, with a fraction, that each codec frame of the recording corresponds to. cost: mean
    distance along the alignment.
    """

    speaker: str
    mel: Tensor
    source: Tensor
    f0: Tensor
    places: Tensor
    cost: float


def cosines(count: int, num_mels: int) -> Tensor:
    """Orthonormal cosines (count, num_mels): frames times these are their cepstra."""
    angles = torch.outer(torch.arange(count), torch.arange(num_mels) + 0.5) * (torch.pi / num_mels)
    return angles.cos() * (2 / num_mels) ** 0.5


def aligned_features(mel: Tensor) -> np.ndarray:
    """Cepstra (T / 2, 21) of log-mel frames (T, num_mels), standardized over those of speech, so that speaker and
    channel matter little."""
    frames = mel.view(-1, 2, mel.shape[1]).mean(1)
    cepstra, loud = frames @ cosines(ALIGNED_CEPSTRA, mel.shape[1]).T, loud_frames(frames)
    cepstra = (cepstra - cepstra[loud].mean(0)) / (cepstra[loud].std(0, correction=0) + 1e-3)
    cepstra[:, 0] = 1.5 * cepstra[:, 0].clamp(-3, 3)
    cepstra[:, 8:] *= 0.7
    return cepstra.clamp(-4, 4).numpy()


def align(a: np.ndarray, b: np.ndarray) -> tuple[np.ndarray, float]:
    """Dynamic time warping of features (N, C) on features (M, C): the place (N,) in b of each frame of a, the mean
    where there are several, and the mean cost of a frame. The beginning of b may be left out."""
    n, m = len(a), len(b)
    distance = torch.cdist(torch.from_numpy(a), torch.from_numpy(b)).numpy()
    drift = np.abs(np.arange(m) - np.arange(n)[:, None] * (m / n))
    distance[drift > 0.25 * m + 20] = np.inf
    total, steps = np.full((n + 1, m + 1), np.inf, np.float32), np.zeros((n, m), np.int8)
    total[0, : min(m, FREE_START) + 1] = 0
    for diagonal in range(n + m - 1):  # cells of an anti-diagonal do not depend on each other
        i = np.arange(max(0, diagonal - m + 1), min(n, diagonal + 1))
        j = diagonal - i
        here = distance[i, j]
        sums = np.stack(
            (
                total[i, j] + 1.3 * here,
                total[i, j + 1] + here + STEP_PENALTY,
                total[i + 1, j] + 0.5 * here + STEP_PENALTY,
            )
        )
        steps[i, j] = sums.argmin(0)
        total[i + 1, j + 1] = sums.min(0)
    places, counts, row, column = np.zeros(n, np.float32), np.zeros(n, np.float32), n - 1, m - 1
    while row >= 0 and column >= 0:
        places[row] += column
        counts[row] += 1
        step = steps[row, column]
        row, column = row - int(step != 2), column - int(step != 1)
    return places / counts.clip(1), float(total[n, m] / n)


def mel_frames(analysis: MelAnalysis, waveform: np.ndarray, fill: bool) -> Tensor:
    """Log-mel frames (T, num_mels) of a waveform (L,); `fill`: with the bands that the recording lacks."""
    hop = analysis.config.hop_length
    x = torch.from_numpy(waveform[None, : len(waveform) // hop * hop])
    mel = analysis.mel(x)
    bands = analysis.occupied_bands(mel, torch.tensor([x.shape[1]])) if fill else None
    return analysis.features(mel, bands).view(-1, analysis.config.num_mels)


@torch.no_grad()
def make_pair(analysis: MelAnalysis, speaker: str, waveform: np.ndarray, reading: np.ndarray) -> Pair:
    """The pair of a recording (L,) and the reading (L',) of its text, float32 at the codec's sampling rate."""
    rate = analysis.config.sampling_rate
    mel = mel_frames(analysis, waveform, True)
    source = mel_frames(analysis, to_speech_level(reading).astype(np.float32), False)
    places, cost = align(aligned_features(mel), aligned_features(source))
    f0 = find_f0(np.round(waveform * 32767).astype(np.int16), rate)[1::2]  # at the middles of the frames
    f0 = np.pad(f0, (0, max(0, len(mel) - len(f0))))[: len(mel)]
    return Pair(speaker, mel.half(), source.half(), torch.from_numpy(f0), torch.from_numpy(places), cost)


def load_own_codec(path: str) -> SmallECodec:
    """The codec of a folder. Raises ValueError where it is not one of this project."""
    codec = load_codec(path)
    if not isinstance(codec, SmallECodec):
        raise ValueError(f"--codec {path}: expected one of this project, such as checkpoints/smalle-codec.")
    return codec


def make_pairs(
    corpus: str, codec: SmallECodec, read: Callable[[str], np.ndarray], max_hours: float = float("inf")
) -> Iterator[Pair]:
    """Pairs of a corpus in a random order, up to so many hours of recordings.

    read: from a text to a waveform (L,) at 24 kHz.
    """
    rate, gate, spent = codec.sampling_rate, QualityGate(), 0.0
    clips = [clip for clip in list_clips([corpus]) if clip.text]
    random.Random(0).shuffle(clips)
    for clip, waveform in tqdm(read_ahead(clips, rate, 1), "pairs", len(clips), unit="file"):
        usable = not isinstance(waveform, Problem) and SECONDS[0] * rate <= len(waveform) <= SECONDS[1] * rate
        if not usable or (waveform := gate(waveform)) is None:
            continue
        reading = read(clip.text or "")
        if len(reading) >= SECONDS[0] * rate / 2:
            yield make_pair(codec.analysis, clip.speaker, waveform.astype(np.float32), reading.astype(np.float32))
            spent += len(waveform) / rate / 3600
        if spent >= max_hours:
            return


def save_pairs(path: str, pairs: Sequence[Pair]) -> None:
    """Writes pairs to one safetensors file. Raises ValueError for none."""
    if not pairs:
        raise ValueError(f"There is no pair for {path}: expected recordings of {SECONDS} seconds with transcripts.")
    tensors = {name: torch.cat([getattr(pair, name) for pair in pairs]) for name in ("mel", "source", "f0", "places")}
    tensors["lengths"] = torch.tensor([[len(pair.mel), len(pair.source)] for pair in pairs])
    tensors["costs"] = torch.tensor([pair.cost for pair in pairs])
    with atomic_write(path) as temporary:
        save_file(tensors, temporary, metadata={"speakers": json.dumps([pair.speaker for pair in pairs])})


def load_pairs(paths: Sequence[str], best: float = 1.0) -> list[Pair]:
    """Pairs of files; of each file the share `best` whose alignment costs least. Speakers are named by their file."""
    found = []
    for path in paths:
        with safe_open(path, "pt") as file:
            data, speakers = {name: file.get_tensor(name) for name in file.keys()}, file.metadata()["speakers"]
        lengths = data["lengths"].T.tolist()
        columns = (data["mel"].split(lengths[0]), data["source"].split(lengths[1]), data["f0"].split(lengths[0]))
        places, limit = data["places"].split([n // 2 for n in lengths[0]]), data["costs"].quantile(best)
        for speaker, mel, source, f0, place, cost in zip(json.loads(speakers), *columns, places, data["costs"]):
            if cost <= limit:
                found.append(Pair(f"{path}/{speaker}", mel, source, f0, place, float(cost)))
    return found


def main(argv: Sequence[str] | None = None) -> None:
    """Runs the command. Raises ValueError for a corpus without usable recordings."""
    parser = command_parser("python -m smalle.train.conversion.pairs", __doc__)
    parser.add_argument("corpus", help="recordings with transcripts")
    parser.add_argument("out", help="file to write")
    parser.add_argument("--codec", required=True, help="folder of the codec, such as checkpoints/smalle-codec")
    parser.add_argument("--max-hours", type=float, default=float("inf"), help="hours of recordings (default: all)")
    arguments = parser.parse_args(argv)
    from hibari import Hibari

    codec = load_own_codec(arguments.codec)
    pairs = list(make_pairs(arguments.corpus, codec, Hibari(), arguments.max_hours))
    save_pairs(arguments.out, pairs)
    hours = sum(len(pair.mel) for pair in pairs) / 360000
    print(f"{arguments.out}: {len(pairs)} pairs, {hours:.2f} hours, cost {np.median([p.cost for p in pairs]):.2f}")


if __name__ == "__main__":
    sys.exit(run_command("pairs", main))
