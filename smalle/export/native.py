"""A model's text encoder and decode step in C (step.c), compiled for the processor that this runs on."""

import contextlib
import ctypes
import functools
import os
import pathlib
import shlex
import shutil
import struct
import subprocess
import sys
import tempfile

import numpy as np
from safetensors.numpy import save_file
from torch import nn

from ..decoding_smalle import keeps_pending, zero_states
from ..native_runtime_smalle import VERSION, processor
from .checkpoint import BLOCK, SMALL, in_blocks

SOURCE = pathlib.Path(__file__).parents[1] / "native" / "step.c"
FLAGS = (  # of -ffast-math those that bear infinities and leave other code's arithmetic as it is
    "-O3 -march=native -fPIC -shared -fno-math-errno -fno-trapping-math -fassociative-math -fno-signed-zeros "
    "-freciprocal-math"
).split()
LANES, BAND, LAYER_NORM, RMS_NORM = 16, 64, 1, 2  # as in step.c


def aligned(array):
    """The bytes of an array, and zeros up to a multiple of 64."""
    data = array.tobytes()
    return data + bytes(-len(data) % 64)


def numbers(tensor):
    return tensor.detach().float().cpu().numpy()


def part(kind, rows=0, columns=0, biased=False):
    """What stands before a part of the stream: `struct part`."""
    return struct.pack("4i48x", kind, rows, columns, biased)


def norm(module):
    """A norm as a part of the stream."""
    if isinstance(module, nn.Identity):
        return part(0)
    kind, tensors = RMS_NORM, [module.weight]
    if isinstance(module, nn.LayerNorm):
        kind, tensors = LAYER_NORM, [module.weight, module.bias]
    return part(kind, len(module.weight)) + b"".join(aligned(numbers(x)) for x in tensors)


def matrix(layer, scale=1.0):
    """A linear layer, times a number, as a part of the stream: 16 columns after 16 columns, see step.c."""
    weight = numbers(layer.weight).T * np.float32(scale)  # (K, N)
    rows, columns = weight.shape
    weight = np.pad(weight, ((0, 0), (0, -columns % LANES)))
    data = aligned(np.pad(numbers(layer.bias), (0, -columns % LANES))) if layer.bias is not None else b""
    if rows * columns < SMALL:
        data += aligned(np.ascontiguousarray(weight.reshape(rows, -1, LANES).swapaxes(0, 1)))
        return part(32, rows, columns, layer.bias is not None) + data
    bits, scales = in_blocks(weight)  # (N, blocks, BLOCK), (N, blocks)
    blocks = scales.shape[1]
    bits = bits.reshape(-1, LANES, blocks, BLOCK // 4, 4).transpose(0, 2, 3, 1, 4).reshape(-1, blocks, BLOCK * LANES)
    scales = np.ascontiguousarray(scales.reshape(-1, LANES, blocks).swapaxes(1, 2)).view(np.uint8)
    tiles = np.concatenate((bits, scales.reshape(len(bits), blocks, -1)), 2).reshape(len(bits), -1)
    empty, end = (-rows % BLOCK) // LANES * LANES, tiles.shape[1] - 4 * LANES  # rows of the last block to leave out
    tiles = np.delete(tiles, np.s_[end - empty * LANES : end], 1)
    return part(8, rows, columns, layer.bias is not None) + data + aligned(tiles)


def block(module):
    """A `LinearAttentionBlock` with GLA as parts of the stream."""
    mixer = module.mixer
    return b"".join(
        (
            norm(module.norm1),
            matrix(mixer.q_proj, mixer.scale),
            matrix(mixer.k_proj),
            matrix(mixer.v_proj),
            matrix(mixer.g_proj),
            matrix(mixer.decay_down_proj),
            matrix(mixer.decay_up_proj),
            norm(mixer.norm),
            matrix(mixer.o_proj),
            feed_forward(module),
        )
    )


def text_layer(layer):
    """A `TransformerLayer` as parts of the stream."""
    projections = (matrix(x) for x in (layer.q_proj, layer.k_proj, layer.v_proj, layer.o_proj))
    return norm(layer.norm1) + b"".join(projections) + feed_forward(layer)


def feed_forward(layer):
    return norm(layer.norm2) + b"".join(map(matrix, (layer.mlp.gate_proj, layer.mlp.up_proj, layer.mlp.down_proj)))


def streams(model):
    """All weights in the order in which they are read, of the text encoder and of a step, by name."""
    body, attention = model.model, model.model.cross_attention
    text = (
        *map(text_layer, body.text_encoder),
        norm(body.text_norm),
        matrix(attention.k_proj),
        norm(attention.k_norm),
        matrix(attention.v_proj),
        norm(attention.v_norm),
    )
    step = (
        *map(block, body.audio_encoder),
        norm(body.audio_encoder_norm),
        matrix(attention.q_proj),
        norm(attention.q_norm),
        block(attention.position_block),
        norm(attention.position_norm),
        *map(block, body.audio_decoder),
        norm(body.audio_norm),
        matrix(model.head),
    )
    return {name: np.frombuffer(b"".join(parts), np.uint8) for name, parts in {"text": text, "step": step}.items()}


def compilers():
    """Command lines of C compilers that may be there, the user's choice first."""
    named = os.environ.get("CC")
    found = [shlex.split(named)] if named else []
    found += [[name] for name in ("cc", "gcc", "clang") if shutil.which(name)]
    return found + [[sys.executable, "-m", "ziglang", "cc"]]


def compile_library(path):
    """Compiles step.c into a library; ValueError where no compiler does it."""
    for compiler in compilers():
        command = [*compiler, *FLAGS, str(SOURCE), "-o", str(path), "-lm"]
        with contextlib.suppress(OSError):  # there is no such program
            if subprocess.run(command, capture_output=True).returncode == 0:
                return
    raise ValueError("No C compiler was found that compiles a step: install gcc or clang, or pip install ziglang.")


@functools.cache
def runs_fast():
    """Whether a compiler is here and this processor has instructions for products of bytes."""
    with tempfile.TemporaryDirectory() as folder:
        path = pathlib.Path(folder, "step.so")
        try:
            compile_library(path)
        except ValueError:
            return False
        return bool(ctypes.CDLL(str(path)).smalle_is_fast())


def unfit(config):
    """What keeps a model of this shape from being computed by step.c, in words; "" where nothing does."""
    right = dict(mixer="gla", cross_attention="paca", feed_forward="swiglu", position_layers=1, cross_rotary_size=0)
    wrong = [f"{name}={getattr(config, name)!r}" for name, value in right.items() if getattr(config, name) != value]
    if not wrong and keeps_pending(config):
        sizes = {tuple(x.shape[2:]) for x in zero_states(config, 1)}
        wrong += [f"a state of {keys} x {values}" for keys, values in sizes if keys % 4 or values % BAND]
    return ", ".join(wrong)


def write(model, weights, library, runtime, made_from):
    """Writes weights and library of a model to paths. Raises ValueError for a model that is `unfit`, and where no
    compiler is found."""
    if unfit(model.config):
        raise ValueError(f"{unfit(model.config)}: C computes GLA with PACA and SwiGLU alone. Use --runtime int8.")
    compile_library(library)
    marks = {"weights": made_from, "processor": processor(), "version": VERSION}
    save_file(streams(model), weights, marks)
