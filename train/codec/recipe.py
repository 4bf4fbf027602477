"""The recipe of a codec: the keys of each part of the YAML file."""

from dataclasses import dataclass, field
from typing import Any

from smalle.codec_smalle import SmallECodecConfig

from ..data.audio import QualityGate
from ..model.recipe import check_keys
from .acoustics import Acoustics


@dataclass
class DataOptions:
    """The part `data`: the training audio.

    Attributes:
        corpus: Folders or files in any layout that `smalle prepare` reads; transcripts are not needed.
        segment: Length of a training segment in samples, except in the stage `refiner`.
        exclude_speakers: Speakers to exclude, with the blends that contain them.
        max_hours: Hours of audio to load into memory; default: all.
        validation_files: Number of files held out for the validation loss.
        gate: Which recordings to refuse, and the level for the others; null: uses all of them unchanged.
        acoustics: Augmentation of the segments.
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
    """The options that all stages have.

    Attributes:
        output: Folder for the codec.
        minutes: Training time, over which the learning rate decays.
        warmup: Number of steps of linear warm-up.
        ema_decay: Decay of the moving average of the weights. The average is what is saved.
        clip: Norm to clip the gradient to.
        start: Folder of the codec to start from; layers with other shapes are initialized.
        codebooks: Numbers of codebooks to decode from; each step uses one of them. Default: all codebooks.
        narrowed_share: Share of the full-band segments to analyse as if band-limited (codec.band_extension).
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
        windows, width: Fourier windows in samples, and channels, of the discriminators.
        bf16: Run the discriminators in bfloat16.
        initial_share: Share of the decoder's weights from before this stage in the saved weights.
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
    """The part `refiner`. frames: frames per segment; bf16: run the refiner in bfloat16."""

    frames: int = 120
    bf16: bool = True


@dataclass
class CodecRecipe:
    """The recipe of a codec.

    Attributes:
        codec: Fields of SmallECodecConfig to change from their defaults, or from the codec in `start`.
        threads: Threads that read audio.
        device: Device; "auto" is a GPU if there is one.
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
