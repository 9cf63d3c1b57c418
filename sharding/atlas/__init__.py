"""Atlases on the canonical grid: labels of every voxel, their names and groups, and which patches a region lies in.

labels.py brings a label image to the grid, occupancy.py counts regions in patches, store.py keeps an atlas as a folder
(`fmri-shards atlas`), summary.py and picture.py tell what became of it, fetch.py asks nilearn for a well-known one.
"""

from sharding.atlas.labels import Label, load_label_image_on_grid, load_labels_tsv
from sharding.atlas.occupancy import patch_occupancy, region_labels, voted

__all__ = [
    "Label",
    "load_label_image_on_grid",
    "load_labels_tsv",
    "patch_occupancy",
    "region_labels",
    "voted",
]
