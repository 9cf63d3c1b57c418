"""`fmri-scale estimate` against the memory of real ranks and the size of a real checkpoint."""

import pytest

from fmri_scale.config import load_config
from fmri_scale.training.estimate import checkpoint_bytes
from fmri_scale.training.estimate.memory import memory
from fmri_scale.training.metrics import read_metrics
from tests.helpers.spawn import run_ranks
from tests.helpers.tiny_training import arguments, write_tiny_corpus

pytestmark = [pytest.mark.dist]

WIDE = {"model__image_size": [48, 48, 48], "model__patch_size": [12, 12, 12, 1], "model__embed_dim": 512}
"56 M parameters, few tokens: the optimizer decides."
LONG = {"model__image_size": [96, 96, 96], "model__embed_dim": 36, "model__depths": [2, 2, 6, 2]}
"7.7 M parameters, 8,192 tokens a frame: activations decide."


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    """A tiny corpus."""
    return write_tiny_corpus(tmp_path_factory.mktemp("memory") / "corpus")


@pytest.mark.xdist_group("estimate_memory")
@pytest.mark.parametrize("stage", [1, 3])
@pytest.mark.parametrize("size", [{**WIDE, "model__depths": [2, 2]}, LONG], ids=["wide", "long"])
def test_predicted_memory_is_within_15_percent_of_the_measured(corpus, tmp_path, size, stage):
    more = {"optim__steps": 2, "optim__global_batch": 2, "optim__warmup_steps": 1, "engine__zero_stage": stage}
    windows = {"model__window_size": [4, 4, 4, 4], "model__first_window_size": [4, 4, 4, 4], "model__state_dim": 16}
    items = arguments(tmp_path / "run", corpus, **size, **more, **windows)
    ended = run_ranks(items, 2, tmp_path)
    assert [process.code for process in ended] == [0, 0]
    config = load_config([], items)
    measured = read_metrics(tmp_path / "run")[-1]["peak_memory_gb"] * 1e9
    predicted = memory(config, 2, "cpu").peak
    print(f"predicted {predicted / 1e9:.3f} GB, measured {measured / 1e9:.3f} GB")
    assert predicted == pytest.approx(measured, rel=0.15)
    written = sum(path.stat().st_size for path in (tmp_path / "run" / "checkpoints").rglob("*.pt"))
    assert checkpoint_bytes(config) == pytest.approx(written, rel=0.05)
