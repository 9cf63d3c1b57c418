"""Pictures to judge a run by: what the model saw, what was hidden, what it made of it; and the loss curve.

PNG files in the run's folder, drawn without a display. All ranks take part in the forward pass (ZeRO-3 needs them
all); rank 0 draws.
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from fmri_scale.config import Config
from fmri_scale.data import ClipBatch, validation_clips
from fmri_scale.errors import DataError
from fmri_scale.models import MaskedAutoencoder
from fmri_scale.training.metrics import read_metrics
from sharding.corpus import Corpus
from sharding.format import GRID_AFFINE, GRID_SHAPE
from sharding.planes import PLANES, mark_sides, png_bytes, pyplot, slice_of

PICTURES = "pictures"
SIGNAL = {
    "run_z": "BOLD signal (standard deviations of the run)",
    "voxel_z": "BOLD signal (standard deviations of the voxel)",
    "frame_z": "BOLD signal (standard deviations of the frame)",
    "none": "BOLD signal (as in the file)",
}
"What the shades mean, by normalisation."
HIDDEN = "darkslateblue"
TRIES = 8
"Clips of a split tried for a picture where data.on_bad_sample=substitute."


def fixed_clip(config: Config, corpora: Sequence[Corpus]) -> ClipBatch:
    """Return one clip that stays the same through the run: of the validation split, or of the training split's.

    With data.on_bad_sample=substitute the first of `TRIES` clips of a split that can be read.

    Raises
    ------
    DataError : none can be read.
    """
    tries = TRIES if config.data.on_bad_sample == "substitute" else 1
    for split in ("val", config.data.split):
        for number in range(tries):
            try:
                return _one_of(tries, number, split, config, corpora)
            except DataError as error:
                last = error
    raise last


def _one_of(clips: int, number: int, split: str, config: Config, corpora: Sequence[Corpus]) -> ClipBatch:
    """Return the clip of that number, of so many spread over a split (its first one where there are fewer)."""
    frames = config.model.num_frames
    batch = next(iter(validation_clips(corpora, config.data, frames, 1, number, clips, clips, split)))
    batch.valid.fill_(True)
    return batch


def draw_reconstruction(
    engine: Any,
    model: MaskedAutoencoder,
    volumes: Callable[[ClipBatch], tuple],
    batch: ClipBatch,
    path: Path,
    title: str,
    signal: str,
    draws: bool,
) -> None:
    """Draw input, masked input and reconstruction of a clip's middle frame in three planes; all ranks call it.

    `signal` says what the shades mean.
    """
    volume, mask, brain = volumes(batch)
    engine.eval()
    with torch.no_grad():
        output = engine(volume, mask, brain)
    engine.train()
    if not draws:
        return
    hidden = mask.hidden.unsqueeze(-1).expand_as(output.prediction)
    seen = volume[0, 0].float().cpu().numpy()
    covered = model.unpatchify(hidden.float())[0, 0].cpu().numpy() > 0
    predicted = model.unpatchify(output.prediction.float())[0, 0].cpu().numpy()
    scored = np.ones(seen.shape[:3], dtype=bool) if brain is None else brain.cpu().numpy() > 0
    frame = seen.shape[-1] // 2
    panels = three_panels(seen[..., frame], covered[..., frame], predicted[..., frame], scored)
    title = f"{title}, frame {frame + 1} of {seen.shape[-1]}; loss {output.loss.item():.4f}"
    _write(path, _panels(panels, scored, title, signal))


def three_panels(
    seen: np.ndarray, covered: np.ndarray, predicted: np.ndarray, scored: np.ndarray
) -> dict[str, np.ndarray]:
    """Return the volumes `[X, Y, Z]` to show: input, the same with hidden voxels NaN, the same with them predicted.

    What the model says where it is not scored (outside the brain) means nothing and is left out.
    """
    return {
        "input": seen,
        "masked input (blue: hidden)": np.where(covered, np.nan, seen),
        "reconstruction": np.where(covered & scored, predicted, seen),
    }


def draw_loss(run_dir: Path, path: Path, meaning: str = "loss") -> None:
    """Draw the loss of a run over its steps, and that of validation where there is one, from metrics.jsonl."""
    rows = read_metrics(run_dir)
    figure, axes = pyplot().subplots(figsize=(7, 4))
    for key, name, style in (("loss", "training", "-"), ("val_loss", "validation", "o--")):
        points = [(row["step"], row[key]) for row in rows if row.get(key) is not None]
        if points:
            axes.plot(*zip(*points, strict=True), style, markersize=4, label=name)
    axes.set(xlabel="step", ylabel=meaning, title="loss")
    axes.grid(alpha=0.3)
    axes.legend(frameon=False)
    _write(path, figure)


def _panels(panels: dict[str, np.ndarray], scored: np.ndarray, title: str, signal: str) -> Any:
    """Return a figure of a row a plane and a column a panel, cut at the middle of what is scored."""
    centre = [round(axis.mean()) for axis in np.nonzero(scored)]
    low, high = np.percentile(panels["input"][scored], [10, 99.5])  # what is scored has a rim of voxels without brain
    colours = pyplot().get_cmap("gray").with_extremes(bad=HIDDEN)
    figure, axes = pyplot().subplots(len(PLANES), len(panels), figsize=(8.6, 8.2), squeeze=False, layout="compressed")
    for plane, row in enumerate(axes):
        for panel, (name, volume) in zip(row, panels.items(), strict=True):
            cut = slice_of(volume, plane, centre[plane])
            shades = panel.imshow(cut, cmap=colours, vmin=low, vmax=high, interpolation="nearest")
            mark_sides(panel, plane, "gold")
            if plane == 0:
                panel.set_title(name)
        row[0].set_ylabel(f"{PLANES[plane]}, {'xyz'[plane]} = {place_mm(centre[plane], plane, scored.shape):.0f} mm")
    figure.colorbar(shades, ax=axes, shrink=0.6, extend="both", label=signal)
    figure.suptitle(title, fontsize="medium")
    return figure


def place_mm(index: int, axis: int, shape: Sequence[int]) -> float:
    """Return where the middle of a voxel lies in MNI152 space, of the grid or of an image reduced by whole numbers."""
    in_grid = (index + 0.5) * GRID_SHAPE[axis] / shape[axis] - 0.5
    return float(GRID_AFFINE[axis, 3] + GRID_AFFINE[axis, axis] * in_grid)


def _write(path: Path, figure: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_suffix(".tmp.png")
    aside.write_bytes(png_bytes(figure, dpi=110))
    aside.replace(path)
