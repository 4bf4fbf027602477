"""Voices, their files, and the conversion of the default voice to that of a recording.

A voice file is a safetensors file of `codes` and of the tensors of a state; its metadata has the `version` of this form
(none: 1), the `text` and, where it is known, the `codec`. Nothing of it is believed before it is checked.
"""

import copy
import math
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import PreTrainedConfig, PreTrainedModel

from .cache_smalle import STATE_NAME, join_state
from .codec_smalle import FrameNetwork, MelAnalysis, SmallECodecConfig, mel_of_windows
from .saving_smalle import atomic_write, check_expected, check_kinds, check_layers, check_positive
from .validation_smalle import FLOATS, INTEGERS, check_complete, check_finite
from .vocos_smalle import ConvolutionStates, Vocos, VocosState, init_vocos_weights

VERSION = 2  # of files with a conversion, 1 of others; this code reads both
MAX_CODE = 2**15 - 1  # files hold 16 bits
MAX_FRAMES, MAX_CODEBOOKS = 2**16, 64  # of a recording; 15 minutes at 75 frames a second
PREFIX = "conversion."  # of names in a voice file
MAX_STATE = 2**25  # numbers of a state; a model of 64M parameters has 3 million


class Voice(NamedTuple):
    """A voice to speak with: a reference recording, a tuned initial state, a conversion, or several of them.

    codes (P, Q): the recording, None without one.
    text: its transcript, which makes the recording a prompt to continue; "" if only the speaker embedding is taken.
    state: tensors of a tuned initial state by name (`cache_smalle`).
    codec: identity of the codec that made the codes, None if unknown.
    conversion: tensors by which a `VoiceConverter` makes the speech of the codes that of another speaker.
    """

    codes: torch.Tensor | None = None
    text: str = ""
    state: dict[str, torch.Tensor] | None = None
    codec: str | None = None
    conversion: dict[str, torch.Tensor] | None = None


def check_voice_codes(name: str, codes: Any) -> None:
    """Raises ValueError unless `codes` are those of a recording (P, Q)."""
    right = torch.is_tensor(codes) and codes.ndim == 2 and codes.dtype in INTEGERS
    if not right or not codes.numel() or codes.min() < 0 or codes.max() > MAX_CODE:
        what = f"{tuple(codes.shape)}, {codes.dtype}" if torch.is_tensor(codes) else type(codes).__name__
        raise ValueError(
            f"{name} codes {what}: expected integers of 0 or more, a tensor (frames, codebooks), at most {MAX_CODE}."
        )
    if len(codes) > MAX_FRAMES or codes.shape[1] > MAX_CODEBOOKS:
        raise ValueError(
            f"{name} codes {tuple(codes.shape)}: expected at most {MAX_FRAMES} frames of {MAX_CODEBOOKS} codebooks. "
            "Shorten the recording."
        )


def check_voice_state(name: str, state: dict[str, torch.Tensor]) -> None:
    """Raises ValueError unless these are tensors of a state: known names, finite numbers."""
    if wrong := [key for key in state if not STATE_NAME.fullmatch(key)]:
        raise ValueError(f"{name} {sorted(wrong)}: expected codes or the tensors of a state.")
    for key, tensor in state.items():
        if tensor.dtype not in FLOATS or not tensor.numel() or not tensor.isfinite().all():
            raise ValueError(
                f"{name} {key}, {tuple(tensor.shape)}, {tensor.dtype}: expected finite numbers. Tune the voice again."
            )
    try:
        size = join_state({key: tensor.to("meta") for key, tensor in state.items()}).numel() if state else 0
    except RuntimeError as error:
        raise ValueError(
            f"{name} {sorted(state)}, whose shapes do not fit: expected the tensors of a state."
        ) from error
    if size > MAX_STATE:
        raise ValueError(f"{name} a state of {size} numbers: expected at most {MAX_STATE}, that of a model.")


def check_conversion(name: str, conversion: dict[str, torch.Tensor]) -> None:
    """Raises ValueError unless these are finite numbers, with a pitch; `VoiceConverter.network_of` checks shapes."""
    pitch = conversion.get("pitch", torch.ones(2))
    sound = all(tensor.dtype in FLOATS and tensor.isfinite().all() for tensor in conversion.values())
    if not sound or pitch.shape != (2,) or pitch[1] < 0 or (conversion and "pitch" not in conversion):
        raise ValueError(f"{name} a conversion that is damaged: prepare the voice again from its recording.")


def save_voice(
    path: str | os.PathLike, codes=None, text: str = "", state=None, codec: str | None = None, conversion=None
) -> None:
    """Writes the parts of a `Voice` to one safetensors file."""
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in (state or {}).items()}
    check_voice_state("state= holds", tensors)
    if codes is not None:
        check_voice_codes("codes=", codes)
        tensors["codes"] = codes.to(torch.int16).contiguous()
    if not tensors and not conversion:
        raise ValueError("A voice needs codes of a recording, a state or a conversion.")
    check_conversion("conversion= holds", conversion or {})
    tensors |= {PREFIX + name: tensor.detach().cpu().contiguous() for name, tensor in (conversion or {}).items()}
    metadata = {"version": str(VERSION if conversion else 1), "text": text, **({"codec": codec} if codec else {})}
    with atomic_write(path) as temporary:
        save_file(tensors, temporary, metadata=metadata)


def load_voice(path: str | os.PathLike) -> Voice:
    """Reads a voice file. Raises ValueError if it is none."""
    try:
        with safe_open(path, "pt") as file:
            metadata, tensors = file.metadata(), {name: file.get_tensor(name) for name in file.keys()}
        text, codec, version = metadata["text"], metadata.get("codec"), metadata.get("version", "1")
    except (SafetensorError, KeyError, TypeError, OSError) as error:
        raise ValueError(f"{path} is not a voice file: expected one that save_voice wrote.") from error
    if version not in map(str, range(1, VERSION + 1)):
        raise ValueError(f"{path} has version {version!r} of a voice file, expected {VERSION}: install a newer smalle.")
    codes = tensors.pop("codes", None)
    conversion = {name.removeprefix(PREFIX): tensors.pop(name) for name in list(tensors) if name.startswith(PREFIX)}
    check_conversion(f"{path} holds", conversion)
    if codes is None and not tensors and not conversion:
        raise ValueError(f"{path} is not a voice file: it is empty, expected codes, a state or a conversion.")
    check_voice_state(f"{path} holds", tensors)
    if codes is not None:
        check_voice_codes(f"{path} holds", codes)
    return Voice(None if codes is None else codes.long(), text, tensors or None, codec, conversion or None)


def join_voices(voices: Sequence[Voice]) -> Voice:
    """Joins recordings of one speaker, all with a transcript or all without."""
    if len({bool(voice.text) for voice in voices}) > 1:
        raise ValueError("Some recordings have a transcript and some have none: give one for each, or none at all.")
    codes = torch.cat([voice.codes for voice in voices if voice.codes is not None])
    return Voice(codes, " ".join(voice.text for voice in voices).strip(), codec=voices[0].codec)


# ----------------------------------------------------------------------------------------------------- conversion

CENTROID = 48  # numbers of a class of content: the smooth envelope that one voice would have, of two log-mel frames
CONTENT = CENTROID + 2  # and the loudness of both
LOUDNESS_RANGE = -5.0, 2.5  # nepers around the loudness of speech
PITCH_RANGE = 60.0, 450.0  # Hz
PITCH_BINS = 40
SPEAKER_SIZE, SPEAKER_MELS, SPEAKER_WINDOW = 256, 40, 160  # the speaker encoder's embedding, mel bands and frames
MEAN_CEPSTRA, DEVIATION_CEPSTRA = 20, 10  # of the average frame of a recording, which tell its channel
BLOCK_FRAMES = 8  # of the codec's, which are converted at once
TUNING_STEPS = 60  # to a recording: about 10 s of a core
LEARNING_RATE = 1e-3
CONTENT_NOISE = 0.15  # deviation of what is added to the content that the network is tuned with
RANK = 32  # of the changes of matrices by tuning, as a voice keeps them
LEAST_SPEECH = 1.3, 0.6  # of `speech_scores`; music: up to 1.26 or 0.54; people: 1.7 and 0.7, in loud noise 1.1 and 0.5
ONE_SPEAKER = 0.68  # of `speaker_unity`: one person 0.71 and more, two people less in three of four recordings
LEAST_SHARE = 0.15  # of a recording's windows, that another speaker has
LOUD_RANGE = 4.5  # nepers below the loudest frame: speech


class VoiceConverterConfig(PreTrainedConfig):
    """Sizes of a `VoiceConverter`.

    source_pitch: (median, deviation) of the log f0 (f0 in Hz) of the voice that it converts.
    """

    model_type = "smalle_converter"

    codec: dict[str, Any] | None = None
    content_size: int = 192
    content_intermediate_size: int = 576
    content_num_layers: int = 7
    num_content_classes: int = 258
    condition_size: int = 128
    hidden_size: int = 256
    intermediate_size: int = 768
    num_layers: int = 8
    source_pitch: list[float] | tuple[float, float] = (5.25, 0.25)

    def __post_init__(self, **kwargs):
        super().__post_init__(**kwargs)
        fields = VoiceConverterConfig.__annotations__
        check_kinds(self, fields)
        check_positive(self, [name for name, kind in fields.items() if kind is int])
        check_layers(self, ("content_num_layers", "num_layers"))
        pitch = [x for x in self.source_pitch if isinstance(x, (int, float)) and 0 < x < 10]
        right = len(pitch) == len(self.source_pitch) == 2
        check_expected(self, {"source_pitch": (right, "median and deviation of the log f0, above zero")})


def has_fast_bfloat16() -> bool:
    """Whether the processor multiplies matrices of bfloat16 in tiles (AMX). With AMX off, a Xeon took twice as long in
    bfloat16 as in float32."""
    check = getattr(torch.cpu, "_is_amx_tile_supported", None)
    return bool(check and check())


def loud_frames(frames: Tensor) -> Tensor:
    """Which (T,) of log-mel frames (T, num_mels) are speech."""
    loudness = frame_loudness(frames)
    return loudness > loudness.max() - LOUD_RANGE


def frame_loudness(frames: Tensor) -> Tensor:
    """Log of the mean magnitude (...) of log-mel frames (..., num_mels)."""
    return frames.float().exp().mean(-1).log()


class SpeechStatistics(NamedTuple):
    """What the encoder needs to know of a recording, or of a voice: over its speech, the mean log-mel frame (num_mels,)
    and the loudness ()."""

    mean: Tensor
    loudness: Tensor

    @classmethod
    def of(cls, frames: Tensor) -> "SpeechStatistics":
        """Of log-mel frames (T, num_mels)."""
        speech = frames[loud_frames(frames)].float()
        return cls(speech.mean(0), frame_loudness(speech).mean())


def speech_means(frames: Tensor) -> Tensor:
    """Mean log-mel frame of the speech in each row of frames (B, T, 2 * num_mels), twice: (B, 1, 2 * num_mels)."""
    mels = frames.detach().unflatten(2, (2, -1)).flatten(1, 2)
    return torch.stack([SpeechStatistics.of(mel).mean.repeat(2) for mel in mels])[:, None]


def factors(name: str, change: Tensor) -> dict[str, Tensor]:
    """Tensors that keep the change of a parameter: of a large matrix the factors of its best approximation of RANK."""
    if change.dim() < 2 or min(change.flatten(1).shape) <= 2 * RANK:
        return {f"change.{name}": change}
    left, sizes, right = torch.linalg.svd(change.flatten(1), full_matrices=False)
    return {f"left.{name}": left[:, :RANK] * sizes[:RANK], f"right.{name}": right[:RANK]}


def change_of(name: str, parameter: Tensor, conversion: dict[str, Tensor]) -> Tensor:
    """The change of a parameter that `factors` kept; a matrix of which nothing was kept has none. Raises ValueError
    where the change is missing or has another shape."""
    whole = conversion.get(f"change.{name}")
    left, right = conversion.get(f"left.{name}"), conversion.get(f"right.{name}")
    if whole is left is right is None and parameter.dim() > 1:
        return torch.zeros_like(parameter)
    if left is not None and right is not None and left.dim() == right.dim() == 2 and left.shape[1] == right.shape[0]:
        whole = left.float() @ right.float()
    if whole is None or whole.numel() != parameter.numel():
        raise ValueError(f"The voice has no change of {name}: prepare the voice again from its recording.")
    return whole.float().view_as(parameter)


def group_cosine(windows: Tensor, least: float) -> float:
    """Cosine of the means of the two groups (2-means) of unit vectors (N, D); 1 if one has less than that share."""
    centred = windows - windows.mean(0)
    second = centred @ torch.linalg.svd(centred, full_matrices=False)[2][0] > 0
    for _ in range(10):
        if not least <= second.float().mean() <= 1 - least:
            return 1.0
        means = F.normalize(torch.stack((windows[~second].mean(0), windows[second].mean(0))), dim=1)
        first, other = (windows @ means.T).unbind(1)
        second = other > first
    return float(means[0] @ means[1])


class SpeakerNetwork(nn.Module):
    """Embeds a speaker by recurrent layers over mel frames: Wan et al. 2018, "Generalized end-to-end loss for speaker
    verification" (arXiv 1710.10467), of the shape of Resemblyzer, whose weights it takes.

    mel_map (40, 100): from the power of the codec's mel bands to that of the network's.
    """

    mel_map: Tensor

    def __init__(self, num_mels: int):
        super().__init__()
        self.register_buffer("mel_map", torch.zeros(SPEAKER_MELS, num_mels))
        self.lstm = nn.LSTM(SPEAKER_MELS, SPEAKER_SIZE, 3, batch_first=True)
        self.linear = nn.Linear(SPEAKER_SIZE, SPEAKER_SIZE)

    def forward(self, log_mel: Tensor) -> Tensor:
        """Log-mel frames (B, 160, num_mels) -> unit vectors (B, 256)."""
        power = F.linear((2 * log_mel).clamp(max=14).exp(), self.mel_map)
        _, (hidden, _) = self.lstm(power)
        return F.normalize(self.linear(hidden[-1]).relu(), dim=-1)


class Recording(NamedTuple):
    """What a converter knows of a recording of T frames: content (1, 50, T), f0 (1, T, 2) in Hz, log-mel frames
    (1, T, 2 * num_mels), the embedding (256,) of its speaker, their condition (1, C) and (median, deviation) of log f0.
    """

    content: Tensor
    f0: Tensor
    mel: Tensor
    speaker: Tensor
    condition: Tensor
    pitch: Tensor


@dataclass
class ConverterState:
    """State of a conversion in chunks, a value: samples (1, W) that wait or that later frames overlap, the loudness
    (1, 2, W) of frames that the encoder has not completed, and the states of the networks."""

    samples: Tensor
    loudness: Tensor
    encoder: ConvolutionStates
    network: ConvolutionStates
    vocos: VocosState | None


class VoiceConverter(PreTrainedModel):
    """Makes the speech of one voice, that of a checkpoint, the speech of a recorded speaker.

    The content is the envelope that another voice would have at the same moments, and the loudness, so that it tells
    little about the speaker. An encoder takes it, and the pitch. Of anybody's speech it classifies the frames into
    parts of phones, whose envelopes are averaged (phonetic posteriorgrams: Sun et al. 2016, "Phonetic posteriorgrams
    for many-to-one voice conversion without parallel data training"). Of the one voice that is converted it regresses
    the envelope, which loses fewer words. A network turns the content into the frames of a speaker. The scales and
    shifts of its norms depend on a recording of the speaker (FiLM, Perez et al. 2017, arXiv 1709.07871).
    To prepare a speaker, the network is tuned for some seconds to reconstruct the recording from its content. No
    transcript is needed.
    """

    config_class = VoiceConverterConfig
    base_model_prefix = "converter"
    main_input_name = "waveform"
    cepstrum: Tensor
    source_mean: Tensor
    source_loudness: Tensor
    latent_scale: Tensor

    def __init__(self, config: VoiceConverterConfig):
        super().__init__(config)
        codec = self.codec_config = SmallECodecConfig(**(config.codec or {}))
        self.analysis = MelAnalysis(codec)
        self.vocos = Vocos(codec.vocos_config())
        self.encoder = FrameNetwork(
            codec.feature_size,
            config.num_content_classes + 4 + CENTROID,
            config.content_size,
            config.content_intermediate_size,
            config.content_num_layers,
        )
        self.centroids = nn.Linear(config.num_content_classes, CENTROID, bias=False)
        self.speaker = SpeakerNetwork(codec.num_mels)
        self.condition = nn.Sequential(
            nn.Linear(SPEAKER_SIZE + MEAN_CEPSTRA + DEVIATION_CEPSTRA + 2, 256),
            nn.GELU(),
            nn.Linear(256, config.condition_size),
            nn.GELU(),
        )
        self.films = nn.ModuleList(
            nn.Linear(config.condition_size, 2 * config.hidden_size) for _ in range(config.num_layers)
        )
        self.network = FrameNetwork(
            CONTENT + 2 * (PITCH_BINS + 1),
            codec.latent_size,
            config.hidden_size,
            config.intermediate_size,
            config.num_layers,
        )
        self.register_buffer("cepstrum", torch.zeros(MEAN_CEPSTRA, codec.num_mels))
        self.register_buffer("source_mean", torch.zeros(codec.num_mels))
        self.register_buffer("source_loudness", torch.zeros(()))
        self.register_buffer("latent_scale", torch.ones(codec.latent_size))
        self.post_init()

    @classmethod
    def from_pretrained(cls, *args, dtype: torch.dtype = torch.float32, **kwargs) -> "VoiceConverter":
        options = {"dtype": dtype, "use_safetensors": True, "output_loading_info": True, **kwargs}
        loaded: Any = super().from_pretrained(*args, **options)
        converter, info = loaded
        check_complete(info)
        check_finite(converter)
        return converter.eval()

    def _init_weights(self, module):
        init_vocos_weights(module)

    # --- analysis

    def encode_content(
        self,
        mel: Tensor,
        statistics: SpeechStatistics,
        state: ConvolutionStates = (),
        last: bool = True,
        of_source: bool = False,
    ) -> tuple[Tensor, Tensor, ConvolutionStates]:
        """The content's envelope (B, 48, T'), f0 (B, T', 2) in Hz, 0 where it is unvoiced, and the state, of log-mel
        frames (B, T, 2 * num_mels). of_source: they are of the voice that is converted, whose envelope is regressed."""
        mean = torch.cat((statistics.mean, statistics.mean))
        y, states = self.encoder.apply_blocks((mel - mean).transpose(1, 2), state, last)
        classes, pitch, voiced, envelope = y.split((self.config.num_content_classes, 2, 2, CENTROID), 1)
        if not of_source:
            envelope = self.centroids(classes.softmax(1).transpose(1, 2)).transpose(1, 2)
        f0 = torch.where(voiced > 0, 180 * pitch.exp(), torch.zeros_like(pitch))
        return envelope, f0.transpose(1, 2), states

    def loudness(self, mel: Tensor, statistics: SpeechStatistics) -> Tensor:
        """Loudness (B, 2, T) of log-mel frames (B, T, 2 * num_mels), in nepers around that of speech."""
        frames = mel.unflatten(2, (2, -1))
        return (frame_loudness(frames) - statistics.loudness).clamp(*LOUDNESS_RANGE).transpose(1, 2)

    def recording_content(self, mel: Tensor, statistics: SpeechStatistics) -> tuple[Tensor, Tensor]:
        """Content (B, 50, T) and f0 (B, T, 2) of the log-mel frames (B, T, 2 * num_mels) of whole recordings."""
        envelope, f0, _ = self.encode_content(mel, statistics)
        return torch.cat((envelope, self.loudness(mel, statistics)), 1), f0

    def source_content(self, mel: Tensor) -> tuple[Tensor, Tensor]:
        """As `recording_content`, of the voice that is converted."""
        envelope, f0, _ = self.encode_content(mel, self.source, of_source=True)
        return torch.cat((envelope, self.loudness(mel, self.source)), 1), f0

    @property
    def source(self) -> SpeechStatistics:
        """Those of the voice that is converted."""
        return SpeechStatistics(self.source_mean, self.source_loudness)

    def recording_mel(self, waveform: Tensor) -> Tensor:
        """Log-mel frames (1, T, 2 * num_mels) of a recording (L,), full-band."""
        hop = self.codec_config.hop_length
        mel = self.analysis.mel(waveform[None, : len(waveform) // hop * hop])
        return self.analysis.features(mel, self.analysis.occupied_bands(mel, torch.tensor([len(waveform)])))

    def embed_windows(self, frames: Tensor, hop: int) -> Tensor:
        """Unit vectors (N, 256) of a speaker in windows, every `hop` frames, of log-mel frames (T, num_mels)."""
        frames = frames if len(frames) >= SPEAKER_WINDOW else frames.repeat(-(-SPEAKER_WINDOW // len(frames)), 1)
        return self.speaker(frames.unfold(0, SPEAKER_WINDOW, hop).transpose(1, 2))

    def embed_speaker(self, frames: Tensor) -> Tensor:
        """Unit vector (256,) of log-mel frames (T, num_mels) of a speaker."""
        return F.normalize(self.embed_windows(frames, SPEAKER_WINDOW // 2).mean(0), dim=0)

    # --- preparing a speaker

    def inputs(self, content: Tensor, f0: Tensor) -> Tensor:
        """Input (B, 132, T) of the network: content (B, 50, T), and f0 (B, T, 2) as a bump among 40 bins."""
        centres = torch.linspace(math.log(PITCH_RANGE[0]), math.log(PITCH_RANGE[1]), PITCH_BINS, device=f0.device)
        voiced = (f0 > 0).float()[..., None]
        bumps = torch.exp(-0.5 * ((f0.clamp(min=50).log()[..., None] - centres) / 0.05) ** 2) * voiced
        return torch.cat((content, torch.cat((bumps, voiced), 3).flatten(2).transpose(1, 2)), 1)

    def conditioned(self, condition: Tensor) -> FrameNetwork:
        """A copy of the network whose norms have the scales and shifts of a condition (1, C)."""
        network = copy.deepcopy(self.network)
        norms: list[Any] = [block.norm for block in network.blocks]
        for norm, film in zip(norms, self.films):
            scale, shift = film(condition)[0].detach().chunk(2)
            norm.weight.data, norm.bias.data = 1 + scale, shift.clone()
        return network

    def heard_classes(self, frames: Tensor) -> Tensor:
        """Log-probabilities (B, K, T) of the classes of content in log-mel frames (B, T, 2 * num_mels) of anybody."""
        y, _ = self.encoder.apply_blocks((frames - speech_means(frames)).transpose(1, 2))
        return y[:, : self.config.num_content_classes].float().log_softmax(1)

    def speech_scores(self, recording: Recording) -> tuple[float, float]:
        """How much a recording is speech: what its content tells, the mutual information of frames and classes in nats,
        for each neper by which the network, not tuned, misses the frames; and the correlation of its frames with
        these."""
        classes = self.heard_classes(recording.mel)[0].exp()
        mean = classes.mean(1)
        information = torch.special.entr(mean).sum() - torch.special.entr(classes).sum(0).mean()
        made = self.frames_of(self.conditioned(recording.condition), self.inputs(recording.content, recording.f0))
        loud = loud_frames(recording.mel[0])
        made, meant = made[0, loud], recording.mel[0, loud]
        alike = F.cosine_similarity((made - made.mean(0)).flatten(), (meant - meant.mean(0)).flatten(), dim=0)
        return float(information / (made - meant).abs().mean()), float(alike)

    def speaker_unity(self, recording: Recording) -> float:
        """How alike the two groups of windows are in which a recording's speaker differs most: their cosine."""
        frames, hop = recording.mel.reshape(-1, self.codec_config.num_mels), SPEAKER_WINDOW // 8
        if len(frames) < 2 * SPEAKER_WINDOW:
            return 1.0
        heard = loud_frames(frames).float().unfold(0, SPEAKER_WINDOW, hop).mean(1) > 0.5
        windows = self.embed_windows(frames, hop)[heard]
        return group_cosine(windows, LEAST_SHARE) if len(windows) > 2 else 1.0

    def check_recording(self, recording: Recording) -> None:
        """Raises ValueError for what is no speech, or that of two people."""
        if any(score < least for score, least in zip(self.speech_scores(recording), LEAST_SPEECH)):
            raise ValueError(
                "audio has hardly any sounds of speech: expected a recording of one person without music or loud noise."
            )
        if self.speaker_unity(recording) < ONE_SPEAKER:
            raise ValueError("audio holds the voices of two people: expected one. Cut out what one of them says.")

    def analyze_recording(self, waveform: Tensor) -> Recording:
        """Of a recording (L,). Raises ValueError where it has hardly any voiced sound."""
        mel = self.recording_mel(waveform)
        frames = mel.reshape(-1, self.codec_config.num_mels)
        speech, speaker = frames[loud_frames(frames)], self.embed_speaker(frames)
        content, f0 = self.recording_content(mel, SpeechStatistics.of(frames))
        log_f0 = f0[f0 > 0].log()
        if len(log_f0) < 20:
            raise ValueError("audio has hardly any voiced sound: expected a recording of 5 to 10 s of speech.")
        channel = torch.cat((self.cepstrum @ speech.mean(0), (self.cepstrum @ speech.std(0))[:DEVIATION_CEPSTRA])) / 10
        moments = torch.stack((log_f0.mean() - 5.1, log_f0.std()))
        condition = self.condition(torch.cat((4 * speaker, channel, moments))[None]).half().float()
        pitch = torch.stack((log_f0.median(), log_f0.std().clamp(max=0.35)))
        return Recording(content, f0, mel, speaker, condition, pitch)

    def prepare(
        self,
        waveform: Tensor,
        steps: int | None = None,
        seed: int = 0,
        progress: Callable[[int, int], Any] | None = None,
        only_vectors: bool = False,
    ) -> dict[str, Tensor]:
        """The `conversion` of a `Voice`, tuned to a clean recording (L,) of 5 to 10 s at the codec's sampling rate.

        steps: TUNING_STEPS by default; 0: the speaker as the network guesses it. progress: called before each step with
        the number of steps that are done, and of all; what it raises ends the preparation. only_vectors: scales, shifts
        and biases alone are tuned, and the voice takes a thirtieth of the space. Raises ValueError for a recording
        without speech, or with that of two people.
        """
        with torch.no_grad():
            recording = self.analyze_recording(waveform)
            self.check_recording(recording)
            network = self.conditioned(recording.condition)
            before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
        for parameter in network.parameters():
            parameter.requires_grad_(parameter.dim() < 2 or not only_vectors)
        steps = TUNING_STEPS if steps is None else steps
        self._tune(network, recording, steps, seed, progress or (lambda done, steps: None))
        conversion = {
            "condition": recording.condition[0].half(),
            "pitch": recording.pitch,
            "converter": self.signature(),
        }
        for name, parameter in network.named_parameters():
            if parameter.requires_grad and steps:
                change = parameter.detach() - before[name]
                conversion |= {key: x.half() for key, x in factors(name, change).items()}
        return conversion

    def signature(self) -> Tensor:
        """A number () that differs between converters."""
        return torch.stack([x.double().abs().mean() for x in self.network.parameters()]).sum()

    def frames_of(self, network: FrameNetwork, inputs: Tensor) -> Tensor:
        """Log-mel frames (B, T, 2 * num_mels) that a network makes of its inputs (B, C, T)."""
        return self.analysis.restore(network.apply_blocks(inputs)[0] * self.latent_scale[:, None])

    def _tune(
        self, network: FrameNetwork, recording: Recording, steps: int, seed: int, progress: Callable[[int, int], Any]
    ) -> None:
        """Tunes `network`, in place, to make the frames of a recording of its content and f0.

        The content is disturbed, so that the network does not rely on how the speaker's differs from what it converts.
        """
        content, f0, mel, speaker, *_ = recording
        generator, size = torch.Generator().manual_seed(seed), min(SPEAKER_WINDOW // 2, content.shape[2])
        tuned = [parameter for parameter in network.parameters() if parameter.requires_grad]
        optimizer = torch.optim.Adam(tuned, LEARNING_RATE, betas=(0.8, 0.95))
        with torch.inference_mode(False), torch.enable_grad():
            meant = self.analysis.restore(self.analysis.project(mel.clone()))
            for step in range(steps):
                progress(step, steps)
                starts = torch.randint(content.shape[2] - size + 1, (8,), generator=generator).tolist()
                said = torch.cat([content[..., n : n + size] for n in starts])
                said = said + CONTENT_NOISE * torch.randn(said.shape, generator=generator)
                tones = torch.cat([f0[:, n : n + size] for n in starts])
                with torch.autocast("cpu", torch.bfloat16, enabled=has_fast_bfloat16()):
                    frames = self.frames_of(network, self.inputs(said, tones))
                loss = (frames - torch.cat([meant[:, n : n + size] for n in starts])).abs().mean()
                if 2 * size == SPEAKER_WINDOW:
                    heard = self.speaker(frames[:4].float().reshape(4, SPEAKER_WINDOW, -1))
                    loss = loss + 0.5 * (1 - (heard @ speaker).mean())
                optimizer.param_groups[0]["lr"] = LEARNING_RATE * min(1.0, (step + 1) / 10)
                optimizer.zero_grad()
                loss.backward()
                nn.utils.clip_grad_norm_(tuned, 1.0)
                optimizer.step()

    # --- speaking

    def network_of(self, conversion: dict[str, Tensor]) -> FrameNetwork:
        """The network of a `conversion`. Raises ValueError where its tensors are not those of this converter."""
        made_by, condition = (conversion.get(name, torch.zeros(0)) for name in ("converter", "condition"))
        known = condition.shape == (self.config.condition_size,) and not made_by.shape
        if not known or not torch.isclose(made_by.double(), self.signature(), rtol=1e-6):
            raise ValueError(
                "The voice was prepared by another converter: prepare it again from its recording (encode_voice)."
            )
        network = self.conditioned(condition[None].float())
        if conversion.keys() != {"condition", "pitch", "converter"}:  # it was tuned
            for name, tensor in network.state_dict().items():
                tensor += change_of(name, tensor, conversion)
        return network

    @torch.no_grad()
    def convert(
        self,
        waveform: Tensor,
        network: FrameNetwork,
        pitch: Tensor,
        state: ConverterState | None = None,
        last: bool = False,
    ) -> tuple[Tensor, ConverterState]:
        """Converts one chunk of several: speech (1, L) of the checkpoint's voice -> the speech (1, L') of the speaker
        that is complete, and the state for the next call.

        The joined chunks are the same to the last bit whatever the chunks, as they are computed in blocks of one size.
        """
        codec, edge = self.codec_config, (self.codec_config.mel_n_fft - self.codec_config.mel_hop_length) // 2
        if state is None:
            state = ConverterState(torch.zeros(1, edge), torch.zeros(1, 2, 0), (), (), None)
        samples = torch.cat((state.samples, F.pad(waveform, (0, edge if last else 0))), 1)
        overlap, block = codec.mel_n_fft - codec.mel_hop_length, BLOCK_FRAMES * codec.hop_length
        waves = [torch.zeros(1, 0)]
        while samples.shape[1] >= overlap + block:
            wave, state = self._convert_block(samples[:, : overlap + block], network, pitch, state, False)
            samples = samples[:, block:]
            waves.append(wave)
        if last:
            whole = (samples.shape[1] - overlap) // codec.hop_length * codec.hop_length
            wave, state = self._convert_block(samples[:, : overlap + max(0, whole)], network, pitch, state, True)
            waves.append(wave)
        return torch.cat(waves, 1), replace(state, samples=samples)

    def _convert_block(
        self, samples: Tensor, network: FrameNetwork, pitch: Tensor, state: ConverterState, last: bool
    ) -> tuple[Tensor, ConverterState]:
        """As `convert`, of all frames in samples (1, L) that hold whole ones."""
        codec, mel = self.codec_config, torch.zeros(1, 0, self.codec_config.feature_size)
        if samples.shape[1] >= codec.mel_n_fft:
            windows = samples.unfold(1, codec.mel_n_fft, codec.mel_hop_length)
            mel = self.analysis.features(mel_of_windows(windows, codec.num_mels, codec.sampling_rate))
        envelope, f0, encoder = self.encode_content(mel, self.source, state.encoder, last, True)
        loudness = torch.cat((state.loudness, self.loudness(mel, self.source)), 2)
        ready = envelope.shape[2]
        content = torch.cat((envelope, loudness[..., :ready]), 1)
        inputs = self.inputs(content, self.move_pitch(f0, pitch))
        latents, states = network.apply_blocks(inputs, state.network, last)
        wave, vocos = self.vocos.decode_chunk(latents * self.latent_scale[:, None], state.vocos, last)
        return wave, replace(state, loudness=loudness[..., ready:], encoder=encoder, network=states, vocos=vocos)

    def move_pitch(self, f0: Tensor, pitch: Tensor) -> Tensor:
        """f0 (B, T, 2) of the checkpoint's voice -> of a speaker with `pitch`, (median, deviation) of its log f0."""
        middle, deviation = self.config.source_pitch
        range_ = (pitch[1] / deviation).clamp(0.6, 1.3)
        moved = ((f0.clamp(min=50).log() - middle) * range_ + pitch[0]).exp().clamp(max=480)
        return torch.where(f0 > 0, moved, f0)


class ConvertingCodec:
    """A codec that decodes codes of a checkpoint's voice as the speech of the speaker of a `conversion`."""

    def __init__(self, codec: Any, converter: VoiceConverter, conversion: dict[str, Tensor]):
        self.codec, self.converter, self.pitch = codec, converter, conversion["pitch"]
        self.num_codebooks, self.network = codec.num_codebooks, converter.network_of(conversion)

    def decode_chunk(self, codes: Tensor, state: Any = None, last: bool = False) -> tuple[Tensor, Any]:
        """As that of the codec, for one row."""
        own, converted = (None, None) if state is None else state
        wave, own = self.codec.decode_chunk(codes, own, last)
        speech, converted = self.converter.convert(wave.float().cpu(), self.network, self.pitch, converted, last)
        return speech, (own, converted)
