"""What reads a text and runs a decode step: PyTorch, or ONNX Runtime on a CPU where a checkpoint was exported for it.

`smalle export` (smalle/export.py) writes both beside the weights of a checkpoint. Inputs of the text: `input_ids`
(B, N), `text_mask` (B, N) bool; outputs: the other tensors that a state has of it, by name. Inputs of the step: `codes`
(B, T, Q), delayed codes, and the tensors of the state, those of the text by name, then `state.0`, `state.1`...;
outputs: `logits` (B, 1, Q, V) of the last step, `map` (B, T, N), where in the text it read, and `next.0`, `next.1`...,
the state after the step. T is 1; with GLA up to `CHUNK`, so that prompts are read by the same weights.
"""

import ctypes
import hashlib
import importlib
import math
import os
import weakref
from dataclasses import dataclass, replace

import numpy as np
import torch
from transformers.utils import cached_file, logging

from .initial_state_smalle import split_state
from .recent_smalle import RECENT, Recent

FILES = {"step.int8.onnx": "text.int8.onnx", "step.onnx": "text.onnx"}  # the first step that is there runs
LARGE = 2**16  # values of a block's state from which on steps stand beside it: smaller ones stay in a cache
CHUNK = RECENT  # steps of a prompt that are read at once: what stands beside a state, and what exponents bear
THREADS = 1  # more wait for each other where a machine has other work
TEXT = "text_keys", "text_values", "positions", "text_mask"  # what steps leave as it is

logger = logging.get_logger(__name__)


@dataclass
class Export:
    """What is known of what was exported of a model: the step's file and the time of that, the sessions of the step
    and of the text, and whether the step was made from the weights that the model has."""

    path: str | None
    time: float | None
    step: object = None
    text: object = None
    fits: bool = False


_exports = weakref.WeakKeyDictionary()  # model -> Export


def text_tensors(state):
    """Tensors of a `SmallEState` that steps leave as they are, by name."""
    return {name: getattr(state, name) for name in TEXT if getattr(state, name) is not None}


def moving_tensors(state):
    """Tensors of a `SmallEState` that steps change."""
    tensors = []
    replace(state, **dict.fromkeys(TEXT)).map(tensors.append)
    return tensors


def moved(state, tensors):
    """The state with these in place of its `moving_tensors`."""
    tensors = iter(tensors)
    after = replace(state, **dict.fromkeys(TEXT)).map(lambda _: next(tensors))
    return replace(after, **text_tensors(state))


def keeps_recent(config):
    """Whether the exported step of a model has steps stand beside its recurrent states, as `Recent`."""
    sizes = config.hidden_size * config.expand_k, config.hidden_size * config.expand_v
    return config.mixer == "gla" and math.prod(sizes) / config.mixer_heads >= LARGE


def reads_chunks(config):
    """Whether the step of a model is exported so that it takes several steps at once."""
    return config.mixer == "gla"


def begins_at_zero(config):
    """Whether the states of a model that has read nothing are known: zeros, one tensor for each block."""
    position_layers = config.position_layers if config.cross_attention == "paca" else 1
    return config.mixer == "gla" and config.feed_forward != "rwkv" and position_layers == 1


def zero_states(session, config, rows):
    """Recurrent states of rows that have read nothing, where a model `begins_at_zero`: no weight is looked at."""
    shapes = [x.shape[1:] for x in session.get_inputs() if x.name[:6] == "state." and len(x.shape) == 4]
    first = slice(None, None, len(Recent._fields) if keeps_recent(config) else 1)  # the state itself of each `Recent`
    states = [torch.zeros(rows, *shape) for shape in shapes[first]]
    if config.cross_attention != "paca":
        states.insert(config.audio_encoder_layers, None)
    return tuple(states)


def each_matrix(function, x):
    """`function` of every matrix state, `Recent` or (B, H, K, V), in nested tuples; the rest stays as it is."""
    if isinstance(x, tuple) and not isinstance(x, Recent):
        return tuple(each_matrix(function, part) for part in x)
    return function(x) if isinstance(x, Recent) or (x is not None and x.ndim == 4) else x


def with_recent(state):
    """A `SmallEState` whose recurrent states are `Recent`."""
    begun = each_matrix(lambda x: x if isinstance(x, Recent) else Recent.begin(x), state.recurrent)
    return replace(state, recurrent=begun)


def folded(state, own=False):
    """A `SmallEState` with `Recent` states after its steps have been added to these; own: see `Recent.fold`."""
    return with_recent(replace(state, recurrent=each_matrix(lambda x: x.fold(own), state.recurrent)))


def room(state):
    """Steps that may stand beside the states of a `SmallEState` before `folded`; -1 where none do."""
    rooms = []
    each_matrix(lambda x: rooms.append(x.room()) if isinstance(x, Recent) else None, state.recurrent)
    return min(rooms, default=-1)


def fingerprint(model):
    """16 hex digits of the names, shapes and first values of all weights: other training, other digits.

    Values that lie together: what is not read of a file of weights takes no memory.
    """
    digest, values = hashlib.sha256(), []
    for name, parameter in model.named_parameters():
        digest.update(f"{name} {tuple(parameter.shape)}".encode())
        values.append(parameter.detach().view(-1)[:64])
    digest.update(torch.cat(values).cpu().numpy().tobytes())
    return digest.hexdigest()[:16]


class TorchSteps:
    """Steps by the model itself; `state` is where they stand. Or a prompt, many steps of which only the state is
    wanted."""

    def __init__(self, model, state, maps):
        self.model, self.state, self.maps = model, state, maps

    def __call__(self, codes, mask):
        """codes (B, 1, Q), mask (B, 1), False in rows that have ended -> logits (B, 1, Q, V), map (B, 1, N) or None."""
        out = self.model(audio_codes=codes, audio_attention_mask=mask, past_key_values=self.state, use_cache=True,
                         output_attentions=self.maps, output_hidden_states=False, return_dict=True)  # fmt: skip
        self.state = out.past_key_values
        return out.logits, out.attentions[-1] if self.maps else None

    def read(self, codes, mask):
        """Reads codes (B, T, Q), mask (B, T), False on padding."""
        out = self.model.model(audio_codes=codes, audio_attention_mask=mask, past_key_values=self.state, use_cache=True,
                               output_attentions=False, output_hidden_states=False, return_dict=True)  # fmt: skip
        self.state = out.past_key_values


class OnnxSteps(TorchSteps):
    """Steps by ONNX Runtime, which reads one set of tensors and writes another, by turns. Rows that have ended go on
    unheard. The model itself reads what is padded, what was exported without `CHUNK`, and a first step where it is not
    known in which state to begin."""

    def __init__(self, model, state, maps, session):
        super().__init__(model, state, maps)
        self.session, self.turns, self.recent, self.own = session, None, keeps_recent(model.config), False
        self.several = isinstance(session.get_inputs()[0].shape[1], str)
        self.changed = [int(x.name.partition(".")[2]) for x in session.get_outputs() if x.name[:5] == "next."]

    def __call__(self, codes, mask):
        if self.turns is None:
            if not self._begin(len(codes)):
                return super().__call__(codes, mask)
            self._start(codes)
        if self.room == 0:
            self._fold()
            self._bind()
        self.codes.copy_(codes)
        (binding, self.state), *_ = self.turns
        self.turns.reverse()
        self.session.run_with_iobinding(binding)
        self.room -= 1
        return self.logits.clone(), self.map.clone() if self.maps else None

    def read(self, codes, mask):
        if not self.several or not mask.all() or not self._begin(len(codes)):
            return super().read(codes, mask)
        give_back()  # what the piece of text before had
        text, names = text_tensors(self.state), [f"next.{n}" for n in self.changed]
        while codes.shape[1]:
            here = room(self.state)
            if here == 0:
                self._fold()
            size, tensors = here if here > 0 else CHUNK, moving_tensors(self.state)
            inputs = {"codes": codes[:, :size], **text} | {f"state.{n}": x for n, x in enumerate(tensors)}
            outputs = self.session.run(names, {name: x.contiguous().numpy() for name, x in inputs.items()})
            for n, x in zip(self.changed, outputs):
                tensors[n] = torch.from_numpy(x)
            self.state, codes = moved(self.state, tensors), codes[:, size:]

    def _begin(self, rows):
        """Makes `state` one that the session reads; False where it is not known what that would be."""
        state = self.state
        if state.recurrent is None:
            if not begins_at_zero(self.model.config):
                return False
            state = replace(state, recurrent=zero_states(self.session, self.model.config, rows))
        text = {name: x.contiguous() for name, x in text_tensors(state).items()}
        self.state = replace(with_recent(state) if self.recent else state, **text)
        return True

    def _fold(self):
        """Adds the steps that stand beside the recurrent states to these: to copies, which later times write over."""
        self.state, self.own = folded(self.state, self.own), True

    def _start(self, codes):
        """Makes the tensors that steps write."""
        self.codes = codes.clone(memory_format=torch.contiguous_format)
        self.logits = torch.empty(*codes.shape, self.model.config.audio_vocab_size)
        self.map = torch.empty(len(codes), 1, self.state.text_mask.shape[1])
        self._bind()

    def _bind(self):
        """The two turns: what is bound, and the state that it leaves. They are good for `room` steps, or for ever."""
        here = [x.contiguous() for x in moving_tensors(self.state)]
        for n in self.changed:  # what was given stays as it is
            here[n] = here[n].clone()
        there = [torch.empty_like(x) if n in self.changed else x for n, x in enumerate(here)]
        text, start, self.turns = text_tensors(self.state), self.state, []
        for before, after in ((here, there), (there, here)):
            binding = self.session.io_binding()
            inputs = {"codes": self.codes, **text} | {f"state.{n}": x for n, x in enumerate(before)}
            outputs = {"logits": self.logits, "map": self.map} | {f"next.{n}": after[n] for n in self.changed}
            for bind, tensors in ((binding.bind_input, inputs), (binding.bind_output, outputs)):
                for name, x in tensors.items():
                    bind(name, "cpu", 0, np.dtype(str(x.dtype).removeprefix("torch.")), tuple(x.shape), x.data_ptr())
            self.turns.append((binding, moved(start, after)))
        self.room = room(start)


def give_back():
    """Gives memory that was freed back to the system, where the C library keeps it (glibc) and can."""
    try:
        ctypes.CDLL(None).malloc_trim(0)
    except (AttributeError, OSError, TypeError):
        pass


def file_of(model, name):
    """Path of a file of a model's checkpoint, or None."""
    folder = model.config._name_or_path
    if not folder:
        return None
    if os.path.isdir(folder):
        path = os.path.join(folder, name)
        return path if os.path.isfile(path) else None
    quiet = dict.fromkeys(("_raise_exceptions_for_missing_entries", "_raise_exceptions_for_connection_errors"), False)
    return cached_file(folder, name, **quiet)


def exported(model):
    """Path of the exported step of a checkpoint, or None."""
    return next((path for name in FILES if (path := file_of(model, name))), None)


def open_session(path, threads=THREADS):
    """An ONNX Runtime session, or None where the package is missing."""
    try:
        onnxruntime = importlib.import_module("onnxruntime")
    except ImportError:
        return None
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = threads
    options.enable_mem_pattern = False  # one would be kept for each length of a text
    return onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])


def made_from(session):
    """The fingerprint of the weights that a session's file was made from; None without a session."""
    return session and session.get_modelmeta().custom_metadata_map.get("weights")


def open_parts(model, path):
    """Sessions of the exported step at a path and of the text's file beside it; None for what cannot run."""
    step = path and open_session(path)
    text = step and file_of(model, FILES[os.path.basename(path)])
    text = text and open_session(text)
    give_back()  # the files as they were read
    return step, text if made_from(text) == made_from(step) else None


def find_export(model, again=False):
    """The `Export` that may run a model's steps now, or None: in fp32, on a CPU, not in training, weights as exported.

    again: what was found for the former call is taken as it is.
    """
    if model.training or model.device.type != "cpu" or model.dtype != torch.float32:
        return None
    known = _exports.get(model)
    if known is None or not again:
        remembered = known is not None and not os.path.isdir(model.config._name_or_path)
        path = known.path if remembered else exported(model)
        time = os.path.getmtime(path) if path else None
        if known is None or (known.path, known.time) != (path, time):
            known = _exports[model] = Export(path, time, *open_parts(model, path))
        if known.step is not None:
            known.fits = made_from(known.step) == fingerprint(model)
            if not known.fits:
                logger.warning_once(f"{path} was made from other weights and is not used: run `smalle export` again.")
    return known if known.fits else None


def encode_text(model, input_ids, attention_mask=None, initial_state=None):
    """As `SmallEModel.encode_text`, by ONNX Runtime where it can, see `find_export`."""
    found = None if model.step_runtime == "torch" else find_export(model)
    text = found and found.text
    if text is None:
        return model.model.encode_text(input_ids, attention_mask, initial_state)
    mask = torch.ones_like(input_ids, dtype=torch.bool) if attention_mask is None else attention_mask.bool()
    names = [x.name for x in text.get_outputs()]
    outputs = text.run(names, {"input_ids": input_ids.long().numpy(), "text_mask": mask.numpy()})
    tensors = dict(zip(names, map(torch.from_numpy, outputs)))
    if initial_state is None or not begins_at_zero(model.config):
        return model.model.text_state(mask, **tensors, initial_state=initial_state)
    zeros = zero_states(found.step, model.config, len(mask))
    state = model.model.text_state(mask, **tensors)
    return replace(state, recurrent=split_state(initial_state, zeros))


def start_steps(model, state, maps, again=False):
    """Steps of a model from a state, by ONNX Runtime where it can, see `find_export`. maps: also return maps."""
    if model.step_runtime not in ("auto", "torch", "onnx"):
        raise ValueError(f"step_runtime={model.step_runtime!r}: expected 'auto', 'torch' or 'onnx'.")
    found = None if model.step_runtime == "torch" else find_export(model, again)
    if found is None and model.step_runtime == "onnx":
        raise ValueError(
            "step_runtime='onnx': there is no step to run. Install onnx and onnxruntime and run `smalle export` on the "
            "checkpoint; the model has to be in eval mode, in float32, on the CPU."
        )
    return TorchSteps(model, state, maps) if found is None else OnnxSteps(model, state, maps, found.step)
