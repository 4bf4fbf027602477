"""A Small-E of GLA blocks, computed with the C library, one text at a time: encoding, decode steps, sampling."""

import ctypes
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from ..native_smalle import (
    LARGE_STATE,
    LAYER_NORM,
    RMS_NORM,
    SMALL,
    Names,
    Sampler,
    address,
    aligned,
    embed_codes,
    encode_speaker,
    load_library,
    position_table,
    read_text,
    speaker_names,
    step_names,
    step_of,
    text_names,
    threads_for,
    working_memory,
)
from ..saving_smalle import check_sizes
from .tensors import Weights, errors_name, read_config, read_weights

PAD, BOS, EOS, SPECIALS = 0, 1, 2, 3  # special tokens of every codebook, before its codes
READ_AT_ONCE = 16  # steps of a prompt in one call
DEFAULTS: dict[str, Any] = dict(  # defaults of those fields of `SmallEConfig` that the computation depends on
    architecture="small-e",
    mixer="gla",
    cross_attention="paca",
    feed_forward="swiglu",
    position_layers=1,
    cross_rotary_size=0,
    text_layers=9,
    num_attention_heads=8,
    rope_theta=10000.0,
    partial_rotary_factor=1.0,
    hidden_size=512,
    intermediate_size=744,
    audio_encoder_layers=6,
    audio_decoder_layers=6,
    mixer_heads=2,
    expand_k=1.0,
    expand_v=2.0,
    final_norms=["text", "audio_decoder"],
    gate_low_rank=16,
    gate_logit_normalizer=16.0,
    position_size=64,
    position_heads=1,
    position_intermediate_size=None,
    position_theta=10000.0,
    position_gain=8.0,
    speaker_layers=0,
    speaker_center=None,
    speaker_limits=None,
    num_codebooks=4,
    codebook_size=1024,
    frame_rate=75.0,
    norm_eps=1e-5,
    max_text_tokens=4096,
    bos_token_id=1,
    eos_token_id=2,
    pad_token_id=0,
    tie_word_embeddings=False,
)
OPTIONAL = dict(  # types of fields that may be None
    position_gain=float | None,
    position_intermediate_size=int | None,
    speaker_center=list | None,
    speaker_limits=list | None,
)
FINAL_NORMS = dict(  # layers, by the stack that ends in them
    text="text_norm",
    audio_encoder="audio_encoder_norm",
    position="cross_attention.position_norm",
    audio_decoder="audio_norm",
)
COMPUTED = "architecture", "mixer", "cross_attention", "feed_forward", "position_layers", "cross_rotary_size"


def shape_of(name: str, config: Any) -> tuple[int, ...]:
    """The expected shape of a layer's weight."""
    size, inner, heads = config.hidden_size, config.intermediate_size, config.mixer_heads
    if "position_" in name:
        size, heads = config.position_size, config.position_heads
        inner = config.position_intermediate_size or 2 * size
    keys, values, rank = int(size * config.expand_k), int(size * config.expand_v), config.gate_low_rank
    layers: dict[str, tuple[int, ...]] = {
        "gate_proj": (inner, size),
        "up_proj": (inner, size),
        "down_proj": (size, inner),
    }
    layers["head"] = config.num_codebooks * config.audio_vocab_size, size
    if ".mixer." in name:
        layers |= dict.fromkeys(("q_proj", "k_proj"), (keys, size)) | dict.fromkeys(
            ("v_proj", "g_proj"), (values, size)
        )
        layers |= {"o_proj": (size, values), "decay_down_proj": (rank, size), "decay_up_proj": (keys, rank)}
        layers["norm"] = (values // heads,)
    last = name.rpartition(".")[2]
    return layers.get(last, (size,) if "norm" in last else (size, size))


def check_shapes(tensors: Weights, names: Names, config: Any) -> None:
    """Raises ValueError for missing layers, and for weights whose shape does not fit the configuration."""
    rms = {"position"} if config.position_gain else set()  # norms without a bias
    without = {f"model.{FINAL_NORMS[stack]}" for stack in FINAL_NORMS.keys() - {*config.final_norms} - rms}
    for name, _ in names:
        if name.endswith("none") or name in without:
            continue
        found, bias = tensors.shape(f"{name}.weight"), tensors.shape(f"{name}.bias")
        wanted = shape_of(name, config)
        needs_bias = name.endswith("_norm") and not (rms and name.endswith("position_norm"))
        if found != wanted or bias != wanted[:1] and (bias or needs_bias):
            raise ValueError(f"{name} has the shape {found}, expected {wanted}: download or save the checkpoint again.")


def pack(library: ctypes.CDLL, tensors: Weights, names: Names, small: int = SMALL) -> np.ndarray:
    """Packs layers into one stream of bytes, in the format that smalle.c reads.

    small: matrices with at least this many entries are stored in 8 bits.
    """
    names = list(names)
    shapes = [tensors.shape(f"{name}.weight") or (0,) for name, _ in names]
    most = sum(
        4 * (shape[0] + 16) * (shape[-1] + 2) + 1024 for shape in shapes
    )  # an upper bound; unused pages cost nothing
    stream = aligned(most, np.uint8)
    at = stream.ctypes.data
    for (name, scale), shape in zip(names, shapes):
        weight, bias = tensors.get(f"{name}.weight"), tensors.get(f"{name}.bias")
        places = [None if x is None else address(x) for x in (weight, bias)]
        to = ctypes.c_void_p(at)
        if len(shape) == 2:
            eight = shape[0] * shape[1] >= small
            at += library.smalle_pack_matrix(shape[1], shape[0], eight, ctypes.c_float(scale), *places, to)
        else:
            kind = 0 if weight is None else RMS_NORM if bias is None else LAYER_NORM
            at += library.smalle_pack_norm(kind, *shape, *places, to)
    return stream[: at - stream.ctypes.data]


@dataclass(frozen=True)
class State:
    """The state of a generation, a value: keys, values, positions and mask of R texts of N tokens, and the recurrent
    state (R, H, K, V) of each block. The second text is the unconditional one of guidance."""

    keys: np.ndarray
    values: np.ndarray
    positions: np.ndarray
    mask: np.ndarray
    recurrent: tuple[np.ndarray, ...]

    def copy(self) -> "State":
        """A copy whose recurrent state may be overwritten by steps."""
        return replace(self, recurrent=tuple(x.copy() for x in self.recurrent))


class Model:
    """The weights of a checkpoint, packed. Immutable.

    Raises:
        ValueError: the folder has no checkpoint, or one that the library does not support.
    """

    def __init__(self, folder: Path):
        self.config = config = read_config(folder / "config.json", DEFAULTS, OPTIONAL)
        with errors_name(folder / "config.json"):
            check_sizes(config)
        wrong = [f"{name}={getattr(config, name)!r}" for name in COMPUTED if getattr(config, name) != DEFAULTS[name]]
        if wrong:
            raise ValueError(f"{folder} has {', '.join(wrong)}: smalle.lite supports only GLA with PACA and SwiGLU.")
        head = config.hidden_size // config.num_attention_heads
        config.rotary_size = int(head * config.partial_rotary_factor)
        config.audio_vocab_size = config.codebook_size + SPECIALS
        if config.hidden_size**2 * config.expand_k * config.expand_v / config.mixer_heads >= LARGE_STATE:
            raise ValueError(
                f"{folder} has recurrent states of {LARGE_STATE} or more values: expected a smaller model."
            )
        library, reason = load_library()
        if library is None:
            raise ValueError(f"The C library is not available: {reason}.")
        self.library, tensors = library, read_weights(folder / "model.safetensors")
        try:
            self._take(tensors)
        except KeyError as error:
            raise ValueError(f"{folder} has no tensor {error}: download or save the checkpoint again.") from error

    def _take(self, tensors: Weights) -> None:
        config, library = self.config, self.library
        self.text_embedding = tensors["model.text_embedding.weight"]
        self.audio_embedding = np.ascontiguousarray(tensors["model.audio_embedding.weight"])
        if config.tie_word_embeddings:
            tensors = tensors.renamed("model.audio_embedding.weight", "head.weight")
        speaker = list(speaker_names(config)) if config.speaker_layers else []
        check_shapes(tensors, (*text_names(config), *step_names(config), *speaker), config)
        rows = config.num_codebooks * config.audio_vocab_size
        if self.audio_embedding.shape != (rows, config.hidden_size) or self.text_embedding.shape[1:] != (
            config.hidden_size,
        ):
            shapes = self.audio_embedding.shape, self.text_embedding.shape
            raise ValueError(f"The embeddings have the shapes {shapes}: they do not fit the configuration.")
        self.text = pack(library, tensors, text_names(config))
        self.step = pack(library, tensors, step_names(config))
        self.speaker = pack(library, tensors, speaker, small=2**62)
        self.threads = threads_for(len(self.step))

    def encode_speaker(self, codes: np.ndarray) -> np.ndarray | None:
        """The speaker embedding (D,) of a recording, undelayed codes (P, Q); None without a speaker encoder."""
        if not self.config.speaker_layers:
            return None
        x = embed_codes(self.audio_embedding, codes + SPECIALS, self.config.audio_vocab_size)
        return encode_speaker(self.library, self.config, self.speaker, x)

    def read_text(self, ids: list[int], speaker: np.ndarray | None, prompted: bool, guided: bool) -> State:
        """The state before the first step of a text.

        Args:
            speaker: (D,) embedding of the speaker.
            prompted: whether there is a prompt.
            guided: add a second, empty text for guidance; it gets the speaker embedding only if there is a prompt.
        """
        config = self.config
        tokens, rows = max(len(ids), 2), 1 + guided
        texts, mask = np.full((rows, tokens), config.pad_token_id), np.zeros((rows, tokens), np.uint8)
        texts[0, tokens - len(ids) :], mask[0, tokens - len(ids) :] = ids, 1
        if guided:
            texts[1, -2:], mask[1, -2:] = (config.bos_token_id, config.eos_token_id), 1
        encoder = self.library, config, config.text_layers, self.text.ctypes.data
        embedded = zip(self.text_embedding[texts], mask)
        keys, values = map(np.stack, zip(*(read_text(*encoder, *row, threads=self.threads) for row in embedded)))
        if speaker is not None:
            values += np.stack((speaker, speaker * prompted))[:rows, None]
        positions = position_table(mask, config.position_size, config.position_theta)
        return State(keys, values, positions, mask, self._zeros(rows))

    def _zeros(self, rows: int) -> tuple[np.ndarray, ...]:
        config = self.config

        def zeros(size: int, heads: int) -> np.ndarray:
            widths = int(size * config.expand_k) // heads, int(size * config.expand_v) // heads
            return np.zeros((rows, heads, *widths), np.float32)

        before, after = config.audio_encoder_layers, config.audio_decoder_layers
        sizes = [(config.hidden_size, config.mixer_heads)] * before
        sizes += [(config.position_size, config.position_heads)]
        sizes += [(config.hidden_size, config.mixer_heads)] * after
        return tuple(zeros(*size) for size in sizes)


class Steps:
    """Decode steps that overwrite their state. alignment (R, N): that of the last step, if `read` took only one."""

    def __init__(self, model: Model, state: State):
        config, (rows, tokens) = model.config, state.mask.shape
        self.model, self.state, self.rows = model, state, rows
        self.logits = np.empty((rows, config.num_codebooks, config.audio_vocab_size), np.float32)
        self.alignment = np.empty((rows * READ_AT_ONCE, tokens), np.float32)
        self.places = (ctypes.c_void_p * len(state.recurrent))(*(x.ctypes.data for x in state.recurrent))
        self.scratch = aligned(working_memory(config, rows * READ_AT_ONCE, tokens), np.uint8)
        arrays = dict(weights=model.step, embedding=model.audio_embedding, logits=self.logits)
        arrays |= dict(alignment=self.alignment, scratch=self.scratch, text_mask=state.mask)
        arrays |= dict(text_keys=state.keys, text_values=state.values, positions=state.positions)
        addresses = {name: array.ctypes.data for name, array in arrays.items()}
        addresses["states"] = ctypes.addressof(self.places)
        self.step = step_of(config, rows, tokens, addresses, threads=model.threads)

    def read(self, tokens: np.ndarray) -> None:
        """Takes one step for each of the delayed tokens (T, Q)."""
        for begin in range(0, len(tokens), READ_AT_ONCE):
            part = np.repeat(tokens[None, begin : begin + READ_AT_ONCE], self.rows, 0).astype(np.int64)
            self.step.codes, self.step.steps = part.ctypes.data, part.shape[1]
            self.model.library.smalle_steps(ctypes.byref(self.step))


@dataclass(frozen=True)
class Sampling:
    """Settings of sampling: guidance_scale (1: none), and for each codebook top_k (1: greedy) and temperature."""

    guidance_scale: float
    top_k: tuple[int, ...]
    temperature: tuple[float, ...]

    def sampler(self, steps: Steps) -> Sampler:
        """The sampler for these steps."""
        scale = None if steps.rows == 1 else self.guidance_scale
        model = steps.model
        return Sampler(model.library, model.config, steps.state.mask[:1], self.top_k, self.temperature, scale)


def delay(codes: np.ndarray) -> np.ndarray:
    """`generation_smalle.delay` of undelayed codes (T, Q) -> (T + Q, Q); -1 marks tokens that are to be generated."""
    length, books = codes.shape
    grid = np.full((length + books, books), -1, np.int64)
    for q in range(books):
        grid[: q + 1, q] = BOS
        grid[q + 1 : q + 1 + length, q] = codes[:, q] + SPECIALS
    return grid
