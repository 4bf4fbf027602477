"""The C library, without PyTorch: finding, compiling and loading it, its structures, and its codec decoder.

The library (smalle/native) comes with the package; if it is missing, it is compiled once into the user's cache. No
machine code is loaded from a checkpoint. Arrays are NumPy arrays.
"""

import contextlib
import ctypes
import functools
import hashlib
import importlib.util
import itertools
import logging
import os
import platform
import random
import shlex
import shutil
import stat
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

NAME, FLAGS = "", ""
SOURCES: dict[str, str] = {}

logger = logging.getLogger(__name__)


# --- the file


def user_cache() -> Path:
    """The folder for compiled libraries in the user's cache."""
    named = os.environ.get("XDG_CACHE_HOME") or os.environ.get("LOCALAPPDATA")
    return (Path(named) if named else Path.home() / ".cache") / "smalle"


def is_private(path: Path) -> bool:
    """Whether `path` is not a link, belongs to the user and is writable by nobody else."""
    status = path.lstat()
    own = not hasattr(os, "geteuid") or (status.st_uid == os.geteuid() and not status.st_mode & 0o022)
    return own and not stat.S_ISLNK(status.st_mode)


def compilers() -> list[list[str]]:
    """Command lines of the C compilers to try, $CC first."""
    named = [shlex.split(os.environ["CC"])] if os.environ.get("CC") else []
    return (
        named
        + [[name] for name in ("cc", "gcc", "clang") if shutil.which(name)]
        + [[sys.executable, "-m", "ziglang", "cc"]]
    )


def compile_library() -> bytes:
    """Compiles the library. Raises ValueError if no compiler succeeds."""
    with tempfile.TemporaryDirectory() as folder:
        for name, text in SOURCES.items():
            Path(folder, name).write_text(text)
        library = Path(folder, "library")
        for compiler in compilers():
            command = [*compiler, *FLAGS.split(), str(Path(folder, next(iter(SOURCES)))), "-o", str(library), "-lm"]
            with contextlib.suppress(OSError):  # there is no such program
                if subprocess.run(command, capture_output=True).returncode == 0:
                    return library.read_bytes()
    raise ValueError("no C compiler was found that can compile it: install gcc or clang, or pip install ziglang")


def digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()[:16]


def find_library(folder: Path, name: str) -> Path | None:
    """The library of this name in `folder` if it is undamaged: its file name ends with a digest of its contents."""
    files = folder.glob(f"{name}-*.so")
    return next((path for path in files if path.stem == f"{name}-{digest(path.read_bytes())}"), None)


def cached_library(folder: Path) -> Path:
    """The library in the user's cache; compiles it if it is missing, damaged or writable by others.

    Raises ValueError if others can write to the folder, and without a compiler.
    """
    from .saving_smalle import atomic_write

    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    if not is_private(folder):
        raise ValueError(
            f"{folder} is a link, belongs to another user or can be written by others: delete it, or set "
            "XDG_CACHE_HOME to a folder of your own"
        )
    compiler = compilers()[0]
    program = Path(shutil.which(compiler[0]) or compiler[0]).resolve()
    changed = program.stat().st_mtime_ns if program.exists() else 0
    machine = platform.system(), platform.machine(), *platform.libc_ver()
    name = f"{NAME}-{digest(repr((compiler, str(program), changed, machine)).encode())}"
    for path in folder.glob(f"{name}-*.so"):
        if not is_private(path):
            path.unlink()
    found = find_library(folder, name)
    if found is None:
        logger.info(f"Compiling the native runtime into {folder}, once.")
        data = compile_library()
        found = folder / f"{name}-{digest(data)}.so"
        with atomic_write(found) as partial:
            partial.write_bytes(data)
        found.chmod(0o700)
    return found


def open_library(path: Path) -> ctypes.CDLL:
    """Loads a library and selects the kernels of $SMALLE_KERNELS, or the fastest ones that the processor supports."""
    library = ctypes.CDLL(str(path))
    library.smalle_choose.restype = ctypes.c_char_p
    for function in ("pack_norm", "pack_matrix", "vocos_begin", "vocos_memory"):
        getattr(library, f"smalle_{function}").restype = ctypes.c_int64
    choose_kernels(library, os.environ.get("SMALLE_KERNELS", ""))
    return library


def choose_kernels(library: ctypes.CDLL, name: str = "") -> str:
    """Selects the kernels of a library: "plain", "avx2", "avx_vnni", "avx512_vnni", "neon_dot", or "" for the fastest.

    Returns their name. Raises ValueError if the processor or the library does not support them.
    """
    chosen = library.smalle_choose(name.encode())
    if chosen is None:
        raise ValueError(f"SMALLE_KERNELS={name!r}: the processor or the library does not support these kernels")
    return chosen.decode()


def package_folder() -> Path | None:
    """Folder of the library that an installed package brings, also for remote code, whose own folder is never read."""
    package = None
    with contextlib.suppress(ImportError, ValueError):  # as find_spec may raise where it cannot be imported
        package = importlib.util.find_spec("smalle")
    return Path(package.origin).with_name("native") if package and package.origin else None


@functools.cache
def load_library() -> tuple[ctypes.CDLL | None, str]:
    """The library of the package, or else of the user's cache; or None and the reason why there is none."""
    try:
        folder = package_folder()
        packaged = find_library(folder, NAME) if folder else None
        if packaged:
            with contextlib.suppress(OSError):  # it was built for another system
                return open_library(packaged), ""
        return open_library(cached_library(user_cache())), ""
    except (OSError, RuntimeError, ValueError) as error:
        return None, str(error)


# --- structures of C


def structure(name: str, **fields: str) -> type[ctypes.Structure]:
    """A C structure; fields: the names of its fields by type."""
    types = dict(int32=ctypes.c_int32, float32=ctypes.c_float, pointer=ctypes.c_void_p)
    typed = [(field, types[kind]) for kind, names in fields.items() for field in names.split()]
    return type(name, (ctypes.Structure,), {"_fields_": typed})


Step = structure(
    "Step",
    int32="rows steps tokens codebooks vocabulary hidden heads position_size position_heads before after pending room "
    "threads",
    float32="eps normalizer strongest gain",
    pointer="weights embedding codes text_keys text_values positions text_mask states logits alignment scratch",
)
Text = structure(
    "Text",
    int32="tokens hidden heads layers turned threads",
    float32="eps",
    pointer="weights x mask cosines sines keys values scratch",
)
Drawing = structure(
    "Drawing",
    int32="guided may_end",
    float32="scale",
    pointer="top_k temperature random ended places next positions",
)
Vocos = structure(
    "Vocos",
    int32="refiner_layers refiner_size refiner_inner refiner_kernel refiner_ahead layers size inner kernel ahead "
    "channels n_fft hop upsampling harmonic trim rate noise_frames",
    pointer="weights window roots noise",
)


def address(array: np.ndarray) -> ctypes.c_void_p:
    return ctypes.c_void_p(array.ctypes.data)


def aligned(shape: int | tuple[int, ...], kind: Any = np.float32) -> np.ndarray:
    """An uninitialised array, aligned to 64 bytes."""
    size = int(np.prod(shape)) * np.dtype(kind).itemsize
    memory = np.empty(size + 64, np.uint8)
    start = -memory.ctypes.data % 64
    return memory[start : start + size].view(kind).reshape(shape)


# --- the model: the order of its weights, its tables, its working memory

SMALL = 2**15  # smaller matrices (gates, positions) stay in single precision: 8 bits would not be faster
LARGE_STATE = 2**16  # block states of at least this size have pending updates; smaller ones fit into a CPU cache
STRONGEST_DECAY = -8.0  # `linear_attention_smalle.MIN_LOG_DECAY`
MAX_VECTORS = 256  # limit for frames times rows of one call, to bound its working memory
LAYER_NORM, RMS_NORM = 1, 2  # kinds of norms in packed weights

LARGE_WEIGHTS = 2**24  # a second thread pays off if a step reads at least this many bytes

Names = Iterable[tuple[str, float]]  # (name, factor) of layers


def feed_forward_names(layer: str) -> list[tuple[str, float]]:
    return [(f"{layer}.{part}", 1.0) for part in ("norm2", "mlp.gate_proj", "mlp.up_proj", "mlp.down_proj")]


def block_names(block: str, key_size: int) -> Names:
    """Layers of a GLA `LinearAttentionBlock` whose queries have `key_size` channels per head."""
    yield (f"{block}.norm1", 1.0)
    yield (f"{block}.mixer.q_proj", key_size**-0.5)
    for part in ("k_proj", "v_proj", "g_proj", "decay_down_proj", "decay_up_proj", "norm", "o_proj"):
        yield (f"{block}.mixer.{part}", 1.0)
    yield from feed_forward_names(block)


def transformer_names(stack: str, layers: int) -> Names:
    for n in range(layers):
        for part in ("norm1", "q_proj", "k_proj", "v_proj", "o_proj"):
            yield (f"{stack}.{n}.{part}", 1.0)
        yield from feed_forward_names(f"{stack}.{n}")


def text_names(config: Any) -> Names:
    """Layers of the text encoder, in the order in which the library reads their weights."""
    yield from transformer_names("model.text_encoder", config.text_layers)
    yield ("model.text_norm", 1.0)
    for part in ("k_proj", "k_norm", "v_proj", "v_norm"):
        yield (f"model.cross_attention.{part}", 1.0)


def speaker_names(config: Any) -> Names:
    """Layers of the speaker encoder, in the format of `text_names`: instead of keys and values with a norm each, the
    same projection twice, without norms."""
    yield from transformer_names("model.speaker_encoder.layers", config.speaker_layers)
    for part in ("norm", "proj", "none", "proj", "none"):
        yield (f"model.speaker_encoder.{part}", 1.0)


def step_names(config: Any) -> Names:
    """As `text_names`, for a decode step."""
    keys = int(config.hidden_size * config.expand_k) // config.mixer_heads
    for n in range(config.audio_encoder_layers):
        yield from block_names(f"model.audio_encoder.{n}", keys)
    attention = "model.cross_attention"
    yield from ((name, 1.0) for name in ("model.audio_encoder_norm", f"{attention}.q_proj", f"{attention}.q_norm"))
    position_keys = int(config.position_size * config.expand_k) // config.position_heads
    yield from block_names(f"{attention}.position_block", position_keys)
    yield (f"{attention}.position_norm", 1.0)
    for n in range(config.audio_decoder_layers):
        yield from block_names(f"model.audio_decoder.{n}", keys)
    yield from (("model.audio_norm", 1.0), ("head", 1.0))


def threads_for(size: int) -> int:
    """The number of threads for calls that read `size` bytes of weights: $SMALLE_THREADS if it is set, else one, or two
    for large models if the process has two cores. Raises ValueError if $SMALLE_THREADS is not a number."""
    if setting := os.environ.get("SMALLE_THREADS"):
        if not setting.isdecimal():
            raise ValueError(f"SMALLE_THREADS={setting!r}: expected a whole number of threads")
        return max(1, int(setting))
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return 2 if size >= LARGE_WEIGHTS and cores > 1 else 1


def rotary_tables(positions: np.ndarray, size: int, theta: float) -> tuple[np.ndarray, np.ndarray]:
    """Cosines and sines (..., size / 2) of rotary positions (...)."""
    angles = positions[..., None] * theta ** (-np.arange(0, size, 2) / size)
    return np.cos(angles).astype(np.float32), np.sin(angles).astype(np.float32)


def position_table(mask: np.ndarray, size: int, theta: float) -> np.ndarray:
    """Sinusoidal positions (B, N, size) of texts with a mask (B, N), as `attention_smalle.sinusoids`."""
    cosines, sines = rotary_tables((mask.astype(np.int64).cumsum(1) - 1).clip(min=0), size, theta)
    return np.concatenate((sines, cosines), -1)


def embed_codes(table: np.ndarray, codes: np.ndarray, vocabulary: int) -> np.ndarray:
    """Summed embeddings (P, D) of tokens (P, Q) of the audio vocabulary; table (Q * vocabulary, D)."""
    x = np.zeros((len(codes), table.shape[1]), np.float32)
    for q in range(codes.shape[1]):
        x += table[codes[:, q] + q * vocabulary]
    return x


def working_memory(config: Any, vectors: int, tokens: int) -> int:
    """An upper bound for the bytes needed to process `vectors` vectors at once, with alignments to `tokens` tokens."""
    inside = config.position_intermediate_size or 2 * config.position_size
    widths = (config.hidden_size + config.position_size) * (1 + config.expand_k + config.expand_v)
    widths += config.intermediate_size + inside + config.gate_low_rank
    return int(32 * vectors * (widths + 256)) + 16 * tokens + 2**15


def step_of(
    config: Any, rows: int, tokens: int, addresses: Mapping[str, int], pending: bool = False, threads: int = 1
) -> Any:
    """The structure for steps of texts (R, N); addresses: those of its arrays by name."""
    return Step(
        rows=rows,
        tokens=tokens,
        codebooks=config.num_codebooks,
        vocabulary=config.audio_vocab_size,
        hidden=config.hidden_size,
        heads=config.mixer_heads,
        position_size=config.position_size,
        position_heads=config.position_heads,
        before=config.audio_encoder_layers,
        after=config.audio_decoder_layers,
        pending=pending,
        room=-1,
        threads=threads,
        eps=config.norm_eps,
        normalizer=config.gate_logit_normalizer,
        strongest=STRONGEST_DECAY,
        gain=config.position_gain or 1.0,
        **addresses,
    )


class Sampler:
    """Draws the next tokens after a step of texts with a mask (B, N).

    top_k (0: all tokens, 1: greedy), temperature: for each codebook. scale: scale of guidance, which needs B additional
    rows without text; None: no guidance.
    random (S, B, V) int64: random bits for the sampled codebooks, to be filled in by the caller before each call.
    """

    def __init__(
        self,
        library: ctypes.CDLL,
        config: Any,
        mask: np.ndarray,
        top_k: Sequence[int],
        temperature: Sequence[float],
        scale: float | None,
    ):
        self.library, self.books, self.guided = library, config.num_codebooks, scale is not None
        sampled = sum(k != 1 for k in top_k)
        self.random = np.zeros((sampled, len(mask), config.audio_vocab_size), np.int64)
        self.ended, self.positions = np.zeros(len(mask), np.int32), np.zeros(len(mask), np.float32)
        self.places = (mask.astype(np.int64).cumsum(1) - 1).clip(min=0).astype(np.float32)
        self.settings = np.array(top_k, np.int32), np.array(temperature, np.float32)
        arrays = dict(zip(("top_k", "temperature"), self.settings), random=self.random, ended=self.ended)
        arrays |= dict(places=self.places, positions=self.positions)
        addresses = {name: x.ctypes.data for name, x in arrays.items()}
        self.structure = Drawing(guided=self.guided, scale=scale or 1.0, **addresses)

    def __call__(self, step: Any, may_end: bool, remaining: Sequence[int]) -> tuple[np.ndarray, list[float]]:
        """The next tokens (R, Q), and for each of B rows its mean position in the text, in tokens.

        may_end: whether rows may end. remaining: steps until each row is complete, -1 before its end is known.
        """
        tokens, structure = np.empty(((1 + self.guided) * len(remaining), self.books), np.int64), self.structure
        self.ended[:] = [0 if steps < 0 else self.books + 1 - steps for steps in remaining]
        structure.may_end, structure.next = may_end, tokens.ctypes.data
        self.library.smalle_draw(ctypes.byref(step), ctypes.byref(structure))
        return tokens, self.positions.tolist()


def limit_speaker(embedding: np.ndarray, config: Any) -> np.ndarray:
    """Moves a speaker embedding (D,) that is far from those the model learned closer to them
    (`SmallEConfig.speaker_limits`)."""
    if config.speaker_limits is None:
        return embedding
    furthest, typical = config.speaker_limits
    center = np.array(config.speaker_center, np.float32)
    distance = np.linalg.norm(embedding - center)
    return embedding if distance <= furthest else center + (embedding - center) * np.float32(typical / distance)


def read_text(
    library: ctypes.CDLL,
    config: Any,
    layers: int,
    weights: int,
    x: np.ndarray,
    mask: np.ndarray,
    scratch: np.ndarray | None = None,
    threads: int = 1,
) -> tuple[np.ndarray, np.ndarray]:
    """Keys and values (N, D) of a text, from embeddings x (N, D) and mask (N,); mostly zeros on the padding before it.

    layers: number of layers of the encoder. weights: address of its packed weights.
    """
    begin = int(mask.argmax()) // 64 * 64  # so that the order of summation does not depend on the padding
    x, mask, keys, values = x[begin:].copy(), mask[begin:].astype(np.uint8), np.zeros_like(x), np.zeros_like(x)
    cosines, sines = rotary_tables(np.arange(begin, begin + len(x)), config.rotary_size, config.rope_theta)
    scratch = aligned(working_memory(config, len(x), len(x)), np.uint8) if scratch is None else scratch
    sizes: dict[str, Any] = dict(tokens=len(x), hidden=config.hidden_size, heads=config.num_attention_heads)
    sizes |= dict(layers=layers, turned=config.rotary_size, threads=threads, eps=config.norm_eps, weights=weights)
    arrays = dict(x=x, mask=mask, cosines=cosines, sines=sines, keys=keys[begin:], values=values[begin:])
    addresses = {name: array.ctypes.data for name, array in (arrays | {"scratch": scratch}).items()}
    library.smalle_text(ctypes.byref(Text(**sizes, **addresses)))
    return keys, values


def encode_speaker(library: ctypes.CDLL, config: Any, weights: np.ndarray, x: np.ndarray) -> np.ndarray:
    """The speaker embedding (D,) of a recording, from embedded frames x (P, D); zeros if there are none.

    weights: the layers of `speaker_names`, packed in single precision.
    """
    if not len(x):
        return np.zeros(config.hidden_size, np.float32)
    frames, _ = read_text(library, config, config.speaker_layers, weights.ctypes.data, x, np.ones(len(x), np.uint8))
    return limit_speaker(frames.mean(0), config)


# --- the decoder of a codec: a refiner of latents, then Vocos

COLUMNS = 16  # columns of a matrix that are stored side by side
NOISE_FRAMES = 1024  # the noise repeats after this many frames
BLOCK_SIZES = (64, 16), (256, 32), (float("inf"), 64)  # (up to frame, block size): small first, for low latency


def block_size(frame: int) -> int:
    """The number of frames in the block that starts at a frame."""
    return next(size for end, size in BLOCK_SIZES if frame < end)


def block_sizes() -> Iterator[int]:
    """Yields the number of frames of each block, without end."""
    frame = 0
    while True:
        yield block_size(frame)
        frame += block_size(frame)


def mersenne_twister(seed: int) -> random.Random:
    """A generator whose getrandbits(32) gives the same numbers as a `torch.Generator` with this seed."""
    words = [seed & 0xFFFFFFFF]
    for n in range(1, 624):
        words.append((1812433253 * (words[-1] ^ words[-1] >> 30) + n) & 0xFFFFFFFF)
    generator = random.Random()
    generator.setstate((3, (*words, 624), None))
    return generator


def bits32(generator: random.Random, count: int) -> np.ndarray:
    """The next numbers (count,) of a generator, uint32."""
    return np.frombuffer(generator.getrandbits(32 * count).to_bytes(4 * count, "little"), "<u4")


def bits64(generator: random.Random, count: int) -> np.ndarray:
    """The next numbers (count,), int64, drawn upper 32 bits first."""
    return bits32(generator, 2 * count).reshape(-1, 2)[:, ::-1].astype("<u4").view("<i8")[:, 0]


@functools.lru_cache(maxsize=2)
def noise_table(bins: int) -> np.ndarray:
    """Complex normal noise (NOISE_FRAMES, bins, 2), equal to torch.randn with seed 0 up to rounding: the Box-Muller
    transform on groups of 16 numbers."""
    uniform = (bits32(mersenne_twister(0), NOISE_FRAMES * bins * 2) & 0xFFFFFF).astype(np.float32) / np.float32(2**24)
    pairs = uniform.reshape(-1, 2, 8)
    radius, angle = np.sqrt(-2 * np.log(1 - pairs[:, 0])), np.float32(2 * np.pi) * pairs[:, 1]
    return np.stack((radius * np.cos(angle), radius * np.sin(angle)), 1).reshape(NOISE_FRAMES, bins, 2)


def matrix_parts(weight: np.ndarray, bias: np.ndarray) -> Iterator[np.ndarray]:
    """A linear layer, weight (out, in), in groups of 16 columns."""
    out = len(weight)
    padding = -out % COLUMNS
    yield np.pad(bias, (0, padding))
    yield np.pad(weight, ((0, padding), (0, 0))).reshape(-1, COLUMNS, weight.shape[1]).transpose(0, 2, 1)


Tensors = Mapping[str, np.ndarray]


def convolution_parts(tensors: Tensors, name: str) -> Iterator[np.ndarray]:
    """A convolution, weight (out, in, kernel), as a linear layer on `kernel` consecutive inputs."""
    weight = tensors[f"{name}.weight"]
    yield from matrix_parts(weight.transpose(0, 2, 1).reshape(len(weight), -1), tensors[f"{name}.bias"])


def norm_parts(tensors: Tensors, name: str, condition: int | None = None) -> list[np.ndarray]:
    """A norm; of a conditioned norm, scale and shift for the bandwidth id `condition`."""
    if f"{name}.weight" in tensors:
        return [tensors[f"{name}.weight"], tensors[f"{name}.bias"]]
    return [tensors[f"{name}.{part}.weight"][condition] for part in ("scale", "shift")]


def block_parts(tensors: Tensors, name: str, condition: int | None = None) -> Iterator[np.ndarray]:
    """A ConvNeXt block; the scale of each channel is merged into the last layer."""
    yield from (tensors[f"{name}.dwconv.bias"], tensors[f"{name}.dwconv.weight"][:, 0].T)
    yield from norm_parts(tensors, f"{name}.norm", condition)
    yield from matrix_parts(tensors[f"{name}.pwconv1.weight"], tensors[f"{name}.pwconv1.bias"])
    scale, weight, bias = (tensors[f"{name}.{part}"] for part in ("gamma", "pwconv2.weight", "pwconv2.bias"))
    yield from matrix_parts(weight * scale[:, None], bias * scale)


def count_blocks(tensors: Tensors, stack: str) -> int:
    return sum(name.startswith(f"{stack}.") and name.endswith(".gamma") for name in tensors)


def refiner_parts(tensors: Tensors) -> Iterator[np.ndarray]:
    """A `LatentRefiner`; its scales are merged into the first and the last layer."""
    embed = {"weight": tensors["embed.weight"] / tensors["latent_scale"][:, None], "bias": tensors["embed.bias"]}
    yield from convolution_parts({f"embed.{name}": x for name, x in embed.items()}, "embed")
    for n in range(count_blocks(tensors, "blocks")):
        yield from block_parts(tensors, f"blocks.{n}")
    yield from norm_parts(tensors, "norm")
    scale = tensors["rest_scale"]
    yield from matrix_parts(tensors["out.weight"] * scale[:, None], tensors["out.bias"] * scale)


def vocos_parts(tensors: Tensors, condition: int | None) -> Iterator[np.ndarray]:
    """A `Vocos`; condition: the bandwidth id, if it is conditioned on one."""
    yield from convolution_parts(tensors, "backbone.embed")
    yield from norm_parts(tensors, "backbone.norm", condition)
    for n in range(count_blocks(tensors, "backbone.convnext")):
        yield from block_parts(tensors, f"backbone.convnext.{n}", condition)
    yield from norm_parts(tensors, "backbone.final_layer_norm")
    yield from matrix_parts(tensors["head.out.weight"], tensors["head.out.bias"])


def rounded(size: int) -> int:
    """The number of floats that a part of `size` floats occupies in a stream."""
    return -(-size // COLUMNS) * COLUMNS


def matrix_size(width: int, out: int) -> int:
    return rounded(out) * (1 + width)


def stack_size(channels: int, size: int, kernel: int, layers: int, inner: int) -> int:
    """The number of floats that a convolution, its ConvNeXt blocks and a norm occupy in a stream."""
    block = 3 * rounded(size) + rounded(kernel * size) + matrix_size(size, inner) + matrix_size(inner, size)
    return matrix_size(channels * kernel, size) + layers * block + 2 * rounded(size)


def stream_of(parts: Iterable[np.ndarray], size: int) -> np.ndarray:
    """Joins parts in single precision, each aligned to 16 floats. Raises ValueError if the result does not have `size`
    floats."""
    stream, at = aligned(size), 0
    for part in parts:
        if at + part.size <= size:
            stream[at : at + part.size] = part.reshape(-1)
        at += rounded(part.size)
    if at != size:
        raise ValueError(f"they have {at} floats, expected {size}")
    return stream


class DecoderState(NamedTuple):
    """State of a decoder between chunks: features (T, C) that are not part of a block yet, the number of frames in the
    blocks so far, and the state of the library."""

    features: np.ndarray
    frames: int
    memory: np.ndarray


class VocosDecoder:
    """A refiner of features and a Vocos, computed with the library. Immutable.

    Args:
        vocos, refiner: tensors by name, as in `Vocos` and `LatentRefiner`; {}: no refiner.
        settings: fields of `VocosConfig`: n_fft, hop_length, upsampling, excitation, padding, sampling_rate.
        condition: bandwidth id, if the Vocos is conditioned on one.

    Raises:
        ValueError: tensors are missing, or their shapes do not fit together.
    """

    def __init__(
        self,
        library: ctypes.CDLL,
        vocos: Tensors,
        refiner: Tensors,
        settings: Mapping[str, Any],
        condition: int | None = None,
    ):
        n_fft, hop = settings["n_fft"], settings["hop_length"] // settings["upsampling"]
        harmonic, turns = settings["excitation"] == "harmonic", 2 * np.pi * np.arange(n_fft) / n_fft
        try:
            size, channels, kernel = vocos["backbone.embed.weight"].shape
            layers, inner = count_blocks(vocos, "backbone.convnext"), len(vocos["backbone.convnext.0.pwconv1.weight"])
            sizes = dict(size=size, kernel=kernel, ahead=kernel // 2, layers=layers, inner=inner)
            wanted = stack_size(channels, size, kernel, layers, inner) + 2 * rounded(size)
            wanted += matrix_size(size, settings["upsampling"] * ((n_fft // 2 + 1) * (2 + harmonic) + harmonic))
            if refiner:
                size, _, kernel = refiner["embed.weight"].shape
                layers, inner = count_blocks(refiner, "blocks"), len(refiner["blocks.0.pwconv1.weight"])
                sizes |= dict(refiner_size=size, refiner_kernel=kernel, refiner_ahead=1)
                sizes |= dict(refiner_inner=inner, refiner_layers=layers)
                wanted += stack_size(channels, size, kernel, layers, inner) + matrix_size(size, channels)
            parts = itertools.chain(refiner_parts(refiner) if refiner else (), vocos_parts(vocos, condition))
            self.weights = stream_of(parts, wanted)
        except (KeyError, ValueError, IndexError) as error:
            raise ValueError(
                f"The tensors of the decoder do not fit ({error}): download the checkpoint again."
            ) from error
        self.window = (0.5 - 0.5 * np.cos(turns)).astype(np.float32)
        self.roots = np.stack((np.cos(turns), np.sin(turns)), 1).astype(np.float32)
        self.noise = noise_table(n_fft // 2 + 1) if harmonic else np.zeros(0, np.float32)
        self.library, self.hop_length, self.channels = library, settings["hop_length"], channels
        self.structure = Vocos(
            **sizes,
            channels=channels,
            n_fft=n_fft,
            hop=hop,
            upsampling=settings["upsampling"],
            harmonic=harmonic,
            trim=(n_fft - hop) // 2 if settings["padding"] == "same" else n_fft // 2,
            rate=settings["sampling_rate"],
            noise_frames=NOISE_FRAMES,
            **{name: getattr(self, name).ctypes.data for name in ("weights", "window", "roots", "noise")},
        )
        self.begin = aligned(library.smalle_vocos_begin(ctypes.byref(self.structure), None), np.uint8)
        library.smalle_vocos_begin(ctypes.byref(self.structure), address(self.begin))

    def __deepcopy__(self, memo):
        return self

    def __reduce__(self):
        return type(None), ()

    def decode_chunk(
        self, features: np.ndarray, state: DecoderState | None = None, last: bool = False
    ) -> tuple[np.ndarray, DecoderState | None]:
        """The samples (L,) that are complete after features (T, C), T >= 0, and the state to continue with.

        The joined result does not depend on the chunk sizes, to the last bit, because it is computed in blocks of fixed
        sizes. `last`: no chunk will follow; the returned state is None.
        """
        waiting, frames, before = state or DecoderState(features[:0], 0, self.begin)
        features, waves = np.concatenate((waiting, features)).astype(np.float32), [np.zeros(0, np.float32)]
        memory = aligned(len(before), np.uint8)
        memory[:] = before
        while (size := block_size(frames)) <= len(features):
            waves.append(self._decode(features[:size], memory, False))
            features, frames = features[size:], frames + size
        if last and (frames or len(features)):
            waves.append(self._decode(features, memory, True))
        return np.concatenate(waves), None if last else DecoderState(features, frames, memory)

    def _decode(self, features, memory, last):
        """The samples (L,) of a block of features (T, C); overwrites `memory`."""
        features, place = np.ascontiguousarray(features), ctypes.byref(self.structure)
        scratch = aligned(self.library.smalle_vocos_memory(place, len(features)), np.uint8)
        stack = self.structure
        ahead = (1 + stack.layers) * stack.ahead + (1 + stack.refiner_layers) * stack.refiner_ahead
        wave = np.empty((len(features) + ahead + 4) * self.hop_length + 2 * stack.n_fft, np.float32)
        inputs = place, address(features), len(features), int(last), address(memory)
        return wave[: self.library.smalle_vocos(*inputs, address(wave), address(scratch))]
