"""The documentation of every configuration key, read from the schema itself."""

import ast
import dataclasses
import inspect
import itertools
from typing import Any

from fmri_scale.config import schema


def reference(cls: type = schema.Config, prefix: str = "") -> str:
    """Return one paragraph a section and one line a key: name, type, default, meaning."""
    lines = [f"# {prefix.rstrip('.') or 'top level'}: {inspect.getdoc(cls)}"]
    nested = []
    meanings = _meanings(cls)
    for f in dataclasses.fields(cls):
        if isinstance(f.type, type) and dataclasses.is_dataclass(f.type):
            nested.append(reference(f.type, f"{prefix}{f.name}."))
        else:
            kind = f.type.__name__ if isinstance(f.type, type) and f.type is not list else str(f.type)
            lines.append(f"{prefix}{f.name} ({kind}, default {_default(f)!r}): {meanings[f.name]}")
    return "\n".join(lines) + "".join(f"\n\n{part}" for part in nested)


def _default(f: dataclasses.Field) -> Any:
    return f.default if f.default_factory is dataclasses.MISSING else f.default_factory()


def _meanings(cls: type) -> dict[str, str]:
    """Return the string that stands under each field of a dataclass, by field name."""
    body = next(n.body for n in ast.parse(inspect.getsource(cls)).body if isinstance(n, ast.ClassDef))
    found = {}
    for statement, following in itertools.pairwise(body):
        if (
            isinstance(statement, ast.AnnAssign)
            and isinstance(statement.target, ast.Name)
            and isinstance(following, ast.Expr)
            and isinstance(following.value, ast.Constant)
        ):
            found[statement.target.id] = str(following.value.value)
    return found
