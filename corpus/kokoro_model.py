"""Kokoro-82M, the synthesizer of the training corpora, with batches of sentences of unequal length.

Written from the published architecture (StyleTTS 2 with an iSTFTNet decoder; Apache-2.0 weights), with the parameter
names of the original checkpoint. A sentence sounds the same in a batch and alone: attention, recurrences, convolutions
and instance norms are masked. Activations are (batch, length, channels), the channels-last layout that tensor cores
need. Durations and pitch are computed in float32, the decoder in any dtype.
"""

import json
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from safetensors import safe_open
from safetensors.torch import load_file
from torch import nn
from transformers import AlbertConfig, AlbertModel

SAMPLING_RATE = 24000
SAMPLES_PER_FRAME = 600  # a frame of the duration predictor: 25 ms
MAX_PHONEMES = 510
STYLE = 128  # a voice is two halves: for the decoder, then for the prosody
FFT, HOP = 20, 5
HARMONICS = 9


def padded(channels: int) -> int:
    """Channels rounded up to a multiple of 8, which half-precision convolutions need to be fast."""
    return -(-channels // 8) * 8


def conv(layer: nn.Module, x: torch.Tensor) -> torch.Tensor:
    """Applies a Conv2d or ConvTranspose2d with kernel (1, k) to x (B, L, C)."""
    return layer(x.transpose(1, 2).unsqueeze(2)).squeeze(2).transpose(1, 2)


def conv1d(c_in: int, c_out: int, kernel: int, dilation: int = 1, stride: int = 1, bias: bool = True) -> nn.Conv2d:
    """A 1-D convolution as a Conv2d of height 1, padded to keep the length."""
    padding = ((kernel - stride) * dilation + 1) // 2
    return nn.Conv2d(c_in, c_out, (1, kernel), (1, stride), (0, padding), (1, dilation), bias=bias)


def run_lstm(lstm: nn.LSTM, x: torch.Tensor, lengths: torch.Tensor) -> torch.Tensor:
    """Runs over x (B, L, C) with lengths (B,) on the CPU; padding becomes zeros."""
    packed = nn.utils.rnn.pack_padded_sequence(x, lengths, batch_first=True, enforce_sorted=False)
    return nn.utils.rnn.pad_packed_sequence(lstm(packed)[0], batch_first=True, total_length=x.shape[1])[0]


def bi_lstm(c_in: int, c_out: int) -> nn.LSTM:
    return nn.LSTM(c_in, c_out // 2, batch_first=True, bidirectional=True)


def energy(x: torch.Tensor) -> torch.Tensor:
    """Sum of squares over positions, x (B, L, C) to float32 (B, 1, C)."""
    if x.dtype == torch.float16:  # squares overflow at 65,504
        return torch.linalg.vector_norm(x, dim=1, keepdim=True, dtype=torch.float32).square()
    return x.square().sum(1, keepdim=True, dtype=torch.float32)  # six times as fast on a CPU


class AdaIN(nn.Module):
    """Instance norm over the valid positions, then scale and shift by the style."""

    def __init__(self, channels: int):
        super().__init__()
        self.fc = nn.Linear(STYLE, 2 * channels)

    def forward(self, x, style, mask):
        """x (B, L, C), set to 0 outside the mask (B, L, 1); style (B, 128)."""
        gamma, beta = self.fc(style).float().unsqueeze(1).chunk(2, dim=-1)
        count = mask.sum(1, keepdim=True, dtype=torch.float32)
        x.mul_(mask)
        mean = x.sum(1, keepdim=True, dtype=torch.float32) / count
        power = energy(x) / count
        scale = (1 + gamma) * torch.rsqrt((power - mean.square()).clamp_(min=0) + 1e-5)
        return torch.addcmul((beta - mean * scale).to(x.dtype), x, scale.to(x.dtype))


class SnakeBlock(nn.Module):
    """Three residual pairs of dilated convolutions with the periodic activation x + sin(ax)^2 / a."""

    def __init__(self, channels: int, kernel: int):
        super().__init__()
        self.convs1 = nn.ModuleList(conv1d(channels, channels, kernel, d) for d in (1, 3, 5))
        self.convs2 = nn.ModuleList(conv1d(channels, channels, kernel) for _ in range(3))
        self.adain1 = nn.ModuleList(AdaIN(channels) for _ in range(3))
        self.adain2 = nn.ModuleList(AdaIN(channels) for _ in range(3))
        self.alpha1 = nn.ParameterList(torch.ones(1, 1, channels) for _ in range(3))
        self.alpha2 = nn.ParameterList(torch.ones(1, 1, channels) for _ in range(3))

    def forward(self, x, style, mask):
        for i in range(3):
            h = snake(self.adain1[i](x, style, mask), self.alpha1[i]).mul_(mask)
            h = conv(self.convs1[i], h)
            h = snake(self.adain2[i](h, style, mask), self.alpha2[i]).mul_(mask)
            x = conv(self.convs2[i], h).add_(x)
        return x


def snake(x: torch.Tensor, alpha: torch.Tensor) -> torch.Tensor:
    """x + sin(alpha x)^2 / alpha; overwrites x."""
    return x.addcmul_((x * alpha).sin_().square_(), alpha.reciprocal())


def double_length(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
    """A depthwise transposed convolution of x (B, L, C), kernel 3 and stride 2; faster than PyTorch's for many C."""
    left, centre, right = weight[:, 0, 0].unbind(-1)
    odd = F.pad(x[:, 1:], (0, 0, 0, 1)) * left + x * right
    return torch.stack([x * centre, odd], dim=2).flatten(1, 2) + (0 if bias is None else bias)


class AdaINBlock(nn.Module):
    """A residual pair of convolutions; `upsample` doubles the frame rate."""

    def __init__(self, c_in: int, c_out: int, upsample: bool = False):
        super().__init__()
        self.norm1, self.norm2 = AdaIN(c_in), AdaIN(c_out)
        self.conv1, self.conv2 = conv1d(c_in, c_out, 3), conv1d(c_out, c_out, 3)
        self.pool = nn.ConvTranspose2d(c_in, c_in, (1, 3), groups=c_in) if upsample else None
        self.conv1x1 = conv1d(c_in, c_out, 1, bias=False) if c_in != c_out else None

    def forward(self, x, style, mask, mask_out):
        """mask: of x; mask_out: of the result, the same or, with `upsample`, twice as long."""
        h = F.leaky_relu_(self.norm1(x, style, mask), 0.2).mul_(mask)
        if self.pool is not None:
            h = double_length(h, self.pool.weight, self.pool.bias).mul_(mask_out)
            x = x.repeat_interleave(2, dim=1)
        h = conv(self.conv1, h)
        h = F.leaky_relu_(self.norm2(h, style, mask_out), 0.2).mul_(mask_out)
        h = conv(self.conv2, h)
        return h.add_(x if self.conv1x1 is None else conv(self.conv1x1, x)).mul_(0.5**0.5)


class AdaLayerNorm(nn.Module):
    def __init__(self, channels: int):
        super().__init__()
        self.fc = nn.Linear(STYLE, 2 * channels)

    def forward(self, x, style):
        gamma, beta = self.fc(style).unsqueeze(1).chunk(2, dim=-1)
        return F.layer_norm(x, x.shape[-1:]) * (1 + gamma) + beta


class TextEncoder(nn.Module):
    """Encodes phonemes for the decoder."""

    def __init__(self, symbols: int):
        super().__init__()
        self.embedding = nn.Embedding(symbols, 512)
        self.cnn = nn.ModuleList(nn.ModuleList([conv1d(512, 512, 5), nn.LayerNorm(512)]) for _ in range(3))
        self.lstm = bi_lstm(512, 512)

    def forward(self, tokens, lengths, mask):
        x = self.embedding(tokens) * mask
        for convolution, norm in self.cnn:
            x = F.leaky_relu(norm(conv(convolution, x)), 0.2) * mask
        return run_lstm(self.lstm, x, lengths)


class DurationEncoder(nn.Module):
    def __init__(self):
        super().__init__()
        self.lstms = nn.ModuleList(f(512) for _ in range(3) for f in (lambda c: bi_lstm(c + STYLE, c), AdaLayerNorm))

    def forward(self, x, style, lengths, mask):
        styles = style.unsqueeze(1).expand(-1, x.shape[1], -1)
        x = torch.cat([x, styles], -1) * mask
        for lstm, norm in zip(self.lstms[::2], self.lstms[1::2], strict=True):
            x = torch.cat([norm(run_lstm(lstm, x, lengths), style), styles], -1) * mask
        return x


class LinearNorm(nn.Module):
    def __init__(self, c_in: int, c_out: int):
        super().__init__()
        self.linear_layer = nn.Linear(c_in, c_out)


class Prosody(nn.Module):
    """Predicts durations from the text, pitch and energy from its frames."""

    def __init__(self):
        super().__init__()
        self.text_encoder = DurationEncoder()
        self.lstm = bi_lstm(512 + STYLE, 512)
        self.duration_proj = LinearNorm(512, 50)
        self.shared = bi_lstm(512 + STYLE, 512)
        self.F0 = nn.ModuleList([AdaINBlock(512, 512), AdaINBlock(512, 256, upsample=True), AdaINBlock(256, 256)])
        self.N = nn.ModuleList([AdaINBlock(512, 512), AdaINBlock(512, 256, upsample=True), AdaINBlock(256, 256)])
        self.F0_proj, self.N_proj = conv1d(256, 1, 1), conv1d(256, 1, 1)

    def pitch_and_energy(self, x, style, lengths, mask, mask2):
        """x (B, T, 640) to two curves (B, 2T, 1)."""
        x = run_lstm(self.shared, x, lengths)
        curves = []
        for blocks, projection in ((self.F0, self.F0_proj), (self.N, self.N_proj)):
            h = blocks[0](x, style, mask, mask)
            h = blocks[1](h, style, mask, mask2)
            h = blocks[2](h, style, mask2, mask2)
            curves.append(conv(projection, h) * mask2)
        return curves


class Source(nn.Module):
    """The excitation: harmonics of the pitch, and noise."""

    def __init__(self):
        super().__init__()
        self.l_linear = nn.Linear(HARMONICS, 1)

    def forward(self, f0, noise: float = 1.0):
        """f0 (B, F) in Hz, 0 where unvoiced, one value for 300 samples; returns (B, 300 F).

        The phase is linear between the middles of neighbouring frames. The noise of the nine harmonics is drawn as
        their sum, which has the same distribution.
        """
        batch, frames = f0.shape
        hop = SAMPLES_PER_FRAME // 2
        cycles = f0.double().unsqueeze(-1) * torch.arange(1, HARMONICS + 1, device=f0.device) / SAMPLING_RATE % 1 * hop
        base = (cycles.cumsum(1) % 1).float()
        step = F.pad(cycles[:, 1:], (0, 0, 0, 1)).float()
        ramp = (torch.arange(hop, device=f0.device).view(1, 1, hop, 1) + 0.5) / hop
        phase = (base.unsqueeze(2) + ramp * step.unsqueeze(2)).flatten(1, 2)
        phase = torch.cat([base[:, :1].expand(-1, hop // 2, -1), phase[:, : -(hop // 2)]], dim=1)
        voiced = (f0 > 10).float().repeat_interleave(hop, dim=1)
        weight = self.l_linear.weight[0]
        harmonics = torch.sin(2 * torch.pi * phase) @ (0.1 * weight) * voiced
        amplitude = noise * weight.norm() * (voiced * 0.003 + (1 - voiced) * (0.1 / 3))
        return torch.tanh(harmonics + amplitude * torch.randn_like(voiced) + self.l_linear.bias)


class Generator(nn.Module):
    """Features at 80 Hz and the source to a magnitude and a phase at 4,800 Hz."""

    def __init__(self):
        super().__init__()
        self.m_source = Source()
        channels, kernels = (256, 128), (3, 7, 11)
        self.noise_convs = nn.ModuleList([conv1d(padded(FFT + 2), 256, 12, stride=6), conv1d(padded(FFT + 2), 128, 1)])
        self.noise_res = nn.ModuleList([SnakeBlock(256, 7), SnakeBlock(128, 11)])
        self.ups = nn.ModuleList(
            [
                nn.ConvTranspose2d(512, 256, (1, 20), (1, 10), (0, 5)),
                nn.ConvTranspose2d(256, 128, (1, 12), (1, 6), (0, 3)),
            ]
        )
        self.resblocks = nn.ModuleList(SnakeBlock(c, k) for c in channels for k in kernels)
        self.conv_post = conv1d(128, padded(FFT + 2), 7)

    def forward(self, x, style, harmonics, masks):
        """x (B, 2T, 512); harmonics (B, 120T, 24); masks at 20T and 120T positions; returns (B, 120T, 24)."""
        for i, mask in enumerate(masks):
            source = self.noise_res[i](conv(self.noise_convs[i], harmonics), style, mask)
            x = conv(self.ups[i], F.leaky_relu(x, 0.1))
            if i == 1:  # the last stage starts with a mirrored position
                x = torch.cat([x[:, 1:2], x[:, :-1]], dim=1)
            x = x + source
            x = sum(block(x, style, mask) for block in self.resblocks[3 * i : 3 * i + 3]) / 3
            x = x * mask
        return conv(self.conv_post, F.leaky_relu_(x, 0.01)).float()


class Decoder(nn.Module):
    def __init__(self):
        super().__init__()
        joint = padded(1024 + 64 + 2)
        self.encode = AdaINBlock(padded(512 + 2), 1024)
        self.decode = nn.ModuleList(AdaINBlock(joint, c, upsample=c == 512) for c in (1024, 1024, 1024, 512))
        self.F0_conv, self.N_conv = conv1d(1, 1, 3, stride=2), conv1d(1, 1, 3, stride=2)
        self.asr_res = nn.ModuleList([conv1d(512, 64, 1)])
        self.generator = Generator()

    def forward(self, content, pitch, energy, style, harmonics, mask, mask2, masks):
        """content (B, T, 512); pitch and energy (B, 2T, 1)."""
        pitch, energy = conv(self.F0_conv, pitch), conv(self.N_conv, energy)
        zeros = pitch.new_zeros(*pitch.shape[:2], padded(2) - 2)
        x = self.encode(torch.cat([content, pitch, energy, zeros], -1), style, mask, mask)
        residual = torch.cat([conv(self.asr_res[0], content), pitch, energy, zeros], -1)
        for block in self.decode:
            x = block(torch.cat([x, residual], -1), style, mask, mask2 if block.pool is not None else mask)
        return self.generator(x * mask2, style, harmonics, masks)


class Kokoro(nn.Module):
    def __init__(self, vocabulary: dict[str, int]):
        super().__init__()
        self.vocabulary = vocabulary
        self.bert = AlbertModel(
            AlbertConfig(
                vocab_size=178,
                hidden_size=768,
                num_attention_heads=12,
                intermediate_size=2048,
                max_position_embeddings=512,
                num_hidden_layers=12,
            ),
            add_pooling_layer=False,
        )
        self.bert_encoder = nn.Linear(768, 512)
        self.predictor = Prosody()
        self.text_encoder = TextEncoder(178)
        self.decoder = Decoder()

    def tokenize(self, phonemes: str) -> list[int]:
        """Tokens of the known phonemes between two pads."""
        return [0, *(self.vocabulary[p] for p in phonemes if p in self.vocabulary), 0]

    @torch.inference_mode()
    def plan(self, tokens: torch.Tensor, lengths: torch.Tensor, styles: torch.Tensor, speeds: torch.Tensor):
        """Durations and frame features of a batch.

        tokens (B, N) padded with 0; lengths (B,) on the CPU; styles (B, 256); speeds (B,).
        Returns features (B, N, 640 + 512) and durations (B, N) in frames of 25 ms, 0 for padding.
        """
        mask = (torch.arange(tokens.shape[1]) < lengths.unsqueeze(1)).to(tokens.device)
        style = styles[:, STYLE:]
        hidden = self.bert(tokens, attention_mask=mask.long()).last_hidden_state
        valid = mask.unsqueeze(-1).float()
        prosody = self.predictor.text_encoder(self.bert_encoder(hidden), style, lengths, valid)
        logits = self.predictor.duration_proj.linear_layer(run_lstm(self.predictor.lstm, prosody, lengths))
        durations = logits.sigmoid().sum(-1) / speeds.unsqueeze(1)
        durations = durations.round().clamp(min=1).long() * mask
        return torch.cat([prosody, self.text_encoder(tokens, lengths, valid)], dim=-1), durations

    @torch.inference_mode()
    def speak(self, features: torch.Tensor, frames: torch.Tensor, styles: torch.Tensor, noise: float = 1.0):
        """Waveforms of a batch.

        features (B, T, 640 + 512): `plan`'s, repeated by the durations, with T greater than any number of frames;
        frames (B,) on the CPU; styles (B, 256); noise 0 is deterministic.
        Returns (B, at least 600 max(frames)): 600 samples for each frame, and undefined ones after them.
        """
        length, device = features.shape[1], features.device
        dtype = self.decoder.encode.conv1.weight.dtype

        def mask(rate, extra=0):
            limit = (frames * rate + extra).to(device).unsqueeze(1)
            return (torch.arange(length * rate, device=device) < limit).unsqueeze(-1)

        pitch, energy = self.predictor.pitch_and_energy(
            features[..., : 512 + STYLE], styles[:, STYLE:], frames, mask(1).float(), mask(2).float()
        )
        valid = mask(120, 1)
        harmonics = self.harmonics(pitch.squeeze(-1), frames, noise) * valid
        output = self.decoder(
            features[..., 512 + STYLE :].to(dtype),
            pitch.to(dtype),
            energy.to(dtype),
            styles[:, :STYLE].to(dtype),
            harmonics.to(dtype),
            mask(1).to(dtype),
            mask(2).to(dtype),
            [mask(20).to(dtype), valid.to(dtype)],
        )
        magnitude = output[..., : FFT // 2 + 1].exp() * valid
        spectrum = torch.polar(magnitude, output[..., FFT // 2 + 1 : FFT + 2].sin()).transpose(1, 2)
        return torch.istft(spectrum, FFT, HOP, window=torch.hann_window(FFT, device=device))

    def harmonics(self, pitch, frames, noise):
        """Short-time spectrum of the source: magnitude, phase and zeros, (B, 120 T, 24)."""
        source = self.decoder.generator.m_source(pitch, noise)
        # Each source is mirrored at its own end, as without a batch.
        last = (frames * SAMPLES_PER_FRAME - 1).to(pitch.device).unsqueeze(1)
        position = torch.arange(source.shape[1], device=pitch.device)
        source = source.gather(1, torch.where(position > last, 2 * last - position, position).clamp(min=0))
        window = torch.hann_window(FFT, device=pitch.device)
        spectrum = torch.stft(source, FFT, HOP, window=window, return_complex=True)[..., :-1].transpose(1, 2)
        zeros = pitch.new_zeros(*spectrum.shape[:2], padded(FFT + 2) - FFT - 2)
        return torch.cat([spectrum.abs(), spectrum.angle(), zeros], dim=-1)

    def decode_in(self, dtype: torch.dtype) -> "Kokoro":
        """Runs the decoder in another dtype; its source stays in float32."""
        self.decoder.to(dtype)
        self.decoder.generator.m_source.float()
        return self


def find_weights(folder: str | Path, name: str) -> Path:
    """The path of a file of weights. Raises ValueError if it is missing."""
    path = Path(folder, name)
    if not path.is_file():
        raise ValueError(
            f"no {name} in {folder}; expected the folder that `python -m smalle.corpus.kokoro_weights FOLDER` wrote"
        )
    return path


def load_kokoro(folder: str | Path, device: str | torch.device = "cpu", dtype=torch.float32) -> Kokoro:
    """The model in `folder` (made by `python -m smalle.corpus.kokoro_weights`), its decoder in `dtype`."""
    path = find_weights(folder, "kokoro_fp16.safetensors")
    with safe_open(path, "pt") as file:
        model = Kokoro(json.loads(file.metadata()["vocabulary"]))
    model.load_state_dict({name: weight.float() for name, weight in load_file(path).items()})
    channels_last: Any = {"memory_format": torch.channels_last}  # missing in torch's annotations
    model.eval().requires_grad_(False).to(device, **channels_last).decode_in(dtype)
    for module in model.modules():
        if isinstance(module, nn.LSTM):
            module.flatten_parameters()
    return model


def load_voices(folder: str | Path) -> dict[str, torch.Tensor]:
    """Voices by name, each (510, 256) in float32: a style for every number of phonemes from 1 on."""
    path = find_weights(folder, "voices_fp16.safetensors")
    return {name: styles.float() for name, styles in load_file(path).items()}
