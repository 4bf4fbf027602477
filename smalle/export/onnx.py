"""A model's text encoder and decode step for ONNX Runtime."""

import functools
import importlib.util
import math
import warnings
from dataclasses import replace
from unittest import mock

import torch
from torch import nn
from torch.onnx.symbolic_helper import parse_args

from .. import mixers_smalle
from ..decoding_smalle import keeps_pending, moved, moving_tensors, text_tensors, with_pending
from ..linear_attention_smalle import recurrent_step
from . import gla_onnx
from .checkpoint import BLOCK, SMALL, in_blocks

OPSET = 17
DOMAIN = "com.microsoft"  # of ONNX Runtime's matrices in 8 bits


def reads_chunks(config):
    """Whether the step of a model is exported so that it takes several steps at once."""
    return config.mixer == "gla"


class Step(nn.Module):
    """A model's step as a function of tensors; of the state it returns what has changed. With GLA codes may be those of
    several steps; logits are those of the last."""

    def __init__(self, model, state):
        super().__init__()
        self.model, self.state = model, state

    def forward(self, codes, *tensors):
        text = dict(zip(text_tensors(self.state), tensors))
        before = tensors[len(text) :]
        with mock.patch.object(mixers_smalle, "recurrence", self.recurrence(codes)):
            out = self.model.model(
                decoder_input_ids=codes,
                cache=moved(replace(self.state, **text), before),
                use_cache=True,
                output_attentions=True,
                output_hidden_states=False,
                return_dict=True,
            )
        after = moving_tensors(out.cache)
        self.changed = [n for n, (x, y) in enumerate(zip(before, after)) if x is not y]
        logits = self.model.head(out.last_hidden_state[:, -1:]).unflatten(-1, (self.model.config.num_codebooks, -1))
        return logits, out.attentions[-1], *(after[n] for n in self.changed)

    def recurrence(self, codes):
        """What stands for that of `linear_attention_smalle` while this is traced."""
        if not reads_chunks(self.model.config):
            return lambda q, k, v, log_decay, state, kernel: recurrent_step(q, k, v, log_decay, state)
        return functools.partial(gla_onnx.recurrence, torch.onnx.operators.shape_as_tensor(codes)[1] == 1)


class Text(nn.Module):
    """A model's reading of a text as a function of tensors."""

    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, input_ids, text_mask):
        tensors = text_tensors(self.model.encode_text(input_ids, text_mask))
        return tuple(x for name, x in tensors.items() if name != "text_mask")


@parse_args("v", "is", "v", "f")
def rms_norm(graph, x, shape, weight, eps):
    """RMSNorm over the last dimension, which the exporter does not know."""
    return graph.op("SimplifiedLayerNormalization", x, weight, axis_i=-1, epsilon_f=eps).setType(x.type())


@parse_args("v")
def log_sigmoid(graph, x):
    """As the exporter does not: log(sigmoid(x)) ends near -18 in ONNX Runtime, and strong decays would be weak."""
    return graph.op("Neg", graph.op("Softplus", graph.op("Neg", x)))


def reshape(graph, x, head, rest):
    """x with the dimensions `head`, where 0 keeps what is there, then those of x from `rest` on.

    Sizes that are known are written down: the exporter would compute them again in every step.
    """
    sizes = x.type().varyingSizes()[rest:]
    if None not in sizes:
        return graph.op("Reshape", x, graph.op("Constant", value_t=torch.tensor(head + sizes)))
    ends = (graph.op("Constant", value_t=torch.tensor([end])) for end in (rest, rest + len(sizes)))
    sizes = graph.op("Slice", graph.op("Shape", x), *ends)
    head = graph.op("Constant", value_t=torch.tensor(head))
    return graph.op("Reshape", x, graph.op("Concat", head, sizes, axis_i=0))


@parse_args("v", "i", "is")
def unflatten(graph, x, dim, sizes):
    dim %= x.type().dim()
    whole = x.type().varyingSizes()[dim]
    if whole is not None:
        known = math.prod(size for size in sizes if size > 0)
        sizes = [whole // known if size == -1 else size for size in sizes]
    return reshape(graph, x, [0] * dim + (sizes if -1 in sizes else [-1, *sizes[1:]]), dim + 1)


@parse_args("v", "i", "i")
def flatten(graph, x, first, last):
    first, last = first % x.type().dim(), last % x.type().dim()
    return reshape(graph, x, [0] * first + [-1], last + 1)


def trace(module, tensors, path, inputs, outputs, axes):
    """Traces a module and writes it in single precision; axes: names of the dimensions of any size by tensor."""
    for symbolic in (rms_norm, log_sigmoid, unflatten, flatten):
        torch.onnx.register_custom_op_symbolic(f"aten::{symbolic.__name__}", symbolic, OPSET)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of constants in traces, which is what they shall be
        torch.onnx.export(
            module.eval(),
            tensors,
            str(path),
            input_names=inputs,
            output_names=outputs,
            dynamic_axes=axes,
            opset_version=OPSET,
            dynamo=False,
        )


def export_text(model, path):
    """Writes how a model reads texts: inputs and outputs as in `onnx_runtime_smalle`, any number of rows and tokens."""
    ids = torch.full((2, 5), model.config.bos_token_id or 0)
    mask = torch.ones_like(ids, dtype=torch.bool)
    outputs = [name for name in text_tensors(model.model.encode_text(ids, mask)) if name != "text_mask"]
    axes = {name: {0: "rows", 1: "tokens"} for name in ("input_ids", "text_mask", *outputs)}
    trace(Text(model.model), (ids, mask), path, ["input_ids", "text_mask"], outputs, axes)


def export_step(model, path):
    """Writes a model's step in single precision: inputs and outputs as in `onnx_runtime_smalle`, any number of rows."""
    config = model.config
    ids = torch.full((2, 3), config.bos_token_id or 0)
    codes = torch.zeros(2, 1, config.num_codebooks, dtype=torch.long)
    state = model(input_ids=ids, decoder_input_ids=codes, use_cache=True, return_dict=True).cache
    state = with_pending(state) if keeps_pending(config) else state
    text, moving = text_tensors(state), moving_tensors(state)
    step, tensors = Step(model, state).eval(), (codes, *text.values(), *moving)
    step(*tensors)
    inputs = ["codes", *text, *(f"state.{n}" for n in range(len(moving)))]
    outputs = ["logits", "map", *(f"next.{n}" for n in step.changed)]
    axes = {name: {0: "rows"} for name in inputs + outputs}
    axes |= {name: {0: "rows", 1: "tokens"} for name in text} | {"map": {0: "rows", 2: "tokens"}}
    if reads_chunks(config):
        axes["codes"][1] = axes["map"][1] = "steps"
    trace(step, tensors, path, inputs, outputs, axes)


def quantize(graph):
    """Puts large matrices of a graph into 8 bits; what they are multiplied by is rounded alike, as it comes."""
    from onnx import helper, numpy_helper

    sizes = {weight.name: tuple(weight.dims) for weight in graph.initializer}
    nodes = [x for x in graph.node if x.op_type == "MatMul" and math.prod(sizes.get(x.input[1], [0])) >= SMALL]
    for node in nodes:
        x, name = node.input
        names, (rows, columns) = (f"{name}.bits", f"{name}.scales"), sizes[name]
        size = dict(K=rows, N=columns, bits=8, block_size=BLOCK, accuracy_level=4)
        node.CopyFrom(helper.make_node("MatMulNBits", [x, *names], node.output, node.name, domain=DOMAIN, **size))
    left = {name for node in graph.node for name in node.input}
    for weight in list(graph.initializer):
        if weight.name not in left:
            parts = zip(("bits", "scales"), in_blocks(numpy_helper.to_array(weight)))
            graph.initializer.extend(numpy_helper.from_array(part, f"{weight.name}.{kind}") for kind, part in parts)
            graph.initializer.remove(weight)


def finish(source, path, weights, int8):
    """The graph of a file into another: quantized, and stamped with which weights it was made from."""
    import onnx

    model = onnx.load(source)
    del model.graph.value_info[:]  # sizes of the trace's inputs
    if any(x.domain == gla_onnx.DOMAIN for x in model.opset_import):
        model.functions.extend(gla_onnx.functions(OPSET))
    if int8:
        quantize(model.graph)
        model.opset_import.append(onnx.helper.make_opsetid(DOMAIN, 1))
    onnx.helper.set_model_props(model, {"weights": weights})
    onnx.save(model, path)


def write(model, step, text, runtime, weights):
    """Writes step and text encoder of a model to paths, in 8 bits ("int8") or in single precision ("float").

    Raises ValueError where onnx and onnxruntime are missing.
    """
    if not all(map(importlib.util.find_spec, ("onnx", "onnxruntime"))):
        raise ValueError("ONNX Runtime needs onnx and onnxruntime: pip install -e '.[onnx]' in the repository.")
    plain = step.with_name("plain.partial")
    try:
        for export, path in ((export_text, text), (export_step, step)):
            export(model, plain)
            finish(plain, path, weights, runtime == "int8")
    finally:
        plain.unlink(missing_ok=True)
