"""Vocos: features to a waveform by a ConvNeXt backbone, a head that predicts spectra, and the inverse STFT.

Siuzdak 2023, "Vocos: Closing the gap between time-domain and Fourier-based neural vocoders" (arXiv 2306.00814).
Parameters are named as in the vocos package. `FourierHead` is the head of the paper; `HarmonicHead` filters noise and a
pulse train that follows a predicted fundamental frequency. Every part takes and returns a state, so that a waveform can
be decoded in chunks.
"""

import functools
import math
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import PreTrainedConfig, PreTrainedModel
from transformers import initialization as init

from .native_smalle import NOISE_FRAMES, DecoderState, VocosDecoder, block_size, load_library
from .native_smalle import block_sizes as block_sizes
from .runtime_smalle import fingerprint
from .saving_smalle import check_kinds, check_layers, check_positive

MAX_LOG_MAGNITUDE = math.log(1e2)


# ------------------------------------------------------------------------------------------------- configuration


class VocosConfig(PreTrainedConfig):
    """Sizes of a Vocos decoder.

    Args:
        hop_length: samples per feature frame.
        upsampling: spectral frames per feature frame.
        excitation: "none": the head predicts magnitude and phase of each bin, as in the paper; "harmonic": it predicts
            the fundamental frequency, the complex filter of its pulses and the magnitude of noise.
        padding: "same": T frames give T * hop_length samples; "center": (T - 1) * hop_length.
        num_bandwidths: if above 0, every norm except the last is conditioned on a bandwidth id.
    """

    model_type = "smalle_vocos"

    input_channels: int = 128
    hidden_size: int = 384
    intermediate_size: int = 1152
    num_hidden_layers: int = 8
    kernel_size: int = 7
    n_fft: int = 1280
    hop_length: int = 320
    upsampling: int = 1
    excitation: str = "none"
    padding: str = "same"
    num_bandwidths: int = 0
    sampling_rate: int = 24000

    def __post_init__(self, **kwargs):
        super().__post_init__(**kwargs)
        fields = VocosConfig.__annotations__
        check_kinds(self, fields)
        check_positive(self, [name for name, kind in fields.items() if kind is int and name != "num_bandwidths"])
        check_layers(self, ("num_hidden_layers",))
        if self.padding not in ("same", "center"):
            raise ValueError(f"padding is {self.padding!r}; expected 'same' or 'center'")
        if self.excitation not in HEADS:
            raise ValueError(f"excitation is {self.excitation!r}; expected one of {list(HEADS)}")
        if self.excitation == "harmonic" and self.padding != "same":
            raise ValueError(f"padding is {self.padding!r}; expected 'same' with excitation 'harmonic'")
        if self.hop_length % self.upsampling:
            raise ValueError(f"upsampling is {self.upsampling}; expected a divisor of hop_length, {self.hop_length}")
        if self.padding == "same" and (self.n_fft - self.spectral_hop) % 2:
            raise ValueError(
                f"n_fft is {self.n_fft}; expected hop_length / upsampling, {self.spectral_hop}, plus an even number"
            )

    @property
    def spectral_hop(self) -> int:
        """Samples between two spectral frames."""
        return self.hop_length // self.upsampling


# -------------------------------------------------------------------------------------------- spectral operations


@functools.lru_cache(maxsize=32)
def hann_window(length: int, device: torch.device) -> Tensor:
    """Periodic Hann window (length,), float32. Cached instead of a buffer, to be exact whatever the weights' dtype."""
    with torch.inference_mode(False):
        return torch.hann_window(length, device=device, dtype=torch.float32)


def pad_chunk(kept: Tensor | None, new: Tensor, edge: int, last: bool, mode: str = "constant") -> Tensor:
    """Joins kept (B, ..., K) and new (B, ..., L) values; pads by `edge` before the first chunk and after the last.

    kept: None for the first chunk.
    """
    joined = new if kept is None else torch.cat((kept, new), -1)
    return F.pad(joined, (edge if kept is None else 0, edge if last else 0), mode)


def split_windows(x: Tensor, size: int, step: int = 1) -> tuple[int, Tensor]:
    """The number of windows that fit into x (..., L), and the end of x that later windows need."""
    count = max(0, (x.shape[-1] - size) // step + 1)
    return count, x[..., count * step :]


def stft(waveform: Tensor, n_fft: int, hop_length: int) -> Tensor:
    """Spectrum (B, (L - n_fft) // hop_length + 1, n_fft / 2 + 1) of a waveform (B, L), without padding.

    A cosine of amplitude 1 peaks at 1.
    """
    window = hann_window(n_fft, waveform.device) / (n_fft / 4)
    return torch.fft.rfft(waveform.unfold(1, n_fft, hop_length) * window)


def overlap_add(frames: Tensor, hop_length: int) -> Tensor:
    """Sum of frames (B, T, N), hop_length samples apart -> (B, (T - 1) * hop_length + N)."""
    batch, count, size = frames.shape
    parts = -(-size // hop_length)
    frames = F.pad(frames, (0, parts * hop_length - size)).view(batch, count, parts, hop_length)
    shifted = (F.pad(frames[:, :, i], (0, 0, i, parts - 1 - i)) for i in range(parts))
    signal = functools.reduce(torch.add, shifted).flatten(1)
    return signal[:, : (count - 1) * hop_length + size]


def inverse_stft(
    spectrum: Tensor,
    n_fft: int,
    hop_length: int,
    padding: str,
    sums: Tensor | None = None,
    frame: int = 0,
    last: bool = True,
) -> tuple[Tensor, Tensor]:
    """Waveform (B, L) of a complex spectrum (B, T, n_fft / 2 + 1), whole or chunk by chunk.

    torch.istft supports neither padding "same" nor chunks.

    Args:
        sums: the sums that the previous chunk returned.
        frame: number of spectral frames before this chunk.
        last: whether this is the last chunk.

    Returns:
        The complete samples, and the sums (B + 1, n_fft - hop_length) for the incomplete ones: of the frames and, in
        the last row, of the squared windows.
    """
    frames = spectrum.shape[1]
    window = hann_window(n_fft, spectrum.device)
    waves = torch.fft.irfft(spectrum, n_fft) * window
    total = overlap_add(torch.cat((waves, (window**2).expand(1, frames, -1))), hop_length)
    if sums is not None:
        total[:, : sums.shape[1]] += sums
    trim = (n_fft - hop_length) // 2 if padding == "same" else n_fft // 2
    complete = total[:, max(0, trim - frame * hop_length) : total.shape[1] - trim if last else frames * hop_length]
    return complete[:-1] / complete[-1:].clamp(min=1e-11), total[:, frames * hop_length :]


# ----------------------------------------------------------------------------------------------------- excitation


def pulse_train(f0: Tensor, hop_length: int, sampling_rate: int, phase: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Pulses (B, T * hop_length) of T frames, from the f0 of these and of one neighbour on each side, (B, T + 2) in Hz.

    A pulse train is the sum of one cosine of amplitude 1 for each harmonic below 0.46 of the sampling rate. f0[:, t]
    applies to the middle of a frame and is interpolated between the middles. phase (B,), float64: the phase in cycles,
    0 to 1, at the end of the previous frames; 0 by default. Returns the pulses and the phase at their end.
    """
    before, now, after = (part.float()[..., None] for part in (f0[:, :-2], f0[:, 1:-1], f0[:, 2:]))
    place = (torch.arange(hop_length, device=f0.device) + 0.5) / hop_length - 0.5  # frames from the frame's middle
    f0 = (now + place.clamp(max=0) * (now - before) + place.clamp(min=0) * (after - now)).clamp(min=20.0)
    cycles = (f0 / sampling_rate).cumsum(2)
    ends = cycles[..., -1].cpu().double().cumsum(1)  # in single precision, high harmonics would lose their phase
    starts = F.pad(ends, (1, 0)) + (0.0 if phase is None else phase[:, None])
    starts = starts % 1.0
    cycles = (cycles + starts[:, :-1, None].to(cycles)).flatten(1)
    phase = 2 * math.pi * (cycles - cycles.round())  # around 0, where the quotient below needs full precision
    harmonics = (0.46 * sampling_rate / f0).floor().flatten(1)
    # the sum of cos(h * phase) over h = 1 ... harmonics in closed form, and its limit at phase 0
    half = (phase / 2).sin()
    summed = ((harmonics + 0.5) * phase).sin() / (2 * torch.where(half.abs() < 1e-6, torch.ones_like(half), half)) - 0.5
    return torch.where(half.abs() < 1e-6, harmonics, summed), starts[:, -1]


@functools.lru_cache(maxsize=8)
def noise_table(bins: int, device: torch.device) -> Tensor:
    """Complex normal noise (NOISE_FRAMES, bins), the same in every process."""
    with torch.inference_mode(False):
        noise = torch.randn(NOISE_FRAMES, bins, 2, generator=torch.Generator().manual_seed(0))
        return torch.view_as_complex(noise).to(device)


# ------------------------------------------------------------------------------------------------------- backbone

ConvolutionStates = tuple[Tensor | None, ...]


class AdaptiveLayerNorm(nn.Module):
    """LayerNorm whose scale and shift are looked up by a condition id."""

    def __init__(self, num_conditions: int, size: int):
        super().__init__()
        self.scale = nn.Embedding(num_conditions, size)
        self.shift = nn.Embedding(num_conditions, size)

    def forward(self, x: Tensor, condition: Tensor) -> Tensor:
        """x (B, T, C), condition (B,) int64 -> (B, T, C)."""
        x = F.layer_norm(x, x.shape[-1:], eps=1e-6)
        return x * self.scale(condition)[:, None] + self.shift(condition)[:, None]


class PlainLayerNorm(nn.LayerNorm):
    """LayerNorm that ignores the condition."""

    def __init__(self, size: int):
        super().__init__(size, eps=1e-6)

    def forward(self, x: Tensor, condition: Tensor | None = None) -> Tensor:
        return super().forward(x)


def layer_norm(size: int, num_conditions: int) -> nn.Module:
    return AdaptiveLayerNorm(num_conditions, size) if num_conditions else PlainLayerNorm(size)


class ChunkedConv1d(nn.Conv1d):
    """A convolution that keeps the length, for a whole sequence or chunk by chunk.

    lookahead: number of later inputs that an output depends on; half of the kernel by default.
    """

    def __init__(
        self, in_channels: int, out_channels: int, kernel_size: int, groups: int = 1, lookahead: int | None = None
    ):
        super().__init__(in_channels, out_channels, kernel_size, groups=groups)
        self.lookahead = kernel_size // 2 if lookahead is None else lookahead

    def forward(self, x: Tensor, state: Tensor | None = None, last: bool = True) -> tuple[Tensor, Tensor, Tensor]:
        """x (B, C, T) -> inputs (B, C, T') and outputs (B, C', T') of the complete positions, and the state.

        state: the inputs (B, C, < kernel_size) that later outputs depend on; `last`: no chunk will follow.
        """
        size = self.kernel_size[0]
        lookback = size - 1 - self.lookahead
        x = F.pad(x, (lookback, 0)) if state is None else torch.cat((state, x), -1)
        x = F.pad(x, (0, self.lookahead if last else 0))
        complete, state = split_windows(x, size)
        y = super().forward(x) if complete else x.new_zeros(len(x), self.out_channels, 0)
        return x[..., lookback : lookback + complete], y, state


class ConvNeXtBlock(nn.Module):
    """Depthwise convolution, norm, two pointwise layers and a learned scale of each channel, added to the input."""

    def __init__(
        self,
        size: int,
        intermediate_size: int,
        kernel_size: int = 7,
        scale: float = 1.0,
        num_conditions: int = 0,
        lookahead: int | None = None,
    ):
        super().__init__()
        self.initial_scale = scale
        self.dwconv = ChunkedConv1d(size, size, kernel_size, groups=size, lookahead=lookahead)
        self.norm = layer_norm(size, num_conditions)
        self.pwconv1 = nn.Linear(size, intermediate_size)
        self.pwconv2 = nn.Linear(intermediate_size, size)
        self.gamma = nn.Parameter(torch.full((size,), scale))

    def forward(
        self, x: Tensor, condition: Tensor | None = None, state: Tensor | None = None, last: bool = True
    ) -> tuple[Tensor, Tensor]:
        """x (B, C, T) -> (B, C, T') for the complete positions, and the state of the convolution."""
        x, y, state = self.dwconv(x, state, last)
        y = self.pwconv2(F.gelu(self.pwconv1(self.norm(y.transpose(1, 2), condition))))
        return x + (self.gamma * y).transpose(1, 2), state


class VocosBackbone(nn.Module):
    """Features (B, input_channels, T) to hidden states (B, T, hidden_size)."""

    def __init__(self, config: VocosConfig):
        super().__init__()
        size, layers, bandwidths = config.hidden_size, config.num_hidden_layers, config.num_bandwidths
        self.embed = ChunkedConv1d(config.input_channels, size, config.kernel_size)
        self.norm = layer_norm(size, bandwidths)
        self.convnext = nn.ModuleList(
            ConvNeXtBlock(size, config.intermediate_size, config.kernel_size, 1 / layers, bandwidths)
            for _ in range(layers)
        )
        self.final_layer_norm = PlainLayerNorm(size)

    def forward(
        self,
        features: Tensor,
        condition: Tensor | None = None,
        state: ConvolutionStates = (),
        last: bool = True,
    ) -> tuple[Tensor, ConvolutionStates]:
        """Hidden states (B, T', D) of the complete frames, and the state of each convolution."""
        states = list(state or (None,) * (1 + len(self.convnext)))
        _, x, states[0] = self.embed(features.to(self.embed.weight.dtype), states[0], last)
        x = self.norm(x.transpose(1, 2), condition).transpose(1, 2)
        for n, block in enumerate(self.convnext, 1):
            x, states[n] = block(x, condition, states[n], last)
        return self.final_layer_norm(x.transpose(1, 2)), tuple(states)


def init_vocos_weights(module: nn.Module) -> None:
    """Initializes one module as Vocos does; used by every model that is built from these blocks."""
    if isinstance(module, nn.Conv1d | nn.Linear):
        init.trunc_normal_(module.weight, std=0.02)
        if module.bias is not None:
            init.zeros_(module.bias)
    elif isinstance(module, nn.LayerNorm):
        init.ones_(module.weight)
        init.zeros_(module.bias)
    elif isinstance(module, AdaptiveLayerNorm):
        init.ones_(module.scale.weight)
        init.zeros_(module.shift.weight)
    elif isinstance(module, ConvNeXtBlock):
        init.constant_(module.gamma, module.initial_scale)


# ---------------------------------------------------------------------------------------------------------- heads


class FourierHead(nn.Module):
    """Predicts magnitude and phase of every bin: the ISTFT head of the paper."""

    def __init__(self, config: VocosConfig):
        super().__init__()
        self.upsampling = config.upsampling
        self.out = nn.Linear(config.hidden_size, config.upsampling * (config.n_fft + 2))

    def forward(
        self, x: Tensor, f0: None = None, state: None = None, frame: int = 0, last: bool = True
    ) -> tuple[Tensor, None, None]:
        """x (B, T, D) -> spectrum (B, T * upsampling, n_fft / 2 + 1), no f0, no state."""
        magnitude, phase = self.out(x).unflatten(-1, (self.upsampling, -1)).flatten(1, 2).float().chunk(2, dim=-1)
        # clamped before exp: the same values as clipping at 1e2 after it, and no inf * 0 in the gradient
        return torch.polar(torch.exp(magnitude.clamp(max=MAX_LOG_MAGNITUDE)), phase), None, None


@dataclass
class HarmonicState:
    """State of a HarmonicHead.

    pulse_filter, noise_magnitude (B, W, bins): those of spectral frames with incomplete pulses; f0 (B, 1, <= 2) and
    pulses (B, < n_fft): the last ones, which overlap with later frames; phase (B,): cycles at their end.
    """

    pulse_filter: Tensor
    noise_magnitude: Tensor
    f0: Tensor | None = None
    pulses: Tensor | None = None
    phase: Tensor | None = None


class HarmonicHead(nn.Module):
    """Predicts a fundamental frequency, the complex filter of its pulses and the magnitude of noise."""

    def __init__(self, config: VocosConfig):
        super().__init__()
        self.n_fft, self.hop, self.upsampling = config.n_fft, config.spectral_hop, config.upsampling
        self.bins, self.sampling_rate = config.n_fft // 2 + 1, config.sampling_rate
        self.out = nn.Linear(config.hidden_size, config.upsampling * (3 * self.bins + 1))

    def filters(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """x (B, T, D) -> complex pulse filter and noise magnitude, both (B, T * upsampling, n_fft / 2 + 1), and f0
        (B, T * upsampling) in Hz."""
        x = self.out(x).unflatten(-1, (self.upsampling, -1)).flatten(1, 2).float()
        magnitude, phase, noise_magnitude, f0 = x.split((self.bins, self.bins, self.bins, 1), -1)
        pulse_filter = torch.polar(torch.exp(magnitude.clamp(max=MAX_LOG_MAGNITUDE)), phase)
        noise_magnitude = torch.exp(noise_magnitude.clamp(max=MAX_LOG_MAGNITUDE))
        return pulse_filter, noise_magnitude, 150.0 * torch.exp(f0[..., 0].clamp(-2.0, 2.0))

    def forward(
        self,
        x: Tensor,
        f0: Tensor | None = None,
        state: HarmonicState | None = None,
        frame: int = 0,
        last: bool = True,
    ) -> tuple[Tensor, Tensor, HarmonicState]:
        """x (B, T, D) -> spectrum (B, T', n_fft / 2 + 1) of the frames with complete pulses, the predicted f0
        (B, T * upsampling) in Hz, and the state.

        f0: replaces the prediction, as in training; frame: number of spectral frames before this chunk.
        """
        pulse_filter, noise_magnitude, predicted = self.filters(x)
        f0 = predicted if f0 is None else f0
        state = HarmonicState(pulse_filter[:, :0], noise_magnitude[:, :0]) if state is None else state
        pulse_filter = torch.cat((state.pulse_filter, pulse_filter), 1)
        noise_magnitude = torch.cat((state.noise_magnitude, noise_magnitude), 1)
        f0 = pad_chunk(state.f0, f0[:, None], 1, last, "replicate")
        pulses, phase = pulse_train(f0[:, 0], self.hop, self.sampling_rate, state.phase)
        pulses = pad_chunk(state.pulses, pulses, (self.n_fft - self.hop) // 2, last)
        ready, later_pulses = split_windows(pulses, self.n_fft, self.hop)
        later_f0 = split_windows(f0, 3)[1]
        state = HarmonicState(pulse_filter[:, ready:], noise_magnitude[:, ready:], later_f0, later_pulses, phase)
        if not ready:
            return pulse_filter[:, :0], predicted, state
        frame = int(torch.randint(NOISE_FRAMES, ())) if self.training else frame
        noise = noise_table(self.bins, x.device)[(torch.arange(ready, device=x.device) + frame) % NOISE_FRAMES]
        voiced = stft(pulses, self.n_fft, self.hop) * pulse_filter[:, :ready]
        return voiced + noise * noise_magnitude[:, :ready], predicted, state


HEADS = {"none": FourierHead, "harmonic": HarmonicHead}


# ------------------------------------------------------------------------------------- model and chunked decoding


@dataclass
class VocosState:
    """State of a decoder between chunks.

    features (B, C, < 64): features that are not part of a block yet; feature_frames: frames in the blocks so far;
    refiner, backbone, head: their states; sums: see `inverse_stft`; frame: spectral frames so far.
    """

    features: Tensor
    feature_frames: int = 0
    refiner: Any = None
    backbone: ConvolutionStates = ()
    head: HarmonicState | None = None
    sums: Tensor | None = None
    frame: int = 0


def decode_rows(
    decoder: VocosDecoder, features: Tensor, states: tuple[DecoderState, ...] | None, last: bool
) -> tuple[Tensor, tuple[DecoderState, ...] | None]:
    """`Vocos.decode_chunk` of features (B, C, T) with the C library, row by row. Returns a state for each row."""
    rows = [
        decoder.decode_chunk(row.T.numpy(), state, last)
        for row, state in zip(features, states or [None] * len(features))
    ]
    waves = torch.stack([torch.from_numpy(wave) for wave, _ in rows])
    return waves, None if last else tuple(state for _, state in rows if state is not None)


class Vocos(PreTrainedModel):
    """Features (B, input_channels, T) to a waveform.

    runtime: runtime of `decode_chunk`: "auto", the C library if it supports the call, or "torch".
    """

    runtime = "auto"

    config_class = VocosConfig
    base_model_prefix = "vocos"
    main_input_name = "features"

    def __init__(self, config: VocosConfig):
        super().__init__(config)
        self.backbone = VocosBackbone(config)
        self.head = HEADS[config.excitation](config)
        self._native: tuple[Any, VocosDecoder | None] = None, None
        self.post_init()

    def _init_weights(self, module):
        init_vocos_weights(module)

    def forward(self, features: Tensor, bandwidth_id: int | Tensor | None = None) -> Tensor:
        """Waveform (B, T * hop_length), float32, of features (B, C, T); with padding "center" (T - 1) * hop_length.

        bandwidth_id: int, or int64 (B,); required if and only if the checkpoint is conditioned on it.
        """
        return self.synthesize(features, bandwidth_id)[0]

    def synthesize(
        self, features: Tensor, bandwidth_id: int | Tensor | None = None, f0: Tensor | None = None
    ) -> tuple[Tensor, Tensor | None]:
        """As `forward`, but also returns the predicted f0 (B, T * upsampling) in Hz; None without harmonic excitation.

        f0 (B, T * upsampling): replaces the prediction.
        """
        condition = self._check_inputs(features, bandwidth_id)
        if not features.shape[2]:
            raise ValueError(f"features have shape {tuple(features.shape)}: expected at least one frame")
        waveform, predicted, _ = self._advance(features, VocosState(features[..., :0]), condition, True, f0=f0)
        return waveform, predicted

    @torch.no_grad()
    def decode_chunk(
        self,
        features: Tensor,
        state: Any = None,
        last: bool = False,
        bandwidth_id: int | Tensor | None = None,
        refiner: nn.Module | None = None,
    ) -> tuple[Tensor, Any]:
        """The waveform (B, L) that is complete after features (B, C, T), T >= 0, and the state to continue with.

        The joined result does not depend on the chunk sizes, to the last bit, because it is computed in blocks of
        fixed sizes. It equals `forward` of all features up to rounding.

        last: no chunk will follow; the returned state is None.
        refiner: applied to the features first (`codec_smalle.LatentRefiner`).
        """
        condition = self._check_inputs(features, bandwidth_id)
        if not isinstance(state, VocosState) and (native := self._native_decoder(features, condition, refiner)):
            return decode_rows(native, features, state, last)
        state = VocosState(features[..., :0]) if state is None else state
        features, waves = torch.cat((state.features, features), 2), [torch.zeros(len(features), 0).to(features.device)]
        while (size := block_size(state.feature_frames)) <= features.shape[2]:
            wave, _, state = self._advance(features[..., :size], state, condition, False, refiner)
            features = features[..., size:]
            waves.append(wave)
        if last and (state.feature_frames or features.shape[2]):
            waves.append(self._advance(features, state, condition, True, refiner)[0])
        return torch.cat(waves, 1), None if last else replace(state, features=features)

    def _native_decoder(self, features, condition, refiner) -> VocosDecoder | None:
        """The decoder of the C library, or None if it does not support the call."""
        modules, config = [self] if refiner is None else [self, refiner], self.config
        kinds = {(x.device.type, x.dtype) for module in modules for x in module.parameters()}
        mixed = condition is not None and bool((condition != condition[0]).any())
        odd = config.n_fft % 2 or config.n_fft < config.spectral_hop
        right = kinds == {("cpu", torch.float32)} and features.dtype == torch.float32 and not (mixed or odd)
        if self.runtime == "torch" or not right or any(module.training for module in modules):
            return None
        bandwidth = None if condition is None else int(condition[0])
        key = bandwidth, *map(fingerprint, modules)
        if self._native[0] != key or self._native[1] is None:
            library, _ = load_library()
            weights, refiner_weights = (
                {} if module is None else {name: x.numpy() for name, x in module.state_dict().items()}
                for module in (self, refiner)
            )
            args = weights, refiner_weights, vars(config), bandwidth
            self._native = key, None if library is None else VocosDecoder(library, *args)
        return self._native[1]

    def _advance(self, features, state, condition, last, refiner=None, f0=None):
        """The waveform (B, L) that is complete after a block of features (B, C, T), the predicted f0, and the state."""
        nothing = torch.zeros(len(features), 0, device=features.device)
        state = replace(state, feature_frames=state.feature_frames + features.shape[2])
        if refiner is not None:
            features, refined = refiner(features, state.refiner, last)
            state = replace(state, refiner=refined)
        x, backbone = self.backbone(features, condition, state.backbone, last)
        state = replace(state, backbone=backbone)
        if not x.shape[1]:
            return nothing, None, state
        spectrum, predicted, head = self.head(x, f0, state.head, state.frame, last)
        state = replace(state, head=head)
        if not spectrum.shape[1]:
            return nothing, predicted, state
        config = self.config
        waveform, sums = inverse_stft(
            spectrum, config.n_fft, config.spectral_hop, config.padding, state.sums, state.frame, last
        )
        return waveform, predicted, replace(state, sums=sums, frame=state.frame + spectrum.shape[1])

    def _check_inputs(self, features, bandwidth_id):
        """Checks features (B, C, T); returns the bandwidth id of each row (B,), or None."""
        if features.dim() != 3 or features.shape[1] != self.config.input_channels:
            raise ValueError(
                f"features have shape {tuple(features.shape)}; expected (B, {self.config.input_channels}, T), T > 0"
            )
        bandwidths = self.config.num_bandwidths
        if not bandwidths:
            if bandwidth_id is not None:
                raise ValueError(
                    f"bandwidth_id is {bandwidth_id}, but this Vocos is not conditioned on one; leave it out"
                )
            return None
        if bandwidth_id is None:
            raise ValueError(f"this Vocos needs a bandwidth_id, 0 to {bandwidths - 1}")
        condition = torch.as_tensor(bandwidth_id, device=features.device)
        if condition.min() < 0 or condition.max() >= bandwidths:
            raise ValueError(f"bandwidth_id is {bandwidth_id}; expected 0 to {bandwidths - 1}")
        return condition.expand(features.shape[0])


# ----------------------------------------------------------------------------------------------------- conversion


def convert_original(state: dict[str, Tensor], hop_length: int | None = None, padding: str | None = None) -> Vocos:
    """Converts a state dict of the vocos package; sizes are derived from the shapes.

    hop_length: n_fft / 4 by default; padding: by default "same" for conditioned checkpoints and "center" for others, as
    in the two published ones.
    """
    weights = {name: x for name, x in state.items() if name.startswith(("backbone.", "head.out."))}
    if "backbone.embed.weight" not in weights or "head.out.weight" not in weights:
        raise ValueError("no backbone.embed.weight or head.out.weight in the state dict; expected a Vocos checkpoint")
    conditioned = "backbone.norm.scale.weight" in weights
    size, channels, kernel = weights["backbone.embed.weight"].shape
    n_fft = weights["head.out.weight"].shape[0] - 2
    config = VocosConfig(
        input_channels=channels,
        hidden_size=size,
        intermediate_size=weights["backbone.convnext.0.pwconv1.weight"].shape[0],
        num_hidden_layers=len({name.split(".")[2] for name in weights if name.startswith("backbone.convnext.")}),
        kernel_size=kernel,
        n_fft=n_fft,
        hop_length=hop_length or n_fft // 4,
        padding=padding or ("same" if conditioned else "center"),
        num_bandwidths=weights["backbone.norm.scale.weight"].shape[0] if conditioned else 0,
    )
    model = Vocos(config)
    model.load_state_dict(weights)
    return model.eval()
