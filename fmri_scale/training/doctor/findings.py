"""A finding: what was looked at, what was found, how bad it is, and what to do about it."""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field, replace

from fmri_scale.errors import FmriScaleError
from sharding.errors import ShardingError

OK, NOTE, WARN, BLOCK = "ok", "note", "warn", "block"
"As it should be; worth knowing; works but badly; training cannot start or will fail."


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at.

    Attributes
    ----------
    check : what was looked at, a few words.
    level : OK, NOTE, WARN or BLOCK.
    found : what was found, with numbers and units.
    remedy : what to do; empty where nothing needs doing.
    ranks : ranks with this finding; empty without a launch.
    """

    check: str
    level: str
    found: str
    remedy: str = ""
    ranks: tuple[int, ...] = field(default=())


def guarded(check: str, look: Callable[[], Iterable[Finding]]) -> list[Finding]:
    """Return the findings of a check; a blocking one where it ends in an error that the user can mend."""
    try:
        return list(look())
    except (FmriScaleError, ShardingError) as error:
        return [Finding(check, BLOCK, str(error), "as the message says")]
    except OSError as error:
        return [Finding(check, BLOCK, f"{error.filename or ''}: {error.strerror}".strip(": "), "make it accessible")]


def merged(findings_of_ranks: list[list[Finding]]) -> list[Finding]:
    """Return the findings of all ranks: faults that are alike once, what is in order in the words of the first rank."""
    ranks: dict[tuple[str, ...], list[int]] = {}
    first: dict[tuple[str, ...], Finding] = {}
    for rank, findings in enumerate(findings_of_ranks):
        for f in findings:
            key = (f.check, f.level) if f.level in (OK, NOTE) else (f.check, f.level, f.found, f.remedy)
            ranks.setdefault(key, []).append(rank)
            first.setdefault(key, f)
    return [replace(f, ranks=tuple(ranks[key])) for key, f in first.items()]


def as_lines(findings: list[Finding], world_size: int) -> Iterator[str]:
    """Yield lines for the terminal; the remedy stands below what it mends."""
    for f in findings:
        everywhere = f.level in (OK, NOTE) or len(f.ranks) in (0, world_size)
        where = "" if everywhere else f" [{_ranges(f.ranks)}]"
        yield f"{f.level.upper():5} {f.check}: {f.found}{where}"
        if f.remedy and f.level in (WARN, BLOCK):
            yield f"      -> {f.remedy}"


def _ranges(ranks: tuple[int, ...]) -> str:
    """Return rank numbers as text: 0-3,7."""
    parts: list[list[int]] = []
    for rank in ranks:
        if parts and rank == parts[-1][1] + 1:
            parts[-1][1] = rank
        else:
            parts.append([rank, rank])
    return "rank " + ",".join(str(a) if a == b else f"{a}-{b}" for a, b in parts)
