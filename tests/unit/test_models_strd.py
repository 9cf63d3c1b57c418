"""Redundancy dropout of form `paper` drops what neighbours say already; rates by redundancy are told for both forms."""

import itertools
import json

import pytest
import torch

from fmri_scale.config import ModelConfig
from fmri_scale.kernels.strd import redundancy, scores
from fmri_scale.kernels.windows import Windows
from fmri_scale.models import MaskedAutoencoder, clip_keys
from fmri_scale.models.strd import LEVELS, RedundancyDropout, drop_counts, drop_rates
from tests.helpers.tiny_models import clips, drawn, tiny

WINDOWS = Windows((4, 4, 4, 8), (4, 4, 4, 4), (0, 0, 0, 0))
WIDTH = 36


def tokens(shared: float, batch: int = 4, seed: int = 0) -> torch.Tensor:
    """Tokens whose correlation with any other is `shared`: 0 independent, 1 identical."""
    draw = torch.Generator().manual_seed(seed)
    common = torch.randn(batch, 1, WIDTH, generator=draw)
    own = torch.randn(batch, 4 * 4 * 4 * 8, WIDTH, generator=draw)
    return shared**0.5 * common + (1 - shared) ** 0.5 * own


def drop_rate(form: str, shared: float) -> float:
    dropout = RedundancyDropout(2, form, rate=0.6)
    keys = clip_keys(0, 0, torch.arange(4))
    return float(1 - dropout.keep(tokens(shared), WINDOWS, keys).mean())


def test_paper_drops_more_the_more_redundant_and_published_less():
    """Five levels of redundancy, from independent to identical neighbours."""
    levels = [0.0, 0.25, 0.5, 0.75, 1.0]
    paper = [drop_rate("paper", shared) for shared in levels]
    assert all(later > earlier + 0.02 for earlier, later in itertools.pairwise(paper)), paper
    assert paper[-1] == pytest.approx(0.6, abs=0.03), "identical neighbours: at the full rate"
    published = [drop_rate("published", shared) for shared in (0.0, 1.0)]
    assert published[1] < published[0], "the released formula drops redundant tokens less"


def test_redundancy_is_the_share_that_the_best_neighbour_explains():
    """Against the definition, pair by pair."""
    window, l_spat, l_temp = (2, 3, 2, 5), 3, 3
    h = torch.randn(2, 60, 4, generator=torch.Generator().manual_seed(1))
    places = torch.cartesian_prod(*[torch.arange(n) for n in window])
    found = redundancy(h, window, l_spat, l_temp)
    for w in range(2):
        for i in range(60):
            best = {"space": 0.0, "time": 0.0}
            for j in range(60):
                apart = (places[i] - places[j]).abs()
                cosine = float(torch.cosine_similarity(h[w, i], h[w, j], dim=0))
                if i != j and apart[3] == 0 and (apart[:3] <= l_spat // 2).all():
                    best["space"] = max(best["space"], cosine)
                if i != j and (apart[:3] == 0).all() and apart[3] <= l_temp // 2:
                    best["time"] = max(best["time"], cosine)
            expected = (best["space"] ** 2 + best["time"] ** 2) / 2
            assert float(found[w, i]) == pytest.approx(expected, abs=1e-5)


def test_redundancy_of_special_tokens():
    one = torch.randn(1, 1, WIDTH).expand(1, 256, WIDTH)
    torch.testing.assert_close(redundancy(one, (4, 4, 4, 4)), torch.ones(1, 256))
    assert redundancy(torch.zeros(1, 256, WIDTH), (4, 4, 4, 4)).eq(0).all()
    assert redundancy(one[:, :1], (1, 1, 1, 1)).eq(0).all(), "no neighbours"
    torch.testing.assert_close(redundancy(one[:, :8], (2, 2, 2, 1)), torch.ones(1, 8))  # space alone
    torch.testing.assert_close(redundancy(3 * one[:, :4], (1, 1, 1, 4)), torch.ones(1, 4))  # time alone, any length
    many = torch.randn(300, 4, 3, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(redundancy(many, (2, 1, 1, 2))[290:], redundancy(many[290:], (2, 1, 1, 2)))
    with pytest.raises(ValueError, match="h is"):
        redundancy(torch.zeros(2, 5, 3), (2, 2, 1, 1))


def test_drops_depend_on_the_clip_alone():
    dropout = RedundancyDropout(2, "paper")
    keys = clip_keys(0, 0, torch.arange(4))
    whole = dropout.keep(tokens(0.5), WINDOWS, keys)
    for i in (0, 3):
        assert torch.equal(dropout.keep(tokens(0.5)[i : i + 1], WINDOWS, keys[i : i + 1])[0], whole[i])


@pytest.mark.parametrize("form", ["published", "paper"])
def test_counts_are_those_of_the_first_clip_by_its_redundancy(form):
    dropout = RedundancyDropout(2, form, rate=0.9)
    h, keys = tokens(0.6), clip_keys(0, 0, torch.arange(4))
    kept = dropout.keep(h, WINDOWS, keys)
    order = WINDOWS.order(h.device).flatten()
    level = (
        (redundancy(h[0, order].view(-1, 256, WIDTH), WINDOWS.window).flatten() * LEVELS).long().clamp(max=LEVELS - 1)
    )
    for number in range(LEVELS):
        mine = level == number
        assert dropout.counts[1, number] == mine.sum()
        assert dropout.counts[0, number] == (kept[0, order][mine] == 0).sum()
    if form == "published":
        score = scores(h[:1, order].view(-1, 256, WIDTH), WINDOWS.window)
        assert abs(float(dropout.counts[0].sum()) - float(score.sum())) < 5 * float(score.sum()) ** 0.5 + 1


@pytest.mark.parametrize("recompute", [False, True])
def test_a_model_in_training_tells_its_drop_rates(recompute):
    config: ModelConfig = tiny(strd="paper", strd_rate=0.8, checkpoint_blocks=recompute)
    model = MaskedAutoencoder(config).train()
    output = model(clips(config, 2), drawn(config, 2))
    output.loss.backward()
    counts = output.metrics["strd_counts"]
    assert int(counts[1].sum()) == 2 * 512 * 4 + 64 * 4, "two blocks of the first stage and one of the second"
    rates = drop_rates(counts.flatten().tolist())
    assert 0 < rates["strd_drop_rate"] <= 0.8
    assert rates["strd_drop_rate"] == pytest.approx(float(counts[0].sum() / counts[1].sum()))
    assert {f"strd_drop_rate_redundancy_{level / LEVELS:.1f}" for level in range(LEVELS)} >= set(rates) - {
        "strd_drop_rate"
    }
    json.dumps(rates)
    model.eval()
    assert "strd_counts" not in model(clips(config, 2), drawn(config, 2)).metrics
    assert drop_counts(MaskedAutoencoder(tiny()).train()) is None


def test_counts_are_no_part_of_the_state():
    model = MaskedAutoencoder(tiny(strd="paper")).train()
    before = set(model.state_dict())
    model(clips(model.config), drawn(model.config))
    assert set(model.state_dict()) == before == set(MaskedAutoencoder(tiny()).state_dict())
