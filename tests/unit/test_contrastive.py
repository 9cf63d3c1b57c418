"""The contrastive pair: partners that agree cost least, views are clips of one run, ranks see each other's clips."""

import dataclasses
import math
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch.nn import functional as F

from fmri_scale.config import AugmentConfig, Config, DataConfig, LossConfig, OptimConfig, load_config
from fmri_scale.config.schema import ObjectiveConfig
from fmri_scale.data import ClipBatch, ClipStream
from fmri_scale.errors import ConfigError
from fmri_scale.models import MaskedAutoencoder
from fmri_scale.models.contrastive import ClipViews, ContrastiveAutoencoder, nt_xent
from fmri_scale.training.build import build_model
from fmri_scale.training.gather import gather_clips
from fmri_scale.training.objective import ClipInput
from fmri_scale.training.views import cut, pair_starts, stretch_frames, view_seed
from fmri_scale.training.width import optimizer_groups
from sharding.corpus import open_corpus
from tests.helpers.corpora import Segment, write_corpus
from tests.helpers.tiny_models import clips, drawn, tiny

BOTH = ObjectiveConfig(instance=1.0, local=0.5, width=16)


def _units(*shape: int, seed: int = 0) -> torch.Tensor:
    return F.normalize(torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64), dim=-1)


def _views(views: int, batch: int, seed: int = 0) -> ClipViews:
    volumes = torch.stack([clips(tiny(), batch, seed=10 * seed + v) for v in range(views)])
    return ClipViews(volumes, torch.arange(views * batch).view(views, batch))


def _model(objective: ObjectiveConfig = BOTH, **more: object) -> ContrastiveAutoencoder:
    return ContrastiveAutoencoder(tiny(), 0, LossConfig(), objective, **more)


# --- the loss ------------------------------------------------------------------------------------------------------


def test_nt_xent_is_the_cross_entropy_over_all_others() -> None:
    """Equation 1 of SimCLR, written out with loops."""
    one, other, temperature = _units(5, 8), _units(5, 8, seed=1), 0.3
    vectors = torch.cat([one, other])
    total = 0.0
    for i in range(10):
        scores = {k: math.exp(float(vectors[i] @ vectors[k]) / temperature) for k in range(10) if k != i}
        total -= math.log(scores[(i + 5) % 10] / sum(scores.values()))
    assert float(nt_xent(one, other, temperature)) == pytest.approx(total / 10, rel=1e-12)
    batched = nt_xent(torch.stack([one, other]), torch.stack([other, one]), temperature)
    torch.testing.assert_close(batched, nt_xent(one, other, temperature).expand(2))


def test_partners_that_are_identical_cost_least() -> None:
    one = torch.eye(6, dtype=torch.float64)
    best = math.log(1 + 10 * math.exp(-1 / 0.1))  # ten others at a right angle
    assert float(nt_xent(one, one, 0.1)) == pytest.approx(best, rel=1e-9)
    costs = []
    for share in (0.0, 0.3, 0.6, 1.0):
        moved = F.normalize((1 - share) * one + share * _units(6, 6), dim=-1)
        costs.append(float(nt_xent(one, moved, 0.1)))
    assert costs == sorted(costs)
    assert costs[0] < costs[1]
    assert float(nt_xent(one, one.roll(1, 0), 0.1)) > 10.0  # partners that are each other's strangers


def test_identical_clips_cost_less_than_different_ones() -> None:
    model = _model(ObjectiveConfig(reconstruction=0.0, instance=1.0, width=16))
    views = _views(2, 4)
    same = ClipViews(views.volumes[:1].expand(2, *views.volumes.shape[1:]), views.keys)
    mask = drawn(tiny(), 4)
    with torch.no_grad():
        alike, different = float(model(same, mask).loss), float(model(views, mask).loss)
    assert alike < different
    assert alike < math.log(7)  # what guessing among seven others costs


@pytest.mark.parametrize("reconstruction", [1.0, 0.0])
def test_every_parameter_that_the_objective_names_learns(reconstruction: float) -> None:
    model = _model(dataclasses.replace(BOTH, reconstruction=reconstruction))
    model(_views(4, 3), drawn(tiny(), 3)).loss.backward()
    learning = {n for n, p in model.named_parameters() if p.grad is not None and bool(p.grad.any())}
    idle = ("mask_tokens.window", "mask_tokens.region") if reconstruction else ("mask_tokens.", "decoder.")
    assert learning == {name for name, _ in model.named_parameters() if not name.startswith(idle)}


def test_the_loss_is_the_weighted_sum_of_its_terms() -> None:
    model = _model(ObjectiveConfig(reconstruction=2.0, instance=0.3, local=0.5, width=16))
    views, mask = _views(4, 3), drawn(tiny(), 3)
    output = model(views, mask)
    terms = {name: float(output.metrics[f"loss_{name}"]) for name in ("reconstruction", "instance", "local")}
    plain = MaskedAutoencoder(tiny(), 0)(views.volumes[0], mask)
    assert terms["reconstruction"] == pytest.approx(plain.loss.item(), rel=1e-6)
    expected = 2.0 * terms["reconstruction"] + 0.3 * terms["instance"] + 0.5 * terms["local"]
    assert output.loss.item() == pytest.approx(expected, rel=1e-6)
    torch.testing.assert_close(output.latent, plain.latent)


def test_the_local_term_compares_within_a_run_alone() -> None:
    """What the other runs of the batch are changes the instance term and not which clips the local one compares."""
    unit = _units(4, 3, 8)
    pairs = unit.unflatten(0, (2, 2)).transpose(1, 2)
    by_hand = [nt_xent(unit[:2, n], unit[2:, n], 0.1) for n in range(3)]
    torch.testing.assert_close(nt_xent(pairs[0], pairs[1], 0.1), torch.stack(by_hand))


def test_a_plain_clip_is_reconstructed_as_by_a_plain_model() -> None:
    volume, mask = clips(tiny(), 2), drawn(tiny(), 2)
    assert torch.equal(_model()(volume, mask).loss, MaskedAutoencoder(tiny(), 0)(volume, mask).loss)


# --- ranks ---------------------------------------------------------------------------------------------------------


def _gradients(model: ContrastiveAutoencoder, views: ClipViews) -> tuple[float, dict[str, torch.Tensor]]:
    batch = views.volumes.shape[1]
    loss = model(views, drawn(tiny(), batch)).loss
    loss.backward()
    return float(loss), {n: p.grad for n, p in model.named_parameters() if p.grad is not None}


def _rank(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    views = _views(4, 4)
    mine = ClipViews(views.volumes[:, 2 * rank : 2 * rank + 2], views.keys[:, 2 * rank : 2 * rank + 2])
    model = _model(dataclasses.replace(BOTH, reconstruction=0.0), gather=gather_clips).double()
    loss, gradients = _gradients(model, mine._replace(volumes=mine.volumes.double()))
    for value in gradients.values():
        dist.all_reduce(value)
    torch.save((loss, {name: value / 2 for name, value in gradients.items()}), f"{folder}/{rank}.pt")
    dist.destroy_process_group()


def test_two_ranks_see_each_others_clips_as_one_process_with_the_whole_batch(tmp_path: Path) -> None:
    """Loss on each rank, and gradients averaged over ranks as the engine does, equal those of the whole batch."""
    mp.spawn(_rank, (str(tmp_path),), nprocs=2)
    views = _views(4, 4)
    model = _model(dataclasses.replace(BOTH, reconstruction=0.0)).double()
    whole, gradients = _gradients(model, views._replace(volumes=views.volumes.double()))
    for rank in (0, 1):
        loss, found = torch.load(tmp_path / f"{rank}.pt", weights_only=True)
        assert loss == pytest.approx(whole, rel=1e-10)
        assert found.keys() == gradients.keys()
        for name, value in gradients.items():
            torch.testing.assert_close(found[name], value, rtol=1e-7, atol=1e-12)


# --- views ---------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_corpus(tmp_path_factory.mktemp("contrast") / "corpus", [Segment(24)] * 4, num_voxels=500)


def _config(corpus: Path, **objective: object) -> Config:
    return Config(
        model=tiny(depths=[1, 1], embed_dim=4),
        data=DataConfig(corpus=str(corpus), normalisation="voxel_z"),
        objective=ObjectiveConfig(instance=1.0, width=8, **objective),  # type: ignore[arg-type]
        augment=AugmentConfig(noise_sd=0.1),
        optim=OptimConfig(global_batch=4, micro_batch=4),
    )


def _batch(config: Config, count: int = 4) -> ClipBatch:
    corpus = open_corpus(config.data.corpus)
    stream = ClipStream([corpus], config.data, stretch_frames(config), count, count, 0, 1, 0)
    return next(iter(stream))


def test_two_clips_of_a_stretch_share_no_frame_and_reach_all_of_it(corpus: Path) -> None:
    config = _config(corpus, span_frames=11)
    batch = _batch(config)
    assert batch.codes.shape[1] == 11
    seen = set()
    for seed in range(200):
        starts = pair_starts(batch, seed, 4)
        assert (starts.diff(dim=1).abs() >= 4).all()
        assert (starts >= 0).all()
        assert (starts <= 7).all()
        seen |= {tuple(row) for row in starts.tolist()}
    assert {min(pair) for pair in seen} == set(range(4))
    assert (0, 7) in seen
    assert (7, 0) in seen
    assert torch.equal(pair_starts(batch, 3, 4), pair_starts(batch, 3, 4))
    first = cut(batch, starts[:, 0], 4)
    for b in range(4):
        assert torch.equal(first.codes[b], batch.codes[b, starts[b, 0] : starts[b, 0] + 4])
    assert torch.equal(first.start_frame, batch.start_frame + starts[:, 0])


def test_the_stream_gives_twice_a_clip_unless_told_otherwise(corpus: Path) -> None:
    assert stretch_frames(_config(corpus)) == 8
    assert stretch_frames(_config(corpus, span_frames=20)) == 20
    assert stretch_frames(Config(model=tiny())) == 4


def test_views_are_two_clips_and_two_changes_of_each(corpus: Path) -> None:
    config = _config(corpus, local=1.0)
    batch = _batch(config)
    prepare = ClipInput(config, [open_corpus(corpus)], torch.device("cpu"))
    views, mask, _ = prepare(batch, 0)
    assert isinstance(views, ClipViews)
    assert views.volumes.shape == (4, 4, 1, 24, 24, 24, 4)
    starts = pair_starts(batch, config.seed, 4)
    plain = dataclasses.replace(config, augment=AugmentConfig())
    still = ClipInput(plain, [open_corpus(corpus)], torch.device("cpu"))
    for view in range(4):
        clean = still.volumes(cut(batch, starts[:, view % 2], 4))[0]
        noise = views.volumes[view] - clean
        inside = noise[noise != 0]
        assert inside.std() == pytest.approx(0.1, rel=0.1)
    assert not torch.equal(views.volumes[0], views.volumes[2])
    first = prepare.volumes(cut(batch, starts[:, 0], 4), 0)
    assert torch.equal(views.volumes[0], first[0])  # what is reconstructed is what a plain run would be given
    assert torch.equal(mask.hidden, first[1].hidden)
    assert len(views.keys.unique()) == 16
    assert view_seed(5, 0) == 5


def test_a_model_for_contrast_starts_as_the_plain_one_and_its_optimizer_has_the_projector(corpus: Path) -> None:
    config = _config(corpus)
    model, plain = build_model(config), build_model(dataclasses.replace(config, objective=ObjectiveConfig()))
    assert isinstance(model, ContrastiveAutoencoder)
    assert type(plain) is MaskedAutoencoder
    for name, value in plain.state_dict().items():
        assert torch.equal(model.state_dict()[name], value)
    listed = sum(len(group["params"]) for group in optimizer_groups(model, config))
    assert listed == len(list(model.parameters())) == len(list(plain.parameters())) + 3


# --- settings ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["objective.reconstruction=0"], "all weights are 0"),
        (["objective.instance=1", "optim.micro_batch=1"], "set optim.micro_batch=2"),
        (["objective.local=1"], "set augment"),
        (["objective.instance=-1"], "objective.instance"),
        (["objective.instance=1", "objective.span_frames=39"], "two clips of 20 frames need 40"),
        (["objective.instance=1", "objective.temperature=0"], "objective.temperature"),
        (["objective.instance=1", "objective.reconstruction=0", "engine.zero_stage=3"], "trains no decoder"),
    ],
)
def test_objectives_that_make_no_sense_say_why(overrides: list[str], message: str) -> None:
    base = ["data.corpus=x", "optim.micro_batch=4", *overrides]
    with pytest.raises(ConfigError, match=message):
        load_config([], base)


def test_the_shipped_file_resolves() -> None:
    config = load_config([Path(__file__).parents[2] / "configs" / "run" / "contrastive.yaml"], ["data.corpus=x"])
    assert (config.objective.reconstruction, config.objective.instance, config.objective.local) == (0.0, 1.0, 1.0)
    assert stretch_frames(config) == 80
