"""The corpora of an experiment: made, fetched or built where they are not there yet."""

import json
import shutil
import warnings
from dataclasses import asdict
from pathlib import Path

from fmri_scale.errors import DataError
from fmri_scale.evaluation.experiment.schema import AdhdSettings, CorpusSource, ExperimentConfig, source_settings
from fmri_scale.evaluation.experiment.steps import digest, once
from sharding.cli import main as shards
from sharding.phantom_truth import TruthSettings, make_truth_cohort


def make_corpora(config: ExperimentConfig, out: Path) -> None:
    """Make every corpus.

    Raises
    ------
    DataError
        A corpus could not be built or fetched.
    """
    for name, entry in config.corpora.items():
        cohort, corpus = config.cohort(name, out), config.corpus(name, out)
        settings = source_settings(entry, name)
        if settings is not None:
            _make_cohort(settings, cohort)
        if entry.source != "corpus":
            _build(name, entry, cohort, corpus)


def _make_cohort(settings: TruthSettings | AdhdSettings, images: Path) -> None:
    def work() -> None:
        shutil.rmtree(images, ignore_errors=True)  # what a killed attempt left
        if isinstance(settings, TruthSettings):
            for _ in make_truth_cohort(images, settings):
                pass
        else:
            _fetch_adhd(images, settings.n_subjects)

    once(images.parent, digest(type(settings).__name__, json.dumps(asdict(settings), sort_keys=True)), work)


def _build(name: str, entry: CorpusSource, cohort: Path, corpus: Path) -> None:
    """Build a corpus; the build itself knows what is done and continues after a kill."""
    # Runs of a folder keep the name that they have everywhere else, so that baselines may read the images.
    dataset = [] if entry.source == "folder" else ["--dataset", name]
    code = shards(["build", str(cohort), "--out", str(corpus), *dataset, *entry.build])
    if code not in (0, 1):  # 1: some runs could not be used; they are named in runs.parquet
        raise DataError(f"corpora.{name}: could not be built; the reason stands above")


def _fetch_adhd(folder: Path, num_subjects: int) -> None:
    """Fetch preprocessed ADHD-200 runs (MNI152, 3 mm) with nilearn and lay them out as BIDS names, with a table."""
    from nilearn.datasets import fetch_adhd

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            found = fetch_adhd(n_subjects=num_subjects, verbose=1)
        except OSError as error:
            raise DataError(f"ADHD-200 could not be fetched ({error}); give a BIDS folder: source: folder") from error
    folder.mkdir(parents=True)
    table = found.phenotypic
    rows = ["participant_id\tdiagnosis\tage\tsex\tsite"]
    for path, (_, person) in zip(found.func, table.iterrows(), strict=True):
        label = f"{int(person['Subject']):07d}"
        target = folder / f"sub-{label}" / "func" / f"sub-{label}_task-rest_space-MNI152_bold.nii.gz"
        target.parent.mkdir(parents=True)
        target.symlink_to(Path(path).resolve())
        diagnosis = "adhd" if int(person["adhd"]) else "control"
        rows.append(f"sub-{label}\t{diagnosis}\t{person['age']}\t{person['sex']}\t{person['site']}")
    (folder / "participants.tsv").write_text("\n".join(rows) + "\n")
