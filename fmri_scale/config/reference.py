"""The documentation of every key of a configuration file, read from its schema itself.

A schema is a dataclass of sections (dataclasses) and keys; the string under a key is its meaning, with its unit.
"""

import ast
import dataclasses
import inspect
import itertools
import typing
from typing import Any

from fmri_scale.config.schema import Config


def reference(cls: type = Config, prefix: str = "") -> str:
    """Return one paragraph a section and one line a key: name, type, default, meaning."""
    lines = [f"# {prefix.rstrip('.') or 'top level'}: {inspect.getdoc(cls)}"]
    nested = []
    meanings = meanings_of(cls)
    for f in dataclasses.fields(cls):
        if section := section_of(f):
            nested.append(reference(section, f"{prefix}{f.name}{'' if f.type is section else '.NAME'}."))
        if f.type is not section:
            lines.append(f"{prefix}{f.name} ({_kind(f)}, default {_default(f)!r}): {meanings[f.name]}")
    return "\n".join(lines) + "".join(f"\n\n{part}" for part in nested)


def meanings_of(cls: type) -> dict[str, str]:
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


def section_of(f: dataclasses.Field) -> type | None:
    """Return the schema of a field that is a section, or a table of sections by name; else None."""
    for candidate in (f.type, *typing.get_args(f.type)):
        if isinstance(candidate, type) and dataclasses.is_dataclass(candidate):
            return candidate
    return None


def _kind(f: dataclasses.Field) -> str:
    plain = f.type.__name__ if isinstance(f.type, type) and not typing.get_args(f.type) else str(f.type)
    section = section_of(f)
    return plain.replace(f"{section.__module__}.{section.__name__}", "section") if section else plain


def _default(f: dataclasses.Field) -> Any:
    return f.default if f.default_factory is dataclasses.MISSING else f.default_factory()
