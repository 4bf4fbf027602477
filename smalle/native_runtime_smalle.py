"""Texts and steps by C (smalle/step.c), on the kind of processor that `smalle export` compiled it for.

A library and a file of weights lie beside a checkpoint: "text" and "step", bytes in the order in which they are read
(smalle/export_native.py). The library never comes from the Hub.
"""

import ctypes
import hashlib
import json
import mmap
import pathlib
import platform
import weakref

import torch
from transformers.utils import logging

from .cache_smalle import MAX_PENDING, PendingUpdates
from .decoding_smalle import CHUNK, TorchSteps, begun, keeps_pending, moved, moving_tensors, room, text_tensors
from .layers_smalle import rotary, sinusoids
from .linear_attention_smalle import MIN_LOG_DECAY

VERSION = "1"  # of the structures below and of what they mean: step.c has the same
HUGE = 2**21  # bytes of a large page of memory, in which weights are read a third faster
PARTS = len(PendingUpdates._fields)
MOST = 256  # vectors that a call takes, which bounds its working memory

logger = logging.get_logger(__name__)


def structure(name, **fields):
    """A structure of C: names of its fields by type."""
    types = dict(int32=ctypes.c_int32, float32=ctypes.c_float, pointer=ctypes.c_void_p)
    fields = [(field, types[kind]) for kind, names in fields.items() for field in names.split()]
    return type(name, (ctypes.Structure,), {"_fields_": fields})


Step = structure(
    "Step",
    int32="rows steps tokens codebooks vocabulary hidden heads position_size position_heads before after recent room",
    float32="eps normalizer strongest gain",
    pointer="weights embedding codes text_keys text_values positions text_mask states logits map scratch",
)
Text = structure(
    "Text",
    int32="tokens hidden heads layers turned",
    float32="eps",
    pointer="weights x mask cosines sines keys values scratch",
)


def processor():
    """The kind of machine and the instructions of its processor, as a digest: what a library was compiled for."""
    info = pathlib.Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.is_file() else [platform.processor()]
    known = next((line for line in lines if line.lower().startswith(("flags", "features"))), lines[0])
    return hashlib.sha256(f"{platform.system()} {platform.machine()} {known}".encode()).hexdigest()[:16]


class Memory:
    """Memory in large pages, where the system has them, that is used again when nobody looks at it any more: new memory
    costs time, page by page."""

    def __init__(self):
        self.free = []

    def tensor(self, size):
        """A tensor (size,) of bytes, of whatever was there before."""
        memory = self._used(size) or self._new(size)
        whole = torch.frombuffer(memory, dtype=torch.uint8)
        weakref.finalize(whole.untyped_storage(), self.free.append, memory)  # lives as long as the last view of it
        start = -whole.data_ptr() % HUGE
        return whole[start : start + size]

    def like(self, tensors, dtype=torch.float32):
        """Tensors of the shapes of others, side by side."""
        places = [-(-x.numel() // 64) * 64 for x in tensors]  # each begins at a line of the cache
        parts = self.tensor(sum(places) * dtype.itemsize).view(dtype).split(places)
        return [part[: x.numel()].view(x.shape) for part, x in zip(parts, tensors)]

    def _used(self, size):
        """The smallest that is free and large enough, or None."""
        for memory in sorted((x for x in self.free if len(x) >= size + HUGE), key=len):
            try:
                self.free.remove(memory)
            except ValueError:  # another thread took it
                continue
            return memory

    @staticmethod
    def _new(size):
        memory = mmap.mmap(-1, (size + 2 * HUGE) // HUGE * HUGE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        if hasattr(mmap, "MADV_HUGEPAGE"):
            memory.madvise(mmap.MADV_HUGEPAGE)
        return memory


def read_weights(path):
    """Metadata and tensors of bytes of a file of weights; it is read, not mapped: so pages can be large."""
    with open(path, "rb") as file:
        header = json.loads(file.read(int.from_bytes(file.read(8), "little")))
        metadata, begin, tensors = header.pop("__metadata__", {}), file.tell(), {}
        for name, entry in header.items():
            first, end = entry["data_offsets"]
            tensors[name] = Memory().tensor(end - first)
            file.seek(begin + first)
            file.readinto(tensors[name].numpy())
    return metadata, tensors


def working_memory(config, vectors, tokens):
    """Bytes that suffice for so many vectors at once, beside maps of a text."""
    inside = config.position_intermediate_size or 2 * config.position_size
    widths = (config.hidden_size + config.position_size) * (1 + config.expand_k + config.expand_v)
    widths += config.intermediate_size + inside + config.gate_low_rank
    return int(32 * vectors * (widths + 256)) + 16 * tokens + 2**15


class NativeExport:
    """A library and the weights it reads; `made_from`: the fingerprint of the model's."""

    kind = "native"

    def __init__(self, library, made_from, weights):
        self.library, self.made_from, self.weights, self.memory = library, made_from, weights, Memory()

    @classmethod
    def open(cls, weights, library):
        """Of the files' paths; None where the library is missing or is not for this processor."""
        metadata, tensors = read_weights(weights)
        if library is None or (metadata.get("version"), metadata.get("processor")) != (VERSION, processor()):
            logger.warning_once(f"{weights} was made for another processor or version: run `smalle export` again.")
            return None
        return cls(ctypes.CDLL(str(library)), metadata["weights"], tensors)

    def start(self, model, state, maps):
        """The steps of a model from a state."""
        return NativeSteps(model, state, maps, self)

    @torch.no_grad()
    def read_text(self, model, input_ids, mask):
        """The tensors of a state that a text (B, N) gives, by name."""
        config, tokens = model.config, input_ids.shape[1]
        x, mask = model.model.text_embedding(input_ids).contiguous(), mask.contiguous()
        keys, values = torch.empty_like(x), torch.empty_like(x)
        cosines, sines = (
            part.contiguous() for part in rotary(torch.arange(tokens), config.rotary_size, config.rope_theta)
        )
        alike = dict(
            weights=self.weights["text"],
            cosines=cosines,
            sines=sines,
            scratch=self.memory.tensor(working_memory(config, tokens, tokens)),
        )
        for row in range(len(x)):
            self.library.smalle_text(
                ctypes.byref(
                    Text(
                        tokens=tokens,
                        hidden=config.hidden_size,
                        heads=config.num_attention_heads,
                        layers=config.text_layers,
                        turned=config.rotary_size,
                        eps=config.norm_eps,
                        **pointers(x=x[row], mask=mask[row], keys=keys[row], values=values[row], **alike),
                    )
                )
            )
        positions = sinusoids(mask, config.position_size, config.position_theta)
        return {"text_keys": keys, "text_values": values, "positions": positions}


def pointers(**tensors):
    """Where tensors lie, by name."""
    return {name: x.data_ptr() for name, x in tensors.items()}


class NativeSteps(TorchSteps):
    """Steps by the library. Rows that have ended go on unheard; the model itself reads what is padded. `state` is good
    until the next step, which writes over tensors of it that are no one else's."""

    draws = True

    def __init__(self, model, state, maps, export):
        super().__init__(model, state, maps)
        self.export, self.step, self.recent, self.own = export, None, keeps_pending(model.config), False

    def __call__(self, codes, mask):
        self._take(codes, 1)
        rows, _, tokens = self.map.shape
        text_map = self.map.view(-1)[: rows * tokens].view(rows, 1, tokens)  # of one step, however many there may be
        return self.logits[:, None].clone(), text_map.clone() if self.maps else None

    def draw(self, scales, never, settings, generator):
        """The next tokens (B, Q), of the step just taken: what `guide` and `draw` make of its logits, by settings that
        `only_choose`. Draws the same for the same generator."""
        rows, vocabulary = len(self.logits) // (1 + len(scales)), self.logits.shape[2]
        sampled = [
            None if setting.top_k == 1 else torch.empty(rows, vocabulary).exponential_(generator=generator)
            for setting in settings
        ]
        tokens = torch.empty(rows, len(settings), dtype=torch.long)
        self.export.library.smalle_draw(
            rows,
            len(settings),
            vocabulary,
            len(scales),
            pointer(self.logits),
            floats(scales),
            pointer(never),
            (ctypes.c_int32 * len(settings))(*(setting.top_k for setting in settings)),
            floats(setting.temperature for setting in settings),
            (ctypes.c_void_p * len(settings))(*(None if x is None else x.data_ptr() for x in sampled)),
            pointer(tokens),
        )
        return tokens

    def read(self, codes, mask):
        if not mask.all():
            self.step = None  # the model goes on from `state`, and so does what follows
            return super().read(codes, mask)
        size = max(1, min(CHUNK, MOST // len(codes)))
        while codes.shape[1]:
            done = self._take(codes, size)
            codes = codes[:, done:]

    def _take(self, codes, size):
        """Takes up to `size` steps with codes (B, T, Q); returns how many."""
        if self.step is None:
            self._begin(len(codes), size)
        if self.room == 0:
            self._fold()
        steps = min(size, codes.shape[1], self.room) if self.recent else min(size, codes.shape[1])
        codes = codes[:, :steps].contiguous()
        self.step.codes, self.step.steps, self.step.room = codes.data_ptr(), steps, self.room
        self.export.library.smalle_steps(ctypes.byref(self.step))
        self.room -= steps if self.recent else 0
        return steps

    def _begin(self, rows, size):
        """Makes the tensors that up to `size` steps at once write, and says where everything lies."""
        config, memory, state = self.model.config, self.export.memory, begun(self.state, self.model.config)
        tensors, self.own = moving_tensors(state), self.state.recurrent is None
        changing = [n for n in range(len(tensors)) if not self.recent or n % PARTS or self.own]
        copies = dict(zip(changing, memory.like([tensors[n] for n in changing])))
        tensors = [copies[n].copy_(x) if n in copies else x.contiguous() for n, x in enumerate(tensors)]
        self.tensors, self.state, self.room = tensors, moved(state, tensors), room(state)
        self.logits = torch.empty(rows, config.num_codebooks, config.audio_vocab_size)
        self.map = torch.empty(rows, size, state.text_mask.shape[1])
        self.embedding = self.model.model.audio_embedding.weight.detach().contiguous()
        self.scratch = memory.tensor(working_memory(config, rows * size, state.text_mask.shape[1]))
        places = [x.data_ptr() for x in tensors]
        if self.recent:
            self.bands = memory.like(tensors[::PARTS], torch.int16)
            places[::PARTS] = [x.data_ptr() for x in self.bands]
            for x, bands in zip(tensors[::PARTS], self.bands):
                self.export.library.smalle_bands(*sizes(x), pointer(x), pointer(bands))
        self.places = (ctypes.c_void_p * len(places))(*places)
        self.step = Step(
            rows=rows,
            tokens=state.text_mask.shape[1],
            codebooks=config.num_codebooks,
            vocabulary=config.audio_vocab_size,
            hidden=config.hidden_size,
            heads=config.mixer_heads,
            position_size=config.position_size,
            position_heads=config.position_heads,
            before=config.audio_encoder_layers,
            after=config.audio_decoder_layers,
            recent=self.recent,
            eps=config.norm_eps,
            normalizer=config.gate_logit_normalizer,
            strongest=MIN_LOG_DECAY,
            gain=config.position_gain or 1.0,
            states=ctypes.addressof(self.places),
            **pointers(
                weights=self.export.weights["step"],
                embedding=self.embedding,
                logits=self.logits,
                map=self.map,
                scratch=self.scratch,
                **text_tensors(state),
            ),
        )

    def _fold(self):
        """Adds the steps that stand beside the states to these: the first time to copies, for they were given."""
        given = self.tensors[::PARTS]
        after = given if self.own else self.export.memory.like(given)
        for n, (state, to, bands) in enumerate(zip(given, after, self.bands)):
            beside = self.tensors[PARTS * n + 1 : PARTS * (n + 1)]
            self.export.library.smalle_fold(*sizes(state), *map(pointer, (state, *beside, to, bands)))
            for tensor, value in zip(beside, (1, 0, 0)):  # decay, keys, values
                tensor.fill_(value)
        self.tensors[::PARTS] = after
        self.state, self.own, self.room = moved(self.state, self.tensors), True, MAX_PENDING


def sizes(state):
    """Rows times heads, K and V of a state (B, H, K, V)."""
    rows, heads, keys, values = state.shape
    return rows * heads, keys, values


def floats(numbers):
    numbers = tuple(numbers)
    return (ctypes.c_float * len(numbers))(*numbers)


def pointer(tensor):
    return ctypes.c_void_p(tensor.data_ptr())
