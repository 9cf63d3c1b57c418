"""Make a source of its description, in the training process and in readers; imports what the kind needs, no more."""

from typing import Any

from fmri_scale.data.local import LocalSource
from fmri_scale.data.reading import Source


def make_source(spec: dict[str, Any]) -> Source:
    """Return the source that a spec, {"kind": local or remote, **arguments}, describes (see corpora.source_spec)."""
    arguments = {name: value for name, value in spec.items() if name != "kind"}
    if spec["kind"] == "remote":
        from fmri_scale.data.remote import RemoteSource  # brings HTTP and fsspec, which local files do not need

        return RemoteSource(**arguments)
    return LocalSource(**arguments)
