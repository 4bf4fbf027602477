"""Vocos in chunks: the audio of all frames at once, whatever the chunks, in memory that does not grow.

Nothing is computed twice. Every convolution keeps the inputs that later outputs need, so that what comes out is late by
half a kernel for each, and by what pulses and overlapping windows see ahead. Inside, frames are taken in blocks whose
size depends on their place alone: a matrix product of another size rounds otherwise, and where pulses follow a pitch, a
rounded pitch adds up.
"""

from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F

from .excitation_smalle import noise, pulses_between
from .vocos_smalle import hann_window, overlap_add, spectra

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
    more will come; the state is None then. refiner: what features go through before (`refiner_smalle`), or None.
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
