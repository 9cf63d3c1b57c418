"""What was found and what was left out and why, for a person to read before work starts. In: runs and left-outs."""

import re
from collections import Counter, defaultdict
from collections.abc import Sequence

from sharding.discover.layout import Discovery
from sharding.discover.source import LeftOut, RunSource, writable


def describe_found(found: Discovery) -> str:
    """Lines on each dataset found, and on each kind of reason to leave something out with its first example."""
    lines = [*found.notes, *(_dataset(name, runs) for name, runs in sorted(_by_dataset(found.runs).items()))]
    return "\n".join(lines + describe_left_out(found.left_out))


def describe_left_out(items: Sequence[LeftOut]) -> list[str]:
    """A line a kind of reason, the most frequent first."""
    kinds: dict[tuple[bool, str], list[LeftOut]] = defaultdict(list)
    for item in items:
        # Names within a reason (of the file taken instead) would make every reason its own kind.
        kinds[not item.failed, re.sub(r"\S*\.(?:nii|json|tsv)\S*", "FILE", item.reason)].append(item)
    lines = []
    for (fine, reason), members in sorted(kinds.items(), key=lambda kind: (kind[0][0], -len(kind[1]), kind[0][1])):
        word = "left out" if fine else "CANNOT BE USED"
        lines.append(f"{word}: {len(members):,} ({writable(reason)}), such as {writable(members[0].path)}")
    return lines


def _by_dataset(runs: Sequence[RunSource]) -> dict[str, list[RunSource]]:
    groups: dict[str, list[RunSource]] = defaultdict(list)
    for run in runs:
        groups[run.dataset].append(run)
    return groups


def _dataset(name: str, runs: list[RunSource]) -> str:
    subjects = {run.subject for run in runs}
    sessions = {(run.subject, run.session) for run in runs}
    parts = [f"{_count(len(runs), 'run')} of {_count(len(subjects), 'subject')} in {_count(len(sessions), 'session')}"]
    for what, values in (("tasks", [run.task for run in runs]), ("variants", [run.variant for run in runs])):
        if counts := Counter(value for value in values if value):
            shown = ", ".join(f"{value} {count:,}" for value, count in counts.most_common(6))
            parts.append(f"{what} {shown}" + (", ..." if len(counts) > 6 else ""))
    with_facts = [
        f"{sum(getattr(run, fact) is not None for run in runs):,} with {said}"
        for fact, said in (("mask", "own mask"), ("confounds", "confounds"), ("motion", "motion"))
        if any(getattr(run, fact) is not None for run in runs)
    ]
    return f"dataset {name}: " + "; ".join(parts + with_facts)


def _count(number: int, noun: str) -> str:
    return f"{number:,} {noun}{'' if number == 1 else 's'}"
