"""What reads a text and takes decode steps: PyTorch, or on a CPU what `smalle export` wrote beside the weights, in C or
for ONNX Runtime."""

import hashlib
import os
import weakref
from dataclasses import dataclass, replace

import torch
from transformers.utils import cached_file, logging

from .cache_smalle import split_state
from .decoding_smalle import TorchSteps, begins_at_zero, zero_states
from .native_runtime_smalle import NativeExport
from .onnx_runtime_smalle import OnnxExport

FILES = {  # file of a step -> what lies beside it; the first that is there runs
    "step.native.safetensors": "step.native.so",
    "step.int8.onnx": "text.int8.onnx",
    "step.onnx": "text.onnx",
}
RUNTIMES = "auto", "torch", "native", "onnx"

logger = logging.get_logger(__name__)


@dataclass
class Found:
    """What was found of a model: the step's file and the time of that, what was opened of it, and whether that was made
    from the weights that the model has."""

    path: str | None
    time: float | None
    export: NativeExport | OnnxExport | None = None
    fits: bool = False


_found = weakref.WeakKeyDictionary()  # model -> Found


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


def file_of(model, name):
    """Path of a file of a model's checkpoint, or None. A library is never taken from the Hub."""
    folder = model.config._name_or_path
    if not folder:
        return None
    if os.path.isdir(folder):
        path = os.path.join(folder, name)
        return path if os.path.isfile(path) else None
    if "native" in name:
        return None
    quiet = dict.fromkeys(("_raise_exceptions_for_missing_entries", "_raise_exceptions_for_connection_errors"), False)
    return cached_file(folder, name, **quiet)


def exported(model):
    """Path of the exported step of a checkpoint, or None."""
    return next((path for name in FILES if (path := file_of(model, name))), None)


def open_export(model, path):
    """What was exported of a model, by the path of its step; None where it cannot run here."""
    name = os.path.basename(path)
    kind = OnnxExport if name.endswith(".onnx") else NativeExport
    return kind.open(path, file_of(model, FILES[name]))


def find_export(model, again=False):
    """The export that may run a model's steps now, or None: in fp32, on a CPU, not in training, weights as exported.

    again: what was found for the former call is taken as it is.
    """
    if model.training or model.device.type != "cpu" or model.dtype != torch.float32:
        return None
    known = _found.get(model)
    if known is None or not again:
        remembered = known is not None and not os.path.isdir(model.config._name_or_path)
        path = known.path if remembered else exported(model)
        time = os.path.getmtime(path) if path else None
        if known is None or (known.path, known.time) != (path, time):
            known = _found[model] = Found(path, time, path and open_export(model, path))
        if known.export is not None:
            known.fits = known.export.made_from == fingerprint(model)
            if not known.fits:
                logger.warning_once(f"{path} was made from other weights and is not used: run `smalle export` again.")
    return known.export if known.fits else None


def encode_text(model, input_ids, attention_mask=None, initial_state=None):
    """As `SmallEModel.encode_text`, by what was exported where that can, see `find_export`."""
    found = None if model.step_runtime == "torch" else find_export(model)
    mask = torch.ones_like(input_ids, dtype=torch.bool) if attention_mask is None else attention_mask.bool()
    tensors = found and found.read_text(model, input_ids, mask)
    if tensors is None:
        return model.model.encode_text(input_ids, attention_mask, initial_state)
    if initial_state is None or not begins_at_zero(model.config):
        return model.model.text_state(mask, **tensors, initial_state=initial_state)
    state = model.model.text_state(mask, **tensors)
    return replace(state, recurrent=split_state(initial_state, zero_states(model.config, len(mask))))


def start_steps(model, state, maps, again=False):
    """Steps of a model from a state, by what was exported where that can, see `find_export`. maps: also return maps."""
    wanted = model.step_runtime
    if wanted not in RUNTIMES:
        raise ValueError(f"step_runtime={wanted!r}: expected one of {', '.join(map(repr, RUNTIMES))}.")
    found = None if wanted == "torch" else find_export(model, again)
    if wanted in ("native", "onnx") and (found is None or found.kind != wanted):
        raise ValueError(
            f"step_runtime={wanted!r}: there is no such step to run. Run `smalle export --runtime {wanted}` on the "
            "checkpoint; the model has to be in eval mode, in float32, on the CPU."
        )
    return TorchSteps(model, state, maps) if found is None else found.start(model, state, maps)
