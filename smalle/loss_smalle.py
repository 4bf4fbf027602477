"""Cross-entropy of codes, at the cost of two passes over the logits on a CPU."""

import math

import torch
import torch.nn.functional as F

ROWS = 256  # at a time: what a core's cache holds of them
IGNORED = -100
LOG2E = math.log2(math.e)


class CrossEntropy(torch.autograd.Function):
    """`cross_entropy` of logits (N, V) and labels (N,); keeps the logits and one number a row for the backward pass.

    Powers of 2, since they are the quicker ones: `log_sum` is the logarithm to the base 2 of the sum of exp(logits).
    """

    @staticmethod
    def forward(context, logits, labels):
        log_sum = logits.new_empty(len(logits), 1, dtype=torch.float32)
        for rows, total in zip(logits.split(ROWS), log_sum.split(ROWS)):
            scaled = rows.float() * LOG2E
            top = scaled.amax(-1, keepdim=True)
            torch.add(top, scaled.sub_(top).exp2_().sum(-1, keepdim=True).log2_(), out=total)
        context.save_for_backward(logits, labels, log_sum)
        losses = log_sum / LOG2E - logits.gather(1, labels.clamp(min=0)[:, None]).float()
        return losses[:, 0].masked_fill_(labels == IGNORED, 0)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(context, d_losses):
        logits, labels, log_sum = context.saved_tensors
        d_losses = d_losses.float().masked_fill(labels == IGNORED, 0)[:, None]
        d_logits, labels = torch.empty_like(logits), labels.clamp(min=0)[:, None]
        parts = (x.split(ROWS) for x in (logits, labels, log_sum, d_losses, d_logits))
        for rows, label, total, gradient, out in zip(*parts):
            share = (rows.float() * LOG2E).sub_(total).exp2_().mul_(gradient)
            out.copy_(share.scatter_add_(1, label, -gradient))
        return d_logits, None


def cross_entropy(logits, labels):
    """Losses in nats, fp32, of logits (..., V) and labels (...); 0 where a label is -100."""
    if logits.device.type != "cpu" or torch.compiler.is_compiling() or logits.dtype == torch.float64:
        losses = F.cross_entropy(logits.float().flatten(0, -2), labels.flatten().long(), reduction="none")
        return losses.view(labels.shape)
    return CrossEntropy.apply(logits.flatten(0, -2), labels.flatten().long()).view(labels.shape)
