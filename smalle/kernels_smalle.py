"""flash-linear-attention's Triton kernels: which recurrence has one, and when it runs.

Same parameters, other kernels: every kernel takes and returns what the recurrence's plain PyTorch does. Mamba's scan,
with a decay for each state of each channel, has no kernel there.
"""

import functools
import importlib
import os
from typing import Any, NamedTuple

import torch

CHOICES = ("auto", "torch", "fla")


class Kernel(NamedTuple):
    """path: module and function below fla.ops. names: what it calls our arguments, in our order."""

    path: str
    names: str
    by_head: bool = False  # decays (B, T, H) instead of (B, T, H, K); wrong on Hopper with some versions of triton
    widest: int | None = None  # keys that it can hold
    half: dict[str, Any] = {}  # settings for half precision


# By what the recurrence is: `recurrence` has the first three, `delta_rule` and `gated_delta_rule` the others.
KERNELS = {
    "channel": Kernel("gla.chunk_gla", "q k v g"),
    "bonus": Kernel("rwkv6.chunk_rwkv6", "r k v w u"),
    "head": Kernel("simple_gla.chunk_simple_gla", "q k v g", by_head=True),
    "delta": Kernel(  # its fast way solves in half precision, whatever the input
        "rwkv7.chunk_rwkv7", "r k v a b w", widest=256, half={"safe_gate": True, "chunk_size": 64}
    ),
    "gated_delta": Kernel("gated_delta_rule.chunk_gated_delta_rule", "q k v g beta", by_head=True, widest=256),
}  # fmt: skip


@functools.cache
def load(path):
    """The function of fla.ops, or None where it cannot be had."""
    module, name = path.rsplit(".", 1)
    try:
        return getattr(importlib.import_module(f"fla.ops.{module}"), name)
    except Exception:  # without triton the submodules of fla raise all kinds of errors
        return None


@functools.cache
@torch.compiler.assume_constant_result
def installed(path):
    return load(path) is not None


@functools.cache
@torch.compiler.assume_constant_result
def miscompiled():
    """Whether triton makes a wrong backward pass of the kernels with decays by head, which fla then refuses."""
    utils = importlib.import_module("fla.utils")
    return utils.IS_NVIDIA_HOPPER and utils.TRITON_ABOVE_3_4_0 and not utils.TRITON_ABOVE_3_7_1


def fla_kernel(kind, choice, k):
    """The function that computes a kind of recurrence by flash-linear-attention, or None for plain PyTorch.

    kind: a key of KERNELS, or None for one without a kernel. choice: "torch"; "auto", fla where it is installed and
    sound, for several steps on a GPU, unless they are being exported; or "fla", and a ValueError where that cannot be.
    k (B, T, H, K): the keys.
    The function takes the recurrence's tensors in their order and `state`; it returns outputs and the final state.
    """
    if choice not in CHOICES:
        raise ValueError(f"mixer_kernel={choice!r}: expected one of {', '.join(map(repr, CHOICES))}.")
    suits = k.is_cuda and k.shape[1] > 1 and k.dtype != torch.float64 and not torch.compiler.is_exporting()
    if choice == "torch" or (choice == "auto" and not suits):
        return None
    kernel = KERNELS.get(kind)
    problem = None
    if kernel is None:
        problem = "flash-linear-attention has no kernel of this mixer"
    elif kernel.widest and k.shape[-1] > kernel.widest:
        problem = f"its keys of {k.shape[-1]} channels a head are too wide (at most {kernel.widest}; see mixer_heads)"
    elif not installed(kernel.path):
        problem = "it needs flash-linear-attention and triton (the extra fla of this package)"
    elif k.device.type == "cpu" and os.environ.get("TRITON_INTERPRET") != "1":
        problem = "its kernels run on a GPU, and the input is on the CPU"
    if choice == "fla" and problem:
        raise ValueError(f"mixer_kernel='fla' cannot be: {problem}. Choose 'auto' or 'torch'.")
    if problem or (choice == "auto" and kernel.by_head and miscompiled()):
        return None
    return functools.partial(_run, kernel)


@torch.compiler.disable  # as the kernels are
def _run(kernel, q, k, v, *others, state=None):
    """Calls the kernel on tensors of one precision, the lowest of q, k and v; decays and bonus keep theirs."""
    dtype = min(q.dtype, k.dtype, v.dtype, key=lambda dtype: dtype.itemsize)
    heads = v.shape[:3]
    arguments = dict(zip(kernel.names.split(), (q.expand(*heads, -1), k.expand(*heads, -1), v, *others), strict=True))
    for name, x in arguments.items():
        if name in ("g", "w"):
            arguments[name] = x.squeeze(-1) if kernel.by_head else x.expand(*heads, k.shape[-1])
        elif name == "beta":
            arguments[name] = x.squeeze(-1)
        elif name != "u":
            arguments[name] = x.to(dtype)
    settings = kernel.half if dtype.itemsize < 4 else {}
    out, state = load(kernel.path)(**arguments, scale=1.0, initial_state=state, output_final_state=True, **settings)
    return out.to(v.dtype), state
