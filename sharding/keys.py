"""The names of runs and samples: how entities become a key. In: a `RunSource`. Out: text that the format allows."""

import hashlib

from sharding.discover import RunSource


def run_label(source: RunSource) -> str:
    """What tells a run from all others of a corpus, as it stands in keys."""
    parts = [f"sub-{source.subject}"]
    parts += [f"{name}-{value}" for name, value in (("ses", source.session), ("task", source.task)) if value]
    parts += [source.variant] if source.variant else []
    parts += [f"run-{source.run}"] if source.run else []
    return f"{source.dataset}__{'_'.join(parts)}"


def sample_key(source: RunSource, start_frame: int) -> str:
    """Key of the segment of a run that starts at a frame; a long label is cut and told apart by a hash."""
    label = run_label(source)
    if len(label) > 76:
        label = f"{label[:63]}-{hashlib.sha256(label.encode()).hexdigest()[:12]}"
    return f"{label}__{start_frame:06d}"
