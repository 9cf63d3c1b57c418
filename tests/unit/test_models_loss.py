"""Options of the loss: each against its definition written out, the plain loss unchanged, gradients exact."""

from dataclasses import replace

import nibabel as nib
import numpy as np
import pytest
import torch

from fmri_scale.config import AugmentConfig, Config, DataConfig, LossConfig, MaskConfig, load_config
from fmri_scale.errors import ConfigError
from fmri_scale.models import MaskedAutoencoder
from fmri_scale.models.loss import masked_loss, patch_moments
from fmri_scale.training.mask_atlas import MaskAtlas
from fmri_scale.training.objective import reads_codes
from sharding.format import GRID_AFFINE
from tests.helpers.tiny_models import clips, drawn, tiny

CLIPS, POSITIONS, FRAMES, VALUES, WIDTH = 3, 5, 6, 4, 7


@pytest.fixture
def case():
    """Head, features, patches, hidden tokens and weights of values, float64; clip 2 hides a run of frames."""
    draw = torch.Generator().manual_seed(0)
    new = {"generator": draw, "dtype": torch.float64}
    head = torch.randn(VALUES, WIDTH, **new).requires_grad_()
    features = torch.randn(CLIPS, POSITIONS * FRAMES, WIDTH, **new).requires_grad_()
    patches = torch.randn(CLIPS, POSITIONS * FRAMES, VALUES, **new)
    hidden = torch.rand(CLIPS, POSITIONS * FRAMES, generator=draw) < 0.5
    hidden[2] = False
    hidden[2, 6:11] = True
    weights = torch.rand(POSITIONS, VALUES, generator=draw) * (torch.rand(POSITIONS, VALUES, generator=draw) < 0.7)
    weights[1, 0] = 0.5  # the position of the run counts
    return head, features, patches, hidden, weights


def loss_of(case, options=LossConfig(), weights="given"):  # noqa: B008 - frozen by use
    head, features, patches, hidden, given = case
    weight = given if weights == "given" else weights
    return masked_loss(lambda rows: rows @ head.T, features, patches, hidden, weight, options)


def errors(case):
    """Errors of all tokens, 0 where visible: [clips, positions, frames, values]."""
    head, features, patches, hidden, _ = case
    return ((features @ head.T - patches) * hidden.unsqueeze(-1)).view(CLIPS, POSITIONS, FRAMES, VALUES)


def expected_plain(case):
    hidden, weights = case[3].view(CLIPS, POSITIONS, FRAMES, 1), case[4].view(1, POSITIONS, 1, VALUES)
    clip = (errors(case).square() * weights).sum((1, 2, 3)) / (hidden * weights).sum((1, 2, 3))
    return clip.mean()


def test_weights_make_a_weighted_mean(case):
    torch.testing.assert_close(loss_of(case), expected_plain(case))


def test_weights_of_one_are_no_weights(case):
    ones = torch.ones(POSITIONS, VALUES)
    assert torch.equal(loss_of(case, weights=ones), loss_of(case, weights=None))
    torch.testing.assert_close(loss_of(case, weights=3 * ones), loss_of(case, weights=None))


@pytest.mark.parametrize("amount", [0.3, 1.0])
def test_temporal_weight_scores_the_change_of_the_error(case, amount):
    hidden, weights = case[3].view(CLIPS, POSITIONS, FRAMES), case[4]
    total = torch.zeros((), dtype=torch.float64)
    error = errors(case)
    for clip in range(CLIPS):
        change, ends = 0.0, 0.0
        for position in range(POSITIONS):
            for frame in range(1, FRAMES):
                step = error[clip, position, frame] - error[clip, position, frame - 1]
                change = change + (weights[position] * step.square()).sum()
                ends += int(hidden[clip, position, frame - 1 : frame + 1].sum()) * float(weights[position].sum())
        total = total + change / ends / CLIPS
    expected = (1 - amount) * expected_plain(case) + amount * total
    torch.testing.assert_close(loss_of(case, LossConfig(temporal_weight=amount)), expected)


def test_a_constant_error_cancels_in_the_change():
    """Everything hidden at one position for the whole clip, the prediction off by the same everywhere."""
    patches = torch.randn(1, FRAMES, VALUES, dtype=torch.float64)
    hidden = torch.ones(1, FRAMES, dtype=torch.bool)
    found = masked_loss(lambda rows: rows, patches + 3.0, patches, hidden, None, LossConfig(temporal_weight=1.0))
    assert float(found) == pytest.approx(0.0, abs=1e-12)
    plain = masked_loss(lambda rows: rows, patches + 3.0, patches, hidden, None)
    assert float(plain) == pytest.approx(9.0)


def test_independent_errors_give_the_plain_loss_in_the_mean():
    draw = torch.Generator().manual_seed(1)
    patches = torch.zeros(1, 4000 * FRAMES, VALUES, dtype=torch.float64)
    off = torch.randn(patches.shape, generator=draw, dtype=torch.float64)
    hidden = torch.rand(1, 4000 * FRAMES, generator=draw) < 0.6
    weights = torch.ones(4000, VALUES)
    change = masked_loss(lambda rows: rows, off, patches, hidden, weights, LossConfig(temporal_weight=1.0))
    assert float(change) == pytest.approx(1.0, abs=0.02)


def test_patch_norm_compares_shape_not_level_and_contrast(case):
    head, features, patches, hidden, weights = case
    options = LossConfig(patch_norm=True)
    contrast = 10 + torch.rand(CLIPS, patches.shape[1], 1, generator=torch.Generator().manual_seed(4))
    larger = (head, features, 10 * patches, hidden, weights)  # next to 1e-6, the guard of patches of one value
    scaled = (head, features, contrast * patches + 5.0, hidden, weights)
    torch.testing.assert_close(loss_of(scaled, options), loss_of(larger, options), rtol=1e-4, atol=0)
    counted = (weights > 0).double()
    expected = patches.clone().view(CLIPS, POSITIONS, FRAMES, VALUES)
    for position in range(POSITIONS):
        mine = expected[:, position]
        inside = counted[position].bool()
        if inside.any():
            mean = mine[..., inside].mean(-1, keepdim=True)
            sd = (mine[..., inside].var(-1, unbiased=False, keepdim=True) + 1e-6).sqrt()
            expected[:, position] = (mine - mean) / sd
    normalised = (head, features, expected.view_as(patches), hidden, weights)
    torch.testing.assert_close(loss_of(case, options), loss_of(normalised))
    mean, sd = patch_moments(patches, None)
    torch.testing.assert_close(mean, patches.mean(-1, keepdim=True))
    torch.testing.assert_close(sd, (patches.var(-1, unbiased=False, keepdim=True) + 1e-6).sqrt())


@pytest.mark.parametrize("options", [LossConfig(), LossConfig(patch_norm=True), LossConfig(temporal_weight=0.4),
                                     LossConfig(patch_norm=True, temporal_weight=1.0)])  # fmt: skip
def test_gradients_are_exact(case, options):
    head, features, patches, hidden, weights = case

    def loss(head, features):
        return masked_loss(lambda rows: rows @ head.T, features, patches, hidden, weights, options)

    assert torch.autograd.gradcheck(loss, (head, features))


@pytest.mark.parametrize("options", [LossConfig(), LossConfig(patch_norm=True, temporal_weight=0.5)])
def test_every_clip_counts_alike(case, options):
    head, features, patches, hidden, weights = case
    alone = [
        masked_loss(
            lambda rows: rows @ head.T, features[i : i + 1], patches[i : i + 1], hidden[i : i + 1], weights, options
        )
        for i in range(CLIPS)
    ]
    torch.testing.assert_close(loss_of(case, options), torch.stack(alone).mean())
    hidden[1] = False
    torch.testing.assert_close(loss_of(case, options), (alone[0] + alone[2]) / CLIPS)


def test_predictions_of_normalised_patches_come_back_in_the_clips_units():
    config = tiny()
    volume, mask = 40 * clips(config, 2) + 700, drawn(config, 2)
    brain = torch.rand(24, 24, 24, generator=torch.Generator().manual_seed(0)) < 0.8
    model = MaskedAutoencoder(config, 0, LossConfig(patch_norm=True)).eval()
    plain = MaskedAutoencoder(config, 0).eval()
    with torch.no_grad():
        ours, raw = model(volume, mask, brain).prediction, plain(volume, mask, brain).prediction
    patch = volume[1, 0, 3:6, 0:3, 21:24, 2].flatten()
    inside = brain[3:6, 0:3, 21:24].flatten()
    token = ((1 * 8 + 0) * 8 + 7) * 4 + 2
    mean, sd = patch[inside].mean(), patch[inside].std(unbiased=False)
    torch.testing.assert_close(ours[1, token], raw[1, token] * sd + mean, rtol=1e-4, atol=1e-2)


def test_codes_are_decoded_where_the_loss_is_not_the_plain_one():
    config = Config(data=DataConfig(normalisation="run_z"))
    assert reads_codes(config)
    for options in (LossConfig(patch_norm=True), LossConfig(temporal_weight=0.1), LossConfig(equal_regions=True),
                    LossConfig(region_weights={"limbic": 2.0})):  # fmt: skip
        assert not reads_codes(replace(config, loss=options))
    assert not reads_codes(replace(config, augment=AugmentConfig(noise_sd=0.1)))


@pytest.fixture(scope="module")
def atlas(tmp_path_factory):
    """Two regions of 1000 and 8 voxels, one in each group."""
    home = tmp_path_factory.mktemp("atlas")
    labels = np.zeros((96, 96, 96), dtype=np.uint8)
    labels[20:30, 20:30, 20:30], labels[60:62, 60:62, 60:62] = 2, 5
    nib.save(nib.Nifti1Image(labels, GRID_AFFINE), home / "a.nii.gz")
    (home / "a.tsv").write_text("index\tname\tgroup\n2\tlarge\tcortex\n5\tsmall\tlimbic\n")
    mask = MaskConfig("token", atlas=str(home / "a.nii.gz"), labels=str(home / "a.tsv"))
    return MaskAtlas(mask, (6, 6, 6), torch.device("cpu"))


def test_regions_weigh_as_asked(atlas):
    weights = atlas.voxel_weights(LossConfig(region_weights={"limbic": 3.0, "large": 0.5}), (1, 1, 1))
    assert weights[25, 25, 25] == 0.5
    assert weights[61, 61, 61] == 3.0
    assert weights[0, 0, 0] == 1.0
    equal = atlas.voxel_weights(LossConfig(equal_regions=True), (1, 1, 1))
    assert equal[20:30, 20:30, 20:30].sum() == pytest.approx(float(equal[60:62, 60:62, 60:62].sum()))
    assert equal[atlas.labels > 0].mean() == pytest.approx(1.0)
    named = atlas.voxel_weights(LossConfig(region_weights={"small": 3.0, "limbic": 9.0}), (1, 1, 1))
    assert named[61, 61, 61] == 3.0, "its name goes before its group"
    coarse = atlas.voxel_weights(LossConfig(region_weights={"small": 3.0}), (4, 4, 4))
    assert coarse.shape == (24, 24, 24)
    assert coarse[15, 15, 15] == pytest.approx(1 + 2 * 8 / 64)
    with pytest.raises(ConfigError, match="no region or group 'hippocampus'"):
        atlas.voxel_weights(LossConfig(region_weights={"hippocampus": 2.0}), (1, 1, 1))


@pytest.mark.parametrize(
    ("items", "message"),
    [
        (["loss.temporal_weight=1.5"], "a share from 0 to 1"),
        (["loss.temporal_weight=0.5", "model.num_frames=1"], "clips of one frame"),
        (["loss.equal_regions=true"], r"need mask\.atlas"),
        (["loss.region_weights.limbic=2"], r"need mask\.atlas"),
        (["loss.region_weights.limbic=-2", "mask.atlas=a"], "at least 0"),
    ],
)
def test_options_that_make_no_sense_are_refused(items, message):
    with pytest.raises(ConfigError, match=message):
        load_config([], items)
