"""Vocos: features to waveform through ConvNeXt blocks and one inverse Fourier transform a frame.

Siuzdak 2023, "Vocos: Closing the gap between time-domain and Fourier-based neural vocoders" (arXiv 2306.00814).
The parameters are those of the original's backbone and ISTFT head, so that its checkpoints convert by renaming.
A head of our own, `excitation: harmonic`, filters pulses at a predicted fundamental frequency, and noise.
"""

import functools
import math
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import nn
from transformers import PreTrainedConfig, PreTrainedModel
from transformers import initialization as init

from .configuration_smalle import check_kinds, check_positive

# --- excitation: Excitation of a vocoder: a pulse train that follows a fundamental frequency, and noise.


NOISE_FRAMES = 1024


def pulse_train(f0, hop_length, sampling_rate):
    """Pulses (B, T * hop_length) of f0 (B, T) in Hz: a cosine of amplitude 1 for each harmonic below 0.46 of the rate.

    f0[:, t] holds in the middle of frame t, and in between it is interpolated.
    """
    return pulses_between(F.pad(f0[:, None], (1, 1), "replicate")[:, 0], hop_length, sampling_rate)[0]


def pulses_between(f0, hop_length, sampling_rate, phase=None):
    """As `pulse_train`, of T frames with neighbours: f0 (B, T + 2) -> pulses (B, T * hop_length), phase after them.

    phase (B,): cycles, 0 to 1, in double precision, where the frames before have ended; None: 0.
    """
    before, now, after = (part.float()[..., None] for part in (f0[:, :-2], f0[:, 1:-1], f0[:, 2:]))
    place = (torch.arange(hop_length, device=f0.device) + 0.5) / hop_length - 0.5  # frames from the middle of one's own
    f0 = (now + place.clamp(max=0) * (now - before) + place.clamp(min=0) * (after - now)).clamp(min=20.0)
    cycles = (f0 / sampling_rate).cumsum(2)
    ends = cycles[..., -1].cpu().double().cumsum(1)  # single precision would lose the high harmonics' phase
    starts = F.pad(ends, (1, 0)) + (0.0 if phase is None else phase[:, None])
    starts = starts % 1.0
    cycles = (cycles + starts[:, :-1, None].to(cycles)).flatten(1)
    phase = 2 * math.pi * (cycles - cycles.round())  # around 0, where the quotient below needs every digit
    harmonics = (0.46 * sampling_rate / f0).floor().flatten(1)
    # the sum of cos(h * phase), h = 1 ... harmonics, in closed form; its limit where the phase passes zero
    half = (phase / 2).sin()
    summed = ((harmonics + 0.5) * phase).sin() / (2 * torch.where(half.abs() < 1e-6, torch.ones_like(half), half)) - 0.5
    return torch.where(half.abs() < 1e-6, harmonics, summed), starts[:, -1]


@functools.lru_cache(maxsize=8)
def noise_table(bins, device):
    """Complex normal noise (NOISE_FRAMES, bins), the same in every process."""
    with torch.inference_mode(False):
        noise = torch.randn(NOISE_FRAMES, bins, 2, generator=torch.Generator().manual_seed(0))
        return torch.view_as_complex(noise).to(device)


def noise(frames, bins, device, start=0):
    """Complex normal noise (frames, bins): frame t of any audio takes row start + t of the table, round again."""
    rows = (torch.arange(frames, device=device) + start) % NOISE_FRAMES
    return noise_table(bins, device)[rows]


MAX_LOG_MAGNITUDE = math.log(1e2)


class VocosConfig(PreTrainedConfig):
    """Sizes of a Vocos decoder. `num_bandwidths` > 0 conditions every norm but the last on a bandwidth id.

    `hop_length`: samples of a feature frame. `upsampling`: spectral frames for each of them. `excitation`: "none"
    predicts magnitude and phase of each bin, as in the paper; "harmonic" predicts a fundamental frequency, the complex
    filter of its pulses and the magnitude of noise. `padding`: "same" gives `T * hop_length` samples for T frames,
    "center" gives `(T - 1) * hop_length`.
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
        if self.padding not in ("same", "center"):
            raise ValueError(f"padding is {self.padding!r}; expected 'same' or 'center'")
        if self.excitation not in ("none", "harmonic"):
            raise ValueError(f"excitation is {self.excitation!r}; expected 'none' or 'harmonic'")
        if self.excitation == "harmonic" and self.padding != "same":
            raise ValueError(f"padding is {self.padding!r}; expected 'same' beside excitation 'harmonic'")
        if self.upsampling < 1 or self.hop_length % self.upsampling:
            raise ValueError(f"upsampling is {self.upsampling}; expected a divisor of hop_length, {self.hop_length}")
        if self.padding == "same" and (self.n_fft - self.spectral_hop) % 2:
            raise ValueError(
                f"n_fft is {self.n_fft}; expected {self.spectral_hop} (hop / upsampling) plus an even number"
            )

    @property
    def spectral_hop(self):
        """Samples between two spectral frames."""
        return self.hop_length // self.upsampling


@functools.lru_cache(maxsize=32)
def hann_window(length, device):
    """Periodic Hann window (length,), float32. Cached, not a buffer: exact in whatever dtype the weights are stored."""
    with torch.inference_mode(False):
        return torch.hann_window(length, device=device, dtype=torch.float32)


def overlap_add(frames, hop_length, trim):
    """Sum of frames (B, T, n) laid `hop_length` apart -> (B, (T - 1) * hop_length + n - 2 * trim)."""
    batch, count, size = frames.shape
    parts = -(-size // hop_length)
    frames = F.pad(frames, (0, parts * hop_length - size)).view(batch, count, parts, hop_length)
    signal = sum(F.pad(frames[:, :, i], (0, 0, i, parts - 1 - i)) for i in range(parts)).flatten(1)
    return signal[:, trim : (count - 1) * hop_length + size - trim]


def inverse_stft(spectrum, n_fft, hop_length, padding):
    """Complex spectrum (B, T, n_fft / 2 + 1) -> waveform; torch.istft cannot do padding "same"."""
    window = hann_window(n_fft, spectrum.device)
    trim = (n_fft - hop_length) // 2 if padding == "same" else n_fft // 2
    frames = torch.fft.irfft(spectrum, n_fft) * window
    envelope = overlap_add((window**2).expand(1, frames.shape[1], -1), hop_length, trim)
    return overlap_add(frames, hop_length, trim) / envelope.clamp(min=1e-11)


class AdaptiveLayerNorm(nn.Module):
    """LayerNorm whose scale and shift are looked up by a condition id."""

    def __init__(self, num_conditions, size):
        super().__init__()
        self.scale = nn.Embedding(num_conditions, size)
        self.shift = nn.Embedding(num_conditions, size)

    def forward(self, x, condition):
        """x (B, T, C), condition (B,) int64 -> (B, T, C)."""
        x = F.layer_norm(x, x.shape[-1:], eps=1e-6)
        return x * self.scale(condition)[:, None] + self.shift(condition)[:, None]


class PlainLayerNorm(nn.LayerNorm):
    """LayerNorm that ignores the condition."""

    def __init__(self, size):
        super().__init__(size, eps=1e-6)

    def forward(self, x, condition=None):
        return super().forward(x)


def layer_norm(size, num_conditions):
    return AdaptiveLayerNorm(num_conditions, size) if num_conditions else PlainLayerNorm(size)


class ConvNeXtBlock(nn.Module):
    """Depthwise convolution, norm, two pointwise layers and a learned scale per channel, added to the input."""

    def __init__(self, size, intermediate_size, kernel_size=7, scale=1.0, num_conditions=0):
        super().__init__()
        self.initial_scale = scale
        self.dwconv = nn.Conv1d(size, size, kernel_size, padding=kernel_size // 2, groups=size)
        self.norm = layer_norm(size, num_conditions)
        self.pwconv1 = nn.Linear(size, intermediate_size)
        self.pwconv2 = nn.Linear(intermediate_size, size)
        self.gamma = nn.Parameter(torch.full((size,), scale))

    def forward(self, x, condition=None, mask=None):
        """x (B, C, T) -> (B, C, T); mask (B, 1, T) zeroes what the convolution may not see."""
        return self.pointwise(x, self.dwconv(x if mask is None else x * mask), condition)

    def pointwise(self, x, y, condition=None):
        """What follows the convolution's output y (B, C, T), added to the block's input x (B, C, T)."""
        y = self.pwconv2(F.gelu(self.pwconv1(self.norm(y.transpose(1, 2), condition))))
        return x + (self.gamma * y).transpose(1, 2)


def init_vocos_weights(module):
    """The initialisation of Vocos for one module; shared by every model that is built of these blocks."""
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


def spectra(waveform, n_fft, hop_length):
    """Spectra of the windows that fit: (B, L) -> (B, (L - n_fft) // hop + 1, n_fft / 2 + 1); a cosine of amplitude 1
    peaks at 1."""
    window = hann_window(n_fft, waveform.device) / (n_fft / 4)
    return torch.fft.rfft(waveform.unfold(1, n_fft, hop_length) * window)


def forward_stft(waveform, n_fft, hop_length):
    """Spectrum (B, T, n_fft / 2 + 1) of a waveform (B, T * hop_length)."""
    trim = (n_fft - hop_length) // 2
    return spectra(F.pad(waveform, (trim, trim)), n_fft, hop_length)


class FourierHead(nn.Linear):
    """Magnitude and phase of every bin: the head of the paper."""

    def __init__(self, config):
        super().__init__(config.hidden_size, config.upsampling * (config.n_fft + 2))
        self.config = config

    def forward(self, x, f0=None):
        """x (B, T, D) -> spectrum (B, T * upsampling, n_fft / 2 + 1), None."""
        x = super().forward(x).unflatten(-1, (self.config.upsampling, -1)).flatten(1, 2)
        magnitude, phase = x.float().chunk(2, dim=-1)
        # clamped before exp: the same values as clipping at 1e2 after it, and no inf * 0 in the gradient
        return torch.polar(torch.exp(magnitude.clamp(max=MAX_LOG_MAGNITUDE)), phase), None


class HarmonicHead(nn.Linear):
    """Filters of pulses and noise, and the frequency of the pulses."""

    def __init__(self, config):
        super().__init__(config.hidden_size, config.upsampling * (3 * (config.n_fft // 2 + 1) + 1))
        self.config = config

    def filters(self, x):
        """x (B, T, D) -> of each of T * upsampling spectral frames, the complex filter of pulses and the magnitude of
        noise (B, T', n_fft / 2 + 1), and f0 (B, T') in Hz."""
        bins = self.config.n_fft // 2 + 1
        x = super().forward(x).unflatten(-1, (self.config.upsampling, -1)).flatten(1, 2).float()
        magnitude, phase, breath, pitch = x.split((bins, bins, bins, 1), -1)
        voice = torch.polar(torch.exp(magnitude.clamp(max=MAX_LOG_MAGNITUDE)), phase)
        breath = torch.exp(breath.clamp(max=MAX_LOG_MAGNITUDE))
        return voice, breath, 150.0 * torch.exp(pitch[..., 0].clamp(-2.0, 2.0))

    def forward(self, x, f0=None):
        """x (B, T, D) -> spectrum (B, T * upsampling, n_fft / 2 + 1), the f0 predicted (B, T * upsampling) in Hz.

        f0: what the pulses shall follow instead; training gives the true one.
        """
        config = self.config
        voice, breath, predicted = self.filters(x)
        pulses = pulse_train(predicted if f0 is None else f0, config.spectral_hop, config.sampling_rate)
        start = int(torch.randint(2**20, ())) if self.training else 0
        hiss = noise(breath.shape[1], breath.shape[2], x.device, start)
        return forward_stft(pulses, config.n_fft, config.spectral_hop) * voice + hiss * breath, predicted


HEADS = {"none": FourierHead, "harmonic": HarmonicHead}


class Vocos(PreTrainedModel):
    """Features (B, input_channels, T) to a waveform."""

    config_class = VocosConfig
    base_model_prefix = "vocos"
    main_input_name = "features"

    def __init__(self, config):
        super().__init__(config)
        size, layers, bandwidths = config.hidden_size, config.num_hidden_layers, config.num_bandwidths
        self.embed = nn.Conv1d(config.input_channels, size, config.kernel_size, padding=config.kernel_size // 2)
        self.norm = layer_norm(size, bandwidths)
        self.convnext = nn.ModuleList(
            ConvNeXtBlock(size, config.intermediate_size, config.kernel_size, 1 / layers, bandwidths)
            for _ in range(layers)
        )
        self.final_layer_norm = PlainLayerNorm(size)
        self.out = HEADS[config.excitation](config)
        self.post_init()

    def _init_weights(self, module):
        init_vocos_weights(module)

    def forward(self, features, bandwidth_id=None):
        """Waveform (B, T * hop_length) float32 (padding "same") from features (B, C, T).

        `bandwidth_id`: int, or int64 (B,); needed if and only if the checkpoint is conditioned on it.
        """
        return self.synthesize(features, bandwidth_id)[0]

    def synthesize(self, features, bandwidth_id=None, f0=None):
        """As `forward`, with the fundamental frequency (B, T * upsampling) in Hz that was predicted, or None.

        f0 (B, T * upsampling): the one that pulses shall follow; only for `excitation: harmonic`.
        """
        condition = self.condition(features, bandwidth_id)
        if not features.shape[2]:
            raise ValueError(f"features have shape {tuple(features.shape)}: there is no frame to decode")
        x = self.embed(features.to(self.embed.weight.dtype)).transpose(1, 2)
        x = self.norm(x, condition).transpose(1, 2)
        for block in self.convnext:
            x = block(x, condition)
        spectrum, f0 = self.out(self.final_layer_norm(x.transpose(1, 2)), f0)
        return inverse_stft(spectrum, self.config.n_fft, self.config.spectral_hop, self.config.padding), f0

    def condition(self, features, bandwidth_id):
        """Checks features (B, C, T); the bandwidth id of each row (B,), or None."""
        if features.dim() != 3 or features.shape[1] != self.config.input_channels:
            raise ValueError(
                f"features have shape {tuple(features.shape)}; expected (B, {self.config.input_channels}, T), T > 0"
            )
        if not self.config.num_bandwidths:
            if bandwidth_id is not None:
                raise ValueError(f"bandwidth_id is {bandwidth_id}, but this Vocos is not conditioned; leave it out")
            return None
        if bandwidth_id is None:
            raise ValueError(f"this Vocos needs a bandwidth_id, 0 to {self.config.num_bandwidths - 1}")
        condition = torch.as_tensor(bandwidth_id, device=features.device)
        if condition.min() < 0 or condition.max() >= self.config.num_bandwidths:
            raise ValueError(f"bandwidth_id is {bandwidth_id}; expected 0 to {self.config.num_bandwidths - 1}")
        return condition.expand(features.shape[0])


def original_name_to_ours(name):
    """Parameter name of the vocos package -> ours, or None for what has no place here (features, the window)."""
    if name.startswith("backbone."):
        return name.removeprefix("backbone.")
    return name.removeprefix("head.") if name.startswith("head.out.") else None


def convert_original(state, hop_length=None, padding=None):
    """A state dict of the vocos package -> Vocos; sizes are read from the shapes.

    `hop_length` defaults to n_fft / 4 and `padding` to "same" for conditioned checkpoints, else "center", as in the
    two published ones.
    """
    weights = {ours: tensor for name, tensor in state.items() if (ours := original_name_to_ours(name))}
    if "embed.weight" not in weights or "out.weight" not in weights:
        raise ValueError("no backbone.embed.weight or head.out.weight in the state dict; expected a Vocos checkpoint")
    conditioned = "norm.scale.weight" in weights
    size, channels, kernel = weights["embed.weight"].shape
    n_fft = weights["out.weight"].shape[0] - 2
    config = VocosConfig(
        input_channels=channels,
        hidden_size=size,
        intermediate_size=weights["convnext.0.pwconv1.weight"].shape[0],
        num_hidden_layers=len({name.split(".")[1] for name in weights if name.startswith("convnext.")}),
        kernel_size=kernel,
        n_fft=n_fft,
        hop_length=hop_length or n_fft // 4,
        padding=padding or ("same" if conditioned else "center"),
        num_bandwidths=weights["norm.scale.weight"].shape[0] if conditioned else 0,
    )
    model = Vocos(config)
    model.load_state_dict(weights)
    return model.eval()


# --- vocos chunks: Vocos in chunks: the audio of all frames at once, whatever the chunks, in memory that does not grow.


BLOCKS = (64, 16), (256, 32), (float("inf"), 64)  # up to this frame, blocks of this size: first soon, then fast


@dataclass
class PulseState:
    """Where pulses stand: voice, breath (B, W, bins): filters of spectral frames whose pulses are not complete;
    f0 (B, 1, 2 at most), pulses (B, < n_fft): the last ones, which frames to come overlap; phase (B,): cycles there."""

    voice: torch.Tensor
    breath: torch.Tensor
    f0: torch.Tensor | None = None
    pulses: torch.Tensor | None = None
    phase: torch.Tensor | None = None


@dataclass
class VocosState:
    """Where a decoder stands, a value: hand it back to go on.

    waiting: features (B, C, < 64) that no block holds yet; taken: frames before them; refiner: its state; inputs: of
    each convolution, its last inputs (B, C, < kernel); pulses: where there are any; sums (B + 1, n_fft - hop): what
    lies already on the samples to come, in the last row the squared windows; frame: spectral frames done.
    """

    waiting: torch.Tensor
    taken: int = 0
    refiner: object = None
    inputs: tuple[torch.Tensor, ...] = ()
    pulses: PulseState | None = None
    sums: torch.Tensor | None = None
    frame: int = 0


def join(kept, new, edge, last, mode="constant"):
    """What was kept and what is new, in the last dimension; at the start and at the end padded by `edge`."""
    seen = new if kept is None else torch.cat((kept, new), -1)
    return F.pad(seen, (edge if kept is None else 0, edge if last else 0), mode)


def count(seen, size, step=1):
    """Windows that fit into the last dimension, and what windows to come need of it."""
    ready = max(0, (seen.shape[-1] - size) // step + 1)
    return ready, seen[..., ready * step :]


def convolve(layer, x, kept, last, ahead=None):
    """Of a convolution that keeps the length: inputs and outputs (B, C, T') that are certain now, and what is kept.

    `ahead`: inputs that an output sees after its own, by default half of the kernel.
    """
    size = layer.kernel_size[0]
    ahead = size // 2 if ahead is None else ahead
    before = size - 1 - ahead
    seen = F.pad(x, (before, 0)) if kept is None else torch.cat((kept, x), -1)
    seen = F.pad(seen, (0, ahead if last else 0))
    ready, kept = count(seen, size)
    if not ready:
        return x[..., :0], x.new_zeros(len(x), layer.out_channels, 0), kept
    y = F.conv1d(seen, layer.weight, layer.bias, groups=layer.groups)
    return seen[..., before : before + ready], y, kept


def backbone(vocos, features, kept, condition, last):
    """Features (B, C, T) to what the head sees (B, T', D), and the inputs kept of each convolution."""
    kept = list(kept or [None] * (1 + len(vocos.convnext)))
    _, x, kept[0] = convolve(vocos.embed, features, kept[0], last)
    x = vocos.norm(x.transpose(1, 2), condition).transpose(1, 2)
    for n, block in enumerate(vocos.convnext, 1):
        x, y, kept[n] = convolve(block.dwconv, x, kept[n], last)
        x = block.pointwise(x, y, condition)
    return vocos.final_layer_norm(x.transpose(1, 2)), tuple(kept)


def excite(head, x, state, frame, last):
    """What `HarmonicHead.forward` gives, of the frames whose pulses are complete now, and where the pulses stand."""
    n_fft, hop = head.config.n_fft, head.config.spectral_hop
    voice, breath, f0 = head.filters(x)
    state = PulseState(voice[:, :0], breath[:, :0]) if state is None else state
    voice, breath = torch.cat((state.voice, voice), 1), torch.cat((state.breath, breath), 1)
    f0 = join(state.f0, f0[:, None], 1, last, "replicate")
    pulses, phase = pulses_between(f0[:, 0], hop, head.config.sampling_rate, state.phase)
    pulses = join(state.pulses, pulses, (n_fft - hop) // 2, last)
    ready, later = count(pulses, n_fft, hop)
    state = PulseState(voice[:, ready:], breath[:, ready:], count(f0, 3)[1], later, phase)
    if not ready:
        return voice[:, :0], state
    hiss = noise(ready, n_fft // 2 + 1, x.device, frame)
    return spectra(pulses, n_fft, hop) * voice[:, :ready] + hiss * breath[:, :ready], state


def overlap(spectrum, config, sums, frame, last):
    """What `inverse_stft` gives, of the samples that are complete now, and what lies on those to come."""
    n_fft, hop, frames = config.n_fft, config.spectral_hop, spectrum.shape[1]
    window = hann_window(n_fft, spectrum.device)
    waves = torch.fft.irfft(spectrum, n_fft) * window
    laid = overlap_add(torch.cat((waves, (window**2).expand(1, frames, -1))), hop, 0)
    if sums is not None:
        laid[:, : sums.shape[1]] += sums
    trim = (n_fft - hop) // 2 if config.padding == "same" else n_fft // 2
    complete = laid[:, max(0, trim - frame * hop) : laid.shape[1] - trim if last else frames * hop]
    return complete[:-1] / complete[-1:].clamp(min=1e-11), laid[:, frames * hop :]


def block_size(taken):
    """Frames of the block that begins at a frame."""
    return next(size for end, size in BLOCKS if taken < end)


def block_sizes():
    """Frames of one block after the other, without end."""
    taken = 0
    while True:
        yield block_size(taken)
        taken += block_size(taken)


def advance(vocos, features, state, condition, last, refiner):
    """The waveform (B, L) that is certain after these features (B, C, T), and the state after them."""
    silence = torch.zeros(len(features), 0, device=features.device)
    if refiner is not None:
        features, refined = refiner(features, state.refiner, last)
        state = replace(state, refiner=refined)
    x, inputs = backbone(vocos, features.to(vocos.embed.weight.dtype), state.inputs, condition, last)
    state = replace(state, inputs=inputs)
    if not x.shape[1]:
        return silence, state
    if vocos.config.excitation == "harmonic":
        spectrum, pulses = excite(vocos.out, x, state.pulses, state.frame, last)
    else:
        spectrum, pulses = vocos.out(x)[0], None
    state = replace(state, pulses=pulses)
    if not spectrum.shape[1]:
        return silence, state
    waveform, sums = overlap(spectrum, vocos.config, state.sums, state.frame, last)
    return waveform, replace(state, sums=sums, frame=state.frame + spectrum.shape[1])


@torch.no_grad()
def decode_chunk(vocos, features, state=None, last=False, bandwidth_id=None, refiner=None):
    """The waveform (B, L) that is certain after these features (B, C, T), T >= 0, and the state to go on from.

    Joined over all chunks it is `vocos(all features)`, and the same to the last bit whatever the chunks. `last`: no
    more will come; the state is None then. refiner: what features go through before (`codec_smalle`), or None.
    """
    condition = vocos.condition(features, bandwidth_id)
    state = VocosState(features[..., :0]) if state is None else state
    features, waves = torch.cat((state.waiting, features), 2), [torch.zeros(len(features), 0, device=features.device)]
    while (size := block_size(state.taken)) <= features.shape[2]:
        wave, state = advance(vocos, features[..., :size], state, condition, False, refiner)
        features, state = features[..., size:], replace(state, taken=state.taken + size)
        waves.append(wave)
    if last and (state.taken or features.shape[2]):
        waves.append(advance(vocos, features, state, condition, True, refiner)[0])
    return torch.cat(waves, 1), None if last else replace(state, waiting=features)
