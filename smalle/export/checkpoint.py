"""A checkpoint's text encoder and decode step in a form that speaks faster on a CPU, beside the weights; `generate()`
takes them by itself from then on.

usage: smalle export [MODEL] [--runtime native | int8 | float]
"""

import contextlib
import importlib.util
import pathlib

import numpy as np
import torch

from ..modeling_smalle import SmallEForTextToSpeech
from ..runtime_smalle import FILES, fingerprint

STEPS = dict(zip(("native", "int8", "float"), FILES))  # runtime -> file of its step
BLOCK = 128  # rows of a column of a matrix in 8 bits that have a scale
SMALL = 2**15  # weights with fewer entries stay as they are: gates and positions, which gain nothing


def in_blocks(weight):
    """A matrix (K, N) in 8 bits, rounded in blocks of a column: (N, blocks, BLOCK) around 128, scales (N, blocks)."""
    columns = np.pad(weight.T, ((0, 0), (0, -len(weight) % BLOCK))).reshape(weight.shape[1], -1, BLOCK)
    scales = np.abs(columns).max(-1, keepdims=True) / 127
    rounded = np.rint(columns / np.where(scales, scales, 1)) + 128
    return rounded.astype(np.uint8), scales[..., 0]


@contextlib.contextmanager
def whole(path):
    """A path to write to that takes the place of another when all is written, or of none."""
    partial = path.with_name(f"{path.name}.partial")
    try:
        yield partial
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def fastest(config):
    """The runtime that speaks fastest here with a model of this shape."""
    from .native import runs_fast, unfit

    found = all(map(importlib.util.find_spec, ("onnx", "onnxruntime")))
    return "native" if not unfit(config) and runs_fast() else "int8" if found else "native"


@torch.no_grad()
def export(folder, runtime=None):
    """Writes text encoder and step of the checkpoint in a folder into it, in place of those for another runtime;
    returns the step's path.

    runtime: "native", C in 8 bits for this kind of processor; "int8" or "float", ONNX Runtime in 8 bits or in single
    precision; None: the fastest that there is. Raises ValueError for a model that a runtime cannot have, and where a
    compiler or a package is missing.
    """
    from . import native, onnx

    model = SmallEForTextToSpeech.from_pretrained(folder, dtype=torch.float32).eval()
    if model.config.architecture != "small-e":
        raise ValueError(f"architecture={model.config.architecture!r}: only steps with a state of fixed size export.")
    runtime = runtime or fastest(model.config)
    if runtime not in STEPS:
        raise ValueError(f"runtime={runtime!r}: expected one of {', '.join(STEPS)}.")
    step = pathlib.Path(folder) / STEPS[runtime]
    beside = step.with_name(FILES[step.name])
    writer = native if runtime == "native" else onnx
    with whole(step) as step_partial, whole(beside) as beside_partial:
        writer.write(model, step_partial, beside_partial, runtime, fingerprint(model))
    for other in STEPS.values():  # of which the first that is there would run
        if other != step.name:
            step.with_name(other).unlink(missing_ok=True)
            step.with_name(FILES[other]).unlink(missing_ok=True)
    return step
