"""Gradients of operators: of a plain torch function by autograd, and in the layout that the operators promise."""

from collections.abc import Callable, Sequence
from typing import Any

import torch


def gradients(
    function: Callable[..., torch.Tensor], inputs: Sequence[torch.Tensor], upstream: torch.Tensor
) -> tuple[torch.Tensor, ...]:
    """Return the gradient of every input of `function(*inputs)` under the output's gradient `upstream`.

    Through torch.func: inside an operator torch keeps autograd off, whatever enable_grad says.
    """
    pulled: Any = torch.func.vjp(function, *(v.detach() for v in inputs))
    result, pull_back = pulled
    return pull_back(upstream.to(result.dtype))


def contiguous(grads: Sequence[torch.Tensor]) -> Any:
    """Return gradients as the operators declare them: a compiler lays out its buffers by the declaration."""
    return tuple(g.contiguous() for g in grads)
