"""The methods of a task: probes on features, tuned models, and the baselines beside them.

In: a task and its sources. Out: the units that all sources share, and a `Method` for each line of the table.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from fmri_scale.errors import DataError
from fmri_scale.evaluation.baselines import (
    CorpusSeries,
    ImageSeries,
    RunSeries,
    Stretch,
    connectivity_method,
    constant_method,
    pattern_method,
)
from fmri_scale.evaluation.baselines.series import Band
from fmri_scale.evaluation.compare import Method, Representation
from fmri_scale.evaluation.probes import AttentiveProbe, LinearProbe, NeighbourProbe, Probe
from fmri_scale.evaluation.tasks.schema import BaselineConfig, TaskConfig
from fmri_scale.evaluation.tasks.tuned import TunedSource, read_tuned
from fmri_scale.evaluation.tasks.units import Naming, UnitTable, unit_table
from fmri_scale.evaluation.vectors import ClipVectors, read_vectors
from sharding.corpus import open_corpus


@dataclass(frozen=True)
class FeatureSource:
    """Features of one model, a file a seed.

    Attributes
    ----------
    clips, names
        By seed; object (N,) the unit of each clip.
    """

    name: str
    clips: Mapping[int, ClipVectors]
    names: Mapping[int, np.ndarray]
    baseline: bool
    tokens: bool

    def units(self) -> set[str]:
        """Units that have clips with every seed."""
        return set.intersection(*(set(names) for names in self.names.values()))

    def representation(self, units: UnitTable) -> Callable[[int], Representation]:
        """Rows of clips by seed."""
        numbers = {id(names): units.numbers(names) for names in self.names.values()}

        def of_seed(seed: int) -> Representation:
            vectors = self.clips[seed].vectors
            return Representation(numbers[id(self.names[seed])], lambda rows: vectors[rows])

        return of_seed


@dataclass(frozen=True)
class Sources:
    """Everything that a task reads, and the units that all of it shares."""

    units: UnitTable
    features: list[FeatureSource]
    tuned: list[TunedSource]
    series: RunSeries | None
    stretches: list[list[Stretch]]


def read_sources(task: TaskConfig) -> Sources:
    """Read features and open what baselines need.

    Raises
    ------
    DataError, InputError, CorpusError
        Something is missing or does not fit; the message names the file.
    """
    naming = Naming(task)
    features = [
        *(_features(task, naming, name, path, False, False) for name, path in task.features.items()),
        *(_features(task, naming, name, path, True, False) for name, path in task.baselines.features.items()),
        *(_features(task, naming, name, path, False, True) for name, path in task.tokens.items()),
        *(_features(task, naming, name, path, True, True) for name, path in task.baselines.tokens.items()),
    ]
    found = {source.name + (" (tokens)" if source.tokens else ""): source.units() for source in features}
    tuned = read_tuned(task, naming)
    found |= {f"{source.name} (tuning)": source.units() for source in tuned}
    series = _series(task.baselines) if task.baselines.bold else None
    parts = naming.of_runs(series) if series is not None else {}
    if series is not None:
        found["baselines.bold"] = set(parts)
    units = unit_table(task, naming, found)
    return Sources(units, features, tuned, series, [parts[name] for name in units.name] if parts else [])


def prediction_methods(task: TaskConfig, sources: Sources, tuned: Sequence[Method] = ()) -> list[Method]:
    """Lines of a table of predictions: features, what is tuned, then baselines, the constant last.

    Raises
    ------
    DataError
        Two lines would have the same name.
    """
    probes: dict[str, Probe] = {"linear": LinearProbe(balanced=task.balanced), "knn": NeighbourProbe()}
    methods = []
    for source in sources.features:
        wanted = [AttentiveProbe()] if source.tokens else [probes[name] for name in task.probes if name in probes]
        representation = source.representation(sources.units)
        methods += [Method(f"{source.name} ({p.name})", representation, p, source.baseline) for p in wanted]
    methods += tuned
    methods.sort(key=lambda method: method.baseline)
    methods += baseline_methods(task, sources)
    methods.append(constant_method(len(sources.units.name), task.kind == "classification"))
    names = [method.name for method in methods]
    if len(set(names)) < len(names):
        raise DataError(f"two lines of the table have the same name ({', '.join(sorted(names))}); rename the features")
    return methods


def baseline_methods(task: TaskConfig, sources: Sources) -> list[Method]:
    """Connectivity and patterns, where the task gives BOLD."""
    if sources.series is None:
        return []
    arguments = (sources.series, sources.stretches, task.balanced)
    methods = [connectivity_method(kind, *arguments) for kind in task.baselines.connectivity]
    if task.baselines.patterns:
        methods.append(pattern_method("region means" if task.baselines.atlas else "voxel patterns", *arguments))
    return methods


def _features(task: TaskConfig, naming: Naming, name: str, path: str, baseline: bool, tokens: bool) -> FeatureSource:
    paths = {seed: path.replace("{seed}", str(seed)) for seed in task.scoring.seeds}
    clips = {p: read_vectors(p, tokens) for p in set(paths.values())}
    names = {p: naming.of_clips(held) for p, held in clips.items()}
    return FeatureSource(
        name,
        {seed: clips[p] for seed, p in paths.items()},
        {seed: names[p] for seed, p in paths.items()},
        baseline,
        tokens,
    )


def _series(config: BaselineConfig) -> RunSeries:
    band = Band(*config.band_hz)
    atlas = Path(config.atlas) if config.atlas else None
    if (Path(config.bold) / "corpus.json").is_file():
        if atlas is None:
            raise DataError("baselines of a corpus need baselines.atlas, a label image in MNI152 space")
        return CorpusSeries(open_corpus(config.bold), atlas, band)
    return ImageSeries([config.bold], atlas, Path(config.mask) if config.mask else None, band)
