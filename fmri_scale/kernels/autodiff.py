"""Gradients of a plain torch function by autograd, for implementations that are their own definition."""

from collections.abc import Callable, Sequence

import torch


def gradients(
    function: Callable[..., torch.Tensor], inputs: Sequence[torch.Tensor], upstream: torch.Tensor
) -> tuple[torch.Tensor, ...]:
    """Return the gradient of every input of `function(*inputs)` under the output's gradient `upstream`."""
    with torch.enable_grad():
        leaves = [v.detach().requires_grad_() for v in inputs]
        result = function(*leaves)
        return torch.autograd.grad(result, leaves, upstream.to(result.dtype))
