"""Masks that mean something: one share of the brain whatever is hidden, whole regions, groups, mixtures, schedules."""

from dataclasses import replace

import nibabel as nib
import numpy as np
import pytest
import torch

from fmri_scale.cli import main
from fmri_scale.config import Config, MaskConfig, load_config
from fmri_scale.config.check import check
from fmri_scale.errors import ConfigError
from fmri_scale.kernels.mask import permute, unit_mask, unit_order
from fmri_scale.models import Anatomy, draw_mask
from fmri_scale.models.drawing import at_step, drawn_strategies
from fmri_scale.models.masking import check_draws, masked_fractions, unit_of_token
from fmri_scale.training.mask_atlas import MaskAtlas, _voted
from sharding.atlas import voted
from sharding.atlas.labels import Label
from sharding.atlas.make import make_atlas
from sharding.atlas.store import write_atlas
from sharding.format import GRID_AFFINE
from tests.helpers.tiny_models import tiny

FRAMES = 6
MODEL = tiny(num_frames=FRAMES)
PATCH_VOXELS = 12**3
CLIPS = torch.arange(8)
BALL = ((torch.stack(torch.meshgrid(*[torch.arange(8)] * 3, indexing="ij")) - 3.5) ** 2).sum(0).flatten() < 12
"Positions that hold brain."


def parcels(count: int = 9) -> torch.Tensor:
    """Regions that divide the ball and a rim about it, sharing patches: int64 [count, 512]."""
    draw = torch.Generator().manual_seed(3)
    regions = torch.zeros(count, 512, dtype=torch.int64)
    for position in range(512):
        first = position * count // 512
        second = int(torch.randint(0, count, (1,), generator=draw))
        share = int(torch.randint(0, PATCH_VOXELS // 2, (1,), generator=draw))
        regions[first, position] += PATCH_VOXELS - share
        regions[second, position] += share
    return regions * (BALL | (torch.arange(512) % 5 == 0))


ANATOMY = Anatomy(parcels(), group=torch.tensor([0, 0, 1, 1, 1, 2, 2, -1, -1]), brain=BALL.int())
STRATEGIES = ("token", "window", "tube", "region", "group")


def hidden(mask: MaskConfig, anatomy: Anatomy = ANATOMY, clips: torch.Tensor = CLIPS, step: int | None = None):
    """Hidden tokens `[B, positions, frames]`."""
    return draw_mask(mask, MODEL, 5, 0, clips, "cpu", anatomy, step=step).hidden.view(len(clips), 512, FRAMES)


@pytest.mark.parametrize("ratio", [0.1, 0.35, 0.5, 0.75])
@pytest.mark.parametrize("strategy", STRATEGIES)
def test_share_of_the_brain_is_the_same_whatever_is_hidden(strategy, ratio):
    mask = MaskConfig(strategy, ratio, tube_len=0 if strategy == "tube" else 3, ratio_of="brain")
    drawn = hidden(mask)
    assert not drawn[:, ~BALL].any(), "tokens without brain say nothing and are not hidden"
    found, wanted = drawn.sum((1, 2)), round(ratio * int(BALL.sum()) * FRAMES)
    unit = 1
    if strategy in ("window", "tube"):
        unit_N, units = unit_of_token(mask, MODEL, FRAMES, torch.device("cpu"))
        unit = int(torch.zeros(units).index_add_(0, unit_N, BALL.float().repeat_interleave(FRAMES)).max())
    assert (found - wanted).abs().max() <= unit // 2
    assert (strategy in ("window", "tube")) or (found == wanted).all()
    metrics = masked_fractions(draw_mask(mask, MODEL, 5, 0, CLIPS, "cpu", ANATOMY), None)
    tolerance = (unit / 2 + 0.5) / (int(BALL.sum()) * FRAMES)
    assert float(metrics["masked_fraction_brain"]) == pytest.approx(ratio, abs=tolerance)


@pytest.mark.parametrize("strategy", ["window", "tube"])
def test_units_hidden_for_a_share_of_the_brain_are_whole_in_the_brain(strategy):
    mask = MaskConfig(strategy, 0.4, tube_len=2, ratio_of="brain")
    unit_N, units = unit_of_token(mask, MODEL, FRAMES, torch.device("cpu"))
    brain_N = BALL.repeat_interleave(FRAMES)
    for tokens in hidden(mask).flatten(1):
        for unit in range(units):
            inside = tokens[(unit_N == unit) & brain_N]
            assert inside.all() or not inside.any()


def test_order_of_units_is_that_of_the_mask():
    order = unit_order(2**63 - 5, torch.tensor([0, 3]), torch.tensor([7, 2**40 + 1]), 166)
    for k in (1, 80, 166):
        mask = unit_mask(2**63 - 5, torch.tensor([0, 3]), torch.tensor([7, 2**40 + 1]), 166, k)
        assert torch.equal(order < k, mask)
    assert torch.equal(order[0], permute(2**63 - 5, 0, 7, 166, torch.arange(166)))


@pytest.mark.parametrize("span", [0, 1, 2, 4])
@pytest.mark.parametrize("ratio", [0.2, 0.5, 0.8])
def test_a_number_of_regions_hides_exactly_their_patches(ratio, span):
    regions, spans = ANATOMY.regions, 1 if span == 0 else -(-FRAMES // span)
    drawn = hidden(MaskConfig("region", ratio, tube_len=span, ratio_of="regions"))
    count = round(ratio * len(regions) * spans)
    for clip, tokens in zip(CLIPS.tolist(), drawn, strict=True):
        order = permute(5, 0, clip, len(regions) * spans, torch.arange(len(regions) * spans)).view(spans, -1)
        for frame in range(FRAMES):
            chosen = order[frame // (span or FRAMES)] < count
            labelled = regions.sum(0)
            expected = (2 * regions[chosen].sum(0) >= labelled) & (labelled >= 0.25 * PATCH_VOXELS)
            assert torch.equal(tokens[:, frame], expected & (chosen.any()))
        assert int((order < count).sum()) == count


def test_voted_regions_hide_the_published_patches():
    """By vote every patch is of one region; hiding regions hides the patches that carry their label, no others."""
    vote = torch.from_numpy(voted(ANATOMY.regions.numpy(), PATCH_VOXELS)).long()
    drawn = hidden(MaskConfig("region", 0.5, ratio_of="regions"), Anatomy(vote))
    patch_map = torch.where(vote.any(0), vote.argmax(0) + 1, 0)
    for tokens in drawn:
        chosen = patch_map[tokens[:, 0]].unique()
        assert len(chosen) == round(0.5 * 9)
        assert torch.equal(tokens[:, 0], torch.isin(patch_map, chosen))
        assert torch.equal(tokens.all(1), tokens.any(1))


def test_groups_are_hidden_as_a_whole():
    drawn = hidden(MaskConfig("group", 0.5, ratio_of="regions"))
    regions, group = ANATOMY.regions, ANATOMY.group
    by_group = torch.stack([regions[group == g].sum(0) for g in range(3)])
    patches = [(2 * by_group[g] >= regions.sum(0)) & (regions.sum(0) >= 0.25 * PATCH_VOXELS) for g in range(3)]
    outcomes = set()
    for tokens in drawn:
        whole = tuple(bool(tokens[patch].all()) for patch in patches)
        assert sum(whole) >= round(0.5 * 3)
        outcomes.add(whole)
    assert len(outcomes) > 1


@pytest.mark.parametrize("strategy", ["region", "group"])
def test_only_the_groups_asked_for_are_drawn(strategy):
    chosen = ANATOMY.group == 1
    limited = ANATOMY._replace(drawable=chosen)
    regions = ANATOMY.regions
    own = (2 * regions[chosen].sum(0) >= regions.sum(0)) & (regions.sum(0) >= 0.25 * PATCH_VOXELS)
    everything = hidden(MaskConfig(strategy, 1.0, groups=["one"]), limited)
    assert torch.equal(everything.all(-1), own.expand(len(CLIPS), -1)), "ratio 1 hides all of these groups"
    half = hidden(MaskConfig("region", 0.5, groups=["one"]), limited)
    assert half.sum((1, 2)).tolist() == [round(0.5 * int(own.sum()) * FRAMES)] * len(CLIPS)
    assert not half[:, ~own].any()


def test_a_ratio_that_regions_cannot_reach_names_the_largest():
    limited = ANATOMY._replace(drawable=ANATOMY.group == 1)
    with pytest.raises(ConfigError, match=r"take a ratio up to 0\.\d\d$") as told:
        hidden(MaskConfig("region", 0.9, ratio_of="brain", groups=["one"]), limited)
    largest = float(str(told.value).split()[-1])
    assert hidden(MaskConfig("region", largest, ratio_of="brain", groups=["one"]), limited).any()
    with pytest.raises(ConfigError, match=r"ratio_of=brain: no brain"):
        hidden(MaskConfig("token", ratio_of="brain"), Anatomy())


def test_a_schedule_that_cannot_be_drawn_to_its_end_is_refused_at_the_start():
    mask = MaskConfig("mixture", 0.95, mixture={"token": 1}, ratio_of="brain", schedule_steps=10_000, ratio_start=0.2)
    check_draws(mask, MODEL, ANATOMY)
    limited = ANATOMY._replace(drawable=ANATOMY.group == 1)
    check_draws(mask, MODEL, limited)
    with pytest.raises(ConfigError, match="take a ratio up to"):
        check_draws(replace(mask, mixture_start={"region": 1}), MODEL, limited)
    with pytest.raises(ConfigError, match="take a ratio up to"):
        check_draws(replace(mask, strategy="region", mixture={}), MODEL, limited)


@pytest.mark.parametrize("ratio_of", ["units", "brain"])
@pytest.mark.parametrize("strategy", ["window", "tube", "region", "group", "mixture"])
def test_a_clips_mask_depends_on_its_key_alone(strategy, ratio_of):
    mask = MaskConfig(strategy, 0.4, tube_len=2, ratio_of=ratio_of)
    mask = replace(mask, mixture={"tube": 1, "group": 1} if strategy == "mixture" else {})
    clips, epochs = torch.tensor([7, 1 << 40, 3, 7]), torch.tensor([0, 0, 1, 1])
    whole = draw_mask(mask, MODEL, 11, epochs, clips, "cpu", ANATOMY)
    for i in range(4):
        alone = draw_mask(mask, MODEL, 11, int(epochs[i]), clips[i : i + 1], "cpu", ANATOMY)
        assert torch.equal(alone.hidden[0], whole.hidden[i])
    assert not torch.equal(whole.hidden[0], whole.hidden[3]), "another epoch hides other tokens"
    assert not torch.equal(whole.hidden, draw_mask(mask, MODEL, 12, epochs, clips, "cpu", ANATOMY).hidden)


def test_a_mixture_draws_each_strategy_by_its_weight():
    weights = {"token": 1.0, "tube": 2.0, "region": 1.0, "window": 0.0}
    clips = torch.arange(4000)
    drawn = drawn_strategies(weights, 5, torch.zeros_like(clips), clips)
    assert list(drawn) == ["region", "token", "tube"]
    assert torch.stack(list(drawn.values())).sum(0).eq(1).all(), "each clip has one"
    for name, share in (("region", 0.25), ("token", 0.25), ("tube", 0.5)):
        # four standard deviations of a share of 4000 draws
        assert abs(drawn[name].float().mean() - share) < 4 * (share * (1 - share) / 4000) ** 0.5


def test_a_clip_of_a_mixture_is_hidden_as_its_strategy_alone_would():
    mask = MaskConfig("mixture", 0.4, tube_len=2, ratio_of="brain", mixture={"token": 1, "tube": 1, "region": 1})
    clips = torch.arange(24)
    mixed = draw_mask(mask, MODEL, 5, 0, clips, "cpu", ANATOMY)
    assert mixed.strategy == "token"
    for name, mine in drawn_strategies(mask.mixture, 5, torch.zeros_like(clips), clips).items():
        assert mine.any(), name
        alone = draw_mask(replace(mask, strategy=name), MODEL, 5, 0, clips[mine], "cpu", ANATOMY)
        assert torch.equal(mixed.hidden[mine], alone.hidden), name


def test_a_schedule_moves_ratio_and_mixture_by_the_step_alone():
    mask = MaskConfig("mixture", 0.8, mixture={"region": 3, "token": 1}, ratio_of="brain", schedule_steps=100)
    mask = replace(mask, ratio_start=0.2, mixture_start={"token": 2})
    assert at_step(mask, 0).ratio == pytest.approx(0.2)
    assert at_step(mask, 0).mixture == {"region": 0.0, "token": 1.0}
    assert at_step(mask, 50).ratio == pytest.approx(0.5)
    assert at_step(mask, 50).mixture == pytest.approx({"region": 0.375, "token": 0.625})
    for late in (100, 10_000, None):
        assert at_step(mask, late) == mask
    total = int(BALL.sum()) * FRAMES
    for step, ratio in ((0, 0.2), (50, 0.5), (None, 0.8)):
        assert hidden(mask, step=step).sum((1, 2)).tolist() == [round(ratio * total)] * len(CLIPS)


@pytest.mark.parametrize(
    ("items", "message"),
    [
        (["mask.strategy=mixture"], "mixture and mask.mixture go together"),
        (["mask.mixture={token: 1}"], "mixture and mask.mixture go together"),
        (["mask.strategy=mixture", "mask.mixture={toke: 1}"], "toke is none of group, region"),
        (["mask.strategy=mixture", "mask.mixture={token: 0}"], "at least one weight must be positive"),
        (["mask.strategy=mixture", "mask.mixture={token: 1, region: 1}"], r"strategy=region needs mask\.atlas"),
        (["mask.strategy=group"], r"strategy=group needs mask\.atlas"),
        (["mask.groups=[limbic]"], "region and group alone"),
        (["mask.ratio_of=regions"], "region and group alone"),
        (["mask.ratio=1.0"], "fraction between 0 and 1"),
        (["mask.ratio_start=0.2"], "schedule_steps goes with"),
        (["mask.schedule_steps=5"], "schedule_steps goes with"),
        (["mask.ratio_of=voxels"], "expected one of units, brain, regions"),
    ],
)
def test_masks_that_make_no_sense_are_refused(items, message):
    with pytest.raises(ConfigError, match=message):
        load_config([], items)


def test_a_whole_group_may_be_hidden():
    config = Config(mask=MaskConfig("group", 1.0, atlas="a", groups=["limbic"]))
    check(config)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """An atlas folder of a left and a right motor box and a visual one."""
    home = tmp_path_factory.mktemp("atlas")
    mm = np.moveaxis(np.indices((96, 96, 96)), 0, -1) * 2.0 + GRID_AFFINE[:3, 3]
    labels = np.zeros((96, 96, 96), dtype=np.uint8)
    boxes = ((4, "Precentral_L", (-40, -10, 50)), (6, "Precentral_R", (40, -10, 50)), (9, "Calcarine", (0, -84, 6)))
    for value, _, centre in boxes:
        labels[(np.abs(mm - centre) <= 20).all(-1)] = value
    flip = nib.Nifti1Image(labels, GRID_AFFINE).as_reoriented(np.array([[0, -1], [1, 1], [2, 1]]))  # LAS
    nib.save(flip, home / "las.nii.gz")
    table = [Label(value, name, "motor" if "Pre" in name else "visual") for value, name, _ in boxes]
    write_atlas(home / "atlas", make_atlas(home / "las.nii.gz", table, (12, 12, 12)), "", b"")
    write_atlas(home / "vote", make_atlas(home / "las.nii.gz", table, (6, 6, 6), "vote"), "", b"")
    return home


def test_a_left_region_hides_patches_on_the_left(folder):
    atlas = MaskAtlas(
        MaskConfig("region", atlas=str(folder / "atlas"), groups=["motor"]), (12, 12, 12), torch.device("cpu")
    )
    anatomy = atlas.anatomy(torch.ones(512))
    x_mm = (torch.arange(8) * 24.0 - 96 + 11).repeat_interleave(64)
    seen = set()
    for clip in range(20):
        mask = MaskConfig("region", 0.5, ratio_of="regions", groups=["motor"])
        tokens = hidden(mask, anatomy, torch.tensor([clip]))[0, :, 0]
        assert tokens.any()
        side = x_mm[tokens].sign().unique()
        assert len(side) == 1, "one of the two regions is drawn"
        drawn = anatomy.regions[:, tokens].sum(1).argmax()
        assert side == (-1 if atlas.indices[drawn] == 4 else 1), "label 4 is Precentral_L: x < 0"
        seen.add(float(side))
    assert seen == {-1.0, 1.0}


def test_atlas_folder_and_its_label_image_give_the_same_regions(folder):
    device = torch.device("cpu")
    rows = "index\tname\tgroup\n4\tPrecentral_L\tmotor\n6\tPrecentral_R\tmotor\n9\tCalcarine\tvisual\n"
    (folder / "labels.tsv").write_text(rows)
    image = MaskConfig("group", atlas=str(folder / "las.nii.gz"), labels=str(folder / "labels.tsv"))
    brain = torch.ones(512)
    ours = MaskAtlas(MaskConfig("group", atlas=str(folder / "atlas")), (12, 12, 12), device).anatomy(brain)
    other = MaskAtlas(image, (12, 12, 12), device).anatomy(brain)
    for a, b in zip(ours, other, strict=True):
        assert torch.equal(a, b)
    assert ours.group.tolist() == [0, 0, 1]
    with pytest.raises(ConfigError, match=r"no group 'limbic'; it has motor, visual"):
        MaskAtlas(replace(image, groups=["limbic"]), (12, 12, 12), device)
    with pytest.raises(ConfigError, match="has its own names and groups"):
        MaskAtlas(replace(image, atlas=str(folder / "atlas")), (12, 12, 12), device)
    with pytest.raises(ConfigError, match="has no groups"):
        MaskAtlas(replace(image, labels=""), (12, 12, 12), device)


def test_a_voted_atlas_stays_voted_when_its_labels_move(folder):
    atlas = MaskAtlas(MaskConfig("region", atlas=str(folder / "vote")), (6, 6, 6), torch.device("cpu"))
    counts = torch.randint(0, 3, (3, 4096), generator=torch.Generator().manual_seed(0)) * 40
    np.testing.assert_array_equal(_voted(counts, 216).numpy(), voted(counts.numpy(), 216))
    assert torch.equal(atlas.anatomy(torch.ones(4096), counts).regions, _voted(counts, 216))
    assert set(atlas.anatomy(torch.ones(4096)).regions.unique().tolist()) == {0, 216}


def test_masks_are_in_the_configuration_reference(capsys):
    assert main(["config"]) == 0
    printed = capsys.readouterr().out
    for key in ("ratio_of", "groups", "mixture", "schedule_steps", "ratio_start", "mixture_start"):
        assert key in printed
