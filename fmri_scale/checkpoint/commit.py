"""Write a checkpoint so that it exists whole or not at all; every rank calls `save`.

1. rank 0 makes `step_N.tmp`;  2. every rank writes its files there and takes their checksums;
3. rank 0 compares what lies there with what was reported, writes the manifest, flushes, renames the folder to
`step_N`, flushes its parent, and moves `latest` last;  4. all ranks go on with the same outcome.
A kill at any point leaves the older checkpoints untouched and at most a `.tmp` that nobody reads.
"""

import os
import shutil
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from fmri_scale.checkpoint import files, layout, manifest, retention
from fmri_scale.checkpoint.collective import gather, on_rank_0, rank
from fmri_scale.checkpoint.layout import CheckpointDir
from fmri_scale.checkpoint.state import TrainingState, write_state
from fmri_scale.config import Config, save_config
from fmri_scale.errors import CheckpointError

Entries = dict[str, dict[str, Any]]


def save(
    run_dir: Path,
    state: TrainingState,
    config: Config,
    write_engine: Callable[[Path], Iterable[Path]],
    rng: Mapping[str, Any],
    attachments: Mapping[str, Path],
) -> CheckpointDir:
    """Commit one checkpoint; return it on every rank.

    Parameters
    ----------
    write_engine : collective; writes this rank's part of the engine's state below the folder it is given and
        returns the files this rank wrote.
    rng : this rank's random number generators, JSON-able.
    attachments : files that rank 0 copies in, by their name in the checkpoint.

    Raises
    ------
    CheckpointError : a rank could not write, or the ranks do not see the same folder; on every rank.
    """
    final = layout.step_dir(run_dir, state.step)
    aside = final.with_name(f"{final.name}.tmp")
    try:
        on_rank_0(lambda: _prepare(aside))
        entries = _merge(gather(_write(aside, state, config, write_engine, rng, attachments)))
        on_rank_0(lambda: _name(aside, final, state.step, entries))
    except (CheckpointError, OSError) as error:
        if rank() == 0:
            shutil.rmtree(aside, ignore_errors=True)
        raise CheckpointError(f"{final}: could not be written: {error}") from error
    return CheckpointDir(final, state.step)


def _prepare(aside: Path) -> None:
    if aside.exists():
        shutil.rmtree(aside)
    aside.mkdir(parents=True)


def _write(
    aside: Path,
    state: TrainingState,
    config: Config,
    write_engine: Callable[[Path], Iterable[Path]],
    rng: Mapping[str, Any],
    attachments: Mapping[str, Path],
) -> tuple[Entries, str]:
    """Write this rank's files; return their manifest entries, or the reason why that failed."""
    try:
        written = list(write_engine(aside))
        files.write_json(layout.rng_file(aside, rank()), rng)
        written.append(layout.rng_file(aside, rank()))
        if rank() == 0:
            write_state(aside, state)
            save_config(config, aside / layout.CONFIG)
            written += [aside / layout.STATE, aside / layout.CONFIG]
            for name, source in attachments.items():
                written.append(Path(shutil.copyfile(source, aside / name)))
        return {path.relative_to(aside).as_posix(): manifest.describe(path) for path in written}, ""
    except (OSError, CheckpointError) as error:
        return {}, f"rank {rank()}: {error}"


def _merge(parts: list[tuple[Entries, str]]) -> Entries:
    failed = [reason for _, reason in parts if reason]
    if failed:
        raise CheckpointError("; ".join(failed))
    return {name: entry for entries, _ in parts for name, entry in entries.items()}


def _name(aside: Path, final: Path, step: int, entries: Entries) -> None:
    """Turn the folder into a checkpoint (rank 0)."""
    present = {path.relative_to(aside).as_posix() for path in aside.rglob("*") if path.is_file()}
    if present != set(entries):
        lost, extra = sorted(set(entries) - present), sorted(present - set(entries))
        raise CheckpointError(
            f"files reported but not seen by rank 0: {lost}, seen but not reported: {extra}; "
            "run_dir must lie on a file system that all nodes share"
        )
    for parent in {path.parent for path in aside.rglob("*")}:
        files.sync(parent)
    manifest.write(aside, step, entries)
    if final.exists():
        retention.discard(final)
    os.rename(aside, final)
    files.sync(final.parent)
    files.write_text(final.parent / layout.LATEST, final.name + "\n")
