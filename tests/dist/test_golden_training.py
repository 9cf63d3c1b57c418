"""Training today is training as recorded: the same losses, and a checkpoint of then loads and goes on."""

import json
import shutil

import pytest

from fmri_scale.checkpoint import newest, read_config
from fmri_scale.training.metrics import read_metrics
from tests.helpers.golden_training import RECORD, RUN, SAVED, STEPS, golden_arguments, sums
from tests.helpers.spawn import TRAINEE, run_ranks
from tests.helpers.tiny_training import write_tiny_corpus

pytestmark = pytest.mark.dist


@pytest.fixture(scope="module")
def record() -> dict:
    return json.loads(RECORD.read_text())


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """One rank, ZeRO 1: `whole` and `compiled` anew, `half` from the recorded checkpoint (two ranks, ZeRO 3) on."""
    folder = tmp_path_factory.mktemp("golden")
    corpus = write_tiny_corpus(folder / "corpus")
    shutil.copytree(RUN, folder / "half")
    jobs = [{"arguments": golden_arguments(folder / name, corpus)} for name in ("whole", "half")]
    jobs.append({"arguments": golden_arguments(folder / "compiled", corpus, engine__compile="aot_eager")})
    (folder / "jobs.json").write_text(json.dumps(jobs))
    assert [p.code for p in run_ranks([str(folder / "jobs.json")], 1, folder, TRAINEE)] == [0]
    return folder


@pytest.mark.parametrize("name", ["whole", "compiled"])
def test_losses_are_those_of_the_record(runs, record, name):
    rows = read_metrics(runs / name)
    assert [row["step"] for row in rows] == [row["step"] for row in record["rows"]]
    for key, loose in (("loss", 1e-4), ("grad_norm", 1e-3)):
        assert [row[key] for row in rows] == pytest.approx([row[key] for row in record["rows"]], rel=loose)


def test_old_checkpoint_still_loads(record):
    assert newest(RUN).step == SAVED
    assert read_config(newest(RUN).path).model.embed_dim == 4
    assert sums(RUN, averaged=False) == pytest.approx(record["weights"], abs=1e-9)
    assert sums(RUN, averaged=True) == pytest.approx(record["average"], abs=1e-9)


def test_old_checkpoint_goes_on(runs, record):
    rows = read_metrics(runs / "half")
    assert [row["step"] for row in rows] == list(range(SAVED + 1, STEPS + 1))
    wanted = [row["loss"] for row in record["rows"][SAVED:]]
    assert [row["loss"] for row in rows] == pytest.approx(wanted, rel=1e-4)
    assert newest(runs / "half").step == STEPS
