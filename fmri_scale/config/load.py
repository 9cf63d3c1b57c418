"""Fill the schema from YAML files and `key=value` overrides; refuse what it does not know.

A YAML file may name others under `include:` (paths relative to itself, merged first, in order). Later values
win: included files, the file, overrides. An unknown key or a value of the wrong type is a `ConfigError` that
names the file or override and the nearest valid key.
"""

import dataclasses
import difflib
import os
import typing
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import yaml
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import InterpolationKeyError, OmegaConfBaseException

from fmri_scale.config.check import check
from fmri_scale.config.schema import Config
from fmri_scale.errors import ConfigError

T = typing.TypeVar("T")

PATHS = ("run_dir", "start_from", "data.corpus", "data.cache_dir", "engine.offload_dir", "mask.atlas", "mask.labels")
"Keys that hold a path, in which a leading ~ is the user's home; so do the entries of data.more_corpora."


def load_config(
    files: Sequence[str | Path] = (), overrides: Sequence[str] = (), base: dict[str, Any] | None = None
) -> Config:
    """Return the checked configuration of a run.

    Parameters
    ----------
    files : YAML files, merged left to right.
    overrides : strings `section.key=value`.
    base : values that stand where neither files nor overrides say otherwise, instead of the schema's.

    Raises
    ------
    ConfigError : unreadable file, unknown key, wrong type, or values that do not fit together.
    """
    config = load_typed(Config, files, overrides, base)
    check(config)
    return config


def load_typed(
    schema: type[T],
    files: Sequence[str | Path] = (),
    overrides: Sequence[str] = (),
    base: dict[str, Any] | None = None,
    where: str = "defaults",
) -> T:
    """Fill any schema of dataclasses in the same way, without the checks that belong to `Config`; `where` is `base`."""
    merged = _merge(schema, OmegaConf.structured(schema), base or {}, where)
    for place, content in _contents(files, overrides):
        merged = _merge(schema, merged, content, place)
    try:
        filled = typing.cast(T, OmegaConf.to_object(merged))
    except OmegaConfBaseException as error:
        remedy = "; a variable of the environment is ${oc.env:HOME}" if isinstance(error, InterpolationKeyError) else ""
        raise ConfigError(f"{error.full_key or where}: {_first_line(error)}{remedy}") from error
    if isinstance(filled, Config):
        _expand_home(filled)
    return filled


def read_given(files: Sequence[str | Path], overrides: Sequence[str]) -> dict[str, Any]:
    """Return only what files and overrides say, as one nested dict without the schema's defaults.

    Load it as a file: what is left out of it still comes from defaults, the schema's or a release's.

    Raises
    ------
    ConfigError : as `load_typed`.
    """
    load_typed(Config, files, overrides)
    given = OmegaConf.create({})
    for place, content in _contents(files, overrides):
        try:
            given = typing.cast(DictConfig, OmegaConf.merge(given, _words(content, Config)))
        except OmegaConfBaseException as error:
            raise ConfigError(f"{place}: {error.full_key or ''}: {_first_line(error)}") from error
    try:
        content = OmegaConf.to_container(given, resolve=True)
    except InterpolationKeyError:  # it points to a key with its default, which is not known here
        content = OmegaConf.to_container(given)
    return typing.cast(dict[str, Any], content)


def _contents(files: Sequence[str | Path], overrides: Sequence[str]) -> Iterable[tuple[str, Any]]:
    """Yield (where it stands, content) of files with what they include and of overrides; later ones win."""
    for file in files:
        for path, content in _with_includes(Path(file), ()):
            yield str(path), content
    for item in overrides:
        key, sep, _ = item.partition("=")
        if not sep or not key:
            raise ConfigError(f"override {item!r}: expected key=value, for example optim.lr=3e-4")
        try:
            override = OmegaConf.to_container(OmegaConf.from_dotlist([item]))
        except (OmegaConfBaseException, yaml.YAMLError) as error:
            raise ConfigError(f"override {item!r}: {_first_line(error)}") from error
        yield f"override {item!r}", override


def _expand_home(config: Config) -> None:
    """Put the user's home for a leading ~ of every path, in place: a shell leaves it in key=~/folder."""
    for key in PATHS:
        section, _, name = key.rpartition(".")
        part = getattr(config, section) if section else config
        setattr(part, name, os.path.expanduser(getattr(part, name)))
    config.data.more_corpora = [os.path.expanduser(path) for path in config.data.more_corpora]


def to_dict(config: Any) -> dict[str, Any]:
    """Return a configuration (or a part of it) as plain dicts, lists and scalars."""
    return dataclasses.asdict(config)


def save_config(config: Config, path: str | Path) -> None:
    """Write the resolved configuration as YAML; `load_config([path])` gives it back."""
    Path(path).write_text(yaml.safe_dump(to_dict(config), sort_keys=False))


def _with_includes(path: Path, seen: tuple[Path, ...]) -> Iterable[tuple[Path, dict]]:
    path = path.resolve()
    if path in seen:
        raise ConfigError(f"{path}: includes itself through {' -> '.join(p.name for p in seen)}")
    try:
        content = yaml.safe_load(path.read_text()) or {}
    except FileNotFoundError as error:
        raise ConfigError(f"{path}: no such configuration file") from error
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise ConfigError(f"{path}: cannot be read as YAML: {_first_line(error)}") from error
    if not isinstance(content, dict):
        raise ConfigError(f"{path}: expected keys and values, found {type(content).__name__}")
    includes = content.pop("include", [])
    includes = [includes] if isinstance(includes, str) else includes
    if not isinstance(includes, list) or not all(isinstance(other, str) for other in includes):
        raise ConfigError(f"{path}: include: {includes!r}: expected a path or a list of paths")
    for other in includes:
        yield from _with_includes(path.parent / other, (*seen, path))
    yield path, content


def _merge(schema: type, base: DictConfig, content: Any, where: str) -> DictConfig:
    for key in _unknown_keys(content, schema, ""):
        near = difflib.get_close_matches(key, list(valid_keys(schema)), n=1, cutoff=0.4)
        every = "`fmri-scale config` lists all keys" if schema is Config else f"keys: {', '.join(valid_keys(schema))}"
        hint = f"; did you mean {near[0]!r}?" if near else f"; {every}"
        raise ConfigError(f"{where}: unknown key {key!r}{hint}")
    try:
        return typing.cast(DictConfig, OmegaConf.merge(base, _words(content, schema)))
    except OmegaConfBaseException as error:
        raise ConfigError(f"{where}: {error.full_key or ''}: {_first_line(error)}") from error
    except TypeError as error:  # OmegaConf 2.3 given a list where a mapping belongs
        raise ConfigError(f"{where}: {_first_line(error)}") from error


def _words(content: Any, schema: type) -> Any:
    """Return the content with the words `on` and `off` back where YAML 1.1 made truth values of them."""
    if not isinstance(content, dict):
        return content
    kinds = {f.name: typing.cast(type, f.type) for f in dataclasses.fields(schema)}
    words = {True: "on", False: "off"}
    return {
        key: _words(value, kinds[key])
        if dataclasses.is_dataclass(kinds[key])
        else (words[value] if kinds[key] is str and isinstance(value, bool) else value)
        for key, value in content.items()
    }


def _unknown_keys(content: Any, schema: type, prefix: str) -> Iterable[str]:
    if not isinstance(content, dict):
        return
    fields = {f.name: f for f in dataclasses.fields(schema)}
    for key, value in content.items():
        if key not in fields:
            yield f"{prefix}{key}"
        elif dataclasses.is_dataclass(fields[key].type):
            yield from _unknown_keys(value, typing.cast(type, fields[key].type), f"{prefix}{key}.")


def valid_keys(schema: type = Config, prefix: str = "") -> Iterable[str]:
    """Yield every key of the schema with its full dotted name."""
    for f in dataclasses.fields(schema):
        if dataclasses.is_dataclass(f.type):
            yield from valid_keys(typing.cast(type, f.type), f"{prefix}{f.name}.")
        else:
            yield f"{prefix}{f.name}"


def _first_line(error: BaseException) -> str:
    return str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
