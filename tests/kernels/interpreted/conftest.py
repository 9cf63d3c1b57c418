"""These tests run Triton's interpreter, chosen at import, so they are collected in a process of their own.

`tests/kernels/test_interpreter.py` starts it. Every output of a kernel is poisoned before the kernel runs.
"""

import os

import pytest
import torch

if os.environ.get("TRITON_INTERPRET") != "1":
    collect_ignore_glob = ["*"]
else:
    import triton.language
    from triton.runtime import interpreter

    _patched: set[int] = set()

    def _call_device_function(self, *args, **kwargs):
        """Call a device function without patching the language anew for every call, which takes 4 ms.

        The launch has patched `triton.language`; Triton's own library functions see `triton.language.core` instead,
        and a patch made for them stays.
        """
        names = self.fn.__globals__
        if not any(value is triton.language for value in names.values()) and id(names) not in _patched:
            interpreter._patch_lang(self.fn)
            _patched.add(id(names))
        return self.rewrite()(*args, **kwargs)

    interpreter.InterpretedFunction.__call__ = _call_device_function
    interpreter.interpreter_builder.options = interpreter.InterpreterOptions(sanitize_overflow=False)


@pytest.fixture(autouse=True)
def _poisoned_outputs(monkeypatch):
    """Fill what `torch.empty` and its kin return, so that an element nobody writes is seen."""

    def poisoning(make):
        def poisoned(*args, **kwargs):
            tensor = make(*args, **kwargs)
            if tensor.device.type == "cpu":
                tensor.fill_(float("nan") if tensor.is_floating_point() else 85)
            return tensor

        return poisoned

    for name in ("empty", "empty_like", "empty_strided"):
        monkeypatch.setattr(torch, name, poisoning(getattr(torch, name)))
    monkeypatch.setattr(torch.Tensor, "new_empty", poisoning(torch.Tensor.new_empty))
    torch.set_num_threads(1)
