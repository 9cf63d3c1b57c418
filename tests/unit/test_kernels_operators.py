"""Operators are declared so that every supported torch can read their types."""

import importlib
import inspect
import pkgutil
import types

import pytest
from torch.library import CustomOpDef

import fmri_scale.kernels

MODULES = [
    f"fmri_scale.kernels.{package.name}.op"
    for package in pkgutil.iter_modules(fmri_scale.kernels.__path__)
    if package.ispkg and importlib.util.find_spec(f"fmri_scale.kernels.{package.name}.op")
]


@pytest.mark.parametrize("name", MODULES)
def test_arguments_are_typed_as_torch_2_6_reads_them(name):
    """It knows `typing.Sequence[int]` and no `collections.abc.Sequence[int]`; the package would not even import."""
    operators = [value for value in vars(importlib.import_module(name)).values() if isinstance(value, CustomOpDef)]
    assert operators
    for operator in operators:
        for argument in inspect.signature(operator._init_fn).parameters.values():
            assert not isinstance(argument.annotation, types.GenericAlias), (operator, argument)
