"""The decode step of a checkpoint for ONNX Runtime, beside the weights; `generate()` takes it by itself from then on.

usage: smalle export [MODEL] [--float]
"""

import logging
import os
import pathlib
import warnings

import torch
from torch import nn
from torch.onnx.symbolic_helper import parse_args

from .runtime_smalle import FILES, fingerprint, moved, moving_tensors, text_tensors

OPSET = 17
SMALL = 2**15  # weights with fewer entries stay as they are: gates and positions, which gain nothing


class Step(nn.Module):
    """A model's step as a function of tensors."""

    def __init__(self, model, state):
        super().__init__()
        self.model, self.state = model, state

    def forward(self, codes, *tensors):
        names = list(text_tensors(self.state))
        state = moved(self.state, tensors[len(names) :])
        for name, tensor in zip(names, tensors):
            setattr(state, name, tensor)
        out = self.model(audio_codes=codes, past_key_values=state, use_cache=True, output_attentions=True,
                         output_hidden_states=False, return_dict=True)  # fmt: skip
        return out.logits, out.attentions[-1], *moving_tensors(out.past_key_values)


@parse_args("v", "is", "v", "f")
def rms_norm(graph, x, shape, weight, eps):
    """RMSNorm over the last dimension, which the exporter does not know."""
    eps = graph.op("Constant", value_t=torch.tensor(eps))
    square = graph.op("ReduceMean", graph.op("Mul", x, x), axes_i=[-1], keepdims_i=1)
    return graph.op("Mul", graph.op("Div", x, graph.op("Sqrt", graph.op("Add", square, eps))), weight)


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
    return reshape(graph, x, [0] * dim + (sizes if -1 in sizes else [-1, *sizes[1:]]), dim + 1)


@parse_args("v", "i", "i")
def flatten(graph, x, first, last):
    first, last = first % x.type().dim(), last % x.type().dim()
    return reshape(graph, x, [0] * first + [-1], last + 1)


@torch.no_grad()
def export_step(model, path):
    """Writes a model's step in single precision: inputs and outputs as in `runtime_smalle`, any number of rows."""
    config = model.config
    ids = torch.full((2, 3), config.bos_token_id or 0)
    codes = torch.zeros(2, 1, config.num_codebooks, dtype=torch.long)
    state = model(input_ids=ids, audio_codes=codes, use_cache=True, return_dict=True).past_key_values
    text, moving = text_tensors(state), moving_tensors(state)
    inputs = ["codes", *text, *(f"state.{n}" for n in range(len(moving)))]
    outputs = ["logits", "map", *(f"next.{n}" for n in range(len(moving)))]
    axes = {name: {0: "rows"} for name in inputs + outputs}
    axes |= {name: {0: "rows", 1: "tokens"} for name in text} | {"map": {0: "rows", 2: "tokens"}}
    for symbolic in (rms_norm, log_sigmoid, unflatten, flatten):
        torch.onnx.register_custom_op_symbolic(f"aten::{symbolic.__name__}", symbolic, OPSET)
    with warnings.catch_warnings():  # of constants in traces, which is what they shall be
        warnings.simplefilter("ignore")
        torch.onnx.export(
            Step(model, state).eval(), (codes, *text.values(), *moving), str(path), input_names=inputs,
            output_names=outputs, dynamic_axes=axes, opset_version=OPSET, dynamo=False,
        )  # fmt: skip


def quantize(source, path):
    """The same step with weights of large matrices in 8 bits, a scale for each column, and activations as they come."""
    import onnx
    from onnxruntime.quantization import QuantType, quantize_dynamic

    model = onnx.load(source)
    del model.graph.value_info[:]  # shapes that the quantizer would trip over
    sizes = {weight.name: torch.Size(weight.dims).numel() for weight in model.graph.initializer}
    small = [node.name for node in model.graph.node if node.op_type == "MatMul" and sizes.get(node.input[1], 0) < SMALL]
    logging.disable(logging.WARNING)  # it advises a preparation that this graph does not need
    try:
        quantize_dynamic(
            model, str(path), op_types_to_quantize=["MatMul"], nodes_to_exclude=small, per_channel=True,
            weight_type=QuantType.QInt8,
        )  # fmt: skip
    finally:
        logging.disable(logging.NOTSET)


def stamp(path, weights):
    """Writes into the file which weights it was made from."""
    import onnx

    model = onnx.load(path)
    onnx.helper.set_model_props(model, {"weights": weights})
    onnx.save(model, path)


def export(folder, int8=True):
    """Writes the step of the checkpoint in a folder into it, in 8 bits or in single precision; returns the path.

    Raises ValueError where onnx and onnxruntime are missing, and for a decoder-only model, whose state grows.
    """
    from .modeling_smalle import SmallEForTextToSpeech

    try:
        import onnx  # noqa: F401
        import onnxruntime  # noqa: F401
    except ImportError as error:
        raise ValueError("Exporting needs onnx and onnxruntime: pip install -e '.[onnx]' in the repository.") from error
    model = SmallEForTextToSpeech.from_pretrained(folder, dtype=torch.float32).eval()
    if model.config.architecture != "small-e":
        raise ValueError(f"architecture={model.config.architecture!r}: only steps with a state of fixed size export.")
    path = pathlib.Path(folder) / FILES[0 if int8 else 1]
    partial, plain = path.with_suffix(".partial"), path.with_suffix(".plain.partial")
    try:
        export_step(model, plain)
        if int8:
            quantize(plain, partial)
        else:
            os.replace(plain, partial)
        stamp(partial, fingerprint(model))
        os.replace(partial, path)
    finally:
        for left in (partial, plain):
            left.unlink(missing_ok=True)
    return path
