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

PICTURES = "pictures"
PLANES = ("sagittal", "coronal", "axial")


def fixed_clip(config: Config, corpora: Sequence[Corpus]) -> ClipBatch:
    """Return one clip that stays the same through the run: of the validation split, or of the training split's."""
    for split in ("val", config.data.split):
        try:
            return next(iter(validation_clips(corpora, config.data, config.model.num_frames, 1, 0, 1, 1, split)))
        except DataError:
            if split == config.data.split:
                raise
    raise AssertionError("one of the two splits was used or raised")


def draw_reconstruction(
    engine: Any,
    model: MaskedAutoencoder,
    volumes: Callable[[ClipBatch], tuple],
    batch: ClipBatch,
    path: Path,
    title: str,
    draws: bool,
) -> None:
    """Draw input, masked input and reconstruction of a clip's middle frame in three planes; all ranks call it."""
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
    centre = [round(axis.mean()) for axis in np.nonzero(scored)]
    _draw_panels(panels, centre, f"{title}, loss {output.loss.item():.4f}", path)


def three_panels(
    seen: np.ndarray, covered: np.ndarray, predicted: np.ndarray, scored: np.ndarray
) -> dict[str, np.ndarray]:
    """Return the volumes `[X, Y, Z]` to show: input, the same with hidden voxels NaN, the same with them predicted.

    What the model says where it is not scored (outside the brain) means nothing and is left out.
    """
    return {
        "input": seen,
        "masked input": np.where(covered, np.nan, seen),
        "reconstruction": np.where(covered & scored, predicted, seen),
    }


def draw_loss(run_dir: Path, path: Path) -> None:
    """Draw the loss of a run over its steps from metrics.jsonl."""
    rows = [row for row in read_metrics(run_dir) if row["loss"] is not None]
    plt = _pyplot()
    figure, axes = plt.subplots(figsize=(7, 4))
    axes.plot([row["step"] for row in rows], [row["loss"] for row in rows], color="tab:blue")
    axes.set(xlabel="step", ylabel="loss (mean squared error on hidden voxels)", title="training loss")
    axes.grid(alpha=0.3)
    _save(figure, path)


def slice_of(volume: np.ndarray, plane: int, index: int) -> np.ndarray:
    """Return a plane of a RAS volume as an image: up is superior or (axial) anterior, right is right or anterior."""
    return np.flipud(np.take(volume, index, axis=plane).T)


def _draw_panels(panels: dict[str, np.ndarray], centre: Sequence[int], title: str, path: Path) -> None:
    plt = _pyplot()
    low, high = np.percentile(panels["input"], [1, 99.5])
    colours = plt.get_cmap("gray").with_extremes(bad="darkslateblue")
    figure, axes = plt.subplots(len(PLANES), len(panels), figsize=(8, 8.4), squeeze=False)
    for row, plane in enumerate(PLANES):
        for column, (name, volume) in enumerate(panels.items()):
            panel = axes[row][column]
            panel.imshow(slice_of(volume, row, centre[row]), cmap=colours, vmin=low, vmax=high, interpolation="nearest")
            panel.set_xticks([])
            panel.set_yticks([])
            if row == 0:
                panel.set_title(name)
            if column == 0:
                panel.set_ylabel(plane)
    figure.suptitle(title, y=0.95)
    _save(figure, path)


def _pyplot() -> Any:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    return pyplot


def _save(figure: Any, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_suffix(".tmp.png")
    figure.savefig(aside, dpi=110, bbox_inches="tight")
    aside.replace(path)
    _pyplot().close(figure)
