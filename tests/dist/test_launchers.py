"""The same command under deepspeed, torchrun and plain python trains the same run."""

import json
import shutil
import sys
from pathlib import Path

import pytest

from fmri_scale.training.metrics import read_metrics
from tests.helpers.spawn import free_port, run_command, run_ranks
from tests.helpers.tiny_training import arguments, write_tiny_corpus

pytestmark = pytest.mark.dist

SCRIPTS = Path(sys.executable).parent


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    made = tmp_path_factory.mktemp("launchers")
    write_tiny_corpus(made / "corpus")
    return made


def launched(launcher: str, folder: Path, *more: str, **changes: object):
    flags = {"deepspeed": ["--num_gpus", "2"], "torchrun": ["--nproc_per_node", "2"]}[launcher]
    program = shutil.which(launcher, path=str(SCRIPTS))
    assert program, f"{launcher} is not installed beside {sys.executable}"
    command = [program, *flags, "--master_port", str(free_port()), "fmri_scale/train.py"]
    run = arguments(folder / launcher, folder / "corpus", optim__steps=3, **changes)
    return run_command([*command, *run, *more], folder, DS_ACCELERATOR="cpu")


@pytest.mark.parametrize("launcher", ["deepspeed", "torchrun"])
def test_launcher_trains_the_run_that_plain_python_trains(folder, launcher):
    if not (folder / "python").exists():
        ended = run_ranks(arguments(folder / "python", folder / "corpus", optim__steps=3), 1, folder)
        assert [process.code for process in ended] == [0]
    assert launched(launcher, folder, engine__zero_stage=2).code == 0
    status = json.loads((folder / launcher / "status.json").read_text())
    assert (status["state"], status["step"]) == ("done", 3)
    assert (folder / launcher / "logs" / "rank_1.log").is_file()
    found, wanted = ([row["loss"] for row in read_metrics(folder / name)] for name in (launcher, "python"))
    assert found == pytest.approx(wanted, rel=1e-5)


def test_typo_under_a_launcher_is_said_once_with_exit_code_2(folder):
    ended = launched("deepspeed", folder, "optim.lrr=1")
    assert ended.code == 2
    told = [line for line in (ended.out + ended.err).splitlines() if "did you mean" in line]
    assert told == ["train: override 'optim.lrr=1': unknown key 'optim.lrr'; did you mean 'optim.lr'?"]
