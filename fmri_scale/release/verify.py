"""Prove a release sound: every byte, every fact against the others, and the numbers this machine computes.

In: a folder, or a name on the hub. Out: what was checked, a line each; the first fault is a CheckpointError.
"""

from pathlib import Path

import torch

from fmri_scale.errors import CheckpointError
from fmri_scale.release import checksums, layout, reference
from fmri_scale.release.card import model_card
from fmri_scale.release.load import from_pretrained, locate


def verify_release(source: str | Path, revision: str | None = None, device: str | torch.device = "cpu") -> list[str]:
    """Check a release whole.

    Parameters
    ----------
    source, revision : as for `from_pretrained`.
    device : where the reference clip is run.

    Returns
    -------
    What was found, a line for each check.

    Raises
    ------
    CheckpointError : the first thing that does not hold, by file.
    """
    folder = locate(source, revision)
    listed = checksums.verify(folder)
    model = from_pretrained(folder, device=device)
    found = [f"{len(listed)} files, {sum(entry['bytes'] for entry in listed.values()):,} bytes: checksums agree"]
    found.append(f"{sum(p.numel() for p in model.parameters()):,} parameters: exactly those of the configuration")
    if not all(p.isfinite().all() for p in model.parameters()):
        raise CheckpointError(f"{folder / layout.WEIGHTS}: holds values that are not finite")
    if (folder / layout.CARD).read_text() != model_card(folder):
        found.append("model card: edited by hand since the export")
    else:
        found.append("model card: says what the files say")
    error = reference.deviation(model, layout.read_json(folder / layout.REFERENCE))
    found.append(
        f"reference output on {model.device}: relative deviation {error:.1e}, at most {reference.TOLERANCE:.0e}"
    )
    found.append(f"release {model.identity}")
    return found
