"""Codecs: convert waveforms to codes and codes to waveforms.

Every codec has `encode(waveform (B, L), lengths) -> codes (B, Q, T)`, `decode(codes (B, Q, T)) -> waveform
(B, T * hop_length)`, `decode_chunk` for decoding in pieces, and sampling_rate, frame_rate, hop_length,
num_codebooks, codebook_size and identity. `load_codec` loads the one of a folder or a name.

SmallECodec is the embedded one: log-mel frames, their principal components, residual vector quantization, a refiner
that estimates the quantization error, and a Vocos decoder. EncodecCodec is EnCodec (Défossez et al. 2022, arXiv
2210.13438) with Vocos in place of its decoder.
"""

import functools
import hashlib
import json
import math
import os
import re
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from safetensors import safe_open
from torch import Tensor, nn
from transformers import EncodecConfig, EncodecModel, PreTrainedConfig, PreTrainedModel
from transformers import initialization as init
from transformers.utils import cached_file

from .saving_smalle import check_kinds, check_layers, check_positive, errors_name_the_file
from .validation_smalle import as_tensor, check_complete, check_finite
from .vocos_smalle import (
    ChunkedConv1d,
    ConvNeXtBlock,
    ConvolutionStates,
    Vocos,
    VocosConfig,
    VocosState,
    convert_original,
    hann_window,
    init_vocos_weights,
)

ENCODEC_NAME = "facebook/encodec_24khz"
VOCOS_NAME = "charactr/vocos-encodec-24khz"
VOCOS_BANDWIDTHS = (1.5, 3.0, 6.0, 12.0)  # kbps; the order of the bandwidth ids of VOCOS_NAME


# ------------------------------------------------------------------------------------------------- configuration


class SmallECodecConfig(PreTrainedConfig):
    """Sizes of a SmallECodec.

    Args:
        hop_length: samples of a frame of codes; a multiple of mel_hop_length.
        latent_size: principal components that are quantized.
        mel_floor: smallest magnitude that is encoded; full scale is about n_fft / 4.
        band_extension: encode band-limited recordings as full-band speech.
        refiner_num_layers: layers of the refiner; 0: no refiner.
        vocos_*: see `VocosConfig`.
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
    mel_floor: float = 3e-3
    band_extension: bool = False
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
        check_positive(
            self, [name for name, kind in fields.items() if kind in (int, float) and name != "refiner_num_layers"]
        )
        check_layers(self, ("vocos_num_layers", "refiner_num_layers"))
        if self.hop_length % self.mel_hop_length:
            raise ValueError(
                f"hop_length is {self.hop_length}; expected a multiple of mel_hop_length, {self.mel_hop_length}"
            )
        if self.mel_n_fft < self.mel_hop_length or (self.mel_n_fft - self.mel_hop_length) % 2:
            raise ValueError(f"mel_n_fft is {self.mel_n_fft}; expected mel_hop_length plus an even number")

    @property
    def feature_size(self) -> int:
        """Log-mel values of a frame of codes."""
        return self.num_mels * (self.hop_length // self.mel_hop_length)

    @property
    def frame_rate(self) -> float:
        """Frames of codes per second."""
        return self.sampling_rate / self.hop_length

    def vocos_config(self) -> VocosConfig:
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


# --------------------------------------------------------------------------------------------------- input checks


def check_waveform(waveform: Any, lengths: Any = None) -> Tensor:
    """Waveform (B, L) as float32, zero after each row's length (B,).

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
        raise ValueError(f"lengths have shape {tuple(lengths.shape)}; expected ({len(waveform)},), one per waveform")
    if not size or lengths.min() < 1 or lengths.max() > size:
        raise ValueError(f"lengths are {lengths.tolist()}; expected 1 to {size} samples: there is nothing to encode")
    past_end = torch.arange(size, device=waveform.device) >= lengths[:, None]
    waveform = waveform.float().masked_fill(past_end, 0)
    if not waveform.isfinite().all():
        raise ValueError("waveform holds NaN or infinity; expected finite samples in [-1, 1]")
    return waveform


def check_codes(codes: Any, num_codebooks: int, codebook_size: int) -> Tensor:
    """Codes (B, Q, T) as int64; Q may be smaller than num_codebooks, for coarser speech.

    Raises ValueError on another shape, on floats, on no frames and on ids out of range.
    """
    codes = as_tensor("codes", codes)
    if codes.dim() != 3 or codes.shape[1] > num_codebooks or not codes.numel():
        raise ValueError(f"codes have shape {tuple(codes.shape)}; expected (B, 1 to {num_codebooks}, T), T > 0")
    if codes.is_floating_point() or codes.is_complex() or codes.dtype == torch.bool:
        raise ValueError(f"codes are {codes.dtype}; expected integers")
    low, high = int(codes.min()), int(codes.max())
    if low < 0 or high >= codebook_size:
        raise ValueError(f"codes span {low} to {high}; expected 0 to {codebook_size - 1}: remove special tokens first")
    return codes.long()


# ------------------------------------------------------------------------------------------------------- analysis


def mel_frequencies(num_mels: int, sampling_rate: int) -> Tensor:
    """Hz (num_mels + 2,), 0 to Nyquist, evenly spaced on the HTK mel scale: filter n has its edges at n and n + 2."""
    top = 2595 * math.log10(1 + sampling_rate / 1400)
    return 700 * (10 ** (torch.linspace(0, top, num_mels + 2, dtype=torch.float64) / 2595) - 1)


@functools.lru_cache(maxsize=32)
def mel_filters(n_fft: int, num_mels: int, sampling_rate: int, device: torch.device) -> Tensor:
    """Triangular filters (num_mels, n_fft / 2 + 1) on the HTK mel scale, peak 1, 0 Hz to Nyquist.

    A triangle that is narrower than a bin of the transform uses its nearest bin.
    """
    with torch.inference_mode(False):
        hertz = mel_frequencies(num_mels, sampling_rate)
        bins = torch.linspace(0, sampling_rate / 2, n_fft // 2 + 1, dtype=torch.float64)
        low, centre, high = hertz[:-2, None], hertz[1:-1, None], hertz[2:, None]
        filters = torch.minimum((bins - low) / (centre - low), (high - bins) / (high - centre)).clamp(min=0)
        empty = filters.sum(1) == 0
        nearest = (bins[None] - centre).abs().argmin(1)
        filters[empty, nearest[empty]] = 1
        return filters.to(device, torch.float32)


def mel_magnitudes(waveform: Tensor, n_fft: int, hop_length: int, num_mels: int, sampling_rate: int) -> Tensor:
    """Mel magnitudes (B, L // hop_length, num_mels) of a waveform (B, L), padded with silence."""
    pad = (n_fft - hop_length) // 2
    return mel_of_windows(F.pad(waveform, (pad, pad)).unfold(1, n_fft, hop_length), num_mels, sampling_rate)


def mel_of_windows(windows: Tensor, num_mels: int, sampling_rate: int) -> Tensor:
    """Mel magnitudes (B, T, num_mels) of windows (B, T, n_fft) of a waveform."""
    n_fft = windows.shape[2]
    frames = windows * hann_window(n_fft, windows.device)
    return torch.fft.rfft(frames).abs() @ mel_filters(n_fft, num_mels, sampling_rate, windows.device).T


LOUD_QUANTILE = 0.97  # the loudness of a mel band is this quantile of its frames
BAND_DEPTH = 7.8  # nepers (68 dB); a band that is further below the loudest one is empty
FULL_BAND = 0.97  # a recording is full-band if it occupies at least this share of the mel bands
EDGE_FRAMES = 3  # frames to ignore at both ends, where the cut of the recording has a wide spectrum


def occupied_bands(mel: Tensor) -> int:
    """Number of mel bands up to the highest one with sound, from the mel magnitudes (T, num_mels) of a recording."""
    frames = mel[EDGE_FRAMES:-EDGE_FRAMES] if len(mel) > 4 * EDGE_FRAMES else mel
    levels, rank = frames.float().clamp(min=1e-5).log().sort(0).values, LOUD_QUANTILE * (len(frames) - 1)
    loudness = torch.lerp(levels[int(rank)], levels[math.ceil(rank)], rank - int(rank))
    count = int((loudness > loudness.max() - BAND_DEPTH).nonzero().max()) + 1
    return mel.shape[1] if count >= FULL_BAND * mel.shape[1] else count


class BandExtension(nn.Module):
    """Estimates the log-mel bands that a band-limited recording lacks: their expected values given the other bands,
    under a normal distribution fitted to full-band frames.

    Buffers, which `fit` sets: mean and covariance of the log-mel values of a frame.
    """

    mean: Tensor
    covariance: Tensor

    def __init__(self, num_mels: int):
        super().__init__()
        self.register_buffer("mean", torch.zeros(num_mels))
        self.register_buffer("covariance", torch.zeros(num_mels, num_mels))

    def fit(self, mel: Tensor) -> None:
        """Fits the distribution to log-mel frames (N, num_mels) of full-band speech."""
        mean = mel.mean(0)
        centred = (mel - mean).double()
        self.mean.copy_(mean)
        self.covariance.copy_(centred.T @ centred / len(mel))

    def regression(self, known: int) -> Tensor:
        """Coefficients (num_mels - known, known) that predict the upper bands from the lowest `known` bands."""
        covariance = self.covariance.double()
        ridge = 1e-2 * torch.eye(known, dtype=torch.float64, device=covariance.device)  # some bands are nearly equal
        return torch.linalg.solve(covariance[:known, :known] + ridge, covariance[:known, known:]).T.float()

    def forward(self, mel: Tensor, bands: Tensor, floor: float) -> Tensor:
        """Full-band log-mel frames (B, T, num_mels) of recordings with `bands` (B,) occupied bands; at least `floor`.

        The highest occupied band is estimated too, because the recording contains only a part of it.
        """
        mean, full = self.mean.float(), mel.clone()
        for count in set(bands.tolist()) - {mel.shape[2]}:
            known, rows = max(1, count - 1), bands == count
            expected = mean[known:] + F.linear(mel[rows, :, :known] - mean[:known], self.regression(known))
            full[rows, :, known:] = expected.clamp(min=floor)
        return full


class MelAnalysis(nn.Module):
    """Fixed analysis: log-mel frames, standardized, then projected on their principal components.

    Its buffers are fitted, not trained (smalle.train.codec.quantizer).
    """

    mean: Tensor
    scale: Tensor
    projection: Tensor

    def __init__(self, config: SmallECodecConfig):
        super().__init__()
        self.config = config
        self.register_buffer("mean", torch.zeros(config.feature_size))
        self.register_buffer("scale", torch.ones(1))
        self.register_buffer("projection", torch.zeros(config.latent_size, config.feature_size))
        self.extension = BandExtension(config.num_mels) if config.band_extension else None

    def mel(self, waveform: Tensor) -> Tensor:
        """Mel magnitudes (B, frames, num_mels) of a waveform (B, T * hop_length), padded with silence."""
        config = self.config
        return mel_magnitudes(waveform, config.mel_n_fft, config.mel_hop_length, config.num_mels, config.sampling_rate)

    def occupied_bands(self, mel: Tensor, lengths: Tensor) -> Tensor:
        """Occupied mel bands (B,) of mel magnitudes of recordings with `lengths` (B,) samples: see `occupied_bands`."""
        frames = (lengths // self.config.mel_hop_length).clamp(min=1).tolist()
        return torch.tensor([occupied_bands(row[:count]) for row, count in zip(mel, frames)], device=mel.device)

    def features(self, mel: Tensor, bands: Tensor | None = None) -> Tensor:
        """Natural log (B, T, feature_size) of mel magnitudes.

        bands (B,): occupied mel bands of each row; the extension estimates those above. None: no extension.
        """
        log_mel = mel.clamp(min=self.config.mel_floor).log()
        if self.extension is not None and bands is not None:
            log_mel = self.extension(log_mel, bands, math.log(self.config.mel_floor))
        return log_mel.view(len(mel), -1, self.config.feature_size)

    def project(self, features: Tensor) -> Tensor:
        """Latents (B, latent_size, T), float32, of features."""
        return F.linear((features - self.mean.float()) / self.scale.float(), self.projection.float()).transpose(1, 2)

    def restore(self, latents: Tensor) -> Tensor:
        """The inverse of `project`: features (B, T, feature_size) of latents (B, latent_size, T), up to the dropped
        components."""
        inverse = torch.linalg.pinv(self.projection.float())
        return F.linear(latents.transpose(1, 2), inverse) * self.scale.float() + self.mean.float()

    def forward(self, waveform: Tensor, lengths: Tensor | None = None) -> Tensor:
        """Latents (B, latent_size, T), float32, of a waveform (B, T * hop_length) with `lengths` (B,) samples.

        With an extension, the occupied bands of each row are determined from its samples up to its length.
        """
        mel, bands = self.mel(waveform), None
        if self.extension is not None:
            lengths = torch.full((len(waveform),), waveform.shape[1]) if lengths is None else lengths
            bands = self.occupied_bands(mel, lengths)
        return self.project(self.features(mel, bands))


# --------------------------------------------------------------------------------------- quantizer and refiner


def identity_of(codebooks: Tensor) -> str:
    """Identity of a codec, to distinguish codes of different codecs: 16 hexadecimal digits.

    A hash of the codebooks (Q, K, D) in half precision, so that storing a codec in float16 does not change it.
    """
    return hashlib.sha256(codebooks.detach().half().cpu().numpy().tobytes()).hexdigest()[:16]


class ResidualQuantizer(nn.Module):
    """Residual vector quantization: each codebook quantizes the error of those before it."""

    codebooks: Tensor

    def __init__(self, num_codebooks: int, codebook_size: int, size: int):
        super().__init__()
        self.register_buffer("codebooks", torch.zeros(num_codebooks, codebook_size, size))

    def encode(self, latents: Tensor) -> Tensor:
        """Latents (B, D, T) -> codes (B, Q, T) int64."""
        batch, size, frames = latents.shape
        residual, codes = latents.float().transpose(1, 2).reshape(-1, size), []
        for codebook in self.codebooks.float():
            nearest = torch.addmm((codebook**2).sum(1), residual, codebook.T, alpha=-2).argmin(1)
            codes.append(nearest)
            residual = residual - codebook[nearest]
        return torch.stack(codes).view(-1, batch, frames).transpose(0, 1).contiguous()

    def decode(self, codes: Tensor) -> Tensor:
        """Codes (B, Q, T) -> quantized latents (B, D, T) float32."""
        vectors = [F.embedding(row, codebook) for row, codebook in zip(codes.unbind(1), self.codebooks.float())]
        return torch.stack(vectors).sum(0).transpose(1, 2)


class FrameNetwork(nn.Module):
    """ConvNeXt blocks over frames, for a whole sequence or chunk by chunk. Each convolution looks one frame ahead."""

    def __init__(self, inputs: int, outputs: int, size: int, intermediate: int, layers: int, kernel: int = 7):
        super().__init__()
        self.embed = ChunkedConv1d(inputs, size, kernel, lookahead=1)
        self.blocks = nn.ModuleList(
            ConvNeXtBlock(size, intermediate, kernel, 1 / layers, lookahead=1) for _ in range(layers)
        )
        self.norm = nn.LayerNorm(size, eps=1e-6)
        self.out = nn.Linear(size, outputs)

    def apply_blocks(
        self, x: Tensor, states: ConvolutionStates = (), last: bool = True
    ) -> tuple[Tensor, ConvolutionStates]:
        """x (B, inputs, T) -> outputs (B, outputs, T') float32 of the complete frames, and the state for later chunks.

        `last`: no chunk will follow.
        """
        states_now = list(states or (None,) * (1 + len(self.blocks)))
        _, x, states_now[0] = self.embed(x.to(self.embed.weight.dtype), states_now[0], last)
        for n, block in enumerate(self.blocks, 1):
            x, states_now[n] = block(x, None, states_now[n], last)
        return self.out(self.norm(x.transpose(1, 2))).transpose(1, 2).float(), tuple(states_now)


@dataclass
class RefinerState:
    """State of a refiner between chunks.

    latents (B, D, W): latents that are not refined yet; convolutions: see `ChunkedConv1d`.
    """

    latents: Tensor
    convolutions: ConvolutionStates


class LatentRefiner(FrameNetwork):
    """Estimates latents before quantization from quantized ones.

    Buffers: latent_scale, the standard deviation of quantized latents; rest_scale, that of the quantization error.
    """

    latent_scale: Tensor
    rest_scale: Tensor

    def __init__(self, config: SmallECodecConfig):
        size, kernel = config.refiner_hidden_size, config.refiner_kernel_size
        latents, layers = config.latent_size, config.refiner_num_layers
        super().__init__(latents, latents, size, config.refiner_intermediate_size, layers, kernel)
        self.register_buffer("latent_scale", torch.ones(config.latent_size))
        self.register_buffer("rest_scale", torch.ones(config.latent_size))

    def rest(
        self, latents: Tensor, state: ConvolutionStates = (), last: bool = True
    ) -> tuple[Tensor, ConvolutionStates]:
        """The estimated quantization error of latents (B, D, T) in units of rest_scale, for the complete frames
        (B, D, T'), and the states of the convolutions."""
        return self.apply_blocks(latents / self.latent_scale.float()[:, None], state, last)

    def forward(
        self, latents: Tensor, state: RefinerState | None = None, last: bool = True
    ) -> tuple[Tensor, RefinerState | None]:
        """Refined latents (B, D, T') of the frames that are complete after quantized latents (B, D, T), and the state.

        The joined result does not depend on the chunk sizes. `last`: no chunk will follow, so that all are complete.
        """
        waiting = latents if state is None else torch.cat((state.latents, latents), 2)
        rest, convolutions = self.rest(latents, state.convolutions if state else (), last)
        ready = rest.shape[2]
        refined = waiting[..., :ready] + rest * self.rest_scale.float()[:, None]
        return refined, None if last else RefinerState(waiting[..., ready:], convolutions)


# --------------------------------------------------------------------------------------------- the embedded codec


class SmallECodec(PreTrainedModel):
    """The embedded codec. Weights stored in fp16 or bf16 are loaded as fp32 unless `dtype` says otherwise."""

    config_class = SmallECodecConfig
    base_model_prefix = "codec"
    main_input_name = "waveform"

    def __init__(self, config: SmallECodecConfig):
        super().__init__(config)
        self.analysis = MelAnalysis(config)
        self.quantizer = ResidualQuantizer(config.num_codebooks, config.codebook_size, config.latent_size)
        self.refiner = LatentRefiner(config) if config.refiner_num_layers else None
        self.vocos = Vocos(config.vocos_config())
        self.post_init()

    @classmethod
    def from_pretrained(cls, *args, dtype: torch.dtype = torch.float32, **kwargs) -> "SmallECodec":
        options = {"dtype": dtype, "use_safetensors": True, "output_loading_info": True, **kwargs}
        loaded: Any = super().from_pretrained(*args, **options)
        codec, info = loaded
        if not kwargs.get("ignore_mismatched_sizes"):  # set to train a codec of another shape
            check_complete(info)
        check_finite(codec)
        return codec.eval()

    def _init_weights(self, module):
        if isinstance(module, MelAnalysis):
            init.zeros_(module.mean)
            init.ones_(module.scale)
            init.normal_(module.projection, std=0.02)
        elif isinstance(module, BandExtension):
            init.zeros_(module.mean)
            init.zeros_(module.covariance)
        elif isinstance(module, ResidualQuantizer):
            init.normal_(module.codebooks)
        elif isinstance(module, LatentRefiner):
            init.ones_(module.latent_scale)
            init.ones_(module.rest_scale)
        else:
            init_vocos_weights(module)

    sampling_rate = property(lambda self: self.config.sampling_rate)
    frame_rate = property(lambda self: self.config.frame_rate)
    hop_length = property(lambda self: self.config.hop_length)
    num_codebooks = property(lambda self: self.config.num_codebooks)
    codebook_size = property(lambda self: self.config.codebook_size)
    identity = property(lambda self: identity_of(self.quantizer.codebooks))

    @torch.no_grad()
    def encode(self, waveform: Tensor, lengths: Tensor | None = None) -> Tensor:
        """Codes (B, Q, T) int64, T = ceil(L / hop_length), of a waveform (B, L), floats in [-1, 1] at sampling_rate.

        lengths (B,): samples of each row. Its first ceil(length / hop_length) codes equal those of the row alone; later
        ones are meaningless. Raises ValueError on audio of another shape, integers, NaN, and empty audio.
        """
        waveform = check_waveform(waveform, lengths)
        lengths = torch.full((len(waveform),), waveform.shape[1]) if lengths is None else as_tensor("lengths", lengths)
        waveform = F.pad(waveform, (0, -waveform.shape[1] % self.hop_length))
        return self.quantizer.encode(self.analysis(waveform, lengths))

    @torch.no_grad()
    def embed(self, codes: Tensor) -> Tensor:
        """Quantized latents (B, latent_size, T) float32 of codes (B, Q, T)."""
        return self.quantizer.decode(check_codes(codes, self.num_codebooks, self.codebook_size).to(self.device))

    @torch.no_grad()
    def decode(self, codes: Tensor) -> Tensor:
        """Waveform (B, T * hop_length) float32 of codes (B, Q, T), of the first Q codebooks.

        Raises ValueError as `check_codes`.
        """
        return self.vocos.decode_chunk(self.embed(codes), last=True, refiner=self.refiner)[0]

    def decode_chunk(
        self, codes: Tensor, state: VocosState | None = None, last: bool = False
    ) -> tuple[Tensor, VocosState | None]:
        """Decodes one of several chunks: codes (B, Q, T), T >= 0 -> waveform (B, L) and the state for the next call.

        The waveform lags some frames behind the codes; `last` completes it. The joined waveforms equal `decode`
        exactly.
        """
        return self.vocos.decode_chunk(chunk_features(self, codes), state, last, refiner=self.refiner)


def chunk_features(codec: "SmallECodec | EncodecCodec", codes: Tensor) -> Tensor:
    """The input of a codec's Vocos for codes (B, Q, T); T may be 0."""
    if codes.dim() == 3 and not codes.shape[2]:
        return torch.zeros(len(codes), codec.vocos.config.input_channels, 0, device=codec.vocos.device)
    return codec.embed(codes)


# --------------------------------------------------------------------------------------------- EnCodec with Vocos


def load_codebooks(name_or_path: str, bandwidth: float, **kwargs) -> EncodecModel | None:
    """EnCodec with only the codebooks of a bandwidth loaded and all other weights on the meta device. None if the
    weights are not stored as safetensors."""
    path = cached_file(name_or_path, "model.safetensors", _raise_exceptions_for_missing_entries=False, **kwargs)
    if path is None:
        return None
    with torch.device("meta"):
        model = EncodecModel(EncodecConfig.from_pretrained(name_or_path, **kwargs))
    with safe_open(path, "pt") as file:
        for n in range(model.quantizer.get_num_quantizers_for_bandwidth(bandwidth)):
            name = f"quantizer.layers.{n}.codebook"
            model.get_submodule(name).register_buffer("embed", file.get_tensor(f"{name}.embed").float())
    return model


class EncodecCodec(nn.Module):
    """EnCodec's encoder and codebooks with Vocos as the decoder.

    Args:
        encodec: a mono model.
        vocos: a decoder of the summed codebook vectors.
        bandwidth: bandwidth of the codes in kbps; 3.0 means 4 codebooks with the 24 kHz model.
        bandwidth_id: the id of that bandwidth in Vocos; by default its index in VOCOS_BANDWIDTHS.
    """

    def __init__(self, encodec: EncodecModel, vocos: Vocos, bandwidth: float = 3.0, bandwidth_id: int | None = None):
        super().__init__()
        if vocos.config.hop_length != encodec.config.hop_length:
            raise ValueError(
                f"hop_length of vocos is {vocos.config.hop_length}, of encodec {encodec.config.hop_length}; "
                "expected the same: use a Vocos that was trained on this EnCodec"
            )
        if bandwidth not in encodec.config.target_bandwidths:
            raise ValueError(f"bandwidth is {bandwidth}; expected one of {list(encodec.config.target_bandwidths)} kbps")
        if bandwidth_id is None and vocos.config.num_bandwidths:
            if bandwidth not in VOCOS_BANDWIDTHS:
                raise ValueError(f"bandwidth is {bandwidth}; Vocos knows {list(VOCOS_BANDWIDTHS)} kbps")
            bandwidth_id = VOCOS_BANDWIDTHS.index(bandwidth)
        self.encodec, self.vocos = encodec, vocos
        self._load: Any = None  # loads all of EnCodec, if `encodec` contains only the codebooks
        self.bandwidth, self.bandwidth_id = bandwidth, bandwidth_id
        self.sampling_rate, self.hop_length = encodec.config.sampling_rate, encodec.config.hop_length
        self.frame_rate = self.sampling_rate / self.hop_length
        self.codebook_size = encodec.config.codebook_size
        self.num_codebooks = encodec.quantizer.get_num_quantizers_for_bandwidth(bandwidth)

    @classmethod
    def from_pretrained(
        cls, encodec: str = ENCODEC_NAME, vocos: str | None = None, bandwidth: float = 3.0, **kwargs
    ) -> "EncodecCodec":
        """encodec: folder or Hub name; vocos: the same, by default the folder's vocos/, else VOCOS_NAME."""
        if vocos is None:
            inside = os.path.join(encodec, "vocos")
            vocos = inside if os.path.isdir(inside) else VOCOS_NAME
        load = functools.partial(EncodecModel.from_pretrained, encodec, dtype=torch.float32, **kwargs)
        codec = cls(load_codebooks(encodec, bandwidth, **kwargs) or load(), load_vocos(vocos), bandwidth).eval()
        codec._load = load
        return codec

    def complete_encodec(self) -> EncodecModel:
        """EnCodec with all of its weights, which are loaded on first use: decoding needs only the codebooks."""
        if self.encodec.device.type == "meta":
            self.encodec = self._load().eval()
        return self.encodec

    def _apply(self, *args, **kwargs):
        self.complete_encodec()  # .to() applies to all weights
        return super()._apply(*args, **kwargs)

    @property
    def identity(self) -> str:
        names = [f"quantizer.layers.{n}.codebook.embed" for n in range(self.num_codebooks)]
        return identity_of(torch.stack([self.encodec.get_buffer(name) for name in names]))

    def save_pretrained(self, folder: str) -> None:
        """Writes FOLDER (EnCodec) and FOLDER/vocos; `load_codec(FOLDER)` reads them."""
        self.complete_encodec().save_pretrained(folder)
        self.vocos.save_pretrained(os.path.join(folder, "vocos"))

    @torch.no_grad()
    def encode(self, waveform: Tensor, lengths: Tensor | None = None) -> Tensor:
        """As SmallECodec.encode."""
        waveform = check_waveform(waveform, lengths)
        # padded to whole frames, every convolution is causal, so a row does not depend on what follows it
        waveform = F.pad(waveform, (0, -waveform.shape[1] % self.hop_length))[:, None]
        return self.complete_encodec().encode(waveform, bandwidth=self.bandwidth, return_dict=False)[0][0]

    @torch.no_grad()
    def embed(self, codes: Tensor) -> Tensor:
        """Sum of the codebooks' vectors (B, 128, T) of codes (B, Q, T)."""
        codes = check_codes(codes, self.num_codebooks, self.codebook_size).to(self.vocos.device)
        return self.encodec.quantizer.decode(codes.transpose(0, 1))

    @torch.no_grad()
    def decode(self, codes: Tensor) -> Tensor:
        """Waveform (B, T * hop_length) float32 of codes (B, Q, T)."""
        return self.vocos.decode_chunk(self.embed(codes), None, True, self.bandwidth_id)[0]

    def decode_chunk(
        self, codes: Tensor, state: VocosState | None = None, last: bool = False
    ) -> tuple[Tensor, VocosState | None]:
        """As SmallECodec.decode_chunk."""
        return self.vocos.decode_chunk(chunk_features(self, codes), state, last, self.bandwidth_id)


# -------------------------------------------------------------------------------------------------------- loading


def find_file(name_or_path: str, name: str, **kwargs) -> str:
    """Path of a file in a folder or (downloaded) in a Hub repository. Raises OSError if it does not exist."""
    path = cached_file(name_or_path, name, **kwargs)
    if path is None:  # cached_file returns None for some missing files
        raise FileNotFoundError(f"{name_or_path} has no file {name}")
    return path


def load_vocos(name_or_path: str = VOCOS_NAME) -> Vocos:
    """Loads Vocos from a folder or Hub name, in the format of transformers (config.json) or of the vocos package.

    The latter consists of pytorch_model.bin and config.yaml, of which only the head's hop_length and padding are read.
    """
    if cached_file(name_or_path, "config.json", _raise_exceptions_for_missing_entries=False):
        return Vocos.from_pretrained(name_or_path, dtype=torch.float32, use_safetensors=True).eval()
    with open(find_file(name_or_path, "config.yaml"), encoding="utf-8") as file:
        head = file.read().partition("head:")[2]
    hop_length, padding = re.search(r"hop_length:\s*(\d+)", head), re.search(r"padding:\s*[\"']?(\w+)", head)
    state = torch.load(find_file(name_or_path, "pytorch_model.bin"), map_location="cpu", weights_only=True)
    return convert_original(state, hop_length and int(hop_length[1]), padding and padding[1])


def load_codec(name_or_path: str, subfolder: str = "", **kwargs) -> SmallECodec | EncodecCodec:
    """Loads a codec from a folder or Hub name; "encodec" is EnCodec at 3 kbps with Vocos.

    Raises ValueError if there is no codec.
    """
    if name_or_path == "encodec":
        return EncodecCodec.from_pretrained(**kwargs)
    try:
        with open(find_file(name_or_path, "config.json", subfolder=subfolder, **kwargs), encoding="utf-8") as file:
            config = json.load(file)
    except (OSError, json.JSONDecodeError) as error:
        raise ValueError(
            f"no codec at {str(name_or_path)!r}{subfolder and f', folder {subfolder!r}'}: expected 'encodec', or a "
            "folder or Hub name with a config.json"
        ) from error
    model_type = config.get("model_type") if isinstance(config, dict) else None
    if model_type == SmallECodecConfig.model_type:
        options = {**kwargs, "subfolder": subfolder}
        with errors_name_the_file(name_or_path, os.path.join(subfolder, "config.json"), options):
            return SmallECodec.from_pretrained(name_or_path, **options)
    if model_type == "encodec":
        if subfolder:
            name_or_path = os.path.join(name_or_path, subfolder)
        return EncodecCodec.from_pretrained(name_or_path, **kwargs)
    where = os.path.join(name_or_path, subfolder, "config.json")
    raise ValueError(f"{where} has model_type {model_type!r}: expected 'smalle_codec' or 'encodec'.")
