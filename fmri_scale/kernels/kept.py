"""Index tables that are made once and kept: for functions of hashable arguments that return tensors."""

import functools
from collections.abc import Callable
from typing import ParamSpec, TypeVar

import torch

Arguments = ParamSpec("Arguments")
Tables = TypeVar("Tables")


def kept(maxsize: int) -> Callable[[Callable[Arguments, Tables]], Callable[Arguments, Tables]]:
    """Remember what a function returns, for the newest `maxsize` arguments; nobody may write to it.

    The tables are ordinary tensors also where the first call comes under `torch.inference_mode`: one that was made
    there could never be used in a step with gradients.
    """

    def decorate(function: Callable[Arguments, Tables]) -> Callable[Arguments, Tables]:
        @functools.wraps(function)
        def make(*args: Arguments.args, **kwargs: Arguments.kwargs) -> Tables:
            if torch.compiler.is_compiling() or not torch.is_inference_mode_enabled():
                return function(*args, **kwargs)
            with torch.inference_mode(False):
                return function(*args, **kwargs)

        return functools.lru_cache(maxsize)(make)  # type: ignore[return-value]

    return decorate
