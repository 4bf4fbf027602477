"""The recipe of a codec: what each part of the YAML file may hold."""

from dataclasses import dataclass, field
from typing import Any

from smalle.codec_smalle import SmallECodecConfig

from ..data.audio import QualityGate
from ..model.recipe import check_keys
from .acoustics import Acoustics


@dataclass
class DataOptions:
    """The part `data`: what is trained on.

    Attributes:
        corpus: Folders or files of any layout that `smalle prepare` reads; transcripts are not needed.
        segment: Length of a training segment in samples, but for the stage `refiner`.
        exclude_speakers: Speakers that are left out, with every blend that they are part of.
        max_hours: Hours of audio to load into memory; all by default.
        validation_files: Number of files that are held out of training for the validation loss.
        gate: Recordings that are refused, and the level that the others are brought to; null: all as they are.
        acoustics: Random microphones, rooms, noise and gains of the segments.
    """

    corpus: list[str]
    segment: int
    exclude_speakers: list[str] = field(default_factory=list)
    max_hours: float | None = None
    validation_files: int = 64
    gate: QualityGate | None = None
    acoustics: Acoustics = field(default_factory=Acoustics)


@dataclass
class StageOptions:
    """Options of every stage.

    Attributes:
        output: Folder of the codec that is written.
        minutes: Training time; the learning rate follows it.
        warmup: Number of steps in which the learning rate rises.
        ema_decay: Decay of the moving average of the weights, which is what is saved.
        clip: Largest norm of the gradient.
        start: Folder of the codec to start from; layers of another shape are initialized.
        codebooks: Numbers of codebooks that are read, one of them in each step; all codebooks by default.
        narrowed_share: Share of the full-band segments that are analysed as band-limited (codec.band_extension).
        log_seconds, checkpoint_seconds: Seconds between log lines and between checkpoints.
    """

    output: str
    minutes: float
    batch_size: int
    learning_rate: float
    warmup: int
    ema_decay: float
    clip: float = 1.0
    start: str | None = None
    codebooks: list[int] = field(default_factory=list)
    narrowed_share: float = 0.0
    log_seconds: float = 10.0
    checkpoint_seconds: float = 60.0


@dataclass
class ReconstructionOptions(StageOptions):
    """The part `reconstruction`. fitting_segments: segments for principal components and k-means, without `start`."""

    fitting_segments: int = 3000
    kmeans_iterations: int = 20


@dataclass
class AdversarialOptions(StageOptions):
    """The part `adversarial`.

    Attributes:
        windows, width: Fourier windows in samples and channels of the discriminators.
        bf16: Run the discriminators in bfloat16.
        initial_share: Share of the decoder's weights before this stage in those that are saved.
    """

    discriminator_learning_rate: float = 1e-3
    windows: list[int] = field(default_factory=lambda: [1024, 512, 256])
    width: int = 32
    bf16: bool = True
    spectral_weight: float = 15.0
    adversarial_weight: float = 2.0
    matching_weight: float = 2.0
    initial_share: float = 0.0


@dataclass
class RefinerOptions(StageOptions):
    """The part `refiner`. frames: frames of a segment; bf16: run the refiner in bfloat16."""

    frames: int = 120
    bf16: bool = True


@dataclass
class CodecRecipe:
    """The recipe of a codec.

    Attributes:
        codec: Fields of SmallECodecConfig that differ from their defaults, or from the codec of `start`.
        threads: Threads that read audio.
        device: "auto": a GPU where there is one.
    """

    data: DataOptions
    codec: dict[str, Any] = field(default_factory=dict)
    reconstruction: ReconstructionOptions | None = None
    adversarial: AdversarialOptions | None = None
    refiner: RefinerOptions | None = None
    device: str = "auto"
    seed: int = 0
    threads: int = 1

    def __post_init__(self):
        check_keys(self.codec, SmallECodecConfig.__annotations__, "codec")
