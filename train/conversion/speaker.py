"""Converts the weights of Resemblyzer to those of the speaker network, and fits the map to its mel bands.

  python -m smalle.train.conversion.speaker pretrained.pt CORPUS OUT.safetensors --codec CODEC

pretrained.pt is part of the package resemblyzer (Apache-2.0), which is not imported. CORPUS holds recordings; a few
dozen of them scale the map. You can also use the `speaker` of another converter: --speaker CONVERTER/model.safetensors.
"""

import sys
from collections.abc import Iterable, Sequence

import numpy as np
import soxr
import torch
from safetensors.torch import save_file
from torch import Tensor

from smalle.cli.command import command_parser, run_command
from smalle.codec_smalle import MelAnalysis, mel_filters, mel_frequencies
from smalle.saving_smalle import atomic_write
from smalle.voices_smalle import SPEAKER_MELS

from ..codec.data import list_clips, load_audio
from .pairs import load_own_codec, mel_frames

RATE, WINDOW, HOP = 16000, 400, 160  # Resemblyzer's frames: Hz, samples, samples
LEVEL = -30.0  # dBFS to which it raises recordings


def slaney_filters() -> np.ndarray:
    """Resemblyzer's triangular filters (40, 201) of equal area on Slaney's mel scale.

    The scale is linear up to 1 kHz, then logarithmic.
    """
    step = np.log(6.4) / 27
    top = 15 + np.log(RATE / 2 / 1000) / step
    mels = np.linspace(0, top, SPEAKER_MELS + 2)
    edges = np.where(mels < 15, mels * 200 / 3, 1000 * np.exp(step * (mels - 15)))
    bins = np.linspace(0, RATE / 2, WINDOW // 2 + 1)
    low, centre, high = edges[:-2, None], edges[1:-1, None], edges[2:, None]
    triangles = np.minimum((bins - low) / (centre - low), (high - bins) / (high - centre)).clip(0)
    return triangles * 2 / (high - low)


def resemblyzer_mel(waveform: np.ndarray, rate: int) -> np.ndarray:
    """The frames (T, 40) that Resemblyzer makes of a waveform (L,)."""
    x = soxr.resample(waveform, rate, RATE)
    x = x * max(1.0, 10 ** (LEVEL / 20) / np.sqrt(np.mean(x**2)))
    window = torch.hann_window(WINDOW)
    spectrum = torch.stft(torch.from_numpy(x), WINDOW, HOP, WINDOW, window, pad_mode="constant", return_complex=True)
    return (slaney_filters() @ spectrum.abs().square().double().numpy()).T


def fit_mel_map(analysis: MelAnalysis, waveforms: Iterable[np.ndarray]) -> Tensor:
    """The map (40, num_mels) from the power in the codec's bands to the power in Resemblyzer's.

    Interpolates the magnitudes of the codec's bands, and scales each of Resemblyzer's bands by the loud frames of
    speech (L,).
    """
    config = analysis.config
    sums = mel_filters(config.mel_n_fft, config.num_mels, config.sampling_rate, torch.device("cpu")).sum(1)
    centres = mel_frequencies(config.num_mels, config.sampling_rate)[1:-1].numpy()
    bins, rows = np.linspace(0, RATE / 2, WINDOW // 2 + 1), np.diag(1 / sums.double().numpy() ** 2)
    mel_map = slaney_filters() @ np.stack([np.interp(bins, centres, row) for row in rows], 1)
    ratios = []
    for waveform in waveforms:
        wanted = resemblyzer_mel(waveform, config.sampling_rate)
        power = mel_frames(analysis, waveform, False).double().exp().square().numpy()[: len(wanted)] @ mel_map.T
        wanted = wanted[: len(power)]
        logs = np.log((power + 1e-12) / (wanted + 1e-12))
        ratios.append(np.nanmean(np.where(wanted > 0.3 * wanted.mean(0), logs, np.nan), 0))
    return torch.from_numpy(mel_map * np.exp(-np.mean(ratios, 0))[:, None]).float()


def main(argv: Sequence[str] | None = None) -> None:
    """Runs the command."""
    parser = command_parser("python -m smalle.train.conversion.speaker", __doc__)
    parser.add_argument("weights", help="pretrained.pt of Resemblyzer")
    parser.add_argument("corpus", help="recordings that scale the map")
    parser.add_argument("out", help="file to write")
    parser.add_argument("--codec", required=True, help="folder of the codec, such as checkpoints/smalle-codec")
    arguments = parser.parse_args(argv)
    codec = load_own_codec(arguments.codec)
    audio = load_audio(list_clips([arguments.corpus]), codec.sampling_rate, max_hours=0.1, threads=1)
    weights = torch.load(arguments.weights, map_location="cpu", weights_only=True)["model_state"]
    tensors = {f"speaker.{name}": x for name, x in weights.items() if name.startswith(("lstm.", "linear."))}
    tensors["speaker.mel_map"] = fit_mel_map(codec.analysis, (x.astype(np.float32) / 32768 for x in audio))
    with atomic_write(arguments.out) as temporary:
        save_file(tensors, temporary)


if __name__ == "__main__":
    sys.exit(run_command("speaker", main))
