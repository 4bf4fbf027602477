"""Cross-entropy: what PyTorch's gives, value and gradient, in both precisions."""

import pytest
import torch
import torch.nn.functional as F

from smalle.modeling_smalle import cross_entropy


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_losses_and_gradients_are_those_of_pytorch(dtype):
    random = torch.Generator().manual_seed(0)
    logits = (5 * torch.randn(3, 200, 2, 37, generator=random)).to(dtype)
    logits[0, 0] += 90  # exp(90) is more than fp32 holds
    labels, weights = torch.randint(-1, 37, (3, 200, 2), generator=random), torch.randn(3, 200, 2, generator=random)
    labels[labels == -1] = -100

    def results(function):
        leaf = logits.clone().requires_grad_()
        losses = function(leaf)
        (losses * weights).sum().backward()
        return losses.detach(), leaf.grad.float()

    def known(x):
        return F.cross_entropy(x.float().flatten(0, 2), labels.flatten(), reduction="none").view(labels.shape)

    for got, wanted in zip(results(lambda x: cross_entropy(x, labels)), results(known)):
        assert torch.allclose(got, wanted, rtol=1e-5 if dtype == torch.float32 else 1e-2, atol=1e-5)
    assert (cross_entropy(logits, labels)[labels == -100] == 0).all()
