"""`pip install fmri-scale` uses released models; what it lacks for training is named with the extra that brings it."""

import importlib.metadata
from pathlib import Path

import pytest
from packaging.requirements import Requirement

from sharding.extras import EXTRAS, remedy
from tests.helpers.slim import run_slim

ROOT = Path(__file__).resolve().parents[2]
MODULE_OF = {"scikit-learn": "sklearn", "mamba-ssm": "mamba_ssm", "dask-jobqueue": "dask_jobqueue"}
COMMAND = """
import sys
from importlib import import_module
sys.exit(import_module(sys.argv[1]).main(sys.argv[2:]))
"""


def project() -> dict:
    tomllib = pytest.importorskip("tomllib", reason="Python 3.10 reads no TOML")
    return tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def names(requirements: list[str]) -> set[str]:
    return {Requirement(line).name for line in requirements}


def test_table_of_extras_is_that_of_the_project():
    declared = project()["optional-dependencies"]
    for extra, modules in EXTRAS.items():
        assert set(modules) == {MODULE_OF.get(name, name) for name in names(declared[extra])}, extra
    assert set(declared) - set(EXTRAS) == {"dev"}


def test_slim_core_is_what_released_models_need_and_the_rest_is_for_training():
    core = {"torch", "numpy", "nibabel", "nilearn", "safetensors", "omegaconf", "scipy", "pyyaml"}
    assert names(project()["dependencies"]) == core
    wanted = {"torch", "deepspeed", "webdataset", "nibabel", "wandb", "omegaconf", "triton"}
    assert wanted <= core | names(project()["optional-dependencies"]["train"])


def test_nothing_of_training_is_installed_in_the_slim_environment():
    body = "import importlib.util as u, sys; print(*[m for m in sys.argv[1:] if u.find_spec(m)])"
    absent = [module for modules in EXTRAS.values() for module in modules]
    brought_by_others = {"fsspec", "sklearn", "pandas", "urllib3"}  # torch and nilearn require them
    assert set(run_slim(body, *absent).split()) <= brought_by_others
    version = run_slim("import fmri_scale; print(fmri_scale.__version__)").strip()
    assert version == importlib.metadata.version("fmri-scale")


@pytest.mark.parametrize(
    ("extra", "command"),
    [
        ("train", ["sharding.cli", "build", "runs", "--out", "corpus"]),
        ("train", ["sharding.cli", "inspect", "corpus"]),
        ("train", ["fmri_scale.cli", "evaluate", "task.yaml", "--out", "results"]),
        ("train", ["fmri_scale.train", "run_dir=run", "data.corpus=corpus"]),
        ("hub", ["fmri_scale.cli", "verify-release", "my-lab/brain-base"]),
    ],
    ids=lambda value: value if isinstance(value, str) else " ".join(value[:2]),
)
def test_what_is_missing_is_one_line_that_names_the_extra(extra, command):
    lines = run_slim(COMMAND, *command, code=2).strip().splitlines()
    assert len(lines) == 1, lines
    assert f"is not installed; pip install 'fmri-scale[{extra}]'" in lines[0]


def test_a_missing_module_of_ours_is_no_matter_of_installing():
    assert remedy(ModuleNotFoundError("No module named 'fmri_scale.gone'", name="fmri_scale.gone")) == ""
