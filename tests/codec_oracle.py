"""The encodec and vocos packages as oracles: checkpoints with random weights as their authors publish them, and what
the packages make of them.

usage: python tests/codec_oracle.py FOLDER    (with the packages on PYTHONPATH)

They are no requirement of the tests: `packages` brings them with pip into $SMALLE_TEST_PACKAGES or
~/.cache/smalle-tests. torchaudio and scipy, which they import for what is not used here, are stand-ins: torchaudio's
wheel does not load beside a torch for the CPU.
"""

import importlib.machinery
import os
import subprocess
import sys
import tempfile
import types
from pathlib import Path

PACKAGES = ["encodec==0.1.1", "vocos==0.1.0", "einops==0.8.2"]
BANDWIDTHS = (1.5, 3.0, 6.0, 12.0)
CONFIG = """\
feature_extractor:
  class_path: vocos.feature_extractors.EncodecFeatures
  init_args:
    encodec_model: encodec_24khz
    bandwidths: [1.5, 3.0, 6.0, 12.0]

backbone:
  class_path: vocos.models.VocosBackbone
  init_args:
    input_channels: 128
    dim: 384
    intermediate_dim: 1152
    num_layers: 8
    adanorm_num_embeddings: 4

head:
  class_path: vocos.heads.ISTFTHead
  init_args:
    dim: 384
    n_fft: 1280
    hop_length: 320
    padding: same
"""  # of charactr/vocos-encodec-24khz


class OracleUnavailable(RuntimeError):
    """The packages cannot be had here."""


def packages():
    """The folder of the packages, installed at the first call; OracleUnavailable where pip cannot bring them."""
    cache = Path(os.environ.get("SMALLE_TEST_PACKAGES", "~/.cache/smalle-tests")).expanduser()
    folder = cache / "-".join(PACKAGES).replace("==", "-")
    if folder.is_dir():
        return folder
    try:
        cache.mkdir(parents=True, exist_ok=True)
        work = tempfile.TemporaryDirectory(dir=cache, prefix="tmp.")
    except OSError as error:
        raise OracleUnavailable(f"{cache} cannot be written: set SMALLE_TEST_PACKAGES") from error
    with work as name:
        command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", f"{name}/new", *PACKAGES]
        try:
            result = subprocess.run(command, check=False, capture_output=True, text=True, timeout=120)
        except subprocess.TimeoutExpired as error:
            raise OracleUnavailable("pip did not bring encodec and vocos within 120 s") from error
        if result.returncode:
            last = (result.stderr.strip().splitlines() or ["no message"])[-1]
            raise OracleUnavailable(f"pip cannot install encodec and vocos: {last}")
        (Path(name) / "new").replace(folder)
    return folder


def make(folder):
    """Runs this file over a folder, in a process of its own: its stand-ins shall not be seen by other tests."""
    environment = {**os.environ, "PYTHONPATH": str(packages())}
    result = subprocess.run(
        [sys.executable, __file__, str(folder)], check=False, capture_output=True, text=True, env=environment
    )
    if result.returncode:
        raise RuntimeError(f"the oracle failed:\n{result.stderr}")


def stand_in(name, **members):
    module = types.ModuleType(name)
    module.__spec__ = importlib.machinery.ModuleSpec(name, None)
    vars(module).update(members)
    sys.modules[name] = module


def randomise(model):
    """Moves the weights away from their initial values, so that each matters."""
    for parameter in model.parameters():
        parameter.add_(parameter.new_empty(parameter.shape).normal_() * (0.3 * parameter.std() or 0.1))


def fill_codebooks(encodec, waveform):
    """Codebooks around what the encoder says, each half as wide as the one before."""
    latents = encodec.encoder(waveform[:, None]).transpose(1, 2).flatten(0, 1)
    for level, layer in enumerate(encodec.quantizer.vq.layers):
        embed = layer._codebook.embed
        embed.normal_().mul_(latents.std(0) * 0.5**level).add_(latents.mean(0) if level == 0 else 0)
        layer._codebook.inited.fill_(1)


def main(folder):
    unused = dict.fromkeys(("_hz_to_mel", "_mel_to_hz"))
    stand_in("scipy")
    stand_in("torchaudio.functional.functional", **unused)
    stand_in("torchaudio.functional", functional=sys.modules["torchaudio.functional.functional"])
    stand_in("torchaudio", functional=sys.modules["torchaudio.functional"], __path__=[])

    import torch
    from encodec import EncodecModel
    from safetensors.torch import save_file
    from vocos import Vocos

    torch.set_num_threads(1)
    torch.manual_seed(0)
    encodec = EncodecModel.encodec_model_24khz(pretrained=False).eval()
    waveform = 0.3 * torch.randn(2, 24 * 320) * torch.linspace(0, 1, 24 * 320)
    with torch.no_grad():
        randomise(encodec.encoder)
        fill_codebooks(encodec, waveform)
    EncodecModel.encodec_model_24khz = staticmethod(lambda pretrained=True: encodec)  # instead of a download
    (folder / "vocos").mkdir(parents=True)
    (folder / "vocos" / "config.yaml").write_text(CONFIG)
    vocos = Vocos.from_hparams(str(folder / "vocos" / "config.yaml")).eval()
    with torch.no_grad():
        randomise(vocos.backbone)
        randomise(vocos.head)
    published = {k: v for k, v in vocos.state_dict().items() if not k.startswith("feature_extractor.encodec.")}
    torch.save(published, folder / "vocos" / "pytorch_model.bin")
    save_file({k: v.contiguous() for k, v in encodec.state_dict().items()}, folder / "encodec.safetensors")

    reference = {"waveform": waveform}
    for number, bandwidth in enumerate(BANDWIDTHS):
        encodec.set_target_bandwidth(bandwidth)
        with torch.inference_mode():
            codes = encodec.encode(waveform[:, None])[0][0]
            audio = vocos(waveform, bandwidth_id=torch.tensor(number))
        reference |= {f"codes {bandwidth}": codes.clone(), f"audio {bandwidth}": audio.clone()}
    save_file({k: v.contiguous() for k, v in reference.items()}, folder / "reference.safetensors")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
