"""Decide, before any work starts, which runs stand in which shard and in what order.

In: runs and settings. Out: a `Plan`: shards, each a fixed list of runs. Subjects of a dataset are ordered by a seeded
hash, so that neighbours are strangers and the order of the inputs plays no part; shards are filled in that order up
to a size known from the headers. Only headers are read.
"""

import functools
import hashlib
import json
import os
from collections import defaultdict
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field, fields
from typing import Any

import xxhash

from sharding.beside import BESIDE, Stats, stats_beside
from sharding.discover import LeftOut, RunSource
from sharding.errors import InputError, NotASeriesError
from sharding.format import SCHEMA_VERSION, SEGMENT_FRAMES
from sharding.keys import run_label
from sharding.mask import brain_mask, mask_sha256
from sharding.prepare import check_run
from sharding.preprocessing import PreprocessingSettings
from sharding.privacy import reason_of
from sharding.read import ImageInfo
from sharding.split import DEFAULT_FRACTIONS, split_of
from sharding.timing import repetition_time

HEADERS_AT_A_TIME = 16

SAMPLE_OVERHEAD_BYTES = 8192
"Headers, padding and JSON of a sample, for the size of a shard to come."


@dataclass(frozen=True)
class BuildSettings:
    """What decides a corpus, beside its inputs."""

    preprocessing: PreprocessingSettings = field(default_factory=PreprocessingSettings)
    assume_mni: bool = False
    seed: int = 0
    "Of the order of subjects in shards."
    shard_bytes: int = 2**30
    "Size up to which a shard is filled; a run is never divided between shards."
    splits: tuple[float, float, float] = DEFAULT_FRACTIONS
    "Shares of train, val and test."
    licence_note: str = ""
    "Terms of the data, copied into the corpus."
    pseudonyms: str = ""
    "Check of the key under which people and files are named (privacy.py); empty where names are their own."

    def to_json(self) -> dict[str, Any]:
        """As plain values."""
        return asdict(self)

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> "BuildSettings":
        """From plain values; TypeError where a name is unknown."""
        train, val, test = values["splits"]
        preprocessing = PreprocessingSettings.from_json(values["preprocessing"])
        return cls(**{**values, "preprocessing": preprocessing, "splits": (train, val, test)})


@dataclass(frozen=True)
class PlannedRun:
    """A run whose header is good."""

    source: RunSource
    info: ImageInfo
    num_frames: int
    "Frames after resampling."
    split: str
    beside: Stats
    "Of the files beside it."
    sidecar_tr: float | None = None
    "TR in s where it was found in the image's own sidecar, which is none of the files beside it."


@dataclass(frozen=True)
class PlannedShard:
    """A shard to be made."""

    name: str
    runs: tuple[PlannedRun, ...]
    digest: str
    "Of everything that decides its bytes, files by size and time of change."

    @property
    def num_frames(self) -> int:
        """Frames to be made."""
        return sum(run.num_frames for run in self.runs)


@dataclass(frozen=True)
class Rejected:
    """An input that cannot be used, known from its header."""

    source: RunSource
    status: str
    "failed, or skipped where nobody asked for this file by name."
    reason: str


@dataclass(frozen=True)
class Plan:
    """All shards, and what will not be in them."""

    shards: tuple[PlannedShard, ...]
    rejected: tuple[Rejected, ...]
    left_out: tuple[LeftOut, ...]

    @property
    def num_frames(self) -> int:
        """Frames to be made."""
        return sum(shard.num_frames for shard in self.shards)

    @property
    def num_bytes(self) -> int:
        """Bytes to be made, about."""
        voxels = int(brain_mask().sum())
        return sum(_stored_bytes(run.num_frames, voxels) for shard in self.shards for run in shard.runs)

    @property
    def digest(self) -> str:
        """Of the whole plan."""
        parts = [shard.digest for shard in self.shards]
        parts += [f"{item.source.alias or item.source.path}\0{item.reason}" for item in self.rejected]
        return hashlib.sha256("\0".join(parts).encode("utf-8", "surrogateescape")).hexdigest()


@dataclass(frozen=True)
class Standing:
    """What a corpus to which runs are added says about them."""

    splits: Mapping[tuple[str, str, str], str] = field(default_factory=dict)
    "Split of everybody in it: (subject or family, dataset, name) to split."
    shards: Mapping[str, int] = field(default_factory=dict)
    "Dataset to the number of its next shard."


def plan_build(
    sources: Iterable[RunSource], left_out: Iterable[LeftOut], settings: BuildSettings, standing: Standing | None = None
) -> Plan:
    """Read headers and lay out shards.

    Parameters
    ----------
    sources, left_out
        From `discover.find_runs`.
    settings
        Of the build.
    standing
        Of the corpus to which runs are added.

    Raises
    ------
    InputError
        No run can be used, two have the same dataset, subject, session, task and run, or a person or family would
        stand in two splits.
    """
    standing = standing or Standing()
    with ThreadPoolExecutor(HEADERS_AT_A_TIME) as pool:  # a header is little to read, but may be far away
        looked_at = list(pool.map(lambda source: _look_at(source, settings, standing), sources))
    runs = [item for item in looked_at if isinstance(item, PlannedRun)]
    rejected = [item for item in looked_at if isinstance(item, Rejected)]
    if not runs:
        raise InputError(nothing_usable([item.reason for item in rejected]))
    _check_unique(runs)
    _check_undivided(runs, standing)
    mask = brain_mask()
    context = {"schema": SCHEMA_VERSION, "mask": mask_sha256(mask), **settings.to_json()}
    shards = tuple(
        PlannedShard(name, tuple(part), _digest(name, part, context))
        for name, part in _fill(_ordered(runs, settings.seed), settings.shard_bytes, int(mask.sum()), standing)
    )
    return Plan(shards, tuple(rejected), tuple(left_out))


def nothing_usable(reasons: list[str]) -> str:
    """One line for inputs that all failed."""
    return reasons[0] if len(reasons) == 1 else f"none of {len(reasons)} files can be used; the first: {reasons[0]}"


def _look_at(source: RunSource, settings: BuildSettings, standing: Standing) -> PlannedRun | Rejected:
    try:
        info, num_frames = check_run(
            source.path,
            settings.preprocessing,
            tr=source.tr,
            mask_path=source.mask,
            confounds_path=source.confounds,
            assume_mni=settings.assume_mni,
        )
        beside = stats_beside(source)
    except NotASeriesError as error:
        return Rejected(source, "skipped" if source.found else "failed", reason_of(source, str(error)))
    except InputError as error:
        return Rejected(source, "failed", reason_of(source, str(error)))
    tr, origin = repetition_time(info, source.tr)
    sidecar_tr = tr if origin == "sidecar" else None
    return PlannedRun(source, info, num_frames, _split(source, settings, standing), beside, sidecar_tr)


def _split(source: RunSource, settings: BuildSettings, standing: Standing) -> str:
    """A split that is given goes first, then the one in which the person or the family is already, then the hash."""
    for kind in ("subject", "family"):
        found = standing.splits.get((kind, source.dataset, getattr(source, kind)))
        if found and not source.split:
            return found
    return source.split or split_of(source.dataset, source.family or source.subject, settings.splits)


def _check_unique(runs: list[PlannedRun]) -> None:
    seen: dict[str, PlannedRun] = {}
    for run in runs:
        label = run_label(run.source)
        other = seen.setdefault(label, run)
        if other is not run:
            raise InputError(
                f"{other.source.path} and {run.source.path} are both {label}; "
                "tell them apart by name, by --dataset, or by a table's columns session, task and run"
            )


def _check_undivided(runs: list[PlannedRun], standing: Standing) -> None:
    seen = {who: (split, "the corpus as it stands") for who, split in standing.splits.items()}
    for run in runs:
        for kind in ("subject", "family"):
            name = getattr(run.source, kind)
            mine = run.split, str(run.source.path)
            split, where = seen.setdefault((kind, run.source.dataset, name), mine) if name else mine
            if split != run.split:
                raise InputError(
                    f"{kind} {name} of {run.source.dataset} would be in both {split} ({where}) and "
                    f"{run.split} ({run.source.path}); give all its runs the same split and family in the table"
                )


def _ordered(runs: list[PlannedRun], seed: int) -> list[PlannedRun]:
    def place(run: PlannedRun) -> tuple[str, int, str, str]:
        source = run.source
        spot = xxhash.xxh3_64_intdigest(f"{source.dataset}\0{source.subject}".encode(), seed=seed)
        return source.dataset, spot, source.subject, run_label(source)

    return sorted(runs, key=place)


def _fill(
    runs: list[PlannedRun], shard_bytes: int, num_voxels: int, standing: Standing
) -> Iterable[tuple[str, list[PlannedRun]]]:
    by_dataset: dict[str, list[PlannedRun]] = defaultdict(list)
    for run in runs:
        by_dataset[run.source.dataset].append(run)
    for dataset, members in by_dataset.items():
        parts: list[list[PlannedRun]] = [[]]
        filled = 0
        for run in members:
            size = _stored_bytes(run.num_frames, num_voxels)
            if parts[-1] and filled + size > shard_bytes:
                parts.append([])
                filled = 0
            parts[-1].append(run)
            filled += size
        for number, part in enumerate(parts, start=standing.shards.get(dataset, 0)):
            yield f"{dataset}-{number:06d}.tar", part


def _stored_bytes(num_frames: int, num_voxels: int) -> int:
    samples = -(-num_frames // SEGMENT_FRAMES)
    return num_frames * (num_voxels + 8) + samples * (8 * num_voxels + SAMPLE_OVERHEAD_BYTES)


def _digest(name: str, runs: list[PlannedRun], context: dict[str, Any]) -> str:
    facts: list[Any] = [name, context]
    for run in runs:
        sidecar = [] if run.sidecar_tr is None else [run.sidecar_tr]
        facts.append([_written(run.source), run.info.size, run.info.mtime_ns, run.split, run.beside, *sidecar])
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()


NAMING = tuple(f.name for f in fields(RunSource) if f.name not in ("path", "found", "alias", "hidden"))
"Fields that name a run and what is known of it, beside its file."


def _written(source: RunSource) -> dict[str, str]:
    """What names a run; under pseudonyms nothing from which a person or a file could be guessed."""
    facts = {name: str(getattr(source, name)) for name in NAMING}
    if source.alias:
        return {**facts, **dict.fromkeys(BESIDE, ""), "path": source.alias}
    return {**facts, "path": f"{_real(os.path.dirname(source.path))}/{source.path.name}"}


@functools.lru_cache(maxsize=65536)
def _real(folder: str) -> str:
    """A folder's name without links; to find it out takes several looks at the file system."""
    return os.path.realpath(folder)
