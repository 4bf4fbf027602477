"""Compares smalle.corpus.kokoro_model with the ONNX graph that it was converted from; downloads the graph.

usage: python -m tests.kokoro_oracle FOLDER    (written by python -m smalle.corpus.kokoro_weights FOLDER)
"""

import sys
import tempfile

import numpy as np
import onnx
import onnxruntime
import torch
from smalle.corpus.kokoro_model import SAMPLES_PER_FRAME, Kokoro, load_kokoro, load_voices
from smalle.corpus.kokoro_weights import convert, fetch_graph, read_weights

PHONEMES = "wʌz stˈɪl pɹˈæktəst, ðˈæt ʌv lˈOdɪŋ nˌuliəɹˈIvd pɹˈɪzᵊnəɹz ˌʌntˈɪl ðA pˈAd sˈɜɹtn fˈiz."


def compare(graph: bytes, model: Kokoro, voice: torch.Tensor) -> dict[str, float]:
    """Speak one sentence with both, without noise: difference of durations in frames and of spectra in dB rms.

    Durations must agree. The spectra differ by about 4 dB, as those of the graph and of the original code do: the
    export replaces the inverse Fourier transform by an approximation.
    """
    proto = onnx.load_from_string(graph)
    durations = next(n.output[0] for n in proto.graph.node if n.name == "/encoder/Clip")
    proto.graph.output.append(onnx.helper.make_empty_tensor_value_info(durations))
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(proto.SerializeToString(), options)
    tokens = model.tokenize(PHONEMES)
    style = voice[len(tokens) - 3].unsqueeze(0)
    theirs, frames = session.run(
        None, {"input_ids": np.array([tokens]), "style": style.numpy(), "speed": np.ones(1, np.float32)}
    )
    lengths = torch.tensor([len(tokens)])
    features, ours = model.plan(torch.tensor([tokens]), lengths, style, torch.ones(1))
    features = features[0].repeat_interleave(ours[0], dim=0)
    features = torch.cat([features, features[-1:]]).unsqueeze(0)
    audio = model.speak(features, ours.sum(1), style, noise=0.0)[0, : int(ours.sum()) * SAMPLES_PER_FRAME]
    n = min(len(audio), theirs.size)
    a, b = log_spectrum(audio[:n]), log_spectrum(torch.from_numpy(theirs.reshape(-1)[:n]))
    loud = b > b.max() - 60
    return {
        "durations": float((ours[0] - torch.from_numpy(frames).reshape(-1)).abs().sum()),
        "db": float((a - b)[loud].square().mean().sqrt()),
        "seconds": len(audio) / 24000,
    }


def log_spectrum(audio: torch.Tensor) -> torch.Tensor:
    """Energy in dB in 32 bands of equal width, at 100 Hz."""
    power = torch.stft(audio, 512, 240, window=torch.hann_window(512), return_complex=True).abs().square()
    return 10 * torch.log10(power[:256].unflatten(0, (32, 8)).mean(1) + 1e-8)


def main(folder: str) -> None:
    with tempfile.TemporaryDirectory() as downloads:
        graph = fetch_graph(downloads)
    model, voice = load_kokoro(folder), load_voices(folder)["af_heart"]
    for label in ("float16", "float32"):
        result = compare(graph, model, voice)
        print(
            f"{label} weights against ONNX, {result['seconds']:.2f} s without noise: durations differ by "
            f"{result['durations']:.0f} frames, spectra by {result['db']:.2f} dB rms",
            flush=True,
        )
        model.load_state_dict(convert(read_weights(graph), model.vocabulary))


if __name__ == "__main__":
    main(sys.argv[1])
