"""`fmri-scale config` tells every key of every kind of file with its type, default and meaning; no key lacks one."""

import dataclasses
from collections.abc import Iterator

import pytest

from fmri_scale import cli
from fmri_scale.cli.config import KINDS, schema_of
from fmri_scale.config.reference import meanings_of, section_of


def keys_of(cls: type, prefix: str = "") -> Iterator[tuple[type, dataclasses.Field, str]]:
    for f in dataclasses.fields(cls):
        section = section_of(f)
        if f.type is not section:
            yield cls, f, prefix + f.name
        if section:
            yield from keys_of(section, f"{prefix}{f.name}.{'' if f.type is section else 'NAME.'}")


KEYS = [(kind, *key) for kind in KINDS for key in keys_of(schema_of(kind))]


@pytest.mark.parametrize(("kind", "owner", "f", "name"), KEYS, ids=[f"{kind}:{name}" for kind, _, _, name in KEYS])
def test_key_has_a_meaning(kind, owner, f, name):
    meaning = meanings_of(owner).get(f.name, "")
    assert len(meaning) > 5, f"{owner.__name__}.{f.name} has no string under it"
    assert meaning.endswith(".")
    assert len(meaning) <= 130


@pytest.mark.parametrize("kind", KINDS)
def test_command_prints_every_key_with_its_default(kind, capsys):
    assert cli.main(["config", "--reference", kind]) == 0
    lines = capsys.readouterr().out.splitlines()
    for owner, f, name in keys_of(schema_of(kind)):
        default = f.default if f.default_factory is dataclasses.MISSING else f.default_factory()
        line = next(line for line in lines if line.startswith(f"{name} ("))
        assert f"default {default!r}): {meanings_of(owner)[f.name]}" in line


def test_sections_have_a_line_of_their_own(capsys):
    cli.main(["config", "--reference", "experiment"])
    assert "# corpora.NAME: Where a corpus comes from." in capsys.readouterr().out
