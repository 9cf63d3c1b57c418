"""The names that may stand in a checkpoint's pickle, and the plain values that take the place of what they name.

`CALLS` answers a call of a listed name with a dict, list, tuple, text or description of a tensor made by our own
code; `LABELS` may be mentioned but not called; `OBJECTS` may be called and give a label. Nothing here imports or
looks up what a name stands for. The machine that reads the pickle is in `pickle_reader`.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any

from fmri_scale.errors import CheckpointError

MAX_DIMS = 16
STORAGES = {
    "torch.DoubleStorage": "float64",
    "torch.FloatStorage": "float32",
    "torch.HalfStorage": "float16",
    "torch.BFloat16Storage": "bfloat16",
    "torch.LongStorage": "int64",
    "torch.IntStorage": "int32",
    "torch.ShortStorage": "int16",
    "torch.CharStorage": "int8",
    "torch.ByteStorage": "uint8",
    "torch.BoolStorage": "bool",
}
"Storage classes and the dtype of their items."


class UnsafePickleError(CheckpointError):
    """A pickle that asks for more than weights need, or claims what is not there. Nothing in it was run."""


@dataclass(frozen=True)
class Named:
    """A class or function the pickle names, or (`is_class` off) an object of it: a label, never the thing."""

    name: str
    is_class: bool = True


@dataclass(frozen=True)
class StorageRef:
    """Where a tensor's values lie: the archive's member `data/{key}`, `count` items of `dtype`."""

    dtype: str
    key: str
    count: int


@dataclass(frozen=True)
class TensorRef:
    """A tensor as the pickle describes it: a strided view that was found to lie within its storage."""

    storage: StorageRef
    offset: int
    shape: tuple[int, ...]
    stride: tuple[int, ...]


class Fields(dict):
    """The attributes of a plain record (argparse.Namespace), filled by BUILD."""


def dict_key(value: Any) -> Any:
    """Return a dict key of a kind whose hash is cheap and cannot be made to collide at will."""
    if isinstance(value, str | bool | Named | None) or (isinstance(value, int) and abs(value) < 2**31):
        return value
    raise UnsafePickleError(f"a dict key of type {type(value).__name__}")


def storage(value: Any) -> StorageRef:
    """Return the storage a persistent id stands for: ("storage", class, key, device, count)."""
    match value:
        case ("storage", Named(name=kind), str(key), str(), int(count)) if kind in STORAGES:
            if not (key.isascii() and key.isdigit() and len(key) < 12):
                raise UnsafePickleError(f"a storage called {key[:50]!r}; storages are numbered")
            if isinstance(count, bool) or not 0 <= count < 2**48:
                raise UnsafePickleError(f"a storage of {count} items")
            return StorageRef(STORAGES[kind], key, count)
    raise UnsafePickleError("a persistent id that is no tensor storage")


def _tensor(source: Any, offset: Any, shape: Any, stride: Any, *_unused: Any) -> TensorRef:
    if not (isinstance(source, StorageRef) and isinstance(shape, tuple) and isinstance(stride, tuple)):
        raise UnsafePickleError("a tensor described by something other than a storage, a shape and strides")
    if len(shape) != len(stride) or len(shape) > MAX_DIMS:
        raise UnsafePickleError(f"a tensor of {len(shape)} dimensions and {len(stride)} strides")
    if not all(type(n) is int and 0 <= n < 2**48 for n in (offset, *shape, *stride)):
        raise UnsafePickleError("a tensor whose offset, shape or strides are not natural numbers")
    count = math.prod(shape)
    last = offset + sum((n - 1) * s for n, s in zip(shape, stride, strict=True))
    if count and (count > source.count or last >= source.count):
        raise UnsafePickleError(f"a tensor of shape {shape} claims more than its storage of {source.count} items")
    return TensorRef(source, offset, shape, stride)


def _parameter(data: Any, *_unused: Any) -> TensorRef:
    if not isinstance(data, TensorRef):
        raise UnsafePickleError("a parameter that is no tensor")
    return data


def _mapping(pairs: Any = ()) -> dict[Any, Any]:
    if isinstance(pairs, dict):
        return dict(pairs)
    if not isinstance(pairs, list | tuple) or not all(isinstance(p, list | tuple) and len(p) == 2 for p in pairs):
        raise UnsafePickleError("a mapping made from something other than pairs")
    return {dict_key(key): value for key, value in pairs}


def _items(items: Any = ()) -> list[Any]:
    if not isinstance(items, list | tuple):
        raise UnsafePickleError("a set made from something other than a list")
    return list(items)


def _size(items: Any = ()) -> tuple[Any, ...]:
    return tuple(_items(items))


def _path(*parts: Any) -> str:
    if not all(isinstance(part, str) for part in parts):
        raise UnsafePickleError("a path whose parts are not text")
    return str(PurePosixPath(*parts))


def _encoded(text: Any, encoding: Any) -> bytes:
    if not isinstance(text, str) or encoding != "latin1":
        raise UnsafePickleError("bytes in an encoding other than latin1")
    return text.encode("latin1")


def _device(kind: Any, *_index: Any) -> str:
    if not isinstance(kind, str):
        raise UnsafePickleError("a device that is not text")
    return kind


def _fields() -> Fields:
    return Fields()


def _empty(*_factory: Any) -> dict[Any, Any]:
    return {}


def _each(modules: tuple[str, ...], *names: str) -> list[str]:
    return [f"{module}.{name}" for module in modules for name in names]


_BUILTINS = ("builtins", "__builtin__")
_LIGHTNING_DICTS = (
    "pytorch_lightning.utilities.parsing",
    "lightning_fabric.utilities.data",
    "lightning.pytorch.utilities.parsing",
    "lightning.fabric.utilities.data",
)

CALLS: dict[str, Callable[..., Any]] = {
    "torch._utils._rebuild_tensor_v2": _tensor,
    "torch._utils._rebuild_tensor": _tensor,
    "torch._utils._rebuild_parameter": _parameter,
    "torch.Size": _size,
    "torch.device": _device,
    "collections.OrderedDict": _mapping,
    "collections.defaultdict": _empty,
    "argparse.Namespace": _fields,
    "_codecs.encode": _encoded,
    **dict.fromkeys(_each(_BUILTINS, "set", "frozenset"), _items),
    **dict.fromkeys(_each(("pathlib", "pathlib._local"), "Path", "PosixPath", "PurePosixPath", "WindowsPath"), _path),
    **dict.fromkeys(_each(_LIGHTNING_DICTS, "AttributeDict"), _mapping),
}
"What a call of a listed name gives."

OBJECTS = frozenset(
    _each(("numpy.core.multiarray", "numpy._core.multiarray", "numpy"), "dtype", "scalar", "_reconstruct", "ndarray")
)
"Kinds of object that checkpoints carry beside weights (a best score, say); a call gives a label."

_CALLBACKS = ("pytorch_lightning.callbacks", "lightning.pytorch.callbacks")

LABELS = OBJECTS.union(
    STORAGES,
    (f"torch.{dtype}" for dtype in STORAGES.values()),
    _each(_BUILTINS, "int", "float", "list", "dict", "str"),
    _each(_CALLBACKS, "model_checkpoint.ModelCheckpoint", "early_stopping.EarlyStopping"),
)
"Names that may stand in a pickle."
