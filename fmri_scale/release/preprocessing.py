"""What must be done to a NIfTI run before a released model may see it, as `preprocessing.json` records it.

The settings are those of the corpus the model was trained on (`sharding.PreprocessingSettings`), with the
normalisation and clip length of the run. Nothing is processed here: `sharding.prepare_run` and `data.decode` do that.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np

from fmri_scale.errors import CheckpointError
from sharding.errors import ShardingError
from sharding.format import GRID_AFFINE, GRID_SHAPE
from sharding.mask import mask_sha256
from sharding.preprocessing import PreprocessingSettings
from sharding.quantise import CODE_MAX

NORMALISATIONS = ("run_z", "voxel_z", "frame_z", "none")


@dataclass(frozen=True)
class Preprocessing:
    """How a run becomes the clips of a model.

    Attributes
    ----------
    settings : time resampling, handling of negatives, reach of the int8 codes.
    normalisation : run_z, voxel_z, frame_z or none; applied when codes are decoded.
    num_frames : frames of a clip.
    mask_sha256 : identity of the voxels that are stored (`sharding.mask.mask_sha256`); all others are background.
    mask_voxels : their number.
    """

    settings: PreprocessingSettings
    normalisation: str
    num_frames: int
    mask_sha256: str
    mask_voxels: int

    @classmethod
    def of(
        cls, settings: PreprocessingSettings, normalisation: str, num_frames: int, mask: np.ndarray
    ) -> "Preprocessing":
        """Describe a mask (bool, on the canonical grid) and what goes with it."""
        return cls(settings, normalisation, num_frames, mask_sha256(mask), int(mask.sum()))

    def to_json(self) -> dict[str, Any]:
        """As it stands in `preprocessing.json`, with the facts a reader without this package needs."""
        return {
            "grid": {
                "space": "MNI152",
                "orientation": "RAS",
                "shape": list(GRID_SHAPE),
                "affine": GRID_AFFINE.tolist(),
                "interpolation": "by affine: cropped and padded where the lattices agree, else trilinear",
            },
            "mask": {"file": "mask.nii.gz", "voxels": self.mask_voxels, "sha256": self.mask_sha256},
            "settings": self.settings.to_json(),
            "quantisation": {
                "dtype": "int8",
                "largest_code": CODE_MAX,
                "signal": "x = unit * (offset + step * code), offset and step of each voxel and run as float16",
            },
            "normalisation": self.normalisation,
            "clip": {"num_frames": self.num_frames, "seconds": self._seconds()},
        }

    @classmethod
    def from_json(cls, content: dict[str, Any], where: str) -> "Preprocessing":
        """Read what `to_json` gave; CheckpointError for another grid or code, or a value that makes no sense."""
        try:
            grid, largest = content["grid"], content["quantisation"]["largest_code"]
            if tuple(grid["shape"]) != GRID_SHAPE or not np.array_equal(np.array(grid["affine"]), GRID_AFFINE):
                raise CheckpointError(
                    f"{where}: grid {grid['shape']} with affine {grid['affine']} is not the canonical 2 mm grid"
                )
            if largest != CODE_MAX or content["normalisation"] not in NORMALISATIONS:
                raise CheckpointError(
                    f"{where}: codes to {largest} with normalisation {content['normalisation']!r}; this version knows "
                    f"codes to {CODE_MAX} and {', '.join(NORMALISATIONS)}; install a newer fmri_scale"
                )
            return cls(
                settings=PreprocessingSettings.from_json(content["settings"]),
                normalisation=content["normalisation"],
                num_frames=int(content["clip"]["num_frames"]),
                mask_sha256=content["mask"]["sha256"],
                mask_voxels=int(content["mask"]["voxels"]),
            )
        except (KeyError, TypeError, ValueError, ShardingError) as error:
            raise CheckpointError(
                f"{where}: cannot be used ({type(error).__name__}: {error}); fetch it again"
            ) from error

    def _seconds(self) -> float | None:
        tr = self.settings.target_tr
        return None if tr is None else round(tr * self.num_frames, 6)
