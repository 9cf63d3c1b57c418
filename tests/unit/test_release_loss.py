"""A release keeps how its model was masked and scored, and reconstructs accordingly."""

import json
from dataclasses import replace

import pytest
import torch

from fmri_scale.config import LossConfig, MaskConfig
from fmri_scale.release import from_pretrained
from fmri_scale.release.export import export
from tests.helpers.tiny_run import tiny_config, write_run

NORMALISED = LossConfig(patch_norm=True, temporal_weight=0.25)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """The release of a run that hid groups and compared normalised patches."""
    home = tmp_path_factory.mktemp("release")
    mask = MaskConfig("group", 1.0, atlas="/somewhere/private/aal3", groups=["limbic"], loss_on="brain")
    write_run(home / "run", replace(tiny_config(), mask=mask, loss=NORMALISED))
    export(home / "run", home / "out")
    return home / "out"


def test_loss_and_masks_travel_without_paths(folder):
    content = json.loads((folder / "config.json").read_text())
    assert content["loss"] == {
        "patch_norm": True,
        "temporal_weight": 0.25,
        "region_weights": {},
        "equal_regions": False,
    }
    assert content["mask"]["atlas"] == "aal3"
    assert content["mask"]["groups"] == ["limbic"]
    assert from_pretrained(folder).model.loss == NORMALISED


def test_reconstruction_of_normalised_patches_has_the_clips_level(folder):
    """Predictions are brought back by each patch's own mean and deviation over the brain: they scale with the clip."""
    model = from_pretrained(folder)
    volume = torch.randn(1, 1, 96, 96, 96, 6, generator=torch.Generator().manual_seed(0))
    low, high = (model.reconstruct(scale * volume + shift).volume for scale, shift in ((1.0, 0.0), (1.0, 500.0)))
    inside = torch.from_numpy(model.mask)
    assert float((high - low)[0, 0][inside].detach().mean()) == pytest.approx(500.0, rel=0.05)


def test_region_masks_are_replaced_by_tokens_under_the_trained_mask_token(folder, monkeypatch):
    model = from_pretrained(folder)
    seen = []
    forward = model.model.forward

    def watch(volume, mask, *args, **kwargs):
        seen.append(mask)
        return forward(volume, mask, *args, **kwargs)

    monkeypatch.setattr(model.model, "forward", watch)
    found = model.reconstruct(torch.zeros(1, 1, 96, 96, 96, 6))
    assert seen[0].strategy == "region"
    assert float(found.hidden.float().mean()) == pytest.approx(0.5)
