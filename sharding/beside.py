"""Files beside an image that decide what is stored of it: has one of them changed, or gone?

In: a `RunSource`. Out: size and time of change of each. None of them is opened.
"""

from sharding.discover import RunSource
from sharding.errors import InputError

BESIDE = {"mask": "brain mask", "confounds": "confounds", "motion": "motion"}
"Fields of a `RunSource` that name such a file, and what it is to people."

Stats = tuple[tuple[int, int] | None, ...]
"Of each of BESIDE: bytes and time of change in ns; None where a run has none."


def stats_beside(source: RunSource) -> Stats:
    """Look at the files beside an image.

    Raises
    ------
    InputError
        One is named but not there.
    """
    found: list[tuple[int, int] | None] = []
    for name, said in BESIDE.items():
        path = getattr(source, name)
        try:
            stat = path.stat() if path else None
        except OSError as error:
            raise InputError(f"{path}: cannot be read ({error.strerror}); it is named as {said} of a run") from error
        found.append((stat.st_size, stat.st_mtime_ns) if stat else None)
    return tuple(found)
