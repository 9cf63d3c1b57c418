"""Well-known atlases through nilearn's fetchers: downloaded once into nilearn's own folder, never kept by this project.

In: a name. Out: the file of a label image in MNI152 space and its table. Each atlas has its own licence; nilearn's
description of it is the place to read it. Without a network (and without an earlier download) this fails in one line.
"""

import gzip
from collections.abc import Callable
from pathlib import Path
from typing import Any

from sharding.atlas.labels import Label
from sharding.errors import InputError
from sharding.write import write_whole

ATLASES = ("aal", "schaefer", "harvard_oxford", "destrieux")


def fetch_atlas(name: str, regions: int = 400) -> tuple[Path, list[Label]]:
    """Fetch an atlas.

    Parameters
    ----------
    name
        aal (version 3v2), schaefer (2018, groups are the 7 networks), harvard_oxford (cortical, 25 %, sides apart) or
        destrieux (2009, sides apart).
    regions
        Of schaefer: 100 to 1000 in hundreds.

    Returns
    -------
    The image's file, and the table of its labels.

    Raises
    ------
    InputError
        The atlas is unknown, or can be neither downloaded nor found.
    """
    from nilearn import datasets

    fetchers: dict[str, Callable[[], Any]] = {
        "aal": lambda: datasets.fetch_atlas_aal(version="3v2", verbose=0),
        "schaefer": lambda: datasets.fetch_atlas_schaefer_2018(n_rois=regions, resolution_mm=2, verbose=0),
        "harvard_oxford": lambda: datasets.fetch_atlas_harvard_oxford(
            "cort-maxprob-thr25-2mm", symmetric_split=True, verbose=0
        ),
        "destrieux": lambda: datasets.fetch_atlas_destrieux_2009(lateralized=True, verbose=0),
    }
    if name not in fetchers:
        raise InputError(f"atlas {name!r}; expected one of {', '.join(fetchers)}")
    if name == "schaefer" and regions not in range(100, 1001, 100):
        raise InputError(f"schaefer with {regions} regions; expected 100 to 1000 in hundreds")
    try:
        found = fetchers[name]()
    except (OSError, ValueError, RuntimeError) as error:  # requests' errors are OSErrors; nilearn adds its own kinds
        reason = " ".join(str(error).split())[:160]
        raise InputError(
            f"atlas {name}: could not be fetched ({type(error).__name__}: {reason}); it needs a network once, or give "
            "the image and its table by path: fmri-shards atlas IMAGE --labels TSV"
        ) from error
    return _image(found, name), _table(found, name)


def _image(found: Any, name: str) -> Path:
    """File of the label image; one that nilearn gives in memory (sides told apart) is kept beside its source."""
    maps = found["maps"]
    if isinstance(maps, str | Path):
        return Path(maps)
    target = Path(found["filename"]).with_name(f"fmri_scale_{name}.nii.gz")
    try:
        write_whole(target, gzip.compress(maps.to_bytes(), mtime=0))
    except OSError as error:
        raise InputError(
            f"{target}: cannot be written ({error.strerror}); make nilearn's data folder writable"
        ) from error
    return target


def _table(found: Any, name: str) -> list[Label]:
    if "lut" in found and found["lut"] is not None:
        pairs = list(zip(found["lut"]["index"], found["lut"]["name"], strict=True))
    elif "indices" in found:
        pairs = list(zip(found["indices"], found["labels"], strict=True))
    else:
        names = [text.decode() if isinstance(text, bytes) else str(text) for text in found["labels"]]
        first = 0 if names and names[0].lower() == "background" else 1
        pairs = list(enumerate(names, start=first))
    labels = [Label(int(index), str(text), _group(str(text), name)) for index, text in pairs]
    return [label for label in labels if label.index != 0]


def _group(text: str, name: str) -> str:
    """Network of a Schaefer parcel, as its name says it (7Networks_LH_Vis_1)."""
    parts = text.split("_")
    return parts[2] if name == "schaefer" and len(parts) > 3 else ""
