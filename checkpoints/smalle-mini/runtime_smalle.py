"""The runtimes that encode texts and take decode steps: native on a CPU if possible, otherwise PyTorch.

The native runtime is written in C. It uses 8-bit weights and one thread, or two for large models. Its library
(smalle/native) comes with the package; if it is missing, it is compiled once into the user's cache. Weights are packed
in memory when they are first needed. No machine code is loaded from a checkpoint.
"""

import contextlib
import ctypes
import hashlib
import math
import mmap
import sys
import threading
import weakref
from collections.abc import Iterable
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence
from transformers.utils import logging

from .cache_smalle import MAX_PENDING, PendingUpdates, SmallEState, split_state
from .configuration_smalle import NUM_AUDIO_SPECIALS
from .native_smalle import (
    LARGE_STATE,
    LAYER_NORM,
    MAX_VECTORS,
    RMS_NORM,
    SMALL,
    Sampler,
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
from .saving_smalle import MappedWeights
from .validation_smalle import check_finite

RUNTIMES = "auto", "torch", "native"
BAND = 64  # the number of columns of a state with pending updates must be a multiple of this
KEPT_VOICES = 16  # speaker embeddings that are cached
HUGE_PAGE = 2**21  # bytes of a large memory page; weights in large pages are read a third faster

logger = logging.get_logger(__name__)


# --- threads


class FewThreads(contextlib.ContextDecorator):
    """Limits PyTorch to `count` threads: one, unless $SMALLE_THREADS is set.

    Several threads wait for each other after every operation when other programs are running. Used for decode steps
    and for the codec, which a stream runs at the same time.
    """

    count = threads_for(0)
    lock, inside, outside = threading.Lock(), 0, 1

    def __enter__(self):
        with self.lock:
            before = torch.get_num_threads()  # must be called in each thread, or it inherits the value of another
            FewThreads.outside = FewThreads.outside if self.inside else before
            FewThreads.inside += 1
            torch.set_num_threads(self.count)

    def __exit__(self, *_):
        with self.lock:
            FewThreads.inside -= 1
            torch.set_num_threads(self.outside)


# --- choice of the runtime


def obstacle(model: Any) -> str:
    """The reason why the native runtime cannot run a model, in words; "" if it can."""
    if model.training or model.device.type != "cpu" or model.dtype != torch.float32:
        return f"it runs models in eval mode, in float32, on the CPU, not in {model.dtype} on {model.device}"
    if "forward" in vars(model) or any(x._forward_hooks or x._forward_pre_hooks for x in model.modules()):
        return "it would ignore the model's forward hooks or its replaced forward()"
    wrong = unsupported(model.config)
    return f"it runs only GLA with PACA and SwiGLU, not {wrong}" if wrong else ""


def native_weights(model: Any, unchanged: bool = False) -> "NativeWeights | None":
    """The packed weights of a model, or None if PyTorch is to run it.

    Weights are packed again if the model's weights have changed since; `unchanged` skips this check. Raises ValueError
    if `step_runtime` is unknown, or "native" and impossible.
    """
    wanted = model.step_runtime
    if wanted not in RUNTIMES:
        raise ValueError(f"step_runtime={wanted!r}: expected one of {', '.join(map(repr, RUNTIMES))}.")
    known = model.native_weights
    if wanted == "torch":
        return None
    reason = obstacle(model)
    if not reason and known is not None and (unchanged or known.made_from == fingerprint(model)):
        return known
    reason = reason or changed_layers(model)
    if not reason:
        library, reason = load_library()
        if library is not None:
            model.native_weights = NativeWeights(library, model)
            return model.native_weights
        logger.warning_once(
            f"Speech is computed by PyTorch, which is several times slower than the native runtime: {reason}."
        )
    if wanted == "native":
        raise ValueError(f"step_runtime='native': {reason}.")
    return None


@FewThreads()
def encode_text(
    model: Any, input_ids: Tensor, attention_mask: Tensor | None = None, initial_state: Tensor | None = None
) -> Any:
    """As `SmallEModel.encode_text`, with the runtime of the model."""
    weights = native_weights(model)
    if weights is None:
        return model.model.encode_text(input_ids, attention_mask, initial_state)
    mask = torch.ones_like(input_ids, dtype=torch.bool) if attention_mask is None else attention_mask.bool()
    state = model.model.text_state(mask, **weights.encode_text(model, input_ids, mask))
    if initial_state is None:
        return state
    return replace(state, recurrent=split_state(initial_state, zero_states(model.config, len(mask))))


@FewThreads()
def encode_speakers(model: Any, recordings: list[Tensor], unchanged: bool = False) -> Tensor:
    """Speaker embeddings (B, D) of recordings, undelayed codes (P, Q), with the runtime of the model. unchanged: see
    `native_weights`."""
    weights = native_weights(model, unchanged)
    if weights is None or not model.config.speaker_layers:  # without layers, encode_speaker raises the error
        padded = pad_sequence(recordings, batch_first=True, padding_value=-1)
        return model.model.encode_speaker(padded.clamp(min=0), padded[..., 0] != -1)
    table = model.model.audio_embedding.weight.detach().numpy()
    return torch.from_numpy(np.stack([weights.encode_speaker(model.config, table, x.numpy()) for x in recordings]))


def start_steps(model: Any, state: Any, alignments: bool, unchanged: bool = False) -> "TorchSteps":
    """Decode steps from a state, with the runtime of the model. alignments: also return alignments. unchanged: see
    `native_weights`."""
    weights = native_weights(model, unchanged)
    if weights is None:
        return TorchSteps(model, state, alignments)
    return NativeSteps(model, state, alignments, weights)


# --- decode steps by PyTorch


class TorchSteps:
    """Decode steps with PyTorch. Each call replaces `state`.

    alignments: also return the alignment of each step with the text.
    """

    def __init__(self, model: Any, state: Any, alignments: bool):
        self.model, self.state, self.alignments = model, state, alignments

    def __call__(self, codes: Tensor, mask: Tensor) -> tuple[Tensor, Tensor | None]:
        """codes (B, 1, Q), mask (B, 1), False in rows that have ended -> logits (B, 1, Q, V), alignments (B, 1, N)."""
        out = self._forward(self.model, codes, mask, self.alignments)
        return out.logits, out.attentions[-1] if self.alignments else None

    def keep(self) -> None:
        """Protects the tensors of `state`: later steps do not overwrite them."""

    def read(self, codes: Tensor, mask: Tensor) -> None:
        """Reads a prompt: codes (B, T, Q), mask (B, T), False on padding."""
        self._forward(self.model.model, codes, mask, False)

    @FewThreads()
    def _forward(self, model, codes, mask, output_attentions):
        out = model(
            decoder_input_ids=codes,
            decoder_attention_mask=mask,
            cache=self.state,
            use_cache=True,
            output_attentions=output_attentions,
            output_hidden_states=False,
            return_dict=True,
        )
        self.state = out.cache
        return out


# --- packed weights


class MemoryPool:
    """Memory in large pages, if the system has them. Reuses memory that is no longer referenced, since the first use of
    each new page takes time."""

    def __init__(self):
        self.free = []

    def tensor(self, size: int) -> Tensor:
        """A tensor (size,) of uninitialised bytes."""
        memory = self._reused(size) or self._new(size)
        whole = torch.frombuffer(memory, dtype=torch.uint8)
        weakref.finalize(whole.untyped_storage(), self.free.append, memory)  # after the last view of it is gone
        start = -whole.data_ptr() % HUGE_PAGE
        return whole[start : start + size]

    def like(self, tensors: list[Tensor], dtype: torch.dtype = torch.float32) -> list[Tensor]:
        """Uninitialised tensors with the shapes of others, in one block of memory."""
        sizes = [-(-x.numel() // 64) * 64 for x in tensors]  # each starts on a cache line
        parts = self.tensor(sum(sizes) * dtype.itemsize).view(dtype).split(sizes)
        return [part[: x.numel()].view(x.shape) for part, x in zip(parts, tensors)]

    def _reused(self, size):
        """The smallest free memory that is large enough, or None."""
        for memory in sorted((x for x in self.free if len(x) >= size + HUGE_PAGE), key=len):
            with contextlib.suppress(ValueError):  # another thread has taken it
                self.free.remove(memory)
                return memory
        return None

    @staticmethod
    def _new(size):
        private = {"flags": mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS} if hasattr(mmap, "MAP_PRIVATE") else {}
        memory = mmap.mmap(-1, (size + 2 * HUGE_PAGE) // HUGE_PAGE * HUGE_PAGE, **private)
        if hasattr(mmap, "MADV_HUGEPAGE"):
            memory.madvise(mmap.MADV_HUGEPAGE)
        return memory


def layers_of(model: Any, names: Iterable[tuple[str, float]]) -> list[tuple[Any, float]]:
    """(layer, factor) for (name, factor); a name that ends in "none" is an identity."""
    return [(model.get_submodule(name) if not name.endswith("none") else nn.Identity(), x) for name, x in names]


def pack_part(library: ctypes.CDLL, layer: Any, scale: float, small: int, to: int | None) -> int:
    """Packs a norm or a linear layer, scaled, to the address `to`; returns its size in bytes. With None as the address
    it only returns the size. small: matrices with at least this many entries are stored in 8 bits."""
    weight, bias = (
        None if x is None else x.detach().contiguous() for x in (getattr(layer, n, None) for n in ("weight", "bias"))
    )
    places = [None if x is None else pointer(x) for x in (weight, bias)]
    if isinstance(layer, nn.Linear):
        columns, rows = layer.weight.shape
        eight = rows * columns >= small
        return library.smalle_pack_matrix(rows, columns, eight, ctypes.c_float(scale), *places, ctypes.c_void_p(to))
    kind = LAYER_NORM if isinstance(layer, nn.LayerNorm) else 0 if weight is None else RMS_NORM
    return library.smalle_pack_norm(kind, 0 if weight is None else len(weight), *places, ctypes.c_void_p(to))


def pack(library: ctypes.CDLL, parts: Iterable[tuple], small: int | None = None) -> Tensor:
    """Packs layers into one stream of bytes, in the format that smalle.c reads."""
    small = SMALL if small is None else small
    scaled = [(layer, scale[0] if scale else 1.0) for layer, *scale in parts]
    stream = MemoryPool().tensor(sum(pack_part(library, layer, scale, small, None) for layer, scale in scaled))
    at, mapped = stream.data_ptr(), MappedWeights()
    for layer, scale in scaled:
        at += pack_part(library, layer, scale, small, at)
        for x in layer.parameters():
            mapped.give_back(x)
    return stream


def changed_layers(model: Any) -> str:
    """Other reasons why a model cannot be packed, such as adapters or quantised layers; "" if there are none."""
    for layer, _ in layers_of(model, (*text_names(model.config), *step_names(model.config))):
        if type(layer) not in (nn.Linear, nn.LayerNorm, nn.RMSNorm, nn.Identity):
            return f"it runs only plain layers, not {type(layer).__name__}: merge adapters first (merge_and_unload)"
    kinds = {(x.device.type, x.dtype) for x in model.parameters()}
    return "" if kinds == {("cpu", torch.float32)} else f"all weights must be float32 on the CPU, not {kinds}"


def fingerprint(model: Any) -> str:
    """A digest of the names, shapes and first values of all weights, which changes when the model is trained."""
    sums, values = hashlib.sha256(), []
    for name, parameter in model.named_parameters():
        sums.update(f"{name} {tuple(parameter.shape)}".encode())
        values.append(parameter.detach().view(-1)[:64])
    sums.update(torch.cat(values).cpu().numpy().tobytes())
    return sums.hexdigest()


def unsupported(config: Any) -> str:
    """The settings of a configuration that the native runtime does not support, in words; "" if there are none."""
    right: dict[str, Any] = dict(architecture="small-e", mixer="gla", cross_attention="paca", feed_forward="swiglu")
    right |= dict(position_layers=1, cross_rotary_size=0)
    wrong = [f"{name}={getattr(config, name)!r}" for name, value in right.items() if getattr(config, name) != value]
    if not wrong and keeps_pending(config):
        sizes = {tuple(x.shape[2:]) for x in zero_states(config, 1)}
        wrong += [f"a state of {keys} x {values}" for keys, values in sizes if keys % 4 or values % BAND]
    return ", ".join(wrong)


class NativeWeights:
    """A model's weights, packed for the library. Immutable: copies of a model share it. It is not pickled; an unpickled
    model packs its weights again."""

    def __init__(self, library: ctypes.CDLL, model: Any):
        check_finite(model)  # 8-bit integers cannot represent NaN or infinity
        self.library, self.made_from, self.memory = library, fingerprint(model), MemoryPool()
        self.text = pack(library, layers_of(model, text_names(model.config)))
        self.step = pack(library, layers_of(model, step_names(model.config)))
        speaker = layers_of(model, speaker_names(model.config)) if model.config.speaker_layers else []
        self.speaker = pack(library, speaker, small=sys.maxsize)
        self.threads = threads_for(len(self.step))
        self.heard: dict[tuple[bytes, str], np.ndarray] = {}  # cached speaker embeddings, by codes

    def __deepcopy__(self, memo):
        return self

    def __reduce__(self):
        return type(None), ()

    def encode_speaker(self, config: Any, table: np.ndarray, codes: np.ndarray) -> np.ndarray:
        """The speaker embedding (D,) of a recording, undelayed codes (P, Q). Cached, because a voice speaks many
        texts. table: the embeddings of codes."""
        key = codes.tobytes(), repr(config.speaker_limits)
        embedding = self.heard.get(key)
        if embedding is None:
            frames = embed_codes(table, codes + NUM_AUDIO_SPECIALS, config.audio_vocab_size)
            embedding = encode_speaker(self.library, config, self.speaker.numpy(), frames)
            self.heard = dict([*self.heard.items(), (key, embedding)][-KEPT_VOICES:])
        return embedding

    @torch.no_grad()
    def encode_text(self, model: Any, input_ids: Tensor, mask: Tensor) -> dict[str, Tensor]:
        """The tensors of a `SmallEState` by name, for a text (B, N) and its mask."""
        config, tokens = model.config, input_ids.shape[1]
        scratch = self.memory.tensor(working_memory(config, tokens, tokens)).numpy()
        encoder, places = (self.library, config, config.text_layers, self.text.data_ptr()), mask.numpy()
        texts = zip(model.model.text_embedding(input_ids).numpy(), places)
        keys, values = zip(*(read_text(*encoder, x, row, scratch, self.threads) for x, row in texts))
        positions = position_table(places, config.position_size, config.position_theta)
        parts = {"text_keys": np.stack(keys), "text_values": np.stack(values), "positions": positions}
        return {name: torch.from_numpy(x) for name, x in parts.items()}


# --- states


def text_tensors(state: SmallEState) -> dict[str, Tensor]:
    """The tensors of a state that decode steps do not change, by name."""
    return {name: getattr(state, name) for name in ("text_keys", "text_values", "positions", "text_mask")}


def keeps_pending(config: Any) -> bool:
    """Whether the recurrent states of a model are large enough to use pending updates."""
    sizes = config.hidden_size * config.expand_k, config.hidden_size * config.expand_v
    return math.prod(sizes) / config.mixer_heads >= LARGE_STATE


def zero_states(config: Any, rows: int) -> tuple[Tensor, ...]:
    """The initial recurrent states (B, H, K, V) of the blocks of a supported model: views of a single zero."""

    def zeros(size, heads):
        widths = int(size * config.expand_k) // heads, int(size * config.expand_v) // heads
        return torch.zeros(()).expand(rows, heads, *widths)

    audio = zeros(config.hidden_size, config.mixer_heads)
    position = zeros(config.position_size, config.position_heads)
    return (*[audio] * config.audio_encoder_layers, position, *[audio] * config.audio_decoder_layers)


def first_state(state: SmallEState, config: Any) -> SmallEState:
    """The state in the form that the library reads: with initial recurrent states if there are none, and with pending
    updates if the model uses them."""
    recurrent: Any = zero_states(config, len(state.text_mask)) if state.recurrent is None else state.recurrent
    if keeps_pending(config):
        recurrent = [x if isinstance(x, PendingUpdates) else PendingUpdates.begin(x) for x in recurrent]
    text = {name: x.contiguous() for name, x in text_tensors(state).items()}
    return replace(state, recurrent=tuple(recurrent), **text)


# --- decode steps with the library


def pointer(tensor: Tensor) -> ctypes.c_void_p:
    return ctypes.c_void_p(tensor.data_ptr())


def pointers(**tensors: Tensor) -> dict[str, int]:
    """Addresses of tensors, by name."""
    return {name: x.data_ptr() for name, x in tensors.items()}


def sizes(state: Tensor) -> tuple[int, int, int]:
    """Rows times heads, K and V of a state (B, H, K, V)."""
    rows, heads, keys, values = state.shape
    return rows * heads, keys, values


class NativeSteps(TorchSteps):
    """Decode steps with the library.

    Rows that have ended are computed as well, but their results are not used. Prompts with padding are read with
    PyTorch. `state` is valid until the next call, which may overwrite its tensors, but never those of the state that
    was passed in.
    """

    def __init__(self, model: Any, state: SmallEState, alignments: bool, weights: NativeWeights):
        super().__init__(model, state, alignments)
        self.weights, self.library, self.step = weights, weights.library, None
        self.pending, self.owns_states = keeps_pending(model.config), False

    def __call__(self, codes: Tensor, mask: Tensor) -> tuple[Tensor, Tensor | None]:
        self._take(codes, 1)
        return self.logits[:, None].clone(), self._first().clone() if self.alignments else None

    def sample(
        self,
        sampler: Sampler,
        generator: torch.Generator | None,
        codes: Tensor,
        may_end: bool,
        remaining: list[int],
    ) -> tuple[Tensor, Tensor, list[float]]:
        """Takes a step with codes (G·B, Q). See `Sampler` for the arguments.

        Returns the next tokens (G·B, Q), the same as those of `guide` and `draw` of generation_smalle for the same
        random numbers; alignments (G·B, 1, N), which the next step overwrites; and the positions of B rows in their
        texts.
        """
        self._take(codes[:, None], 1)
        torch.from_numpy(sampler.random).random_(generator=generator)
        tokens, positions = sampler(self.step, may_end, remaining)
        return torch.from_numpy(tokens), self._first(), positions

    def _first(self):
        """The alignments (B, 1, N) of a single step; the buffer may be larger."""
        rows, _, tokens = self.alignment.shape
        return self.alignment.view(-1)[: rows * tokens].view(rows, 1, tokens)

    def read(self, codes: Tensor, mask: Tensor) -> None:
        if not mask.all():
            self.step = None  # PyTorch replaces `state`: start again from that
            return super().read(codes, mask)
        size = max(1, min(MAX_PENDING, MAX_VECTORS // len(codes)))
        while codes.shape[1]:
            codes = codes[:, self._take(codes, size) :]

    def _take(self, codes, size):
        """Takes up to `size` steps with codes (B, T, Q); returns how many."""
        if self.step is None or size > self.alignment.shape[1]:
            self._begin(len(codes), size)
        if self.room == 0:
            self._fold()
        steps = min(size, codes.shape[1], *([self.room] if self.pending else []))
        codes = codes[:, :steps].contiguous()
        self.step.codes, self.step.steps, self.step.room = codes.data_ptr(), steps, self.room
        self.library.smalle_steps(ctypes.byref(self.step))
        self.room -= steps if self.pending else 0
        return steps

    @FewThreads()
    def _begin(self, rows, size):
        """Allocates the tensors that up to `size` steps at once write to, and the structure with all addresses."""
        config, memory = self.model.config, self.weights.memory
        self.owns_states = self.state.recurrent is None
        self.state = first_state(self.state, config)
        self.room = min(x.room() for x in self.state.recurrent) if self.pending else -1
        places = self._copy_states()
        tokens = self.state.text_mask.shape[1]
        self.logits = torch.empty(rows, config.num_codebooks, config.audio_vocab_size)
        self.alignment = torch.empty(rows, size, tokens)
        self.embedding = self.model.model.audio_embedding.weight.detach().contiguous()
        self.scratch = memory.tensor(working_memory(config, rows * size, tokens))
        if self.pending:
            self.bands = memory.like([x.state for x in self.state.recurrent], torch.int16)
            places[:: len(PendingUpdates._fields)] = [x.data_ptr() for x in self.bands]
            for x, bands in zip(self.state.recurrent, self.bands):
                self.library.smalle_bands(*sizes(x.state), pointer(x.state), pointer(bands))
        self.places = (ctypes.c_void_p * len(places))(*places)
        used = dict(weights=self.weights.step, embedding=self.embedding, scratch=self.scratch)
        used |= dict(logits=self.logits, alignment=self.alignment, **text_tensors(self.state))
        addresses = pointers(**used) | {"states": ctypes.addressof(self.places)}
        self.step = step_of(config, rows, tokens, addresses, self.pending, self.weights.threads)

    def _copy_states(self):
        """Copies `state`, except large states with pending updates that are not owned, which `_fold` copies.

        Returns the addresses of its tensors, block by block.
        """
        size = len(PendingUpdates._fields) if self.pending else 1
        given = [x for part in self.state.recurrent for x in (part if self.pending else (part,))]
        kept = range(0, len(given), size) if self.pending and not self.owns_states else ()
        copies = iter(self.weights.memory.like([x for n, x in enumerate(given) if n not in kept]))
        tensors = [x.contiguous() if n in kept else next(copies).copy_(x) for n, x in enumerate(given)]
        blocks = zip(*(tensors[n::size] for n in range(size)))
        recurrent = tuple(PendingUpdates(*block) if self.pending else block[0] for block in blocks)
        self.state = replace(self.state, recurrent=recurrent)
        return [x.data_ptr() for x in tensors]

    @FewThreads()
    def keep(self) -> None:
        if self.step is None:
            return
        self.owns_states = False
        for n, place in enumerate(self._copy_states()):
            if not self.pending or n % len(PendingUpdates._fields):  # the first are bands
                self.places[n] = place

    def _fold(self):
        """Adds the pending updates to the states; the first time to copies, because the caller owns the originals."""
        states = [x.state for x in self.state.recurrent]
        after = states if self.owns_states else self.weights.memory.like(states)
        blocks = []
        for x, state, bands in zip(self.state.recurrent, after, self.bands):
            self.library.smalle_fold(self.weights.threads, *sizes(state), *map(pointer, (*x, state, bands)))
            x.decay.fill_(1), x.keys.zero_(), x.values.zero_()
            blocks.append(x._replace(state=state))
        self.state, self.owns_states, self.room = replace(self.state, recurrent=tuple(blocks)), True, MAX_PENDING
