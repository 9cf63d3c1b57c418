"""Training by contrast through the engine: however many ranks share a batch, negatives and losses are the same."""

import json
from pathlib import Path

import pytest
import torch

from fmri_scale.checkpoint import consolidated_state
from fmri_scale.errors import CheckpointError
from fmri_scale.release import from_pretrained
from fmri_scale.release.export import ExportSettings, export
from fmri_scale.training.metrics import read_metrics
from tests.helpers.corpora import Segment, small_mask, write_corpus
from tests.helpers.spawn import TRAINEE, run_ranks
from tests.helpers.tiny_run import corpus_facts
from tests.helpers.tiny_training import arguments

pytestmark = pytest.mark.dist

CONTRAST = {
    "objective__instance": 1.0,
    "objective__local": 0.5,
    "objective__width": 16,
    "objective__span_frames": 20,
    "augment__noise_sd": 0.5,
    "optim__global_batch": 4,
    "optim__steps": 8,
    "optim__lr": 3e-4,
}


@pytest.fixture(scope="module")
def runs(tmp_path_factory) -> Path:
    """Runs `both_1`, `both_2` and `both_2_zero3` (reconstruction and contrast), `alone_1` and `alone_2` (contrast)."""
    folder = tmp_path_factory.mktemp("contrast")
    corpus = write_corpus(folder / "corpus", [Segment(40)] * 6, num_voxels=4000)
    meta = json.loads((corpus / "corpus.json").read_text())
    (corpus / "corpus.json").write_text(json.dumps({**corpus_facts(small_mask(4000)), **meta}))

    def job(name: str, micro: int, **changes: object) -> dict:
        return {"arguments": arguments(folder / name, corpus, **CONTRAST, optim__micro_batch=micro, **changes)}

    alone = {"objective__reconstruction": 0.0, "engine__zero_stage": 2}
    for ranks, micro in ((1, 4), (2, 2)):
        jobs = [job(f"both_{ranks}", micro), job(f"alone_{ranks}", micro, **alone)]
        jobs += [job("both_2_zero3", micro, engine__zero_stage=3) | {"cut_all": True}] if ranks == 2 else []
        (folder / "jobs.json").write_text(json.dumps(jobs))
        ended = run_ranks([str(folder / "jobs.json")], ranks, folder, TRAINEE, timeout_s=400.0)
        assert [process.code for process in ended] == [0] * ranks
    return folder


@pytest.mark.parametrize(
    ("name", "reference"), [("both_2", "both_1"), ("both_2_zero3", "both_1"), ("alone_2", "alone_1")]
)
def test_two_ranks_train_as_one_with_the_whole_batch(runs: Path, name: str, reference: str) -> None:
    """Without each other's clips as negatives the instance term would be about a half."""
    one, two = read_metrics(runs / reference), read_metrics(runs / name)
    assert len(one) == len(two) == 8
    terms = ["loss", "loss_instance", "loss_local", "grad_norm"]
    for term in terms + (["loss_reconstruction"] if "both" in name else []):
        values = [row[term] for row in one]
        assert [row[term] for row in two] == pytest.approx(values, rel=2e-3, abs=1e-4), term
    assert all(row["grad_norm"] > 0.01 for row in one), "nothing was learnt, so nothing is compared"


def test_a_release_holds_no_projector_and_no_decoder_that_was_never_trained(runs: Path, tmp_path: Path) -> None:
    assert any(name.startswith("projector.") for name in consolidated_state(runs / "both_1"))
    model = from_pretrained(export(runs / "both_1", tmp_path / "both"))
    assert not any("projector" in name for name in model.state_dict())
    with pytest.raises(CheckpointError, match="add --encoder-only"):
        export(runs / "alone_1", tmp_path / "alone")
    encoder = from_pretrained(export(runs / "alone_1", tmp_path / "encoder", ExportSettings(contents="encoder")))
    trained = consolidated_state(runs / "alone_1")
    for name, value in encoder.model.state_dict().items():
        assert torch.equal(value, trained[name])
    pictures = runs / "alone_1" / "pictures"
    assert (pictures / "loss.png").is_file()
    assert not list(pictures.glob("reconstruction*"))
