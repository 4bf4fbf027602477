"""Codecs of Small-E: waveform to codes and codes to waveform.

Every codec answers two calls, `encode(waveform (B, L), lengths) -> codes (B, Q, T)` and
`decode(codes (B, Q, T)) -> waveform (B, T * hop_length)`, and names its sampling_rate, frame_rate, hop_length,
num_codebooks, codebook_size and identity. `decode_chunk` decodes piece by piece. `load_codec` finds the right one for a
folder or a name.

SmallECodec is the embedded one: log-mel frames, a linear map and a small residual encoder, residual vector
quantization, a refiner of what that left, and a Vocos decoder. EncodecCodec is EnCodec (Défossez et al. 2022) with
Vocos in place of its decoder.
"""

import functools
import hashlib
import json
import math
import os
import re
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from safetensors import safe_open
from torch import nn
from transformers import EncodecConfig, EncodecModel, PreTrainedConfig, PreTrainedModel
from transformers import initialization as init
from transformers.utils import cached_file

from .configuration_smalle import check_kinds, check_positive
from .validation_smalle import as_tensor
from .vocos_smalle import (
    ConvNeXtBlock,
    Vocos,
    VocosConfig,
    convert_original,
    convolve,
    decode_chunk,
    hann_window,
    init_vocos_weights,
)

# --- refiner: What quantization took from latents, as far as their neighbours tell.


AHEAD = 1  # frames that each convolution sees ahead; the rest of its kernel looks back


@dataclass
class RefinerState:
    """Where a refiner stands, a value: hand it back to go on.

    waiting: latents (B, D, <= frames seen ahead) that are not refined yet; inputs: of each convolution, its last inputs
    (B, C, < kernel).
    """

    waiting: torch.Tensor
    inputs: tuple[torch.Tensor, ...]


class LatentRefiner(nn.Module):
    """Quantized latents (B, D, T) to what latents before quantization are in the mean, by ConvNeXt blocks."""

    def __init__(self, config):
        super().__init__()
        size, layers, kernel = config.refiner_hidden_size, config.refiner_num_layers, config.refiner_kernel_size
        self.register_buffer("latent_scale", torch.ones(config.latent_size))  # deviation of quantized latents
        self.register_buffer("rest_scale", torch.ones(config.latent_size))  # of what they lack
        self.embed = nn.Conv1d(config.latent_size, size, kernel)
        self.blocks = nn.ModuleList(
            ConvNeXtBlock(size, config.refiner_intermediate_size, kernel, 1 / layers) for _ in range(layers)
        )
        self.norm = nn.LayerNorm(size, eps=1e-6)
        self.out = nn.Linear(size, config.latent_size)

    def rest(self, latents, inputs=None, last=True):
        """What quantized latents (B, D, T) lack, in units of rest_scale, of the frames (B, D, T') that are certain now;
        and the inputs to keep of each convolution."""
        inputs = list(inputs or [None] * (1 + len(self.blocks)))
        scaled = (latents / self.latent_scale.float()[:, None]).to(self.embed.weight.dtype)
        _, x, inputs[0] = convolve(self.embed, scaled, inputs[0], last, AHEAD)
        for n, block in enumerate(self.blocks, 1):
            x, y, inputs[n] = convolve(block.dwconv, x, inputs[n], last, AHEAD)
            x = block.pointwise(x, y)
        return self.out(self.norm(x.transpose(1, 2))).transpose(1, 2).float(), tuple(inputs)

    def forward(self, latents, state=None, last=True):
        """Refined latents (B, D, T') that are certain after quantized ones (B, D, T), and the state to go on from.

        Without a state and with `last`: all of them. Joined over chunks they are the same whatever the chunks.
        """
        waiting = latents if state is None else torch.cat((state.waiting, latents), 2)
        rest, inputs = self.rest(latents, state and state.inputs, last)
        ready = rest.shape[2]
        refined = waiting[..., :ready] + rest * self.rest_scale.float()[:, None]
        return refined, None if last else RefinerState(waiting[..., ready:], inputs)


ENCODEC_NAME = "facebook/encodec_24khz"
VOCOS_NAME = "charactr/vocos-encodec-24khz"
VOCOS_BANDWIDTHS = (1.5, 3.0, 6.0, 12.0)  # kbps; the order of the bandwidth ids in VOCOS_NAME


class SmallECodecConfig(PreTrainedConfig):
    """Sizes of a SmallECodec. `hop_length` samples make one frame of codes and a whole number of mel frames.

    `encoder_num_layers` may be 0: a linear map; `refiner_num_layers` too: no refiner.
    """

    model_type = "smalle_codec"

    sampling_rate: int = 24000
    hop_length: int = 480
    num_codebooks: int = 6
    codebook_size: int = 1024
    latent_size: int = 64
    num_mels: int = 100
    mel_n_fft: int = 1024
    mel_hop_length: int = 240
    mel_floor: float = 3e-3  # of a magnitude where full scale is about n_fft / 4: what lies below is not coded
    encoder_hidden_size: int = 192
    encoder_intermediate_size: int = 576
    encoder_num_layers: int = 3
    encoder_kernel_size: int = 7
    vocos_hidden_size: int = 320
    vocos_intermediate_size: int = 960
    vocos_num_layers: int = 7
    vocos_n_fft: int = 1920
    vocos_upsampling: int = 1
    vocos_excitation: str = "none"
    refiner_hidden_size: int = 192
    refiner_intermediate_size: int = 512
    refiner_kernel_size: int = 7
    refiner_num_layers: int = 0

    def __post_init__(self, **kwargs):
        super().__post_init__(**kwargs)
        fields = SmallECodecConfig.__annotations__
        check_kinds(self, fields)
        numbers = [name for name, kind in fields.items() if kind is not str]
        check_positive(self, [name for name in numbers if name not in ("encoder_num_layers", "refiner_num_layers")])
        for name in ("encoder_num_layers", "refiner_num_layers"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name} is {getattr(self, name)}; expected 0 or more")
        if self.hop_length % self.mel_hop_length or self.hop_length < 1:
            raise ValueError(
                f"hop_length is {self.hop_length}; expected a multiple of mel_hop_length, {self.mel_hop_length}"
            )
        if self.mel_n_fft < self.mel_hop_length or (self.mel_n_fft - self.mel_hop_length) % 2:
            raise ValueError(f"mel_n_fft is {self.mel_n_fft}; expected mel_hop_length plus an even number")

    @property
    def feature_size(self):
        """Values of the stacked mel frames of one code frame."""
        return self.num_mels * (self.hop_length // self.mel_hop_length)

    @property
    def frame_rate(self):
        """Code frames per second."""
        return self.sampling_rate / self.hop_length

    def vocos_config(self):
        """The configuration of the decoder."""
        return VocosConfig(
            input_channels=self.latent_size,
            hidden_size=self.vocos_hidden_size,
            intermediate_size=self.vocos_intermediate_size,
            num_hidden_layers=self.vocos_num_layers,
            n_fft=self.vocos_n_fft,
            hop_length=self.hop_length,
            upsampling=self.vocos_upsampling,
            excitation=self.vocos_excitation,
            sampling_rate=self.sampling_rate,
        )


def check_waveform(waveform, lengths=None):
    """Waveform (B, L) as float32, silent after each row's end, and the lengths as int64 (B,).

    Raises ValueError on another shape, on integers, on empty, infinite or NaN audio, and on lengths outside 1 to L.
    """
    waveform = as_tensor("waveform", waveform)
    if waveform.dim() != 2 or not waveform.shape[0]:
        raise ValueError(f"waveform has shape {tuple(waveform.shape)}; expected (B, L): add a batch dimension")
    if not waveform.is_floating_point():
        raise ValueError(f"waveform is {waveform.dtype}; expected floats in [-1, 1]: divide 16-bit audio by 32768")
    size = waveform.shape[1]
    lengths = torch.full((len(waveform),), size) if lengths is None else as_tensor("lengths", lengths)
    if lengths.is_floating_point() or lengths.is_complex():
        raise ValueError(f"lengths are {lengths.dtype}; expected integers")
    lengths = lengths.to(waveform.device, torch.int64)
    if lengths.shape != waveform.shape[:1]:
        raise ValueError(f"lengths have shape {tuple(lengths.shape)}; expected ({len(waveform)},), one a waveform")
    if not size or lengths.min() < 1 or lengths.max() > size:
        raise ValueError(f"lengths are {lengths.tolist()}; expected 1 to {size} samples: there is nothing to encode")
    past_end = torch.arange(size, device=waveform.device) >= lengths[:, None]
    waveform = waveform.float().masked_fill(past_end, 0)
    if not waveform.isfinite().all():
        raise ValueError("waveform holds NaN or infinity; expected finite samples in [-1, 1]")
    return waveform, lengths


def check_codes(codes, num_codebooks, codebook_size):
    """Codes (B, Q, T) as int64; ValueError on another shape, on floats, on no frames and on ids out of range."""
    codes = as_tensor("codes", codes)
    if codes.dim() != 3 or codes.shape[1] != num_codebooks or not codes.numel():
        raise ValueError(f"codes have shape {tuple(codes.shape)}; expected (B, {num_codebooks}, T), T > 0")
    if codes.is_floating_point() or codes.is_complex() or codes.dtype == torch.bool:
        raise ValueError(f"codes are {codes.dtype}; expected integers")
    low, high = int(codes.min()), int(codes.max())
    if low < 0 or high >= codebook_size:
        raise ValueError(
            f"codes span {low} to {high}; expected 0 to {codebook_size - 1}: take out special tokens first"
        )
    return codes.long()


@functools.lru_cache(maxsize=32)
def mel_filters(n_fft, num_mels, sampling_rate, device):
    """Triangular filters (num_mels, n_fft / 2 + 1) on the HTK mel scale, peak 1, 0 Hz to Nyquist.

    A triangle narrower than a bin of the transform still takes its nearest bin.
    """
    with torch.inference_mode(False):
        top = 2595 * math.log10(1 + sampling_rate / 1400)
        hertz = 700 * (10 ** (torch.linspace(0, top, num_mels + 2, dtype=torch.float64) / 2595) - 1)
        bins = torch.linspace(0, sampling_rate / 2, n_fft // 2 + 1, dtype=torch.float64)
        low, centre, high = hertz[:-2, None], hertz[1:-1, None], hertz[2:, None]
        filters = torch.minimum((bins - low) / (centre - low), (high - bins) / (high - centre)).clamp(min=0)
        empty = filters.sum(1) == 0
        nearest = (bins[None] - centre).abs().argmin(1)
        filters[empty, nearest[empty]] = 1
        return filters.to(device, torch.float32)


def log_mel(waveform, n_fft, hop_length, num_mels, sampling_rate, floor):
    """Natural log of mel magnitudes (B, num_mels, L // hop_length) of a waveform (B, L), in zeros on both sides."""
    pad = (n_fft - hop_length) // 2
    frames = F.pad(waveform, (pad, pad)).unfold(1, n_fft, hop_length) * hann_window(n_fft, waveform.device)
    magnitude = torch.fft.rfft(frames).abs()
    mel = magnitude @ mel_filters(n_fft, num_mels, sampling_rate, waveform.device).T
    return mel.clamp(min=floor).log().transpose(1, 2)


def identity_of(codebooks):
    """What tells codecs apart whose codes look alike: 16 hexadecimal digits of their codebooks (Q, K, D).

    Of their values in half precision, so that storing a codec in float16 changes nothing.
    """
    return hashlib.sha256(codebooks.detach().half().cpu().numpy().tobytes()).hexdigest()[:16]


class ZeroLinear(nn.Linear):
    """A linear layer that starts at zero."""


class ResidualEncoder(nn.Module):
    """A linear projection of the features plus a ConvNeXt correction that starts at zero."""

    def __init__(self, config):
        super().__init__()
        size, layers = config.encoder_hidden_size, config.encoder_num_layers
        self.projection = nn.Linear(config.feature_size, config.latent_size, bias=False)
        self.embed = nn.Linear(config.feature_size, size)
        self.blocks = nn.ModuleList(
            ConvNeXtBlock(size, config.encoder_intermediate_size, config.encoder_kernel_size, 1 / max(layers, 1))
            for _ in range(layers)
        )
        self.norm = nn.LayerNorm(size, eps=1e-6)
        self.out = ZeroLinear(size, config.latent_size)

    def forward(self, features, mask=None):
        """Features (B, C, T), mask (B, 1, T) of the frames that exist -> latents (B, latent_size, T)."""
        features = features.transpose(1, 2)
        x = self.embed(features).transpose(1, 2)
        for block in self.blocks:
            x = block(x, mask=mask)
        correction = self.out(self.norm(x.transpose(1, 2)))
        return (self.projection(features) + correction).transpose(1, 2)


class ResidualQuantizer(nn.Module):
    """Residual vector quantization: each codebook codes what those before it left over."""

    def __init__(self, num_codebooks, codebook_size, size):
        super().__init__()
        self.register_buffer("codebooks", torch.zeros(num_codebooks, codebook_size, size))

    def quantize(self, latents):
        """Latents (N, D) -> codes (Q, N) int64 and the vectors that each codebook was asked for, (Q, N, D)."""
        residual, codes, residuals = latents.float(), [], []
        for codebook in self.codebooks.float():
            nearest = torch.addmm((codebook**2).sum(1), residual, codebook.T, alpha=-2).argmin(1)
            residuals.append(residual)
            codes.append(nearest)
            residual = residual - codebook[nearest]
        return torch.stack(codes), torch.stack(residuals)

    def encode(self, latents):
        """Latents (B, D, T) -> codes (B, Q, T) int64."""
        batch, size, frames = latents.shape
        codes, _ = self.quantize(latents.transpose(1, 2).reshape(-1, size))
        return codes.view(-1, batch, frames).transpose(0, 1).contiguous()

    def decode(self, codes):
        """Codes (B, Q, T) -> quantized latents (B, D, T) float32."""
        vectors = [F.embedding(codes[:, i], codebook) for i, codebook in enumerate(self.codebooks.float())]
        return torch.stack(vectors).sum(0).transpose(1, 2)


class SmallECodec(PreTrainedModel):
    """The embedded codec. Weights stored in fp16 or bf16 are loaded as fp32 unless `dtype` says otherwise."""

    config_class = SmallECodecConfig
    base_model_prefix = "codec"
    main_input_name = "waveform"

    def __init__(self, config):
        super().__init__(config)
        self.register_buffer("feature_mean", torch.zeros(config.feature_size))
        self.register_buffer("feature_scale", torch.ones(1))
        self.encoder = ResidualEncoder(config)
        self.quantizer = ResidualQuantizer(config.num_codebooks, config.codebook_size, config.latent_size)
        self.refiner = LatentRefiner(config) if config.refiner_num_layers else None
        self.vocos = Vocos(config.vocos_config())
        self.post_init()

    @classmethod
    def from_pretrained(cls, *args, dtype=torch.float32, **kwargs):
        return super().from_pretrained(*args, dtype=dtype, **kwargs).eval()

    def _init_weights(self, module):
        if isinstance(module, ZeroLinear):
            init.zeros_(module.weight)
            init.zeros_(module.bias)
        elif isinstance(module, ResidualQuantizer):
            init.normal_(module.codebooks)
        elif isinstance(module, LatentRefiner):
            init.ones_(module.latent_scale)
            init.ones_(module.rest_scale)
        elif module is self:
            init.zeros_(module.feature_mean)
            init.ones_(module.feature_scale)
        else:
            init_vocos_weights(module)

    sampling_rate = property(lambda self: self.config.sampling_rate)
    frame_rate = property(lambda self: self.config.frame_rate)
    hop_length = property(lambda self: self.config.hop_length)
    num_codebooks = property(lambda self: self.config.num_codebooks)
    codebook_size = property(lambda self: self.config.codebook_size)
    identity = property(lambda self: identity_of(self.quantizer.codebooks))

    def analyse(self, waveform):
        """Standardised features (B, feature_size, T) float32 of a waveform (B, T * hop_length)."""
        config = self.config
        mel = log_mel(
            waveform, config.mel_n_fft, config.mel_hop_length, config.num_mels, config.sampling_rate, config.mel_floor
        )
        stack = config.hop_length // config.mel_hop_length
        batch, mels, frames = mel.shape
        features = mel.view(batch, mels, frames // stack, stack).permute(0, 3, 1, 2).flatten(1, 2)
        return (features - self.feature_mean.float()[:, None]) / self.feature_scale.float()

    @torch.no_grad()
    def encode(self, waveform, lengths=None):
        """Codes (B, Q, T) int64, T = ceil(L / hop_length), of a waveform (B, L), floats in [-1, 1] at sampling_rate.

        `lengths` (B,): samples that exist in each row; its codes up to ceil(length / hop_length) are those of the row
        alone, later ones mean nothing. ValueError on audio of another shape, integers, NaN, and empty audio.
        """
        waveform, lengths = check_waveform(waveform, lengths)
        features = self.analyse(F.pad(waveform, (0, -waveform.shape[1] % self.hop_length)))
        frames = (lengths + self.hop_length - 1) // self.hop_length
        mask = torch.arange(features.shape[2], device=frames.device) < frames[:, None]
        dtype = self.encoder.out.weight.dtype
        return self.quantizer.encode(self.encoder(features.to(dtype), mask[:, None].to(dtype)))

    @torch.no_grad()
    def embed(self, codes):
        """Quantized latents (B, latent_size, T) float32 of codes (B, Q, T)."""
        return self.quantizer.decode(check_codes(codes, self.num_codebooks, self.codebook_size).to(self.device))

    @torch.no_grad()
    def decode(self, codes):
        """Waveform (B, T * hop_length) float32 of codes (B, Q, T). ValueError on another shape and ids out of range."""
        latents = self.embed(codes)
        return self.vocos(latents if self.refiner is None else self.refiner(latents)[0])

    def decode_chunk(self, codes, state=None, last=False):
        """`decode` of one piece after the other: codes (B, Q, T), T >= 0 -> waveform (B, L), state to go on from.

        The waveform is what is certain now, some frames later than the codes; `last` gives the rest. All joined are
        `decode` of all codes.
        """
        return decode_chunk(self.vocos, chunk_features(self, codes), state, last, refiner=self.refiner)


def chunk_features(codec, codes):
    """What a codec's Vocos reads of codes (B, Q, T), where T may be 0."""
    if codes.dim() == 3 and not codes.shape[2]:
        return torch.zeros(len(codes), codec.vocos.config.input_channels, 0, device=codec.vocos.device)
    return codec.embed(codes)


def codebook_usage(codes, codebook_size):
    """Share of each codebook that occurs in codes (B, Q, T), and the perplexity of its ids: two tensors (Q,)."""
    counts = torch.stack([torch.bincount(row.flatten(), minlength=codebook_size) for row in codes.unbind(1)]).float()
    share = counts / counts.sum(1, keepdim=True)
    return (counts > 0).float().mean(1), torch.special.entr(share).sum(1).exp()


def codebooks_alone(name_or_path, bandwidth, **kwargs):
    """EnCodec on the meta device but for the codebooks of a bandwidth; None where its weights are no safetensors."""
    path = cached_file(name_or_path, "model.safetensors", _raise_exceptions_for_missing_entries=False, **kwargs)
    if path is None:
        return None
    with torch.device("meta"):
        model = EncodecModel(EncodecConfig.from_pretrained(name_or_path, **kwargs))
    with safe_open(path, "pt") as file:
        count = model.quantizer.get_num_quantizers_for_bandwidth(bandwidth)
        for n, layer in enumerate(model.quantizer.layers[:count]):
            layer.codebook.embed = file.get_tensor(f"quantizer.layers.{n}.codebook.embed").float()
    return model


class EncodecCodec(nn.Module):
    """EnCodec's encoder and codebooks, Vocos as the decoder.

    `encodec`: transformers.EncodecModel, mono; `vocos`: Vocos over the sum of its codebooks' vectors; `bandwidth`: kbps
    of the codes, 3.0 makes 4 codebooks of the 24 kHz model; `bandwidth_id`: what Vocos calls that bandwidth.
    """

    def __init__(self, encodec, vocos, bandwidth=3.0, bandwidth_id=None):
        super().__init__()
        if vocos.config.hop_length != encodec.config.hop_length:
            raise ValueError(
                f"hop_length of vocos is {vocos.config.hop_length}, of encodec {encodec.config.hop_length}; "
                "expected the same: take a Vocos that was trained on this EnCodec"
            )
        if bandwidth not in encodec.config.target_bandwidths:
            raise ValueError(f"bandwidth is {bandwidth}; expected one of {list(encodec.config.target_bandwidths)} kbps")
        if bandwidth_id is None and vocos.config.num_bandwidths:
            if bandwidth not in VOCOS_BANDWIDTHS:
                raise ValueError(f"bandwidth is {bandwidth}; Vocos knows {list(VOCOS_BANDWIDTHS)} kbps")
            bandwidth_id = VOCOS_BANDWIDTHS.index(bandwidth)
        self.encodec, self.vocos, self._load = encodec, vocos, None
        self.bandwidth, self.bandwidth_id = bandwidth, bandwidth_id
        self.sampling_rate, self.hop_length = encodec.config.sampling_rate, encodec.config.hop_length
        self.frame_rate = self.sampling_rate / self.hop_length
        self.codebook_size = encodec.config.codebook_size
        self.num_codebooks = encodec.quantizer.get_num_quantizers_for_bandwidth(bandwidth)

    @classmethod
    def from_pretrained(cls, encodec=ENCODEC_NAME, vocos=None, bandwidth=3.0, **kwargs):
        """`encodec`: folder or Hub name; `vocos`: the same, by default the folder's vocos/, else VOCOS_NAME."""
        if vocos is None:
            inside = os.path.join(encodec, "vocos")
            vocos = inside if os.path.isdir(inside) else VOCOS_NAME
        load = functools.partial(EncodecModel.from_pretrained, encodec, dtype=torch.float32, **kwargs)
        codec = cls(codebooks_alone(encodec, bandwidth, **kwargs) or load(), load_vocos(vocos), bandwidth).eval()
        codec._load = load
        return codec

    def whole(self):
        """EnCodec with all of its weights, loaded when first needed: to speak its codebooks are enough."""
        if self.encodec.device.type == "meta":
            self.encodec = self._load().eval()
        return self.encodec

    def _apply(self, *args, **kwargs):
        self.whole()  # what moves to a device or another dtype, moves whole
        return super()._apply(*args, **kwargs)

    @property
    def identity(self):
        layers = self.encodec.quantizer.layers[: self.num_codebooks]
        return identity_of(torch.stack([layer.codebook.embed for layer in layers]))

    def save_pretrained(self, folder):
        """Writes FOLDER (EnCodec) and FOLDER/vocos; `load_codec(FOLDER)` reads them."""
        self.whole().save_pretrained(folder)
        self.vocos.save_pretrained(os.path.join(folder, "vocos"))

    @torch.no_grad()
    def encode(self, waveform, lengths=None):
        """Codes (B, Q, T) int64 of a waveform (B, L); the same promises as SmallECodec.encode."""
        waveform, _ = check_waveform(waveform, lengths)
        # in whole frames every convolution is causal, so that a row does not see what follows it
        waveform = F.pad(waveform, (0, -waveform.shape[1] % self.hop_length))[:, None]
        return self.whole().encode(waveform, bandwidth=self.bandwidth, return_dict=True).audio_codes[0]

    @torch.no_grad()
    def embed(self, codes):
        """Sum of the codebooks' vectors (B, 128, T) of codes (B, Q, T)."""
        codes = check_codes(codes, self.num_codebooks, self.codebook_size).to(self.vocos.device)
        return self.encodec.quantizer.decode(codes.transpose(0, 1))

    @torch.no_grad()
    def decode(self, codes):
        """Waveform (B, T * hop_length) float32 of codes (B, Q, T)."""
        return self.vocos(self.embed(codes), self.bandwidth_id)

    def decode_chunk(self, codes, state=None, last=False):
        """As SmallECodec.decode_chunk."""
        return decode_chunk(self.vocos, chunk_features(self, codes), state, last, self.bandwidth_id)


def load_vocos(name_or_path=VOCOS_NAME):
    """Vocos from a folder or Hub name: in our form (config.json), or as the vocos package publishes it.

    The latter is config.yaml, where only the head's hop_length and padding are read, and pytorch_model.bin.
    """
    if cached_file(name_or_path, "config.json", _raise_exceptions_for_missing_entries=False):
        return Vocos.from_pretrained(name_or_path, dtype=torch.float32).eval()
    with open(cached_file(name_or_path, "config.yaml"), encoding="utf-8") as file:
        head = file.read().partition("head:")[2]
    hop_length, padding = re.search(r"hop_length:\s*(\d+)", head), re.search(r"padding:\s*[\"']?(\w+)", head)
    state = torch.load(cached_file(name_or_path, "pytorch_model.bin"), map_location="cpu", weights_only=True)
    return convert_original(state, hop_length and int(hop_length[1]), padding and padding[1])


def load_codec(name_or_path, subfolder="", **kwargs):
    """The codec of a folder or Hub name; "encodec" is EnCodec at 3 kbps with Vocos. ValueError on anything else."""
    if name_or_path == "encodec":
        return EncodecCodec.from_pretrained(**kwargs)
    try:
        path = cached_file(name_or_path, "config.json", subfolder=subfolder, **kwargs)
        if path is None:  # what it gives for some files that are missing
            raise FileNotFoundError(name_or_path)
        with open(path, encoding="utf-8") as file:
            model_type = json.load(file).get("model_type")
    except (OSError, json.JSONDecodeError) as error:
        raise ValueError(
            f"no codec at {str(name_or_path)!r}{subfolder and f', folder {subfolder!r}'}: expected 'encodec', or a "
            "folder or Hub name with a config.json"
        ) from error
    if model_type == SmallECodecConfig.model_type:
        return SmallECodec.from_pretrained(name_or_path, subfolder=subfolder, **kwargs)
    if model_type == "encodec":
        if subfolder:
            name_or_path = os.path.join(name_or_path, subfolder)
        return EncodecCodec.from_pretrained(name_or_path, **kwargs)
    raise ValueError(f"{name_or_path!r} holds a model of type {model_type!r}; expected 'smalle_codec' or 'encodec'")
