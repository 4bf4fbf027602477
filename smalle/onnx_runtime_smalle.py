"""Steps and texts by ONNX Runtime, on a CPU, as `smalle export` (smalle/export.py) writes them beside the weights.

Inputs of the text: `input_ids` (B, N), `text_mask` (B, N) bool; outputs: the other tensors that a state has of it, by
name. Inputs of the step: `codes` (B, T, Q), delayed codes, and the tensors of the state, those of the text by name,
then `state.0`, `state.1`...; outputs: `logits` (B, 1, Q, V) of the last step, `map` (B, T, N), where in the text it
read, and `next.0`, `next.1`..., the state after the step. T is 1; with GLA up to `CHUNK`, so that prompts are read by
the same weights.
"""

import ctypes
import importlib

import numpy as np
import torch

from .decoding_smalle import CHUNK, TorchSteps, begun, folded, moved, moving_tensors, room, text_tensors

THREADS = 1  # more wait for each other where a machine has other work


class OnnxSteps(TorchSteps):
    """Steps by ONNX Runtime, which reads one set of tensors and writes another, by turns. Rows that have ended go on
    unheard. The model itself reads what is padded, what was exported without `CHUNK`, and a first step where it is not
    known in which state to begin."""

    def __init__(self, model, state, maps, session):
        super().__init__(model, state, maps)
        self.session, self.turns, self.own = session, None, False
        self.several = isinstance(session.get_inputs()[0].shape[1], str)
        self.changed = [int(x.name.partition(".")[2]) for x in session.get_outputs() if x.name[:5] == "next."]

    def __call__(self, codes, mask):
        if self.turns is None:
            if not self._begin():
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
        if not self.several or not mask.all() or not self._begin():
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

    def _begin(self):
        """Makes `state` one that the session reads; False where it is not known what that would be."""
        state = begun(self.state, self.model.config)
        self.state = self.state if state is None else state
        return state is not None

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


def open_session(path):
    """An ONNX Runtime session, or None where the package is missing."""
    try:
        onnxruntime = importlib.import_module("onnxruntime")
    except ImportError:
        return None
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = THREADS
    options.enable_mem_pattern = False  # one would be kept for each length of a text
    return onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])


class OnnxExport:
    """A step and, where there is one, a text encoder that were exported; `made_from`: the fingerprint of the
    model's weights."""

    kind = "onnx"

    def __init__(self, step, text):
        self.step, self.text = step, text if text and weights_of(text) == weights_of(step) else None
        self.made_from = weights_of(step)

    @classmethod
    def open(cls, step, text):
        """Of the files' paths; None where ONNX Runtime is missing."""
        session = open_session(step)
        if session is None:
            return None
        export = cls(session, text and open_session(text))
        give_back()  # the files as they were read
        return export

    def start(self, model, state, maps):
        """The steps of a model from a state."""
        return OnnxSteps(model, state, maps, self.step)

    def read_text(self, model, input_ids, mask):
        """The tensors of a state that a text (B, N) gives, by name; None where PyTorch has to read it."""
        if self.text is None:
            return None
        names = [x.name for x in self.text.get_outputs()]
        outputs = self.text.run(names, {"input_ids": input_ids.long().numpy(), "text_mask": mask.numpy()})
        return dict(zip(names, map(torch.from_numpy, outputs)))


def weights_of(session):
    """The fingerprint of the weights that a session's file was made from."""
    return session.get_modelmeta().custom_metadata_map.get("weights")
