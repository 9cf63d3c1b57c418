"""A cohort whose truth is known: two groups of people that differ in how named regions are coupled, in nothing else.

Out: a BIDS-like folder of 4D NIfTI runs in MNI152 space with participants.tsv (group, age, sex), an atlas of the
regions (atlas.nii.gz, atlas.tsv) and truth.json. Every region has a course of its own. The two courses of a planted
pair are correlated in controls and independent in patients; each region's own variance and spectrum is the same in
both groups, so only the coupling tells them apart. In a null cohort coupling is drawn for each person without regard
to the group.

Regions are the parts of the brain nearest to the centres of the synthetic networks (phantom_anatomy.NETWORKS), named
by network, number and side. No age or sex effect is planted.
"""

import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import nibabel as nib
import numpy as np

from sharding.errors import ShardingError
from sharding.phantom_anatomy import NETWORKS, Anatomy, load_anatomy

GROUPS = ("control", "patient")


@dataclass(frozen=True)
class TruthSettings:
    """What is planted, and how loud it is."""

    subjects: int = 160
    "People, half of each group."
    volumes: int = 64
    "Volumes of each person's run."
    voxel_mm: float = 8.0
    "Edge of a voxel."
    tr: float = 2.0
    "Repetition time in s; build with --target-tr native to keep the frames as they are."
    pairs: tuple[tuple[str, str], ...] = (("cerebellum_1_L", "default_5_L"), ("cerebellum_2_R", "default_6_R"))
    "Regions whose coupling differs between the groups."
    coupling: float = 0.9
    "Their correlation in controls."
    persistence: float = 0.6
    "Correlation of a course with itself one volume later."
    planted_signal: float = 0.9
    "Share of a voxel's variance in time that is its region's course, in planted regions."
    other_signal: float = 0.3
    "The same in all other regions."
    null: bool = False
    "Draw who is coupled without regard to the group."
    seed: int = 0
    "Of everything random."


@dataclass(frozen=True)
class Parcels:
    """Regions on an anatomy: names, networks, and int32 (brain voxels,) the number of each voxel's region."""

    names: list[str]
    networks: list[str]
    of_voxel: np.ndarray


def make_truth_cohort(out: Path, settings: TruthSettings | None = None) -> Iterator[Path]:
    """Write a cohort, yielding each run's file as it is done.

    Parameters
    ----------
    out
        Folder to make; must not exist or be empty.
    settings
        Defaults where None.

    Raises
    ------
    ShardingError
        `out` is in use, a planted region has no such name, or a number makes no sense.
    """
    settings = settings or TruthSettings()
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise ShardingError(f"{out}: exists and is not an empty folder; choose another")
    anatomy = load_anatomy(settings.voxel_mm)
    parcels = parcels_of(anatomy)
    pairs = _numbers(parcels, settings.pairs)
    _check(settings)
    out.mkdir(parents=True, exist_ok=True)
    groups = _groups(settings)
    _write_tables(out, anatomy, parcels, settings, groups)
    for number, group in enumerate(groups):
        rng = np.random.default_rng([settings.seed, 1, number])
        yield _write_run(out, anatomy, number, _series(anatomy, parcels, pairs, settings, group, rng), settings)


def parcels_of(anatomy: Anatomy) -> Parcels:
    """Give every brain voxel to the nearest centre of a network."""
    names, networks, centres = [], [], []
    for network, points in NETWORKS.items():
        for number, point in enumerate(points, start=1):
            side = "L" if point[0] < -4 else "R" if point[0] > 4 else "M"
            names.append(f"{network}_{number}_{side}")
            networks.append(network)
            centres.append(point)
    away = ((anatomy.mm.T[:, None, :] - np.array(centres, dtype=np.float32)) ** 2).sum(axis=2)
    return Parcels(names, networks, away.argmin(axis=1).astype(np.int32))


def region_courses(
    num_regions: int, pairs: Sequence[tuple[int, int]], settings: TruthSettings, group: int, rng: np.random.Generator
) -> np.ndarray:
    """Courses of all regions, float64 (volumes, regions), each of unit variance.

    Parameters
    ----------
    pairs
        Numbers of the planted regions.
    group
        Place in GROUPS.
    """
    courses = _persistent(rng, settings, num_regions)
    coupled = rng.integers(2) == 0 if settings.null else group == 0
    shared = np.sqrt(settings.coupling if coupled else 0.0)
    for one, other in pairs:
        common = shared * _persistent(rng, settings, 1)
        courses[:, [one, other]] = common + np.sqrt(1 - shared**2) * courses[:, [one, other]]
    return courses


def _persistent(rng: np.random.Generator, settings: TruthSettings, num: int) -> np.ndarray:
    """First-order autoregressive noise of unit variance, float64 (volumes, num)."""
    course = rng.standard_normal((settings.volumes, num))
    for volume in range(1, settings.volumes):
        fresh = np.sqrt(1 - settings.persistence**2) * course[volume]
        course[volume] = settings.persistence * course[volume - 1] + fresh
    return course


def _series(
    anatomy: Anatomy,
    parcels: Parcels,
    pairs: Sequence[tuple[int, int]],
    settings: TruthSettings,
    group: int,
    rng: np.random.Generator,
) -> np.ndarray:
    """One run in the brain's voxels: float32 (volumes, brain voxels)."""
    share = np.full(len(parcels.names), settings.other_signal)
    share[[region for pair in pairs for region in pair]] = settings.planted_signal
    courses = region_courses(len(parcels.names), pairs, settings, group, rng)
    voxel_share = share[parcels.of_voxel]
    change = np.sqrt(voxel_share) * courses[:, parcels.of_voxel]
    change += np.sqrt(1 - voxel_share) * rng.standard_normal(change.shape)
    contrast = anatomy.grey + 0.8 * anatomy.white + 1.35 * anatomy.fluid
    baseline = 900 * rng.uniform(0.9, 1.1) * (0.2 + contrast) * anatomy.filled
    return (baseline * (1 + 0.02 * change)).astype(np.float32)


def _groups(settings: TruthSettings) -> list[int]:
    """Group of each person: equal shares in random order."""
    rng = np.random.default_rng([settings.seed, 0])
    return rng.permutation(np.arange(settings.subjects) % 2).tolist()


def _numbers(parcels: Parcels, pairs: Sequence[tuple[str, str]]) -> list[tuple[int, int]]:
    named = [name for pair in pairs for name in pair]
    unknown = [name for name in named if name not in parcels.names]
    if unknown or len(set(named)) < len(named):
        reason = f"no region is named {unknown[0]!r}" if unknown else "a region is in two pairs"
        raise ShardingError(f"planted pairs {list(pairs)}: {reason}; regions: {', '.join(parcels.names)}")
    return [(parcels.names.index(one), parcels.names.index(other)) for one, other in pairs]


def _check(settings: TruthSettings) -> None:
    shares = (settings.coupling, settings.persistence, settings.planted_signal, settings.other_signal)
    if settings.subjects < 4 or settings.volumes < 2 or not all(0 <= share <= 1 for share in shares):
        raise ShardingError(
            f"{settings.subjects} subjects, {settings.volumes} volumes, coupling, persistence and signals {shares}: "
            "expected at least 4 and 2, and shares from 0 to 1"
        )


def _write_run(out: Path, anatomy: Anatomy, number: int, series: np.ndarray, settings: TruthSettings) -> Path:
    volume = np.zeros((*anatomy.shape, len(series)), dtype=np.int16)
    volume[anatomy.brain] = np.round(series.T * 8).astype(np.int16)
    folder = out / f"sub-{number + 1:03d}" / "func"
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"sub-{number + 1:03d}_task-rest_space-MNI152NLin2009cAsym_desc-preproc_bold.nii.gz"
    image = _image(volume, anatomy)
    image.header.set_zooms((*image.header.get_zooms()[:3], settings.tr))
    nib.save(image, path)
    return path


def _write_tables(
    out: Path, anatomy: Anatomy, parcels: Parcels, settings: TruthSettings, groups: Sequence[int]
) -> None:
    rng = np.random.default_rng([settings.seed, 2])
    rows = ["participant_id\tgroup\tage\tsex"]
    for number, group in enumerate(groups):
        rows.append(f"sub-{number + 1:03d}\t{GROUPS[group]}\t{rng.integers(20, 80)}\t{rng.choice(['F', 'M'])}")
    (out / "participants.tsv").write_text("\n".join(rows) + "\n")
    volume = np.zeros(anatomy.shape, dtype=np.int16)
    volume[anatomy.brain] = parcels.of_voxel + 1
    nib.save(_image(volume, anatomy), out / "atlas.nii.gz")
    rows = [f"{i}\t{name}\t{net}" for i, (name, net) in enumerate(zip(parcels.names, parcels.networks, strict=True), 1)]
    (out / "atlas.tsv").write_text("\n".join(["index\tname\tgroup", *rows]) + "\n")
    truth = {"planted": sorted({name for pair in settings.pairs for name in pair}), **asdict(settings)}
    (out / "truth.json").write_text(json.dumps(truth, indent=1) + "\n")
    facts = {"Name": "Synthetic cohort with known truth", "BIDSVersion": "1.9.0", "License": "CC0"}
    (out / "dataset_description.json").write_text(json.dumps(facts, indent=1) + "\n")


def _image(volume: np.ndarray, anatomy: Anatomy) -> nib.Nifti1Image:
    image = nib.Nifti1Image(volume, anatomy.affine)
    image.header.set_xyzt_units("mm", "sec")
    image.set_sform(anatomy.affine, code=4)
    image.set_qform(anatomy.affine, code=4)
    return image
