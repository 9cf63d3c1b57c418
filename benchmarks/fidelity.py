"""What preprocessing costs a signal: the int8 round trip, resampling in space and in time, and what each takes.

python benchmarks/fidelity.py [--bold DIR]

DIR holds 4D NIfTI runs of a scanner (*_bold.nii.gz), taken as they lie; made-up series are tried in any case. Space:
fields of known smoothness, sampled at 2.4 mm off the lattice and brought to the grid, against the same fields known
there. Time: waves at other TRs brought to 0.8 s. Writes benchmarks/results/fidelity_MACHINE.json and .md.
"""

import argparse
import json
import time
from collections.abc import Callable
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
from machine import processor, slug  # beside this file
from scipy import ndimage

from sharding.format import GRID_AFFINE, GRID_SHAPE
from sharding.grid import Sampler, grid_sampler, image_frame
from sharding.mask import brain_mask
from sharding.prepare import prepare_run
from sharding.preprocessing import PreprocessingSettings
from sharding.quantise import VoxelMoments, decode, encode, power_of_two_unit, voxel_scale
from sharding.spline import spline_sampler
from sharding.timing import TimeResampler

ROOT = Path(__file__).resolve().parents[1]
BRAIN = np.flatnonzero(brain_mask(dilated=False))
FINE_MM, COARSE_EVERY = 1.2, 2
"Fields are made at 1.2 mm; every second voxel is the image of 2.4 mm."


def main() -> None:
    """Measure, print and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bold", type=Path)
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks" / "results")
    args = parser.parse_args()
    record = {
        "date": str(date.today()),
        "machine": processor(),
        "round_trip": [*made_up(), *(scanned(args.bold) if args.bold else [])],
        "space": [row for fwhm_mm in (3.0, 5.0, 8.0) for row in in_space(fwhm_mm)],
        "time": [row for tr in (0.4, 0.72, 1.5, 2.0, 2.5, 3.0) for row in in_time(tr)],
        "aliasing": [aliasing(frequency) for frequency in (0.7, 0.9, 1.1)],
    }
    text = report(record)
    print(text)
    stem = args.out / f"fidelity_{slug()}"
    stem.with_suffix(".json").write_text(json.dumps(record, indent=1) + "\n")
    stem.with_suffix(".md").write_text(text + "\n")


def made_up() -> list[dict[str, Any]]:
    """Series of level 10,000 that change by 1.2 %, plain and with 0.1 % of voxels four times brighter."""
    rng = np.random.default_rng(0)
    level = rng.normal(10_000, 2_000, 4000)
    x = (level * (1 + 0.012 * rng.standard_normal((300, 4000)))).astype(np.float32)
    rows = []
    for bright in (0, 4):
        x[:, :bright] *= 4
        for name, through in (("a scale a voxel", by_voxel), ("one scale a run", by_run)):
            found = correlations(x, through(x))[4:]
            rows.append(_kept(f"made up, {bright} of 4,000 voxels four times brighter: {name}", found))
    return rows


def scanned(folder: Path) -> list[dict[str, Any]]:
    """Runs of a scanner through the whole of preprocessing, at their own TR."""
    sparse = np.zeros(GRID_SHAPE, dtype=bool)
    sparse[::4, ::4, ::4] = brain_mask()[::4, ::4, ::4]
    rows = []
    for path in sorted(folder.glob("*_bold.nii.gz")):
        run = prepare_run(path, PreprocessingSettings(target_tr=None), assume_mni=True, mask=sparse)
        run.segment(0, run.num_frames)
        rows.append(_kept(path.name.removesuffix(".nii.gz"), run.round_trip.correlations()))
    return rows


def in_space(fwhm_mm: float, frames: int = 12) -> list[dict[str, Any]]:
    """Fields of a smoothness through each interpolation: what is kept of them, and processor time a frame."""
    shape = (172, 204, 176)
    fine = np.diag([FINE_MM, FINE_MM, FINE_MM, 1.0])
    fine[:3, 3] = [-102.7, -131.3, -88.9]
    coarse = fine @ np.diag([COARSE_EVERY, COARSE_EVERY, COARSE_EVERY, 1.0])
    rng = np.random.default_rng(0)
    grid = np.stack(np.unravel_index(BRAIN, GRID_SHAPE))
    mm = GRID_AFFINE[:3, :3] @ grid + GRID_AFFINE[:3, 3:]
    where = (mm - fine[:3, 3:]) / FINE_MM
    truth, images = [], []
    for _ in range(frames):
        field = ndimage.gaussian_filter(rng.standard_normal(shape), fwhm_mm / 2.355 / FINE_MM)
        truth.append(ndimage.map_coordinates(field, where, order=5, mode="nearest"))
        images.append(field[::COARSE_EVERY, ::COARSE_EVERY, ::COARSE_EVERY].astype(np.float32))
    stack = np.stack([image.ravel(order="F") for image in images])
    frame = image_frame(images[0].shape, coarse, "made up")
    samplers: list[tuple[str, Callable[..., Sampler]]] = [("linear", grid_sampler), ("continuous", spline_sampler)]
    return [_spatial(name, make(frame, BRAIN), stack, np.stack(truth), fwhm_mm) for name, make in samplers]


def _spatial(name: str, sampler: Sampler, stack: np.ndarray, truth: np.ndarray, fwhm_mm: float) -> dict[str, Any]:
    begun = time.process_time()
    found = sampler(stack)
    seconds = (time.process_time() - begun) / len(stack)
    left = np.sqrt(np.mean((found - truth) ** 2)) / truth.std()
    return {
        "interpolation": name, "fwhm_mm": fwhm_mm, "sd_kept": float(found.std() / truth.std()),
        "correlation": float(np.corrcoef(found.ravel(), truth.ravel())[0, 1]), "error": float(left),
        "cpu_s_per_frame": seconds,
    }  # fmt: skip


def in_time(tr: float) -> list[dict[str, Any]]:
    """Waves brought to 0.8 s: amplitude, phase, and what is made beside them."""
    rows = []
    for kind in ("sinc", "linear"):
        for frequency in (0.02, 0.05, 0.1):
            times = np.arange(0, 900, tr)
            resampler = TimeResampler(len(times), tr, 0.8, kind)
            out = resampler.push(np.cos(2 * np.pi * frequency * times)[:, None].astype(np.float32))[50:-50, 0]
            at = (np.arange(len(out)) + 50) * 0.8
            waves = np.stack([np.cos(2 * np.pi * frequency * at), -np.sin(2 * np.pi * frequency * at)], axis=1)
            fit = np.linalg.lstsq(waves, out, rcond=None)[0]
            rows.append({
                "tr": tr, "kind": kind, "frequency": frequency, "amplitude": float(np.hypot(*fit)),
                "phase_degrees": float(np.degrees(np.arctan2(fit[1], fit[0]))),
                "beside": float(np.std(out - waves @ fit) / np.std(waves @ fit)),
            })  # fmt: skip
    return rows


def aliasing(frequency: float) -> dict[str, Any]:
    """A wave beyond the target's Nyquist frequency (0.625 Hz), from TR 0.4 s: what is left of it, against no filter."""
    wave = np.cos(2 * np.pi * frequency * np.arange(0, 400, 0.4))
    out = TimeResampler(len(wave), 0.4, 0.8).push(wave[:, None].astype(np.float32))[20:-20, 0]
    return {
        "frequency": frequency,
        "left": float(out.std() / wave.std()),
        "without": float(wave[::2].std() / wave.std()),
    }


def by_voxel(x: np.ndarray) -> np.ndarray:
    """Through codes with a scale for each voxel."""
    wide = x.astype(np.float64)
    moments = VoxelMoments(wide.mean(axis=0), wide.std(axis=0), wide.min(axis=0), wide.max(axis=0))
    unit = power_of_two_unit(float(x.std()), float(np.abs(x).max()))
    scale, _ = voxel_scale(moments, unit, 12.0)
    return decode(encode(x, scale, unit)[0], scale, unit)


def by_run(x: np.ndarray) -> np.ndarray:
    """Through codes with one scale for the run: z over voxels and time, the largest value at 127."""
    z = (x - x.mean()) / x.std()
    step = np.abs(z).max() / 127
    return np.round(z / step).clip(-127, 127) * step


def correlations(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Of each column."""
    x, y = (a.astype(np.float64) - a.mean(axis=0, dtype=np.float64) for a in (x, y))
    return (x * y).sum(axis=0) / np.sqrt((x**2).sum(axis=0) * (y**2).sum(axis=0)).clip(1e-30)


def report(record: dict[str, Any]) -> str:
    """The record as markdown."""
    lines = [f"# Fidelity, {record['machine']}, {record['date']}", "", "## int8 round trip: temporal correlation", ""]
    lines += ["| series | median | 5th percentile |", "|---|---|---|"]
    lines += [f"| {row['series']} | {row['median']:.5f} | {row['p5']:.5f} |" for row in record["round_trip"]]
    lines += ["", "## Space: 2.4 mm off the lattice to the 2 mm grid, within the brain", ""]
    lines += [
        "| smoothness (FWHM mm) | interpolation | sd kept | correlation | error / sd | CPU s / frame |",
        "|" + "---|" * 6,
    ]
    lines += [
        f"| {row['fwhm_mm']:g} | {row['interpolation']} | {row['sd_kept']:.4f} | {row['correlation']:.5f} | "
        f"{row['error']:.4f} | {row['cpu_s_per_frame']:.3f} |"
        for row in record["space"]
    ]
    lines += ["", "## Time: a wave at another TR brought to 0.8 s", ""]
    lines += ["| TR s | Hz | kind | amplitude | phase (degrees) | beside it |", "|" + "---|" * 6]
    lines += [
        f"| {row['tr']:g} | {row['frequency']:g} | {row['kind']} | {row['amplitude']:.4f} | "
        f"{row['phase_degrees']:.3f} | {row['beside']:.4f} |"
        for row in record["time"]
    ]
    lines += ["", "Beyond the target's Nyquist frequency of 0.625 Hz, from TR 0.4 s:", ""]
    lines += ["| Hz | left of the wave | without a filter |", "|---|---|---|"]
    lines += [f"| {row['frequency']:g} | {row['left']:.4f} | {row['without']:.4f} |" for row in record["aliasing"]]
    return "\n".join(lines)


def _kept(name: str, found: np.ndarray) -> dict[str, Any]:
    return {"series": name, "median": float(np.median(found)), "p5": float(np.percentile(found, 5))}


if __name__ == "__main__":
    main()
