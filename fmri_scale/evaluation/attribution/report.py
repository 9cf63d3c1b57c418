"""Attribution on disk: tables by region and group, maps as NIfTI, bars and brains as pictures, one page."""

import html
import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from fmri_scale.checkpoint.files import write_text
from fmri_scale.evaluation.attribution.figures import bar_chart, brain_figures
from fmri_scale.evaluation.attribution.regions import Regions
from fmri_scale.evaluation.attribution.statistic import RegionEvidence
from fmri_scale.evaluation.attribution.task import Attribution
from fmri_scale.evaluation.bootstrap import Interval, resample
from fmri_scale.evaluation.report import STYLE
from sharding.mask_image import map_bytes

SIGNIFICANT = 0.05


def save_attribution(found: Attribution, out: Path, title: str) -> pd.DataFrame:
    """Write an attribution; return the table by region, the most important first."""
    out.mkdir(parents=True, exist_ok=True)
    regions, tested = found.regions, len(found.by_region.null) > 0
    facts = {"region": regions.name, "group": regions.group, "voxels": regions.num_voxels}
    table = pd.DataFrame({**facts, **_columns(found.by_region)})
    table["per_voxel"] = table["statistic"] / table["voxels"]
    table = table.sort_values("rank", kind="stable").reset_index(drop=True)
    groups = pd.DataFrame({"group": found.group_names, **_columns(found.by_group)}).sort_values("rank", kind="stable")
    write_text(out / "regions.csv", table.to_csv(index=False))
    write_text(out / "groups.csv", groups.to_csv(index=False))
    shown = found.by_region.z if tested else found.by_region.statistic
    what = "z against permuted labels" if tested else "effect"
    pictures = save_map(regions, shown, out, "attribution", f"{title}: {what}")
    marked = found.by_region.p_fwe < SIGNIFICANT
    bar_chart(out / "regions.png", regions.name, found.by_region.statistic, found.by_region.null, title, marked)
    pictures.insert(0, out / "regions.png")
    if found.group_names:
        passed = found.by_group.p_fwe < SIGNIFICANT
        evidence = found.by_group
        bar_chart(out / "groups.png", found.group_names, evidence.statistic, evidence.null, f"{title}: groups", passed)
        pictures.insert(1, out / "groups.png")
    sentences = [
        f"{found.num_units} {found.side} units; effect of a region in favour of the truth, summed over its voxels.",
        f"{len(found.by_region.null)} permutations of the truth over groups.",
    ]
    write_text(out / "report.html", _page(title, sentences, [table, groups], pictures))
    return table


def save_errors(errors: np.ndarray, regions: Regions, out: Path, title: str, num_draws: int = 2000) -> pd.DataFrame:
    """Write reconstruction errors (runs, R) with intervals over runs; return the table, the best region first.

    Parameters
    ----------
    errors
        float64 (people, R), one row a person; NaN where nothing was hidden. One person has no interval: NaN.
    """
    out.mkdir(parents=True, exist_ok=True)
    intervals = _error_intervals(errors, num_draws)
    mean = np.array([interval.value for interval in intervals])
    table = pd.DataFrame(
        {
            "region": regions.name,
            "group": regions.group,
            "voxels": regions.num_voxels,
            "error": mean,
            "low": [interval.low for interval in intervals],
            "high": [interval.high for interval in intervals],
        }
    ).sort_values("error", kind="stable", ignore_index=True)
    write_text(out / "regions.csv", table.to_csv(index=False))
    groups = table[table["group"] != ""].groupby("group", as_index=False)["error"].mean().sort_values("error")
    write_text(out / "groups.csv", groups.to_csv(index=False))
    explained = 1 - mean
    pictures = save_map(regions, explained, out, "reconstruction", f"{title}: variance explained when hidden")
    bar_chart(
        out / "regions.png", regions.name, explained, np.empty((0, len(regions))), f"{title}: variance explained",
        np.zeros(len(regions), dtype=bool),
    )  # fmt: skip
    people = f"{len(errors)} people" if len(errors) > 1 else "One person, so no intervals"
    sentences = [f"{people}. Error of hidden voxels over their variance about a still picture: 0 is perfect."]
    write_text(out / "report.html", _page(title, sentences, [table, groups], [out / "regions.png", *pictures]))
    return table


def _error_intervals(errors: np.ndarray, num_draws: int) -> list[Interval]:
    """Mean error of each region with its interval over people, whose bounds are NaN for fewer than two."""
    known = ~np.isnan(errors)
    filled = np.where(known, errors, 0)
    with np.errstate(invalid="ignore"):
        mean = filled.sum(axis=0) / known.sum(axis=0)
        if len(errors) < 2:
            return [Interval(float(value), np.nan, np.nan) for value in mean]
        resampling = resample(len(errors), num_draws, seed=0)
        draws = (resampling.counts @ filled) / (resampling.counts @ known)
    return [resampling.interval(float(value), draws[:, region]) for region, value in enumerate(mean)]


def save_map(regions: Regions, values: np.ndarray, out: Path, stem: str, title: str) -> list[Path]:
    """Write a map as NIfTI and its pictures; return the pictures."""
    image = out / f"{stem}.nii.gz"
    aside = out / f".{stem}.{os.getpid()}.tmp"
    aside.write_bytes(map_bytes(regions.on_grid(np.nan_to_num(values))))
    os.replace(aside, image)
    return brain_figures(out, stem, image, title)


def _columns(found: RegionEvidence) -> dict[str, np.ndarray]:
    names = ("statistic", "z", "p", "p_fwe", "rank")
    return {name: getattr(found, name) for name in names}


def _page(title: str, sentences: Sequence[str], tables: Sequence[pd.DataFrame], pictures: Sequence[Path]) -> str:
    images = [f'<p><img src="{html.escape(picture.name)}" alt="{html.escape(picture.stem)}">' for picture in pictures]
    return "\n".join(
        [
            f"<!doctype html><meta charset=utf-8><title>{html.escape(title)}</title><style>{STYLE}</style>",
            f"<h1>{html.escape(title)}</h1>",
            *(f"<p>{html.escape(sentence)}" for sentence in sentences),
            *images,
            *(table.to_html(index=False, float_format=lambda value: f"{value:.4g}") for table in tables),
        ]
    )
