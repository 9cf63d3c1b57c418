"""GPU tests and benchmarks need torch, triton, numpy and pytest alone; the benchmarks run where there is no GPU."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
ABSENT = "deepspeed omegaconf nibabel nilearn webdataset wandb pyarrow safetensors xxhash scipy sklearn pandas yaml"
BLOCKED = f"""
import importlib.machinery, runpy, sys

find = importlib.machinery.PathFinder.find_spec

def find_what_is_there(cls, name, path=None, target=None):
    return None if name.split(".")[0] in {{*{ABSENT.split()!r}}} else find(name, path, target)

importlib.machinery.PathFinder.find_spec = classmethod(find_what_is_there)
"""


def run(code, *arguments, timeout=300):
    """Run code in a process that has nothing but what kernels need, at the repository's root."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT), "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}
    for name in ("TRITON_INTERPRET", "PYTEST_ADDOPTS", "PYTEST_XDIST_WORKER"):
        environment.pop(name, None)
    command = [sys.executable, "-W", "ignore", "-c", BLOCKED + code, *map(str, arguments)]
    return subprocess.run(
        command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=timeout, check=False
    )


def script(name):
    """Code that runs a benchmark as the command line would."""
    path = ROOT / "benchmarks" / name
    return f"sys.path.insert(0, {str(path.parent)!r}); runpy.run_path({str(path)!r}, run_name='__main__')"


def test_tests_on_a_gpu_import_nothing_else():
    options = ["-q", "--collect-only", "-p", "no:cacheprovider", "tests/kernels/test_gpu.py"]
    done = run("import pytest; raise SystemExit(pytest.main(sys.argv[1:]))", *options)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    assert "test_same_bits_a_hundred_times" in done.stdout


def test_kernel_benchmark_runs(tmp_path):
    done = run(script("kernels.py"), "--smoke", "--out", tmp_path)
    assert done.returncode == 0, done.stderr[-2000:]
    record = json.loads((tmp_path / "kernels_H200.json").read_text())
    measured = {(row["kernel"], row["direction"]): set(row["measured"]) for row in record["rows"]}
    block = {"scan", "conv", "project", "select", "gate", "mlp"}
    assert {kernel for kernel, _ in measured} == block | {"mask", "embed", "loss", "strd"}
    assert measured["scan", "backward"] == measured["mlp", "backward"] == {"ours", "eager", "compiled"}
    assert "SMOKE TEST" in (tmp_path / "kernels_H200.md").read_text()


def test_step_benchmark_runs(tmp_path):
    done = run(script("step.py"), "--smoke", "--out", tmp_path)
    assert done.returncode == 0, done.stderr[-2000:]
    (row,) = json.loads((tmp_path / "step_H200.json").read_text())["rows"]
    assert row["ours"]["step_us"] > 0


def test_static_benchmark_runs(tmp_path):
    done = run(script("static.py"), "--arch", "sm_90", "--ops", "mask", "--batch", "2", "--out", tmp_path)
    assert done.returncode == 0, done.stderr[-2000:]
    rows = json.loads((tmp_path / "static.json").read_text())["rows"]
    assert [row["kernel"] for row in rows] == ["unit_mask"] * 3
    assert all(row["registers"] > 0 and row["whole_per_token"] > 0 for row in rows)


@pytest.mark.parametrize("name", ["kernels.py", "step.py"])
def test_figures_of_a_smoke_test_never_go_to_the_results(name):
    done = run(script(name), "--smoke")
    assert done.returncode == 2
    assert "say with --out" in done.stderr


def test_published_code_names_what_it_lacks(tmp_path):
    done = run(script("step.py"), "--smoke", "--out", tmp_path, "--published", tmp_path)
    assert done.returncode == 1
    assert "neurostorm.py: missing; --published takes a clone" in done.stderr
    source = tmp_path / "models" / "neurostorm.py"
    source.parent.mkdir()
    source.write_text("import monai\n")
    block = f"sys.path.insert(0, {str(ROOT / 'benchmarks')!r}); sys.modules['monai'] = sys.modules['einops'] = None\n"
    call = "import pathlib, published, fmri_scale.config as c\n"
    call += f"published.published_model(pathlib.Path({str(tmp_path)!r}), c.ModelConfig(), 'mamba_ssm')"
    done = run(block + call)
    assert done.returncode == 1
    assert "imports monai and einops: pip install monai einops" in done.stderr
