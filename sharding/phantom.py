"""A synthetic cohort of 4D NIfTI runs in MNI152 space, for trials and tests: no data, no network, no waiting.

Out: a BIDS-like folder of fMRIPrep-style files. A run is the MNI152 template in EPI contrast, modulated by networks
placed by anatomy (band-limited courses, 0.01 to 0.1 Hz, correlated within a person as that person's brain has it),
and by drift, breathing, pulse, residual motion and smooth thermal noise. People differ in where and how strongly
networks act (weaker default mode with age); sites differ in TR, orientation on disk, contrast and noise. It looks
like fMRI to a pipeline and to a model's first steps; it is no substitute for data.
"""

import json
import os
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import nibabel as nib
import numpy as np

from sharding.errors import ShardingError
from sharding.phantom_anatomy import NETWORKS, Anatomy, load_anatomy, network_map, petalia

BAND_HZ = (0.01, 0.1)
BOLD_PERCENT = 1.6
"Standard deviation of a network at its centre, in per cent of the signal."


@dataclass(frozen=True)
class Site:
    """A scanner."""

    name: str
    tr: float
    "s"
    flipped: bool
    "Stored right to left (LAS), as HCP and UK Biobank do; else RAS."
    noise_percent: float
    grey_white: float
    "White matter's signal over grey matter's."


SITES = (
    Site("north", tr=0.8, flipped=True, noise_percent=1.5, grey_white=0.82),
    Site("south", tr=2.0, flipped=False, noise_percent=0.9, grey_white=0.74),
    Site("east", tr=1.5, flipped=True, noise_percent=1.1, grey_white=0.78),
)


@dataclass(frozen=True)
class Person:
    """A participant."""

    label: str
    site: Site
    age: int
    sex: str


def make_cohort(
    out: Path, subjects: int = 6, runs: int = 1, volumes: int = 80, voxel_mm: float = 3.0, seed: int = 0
) -> Iterator[Path]:
    """Write a cohort, yielding each run's file as it is done; the folder appears when all are.

    Parameters
    ----------
    out
        Folder to make; must not exist or be empty.
    subjects, runs, volumes
        People, runs of each, volumes of a run.
    voxel_mm
        Edge of a voxel; 2 lies on the canonical grid's lattice, others are resampled by a build.
    seed
        Of everything random; the same seed gives the same files.

    Raises
    ------
    ShardingError
        `out` is in use or a number makes no sense.
    """
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise ShardingError(f"{out}: exists and is not an empty folder; choose another")
    if min(subjects, runs) < 1 or volumes < 2 or not 1.5 <= voxel_mm <= 12:
        raise ShardingError(
            f"{subjects} subjects, {runs} runs, {volumes} volumes of {voxel_mm:g} mm: expected at least 1, 1, 2, "
            "and voxels of 1.5 to 12 mm"
        )
    out.parent.mkdir(parents=True, exist_ok=True)
    work = out.with_name(f".{out.name}.tmp-{os.getpid()}")
    try:
        people = [_person(number, seed) for number in range(subjects)]
        _write_tables(work, people)
        anatomy = load_anatomy(voxel_mm)
        for number, person in enumerate(people):
            traits = _Traits(anatomy, person, np.random.default_rng([seed, number, 0]))
            for run in range(1, runs + 1):
                series = _series(anatomy, traits, volumes, np.random.default_rng([seed, number, run]))
                yield out / _write_run(work, anatomy, person, run, series)
        work.rename(out)
    finally:
        shutil.rmtree(work, ignore_errors=True)


def _person(number: int, seed: int) -> Person:
    rng = np.random.default_rng([seed, number])
    return Person(
        f"{number + 1:02d}", SITES[number % len(SITES)], int(rng.integers(20, 80)), str(rng.choice(["F", "M"]))
    )


class _Traits:
    """What stays the same over a person's runs. Maps are float32 (components, brain voxels)."""

    def __init__(self, anatomy: Anatomy, person: Person, rng: np.random.Generator) -> None:
        site = person.site
        self.site = site
        contrast = anatomy.grey + site.grey_white * anatomy.white + 1.35 * anatomy.fluid
        bias = 1 + 0.05 * anatomy.smooth_field(rng, 90.0)
        shape = anatomy.coverage * anatomy.filled * petalia(anatomy.mm)
        self.baseline = 900 * rng.uniform(0.9, 1.1) * contrast * shape * bias
        spread = 1 + 0.3 * anatomy.smooth_field(rng, 18.0)
        amplitude = rng.uniform(0.7, 1.3, len(NETWORKS))
        amplitude[list(NETWORKS).index("default")] *= 1.3 - 0.008 * (person.age - 20)
        maps = [network_map(anatomy, name, rng.normal(0, 3.0, 3)) for name in NETWORKS]
        self.networks = np.stack(maps) * amplitude[:, None] * spread * self.baseline * (BOLD_PERCENT / 100)
        mixing = np.eye(len(NETWORKS)) + 0.25 * rng.standard_normal((len(NETWORKS),) * 2)
        self.mixing = mixing / np.linalg.norm(mixing, axis=1, keepdims=True)
        drifts = np.stack([anatomy.smooth_field(rng, 40.0) for _ in range(2)])
        self.drifts = 0.008 * self.baseline * drifts
        self.breathing = 0.004 * self.baseline * (0.3 + anatomy.fluid)
        self.pulse = 0.01 * self.baseline * anatomy.fluid
        self.gradients = anatomy.gradients(self.baseline)
        self.noise = site.noise_percent / 100 * float(np.mean(self.baseline))


def _series(anatomy: Anatomy, traits: _Traits, volumes: int, rng: np.random.Generator) -> np.ndarray:
    """One run in the brain's voxels: float32 (volumes, brain voxels)."""
    tr = traits.site.tr
    time = np.arange(volumes) * tr
    courses = [_band_limited(rng, volumes, tr, len(traits.networks)) @ traits.mixing.T]
    unit = np.linspace(-1, 1, volumes)
    courses.append(np.stack([unit * rng.normal(), (unit**2 - 1 / 3) * rng.normal()], axis=1))
    rates = rng.uniform(0.22, 0.33), rng.uniform(0.9, 1.3)
    courses.append(np.stack([np.sin(2 * np.pi * (rate * time + rng.uniform())) for rate in rates], axis=1))
    motion = np.cumsum(rng.normal(0, 0.01, (volumes, 3)), axis=0)
    courses.append(motion - motion.mean(axis=0))
    maps = np.concatenate(
        [traits.networks, traits.drifts, traits.breathing[None], traits.pulse[None], traits.gradients]
    )
    series = np.concatenate(courses, axis=1).astype(np.float32) @ maps.astype(np.float32)
    series += traits.baseline.astype(np.float32)
    for frame in series:
        frame += anatomy.smooth_noise(rng) * np.float32(traits.noise)
    return np.maximum(series, 0)


def _band_limited(rng: np.random.Generator, volumes: int, tr: float, courses: int) -> np.ndarray:
    """Unit-variance noise within BAND_HZ, (volumes, courses), cut from a longer stretch so that it does not wrap."""
    length = volumes + int(np.ceil(200 / tr))
    frequency = np.fft.rfftfreq(length, tr)
    keep = (frequency >= BAND_HZ[0]) & (frequency <= BAND_HZ[1])
    spectrum = np.zeros((len(frequency), courses), dtype=complex)
    draw = rng.standard_normal((2, int(keep.sum()), courses))
    # Power falls with frequency, as BOLD's does.
    spectrum[keep] = (draw[0] + 1j * draw[1]) / np.sqrt(frequency[keep])[:, None]
    series = np.fft.irfft(spectrum, length, axis=0)
    return (series / series.std(axis=0))[:volumes]


def _write_run(out: Path, anatomy: Anatomy, person: Person, run: int, series: np.ndarray) -> Path:
    volume = np.zeros((*anatomy.shape, len(series)), dtype=np.int16)
    volume[anatomy.brain] = np.round(series.T).astype(np.int16)
    affine = anatomy.affine.copy()
    if person.site.flipped:
        affine[0, 3] += affine[0, 0] * (anatomy.shape[0] - 1)
        affine[0, 0] *= -1
        volume = volume[::-1]
    image = nib.Nifti1Image(volume, affine)
    image.header.set_xyzt_units("mm", "sec")
    image.header.set_zooms((*image.header.get_zooms()[:3], person.site.tr))
    image.set_sform(affine, code=4)
    image.set_qform(affine, code=4)
    folder = out / f"sub-{person.label}" / "func"
    folder.mkdir(parents=True, exist_ok=True)
    name = f"sub-{person.label}_task-rest_run-{run}_space-MNI152NLin2009cAsym_desc-preproc_bold"
    (folder / f"{name}.json").write_text(json.dumps({"RepetitionTime": person.site.tr, "TaskName": "rest"}) + "\n")
    nib.save(image, folder / f"{name}.nii.gz")
    return (folder / f"{name}.nii.gz").relative_to(out)


def _write_tables(out: Path, people: list[Person]) -> None:
    out.mkdir()
    facts = {
        "Name": "Synthetic fMRI cohort",
        "BIDSVersion": "1.9.0",
        "DatasetType": "derivative",
        "GeneratedBy": [{"Name": "fmri-shards phantom"}],
        "License": "CC0",
    }
    (out / "dataset_description.json").write_text(json.dumps(facts, indent=1) + "\n")
    rows = ["participant_id\tage\tsex\tsite"]
    rows += [f"sub-{person.label}\t{person.age}\t{person.sex}\t{person.site.name}" for person in people]
    (out / "participants.tsv").write_text("\n".join(rows) + "\n")
