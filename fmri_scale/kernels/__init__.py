"""The operations that cost the time: a plain reference, a CPU form and a Triton form of each, under one name.

One folder an operation: `reference.py` is its definition, `cpu.py` what a CPU runs, `triton.py` the GPU kernels,
`op.py` the `torch.library` operator and its gradient, `cases.py` the shapes that tests and benchmarks share.
Modules call the functions of the folders' `__init__` in natural token order and know nothing of backends.
"""

from fmri_scale.kernels.backends import select_backend
from fmri_scale.kernels.windows import Windows

__all__ = ["Windows", "select_backend"]
