"""Add runs to a corpus: its shards stay as they are, byte for byte, and everybody in it keeps their split.

In: inputs as for a build, and a corpus. Out: the corpus with new shards, numbered after those of their dataset, made
with the corpus' own settings. Until the tables are replaced at the end, readers see the corpus as it was; an append
that was interrupted is taken up by starting it again.
"""

import re
import shutil
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

from sharding.build import BuildResult, Start, make_shards, result, sweep_shards, working_folder, writing
from sharding.discover import LeftOut, RunSource
from sharding.discover.source import writable
from sharding.engine import Engine
from sharding.engine.local import InProcess
from sharding.errors import CorpusError, InputError
from sharding.existing import Existing, require_existing
from sharding.finish import write_corpus_files
from sharding.keys import sample_key
from sharding.plan import BuildSettings, Standing, nothing_usable, plan_build


def append_corpus(
    sources: Sequence[RunSource],
    left_out: Sequence[LeftOut],
    path: Path,
    start: Start = lambda num_frames: lambda done: None,
    engine: Engine | None = None,
    pseudonyms: str = "",
) -> BuildResult:
    """Add runs to a corpus; those already in it are passed over.

    Parameters
    ----------
    sources, left_out
        From `discover.find_runs`.
    path
        Folder of a whole corpus.
    start, engine
        As of `build_corpus`.
    pseudonyms
        Check of the key under which the sources are named, as of `BuildSettings`.

    Raises
    ------
    InputError
        No new run can be used, or one would put somebody into two splits; the corpus is then as before.
    CorpusError
        There is no whole corpus, it was made by another version, or it cannot be written.
    """
    require_existing(path)
    with writing(path), working_folder(path) as work:
        existing = require_existing(path)  # once more, now that nobody else can change it
        settings = _settings(existing)
        _check_names(settings.pseudonyms, pseudonyms, path)
        there = set(existing.index["key"].to_pylist())
        new = [source for source in sources if sample_key(source, 0) not in there]
        if not new:
            raise InputError(f"{path}: all {len(sources)} runs are in it already; nothing to add")
        plan = plan_build(new, left_out, settings, _standing(existing))
        tried = {writable(source.alias or source.path) for source in new} | {writable(x.path) for x in left_out}
        kept = existing.without(tried)
        shards = make_shards(plan, settings, path, work, kept, engine or InProcess(), start)
        if shards.num_samples > existing.index.num_rows:
            write_corpus_files(path, [*existing.meta.get("plans", []), plan.digest], settings, shards)
            sweep_shards(path, shards)
        shutil.rmtree(work)
    if shards.num_samples == existing.index.num_rows:
        raise InputError(nothing_usable(shards.reasons()))
    return result(path, shards.num_made)


def _settings(existing: Existing) -> BuildSettings:
    try:
        return BuildSettings.from_json(existing.meta["settings"])
    except (KeyError, TypeError, ValueError) as error:
        raise CorpusError(f"{existing.path}: made by another version of this program ({error}); build anew") from error


def _check_names(corpus: str, given: str, path: Path) -> None:
    if corpus == given:
        return
    if not corpus:
        raise InputError(f"{path}: its people have their own names; leave --anonymise out, or build a new corpus")
    said = "another key" if given else "none"
    raise InputError(f"{path}: its people stand under pseudonyms; give the same key with --anonymise ({said} given)")


def _standing(existing: Existing) -> Standing:
    names = ("split", "dataset", "subject", "family")
    people = existing.index.group_by(list(names)).aggregate([]).select(names).to_pylist()
    splits = {
        (kind, row["dataset"], row[kind]): row["split"] for row in people for kind in ("subject", "family") if row[kind]
    }
    following: dict[str, int] = defaultdict(int)
    for shard in existing.shards:
        dataset, number = re.fullmatch(r"(.+)-(\d+)\.tar", shard["name"]).groups()  # type: ignore[union-attr]
        following[dataset] = max(following[dataset], int(number) + 1)
    return Standing(splits, dict(following))
