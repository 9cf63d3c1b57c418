"""Following README.md's worked examples (mask, kernel, dataset layout) in a copy of the tree gives what they promise.

The text of the examples is taken from README.md; the edits that it tells in words are made here as it tells them.
"""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
CONTRIBUTING = (ROOT / "README.md").read_text().split("\n## Contributing\n")[1].split("\n## ")[0]
PARTS = ("fmri_scale", "sharding", "tests/helpers", "tests/unit/test_sharding_layouts.py")
PARTS += ("tests/unit/test_models_masks.py", "tests/unit/test_models_masking.py")


@pytest.fixture
def copy(tmp_path) -> Path:
    for part in PARTS:
        if (ROOT / part).is_dir():
            shutil.copytree(ROOT / part, tmp_path / part, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            (tmp_path / part).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(ROOT / part, tmp_path / part)
    return tmp_path


def snippets(example: str) -> list[str]:
    """Return the indented blocks of an example, without their indent."""
    text = CONTRIBUTING.split(f"\n**{example}.** ")[1].split("\n**")[0]
    blocks = re.findall(r"^   ```(?:diff|python)\n(.*?)^   ```", text, re.S | re.M)
    return ["".join(line[3:] or "\n" for line in block.splitlines(keepends=True)) for block in blocks]


def edit(path: Path, *changes: tuple[str, str]) -> None:
    text = path.read_text()
    for old, new in changes:
        assert text.count(old) == 1, f"{path.name}: {old!r} stands there {text.count(old)} times"
        text = text.replace(old, new)
    path.write_text(text)


def run(copy: Path, *words: str, **variables: str) -> str:
    """Run Python in the copy, where its own packages come first; return what it printed."""
    environment = {**os.environ, "PYTHONPATH": str(copy), "OMP_NUM_THREADS": "1", **variables}
    command = [sys.executable, *words]
    process = subprocess.run(command, cwd=copy, env=environment, capture_output=True, text=True, timeout=300)
    assert process.returncode == 0, process.stdout + process.stderr
    return process.stdout


def number_passed(copy: Path, name: str, *files: str, **variables: str) -> int:
    """Run tests by name in the copy; return how many passed."""
    options = ("-q", "-p", "no:cacheprovider", "--rootdir", ".", "-k", name)
    said = run(copy, "-m", "pytest", *options, *files, **variables)
    return int(re.findall(r"(\d+) passed", said)[0])


def test_a_mask(copy):
    (diff,) = snippets("A mask")
    kept = "".join(line[1:] for line in diff.splitlines(keepends=True) if line[0] == " ")
    edit(copy / "fmri_scale/models/masking.py", (kept, "".join(line[1:] for line in diff.splitlines(keepends=True))))
    edit(copy / "fmri_scale/config/check.py", ('("token", "window", "tube", ', '("token", "window", "tube", "slab", '))
    edit(
        copy / "tests/unit/test_models_masks.py",
        ('STRATEGIES = ("token", "window", "tube", ', 'STRATEGIES = ("token", "window", "tube", "slab", '),
        ('if strategy in ("window", "tube"):', 'if strategy in ("window", "tube", "slab"):'),
        ('(strategy in ("window", "tube")) or', '(strategy in ("window", "tube", "slab")) or'),
        ('"strategy", ["window", "tube"])', '"strategy", ["window", "tube", "slab"])'),
    )
    given = re.search(r'`(\("slab", \d+\))`', CONTRIBUTING)
    assert given
    edit(copy / "tests/unit/test_models_masking.py", ('("tube", 512)]', f'("tube", 512), {given[1]}]'))
    files = ("tests/unit/test_models_masks.py", "tests/unit/test_models_masking.py")
    assert number_passed(copy, "slab", *files) >= 5


def test_a_kernel(copy):
    definition, kernel, operator, test = snippets("A kernel")
    (one_line,) = re.findall(r"`(from fmri_scale\.kernels\.rms\.reference import .*?)`", CONTRIBUTING)
    folder = copy / "fmri_scale/kernels/rms"
    folder.mkdir()
    names = ("reference", "triton", "op", "cpu", "__init__")
    for name, text in zip(names, (definition, kernel, operator, one_line, ""), strict=True):
        (folder / f"{name}.py").write_text(text)
    imports = (
        "import pytest, torch\nfrom fmri_scale.kernels.rms import reference\nfrom fmri_scale.kernels.rms.op import rms"
    )
    on_a_cpu = (
        "def test_rms_on_a_cpu():\n"
        "    x = torch.randn(3, 5, dtype=torch.float64, requires_grad=True)\n"
        '    assert torch.autograd.gradcheck(lambda x: rms(x, "auto"), x)\n'
        '    checks = ("test_schema", "test_autograd_registration", "test_faketensor")\n'
        '    torch.library.opcheck(rms, (x, "auto"), test_utils=checks)\n'
    )
    (copy / "test_rms.py").write_text(f"{imports}\n\n\n{test}\n\n{on_a_cpu}")
    assert number_passed(copy, "rms", "test_rms.py", TRITON_INTERPRET="1") == 4


def test_a_dataset_layout(copy):
    module, test = snippets("A dataset layout")
    (copy / "sharding/discover/abide.py").write_text(module)
    edit(
        copy / "sharding/discover/layout.py",
        ("import bids, hcp, ukb", "import abide, bids, hcp, ukb"),
        ('"ukb", "files", "table")', '"ukb", "abide", "files", "table")'),
        ('"ukb": "UK Biobank bulk data"}', '"ukb": "UK Biobank bulk data", "abide": "ABIDE Preprocessed"}'),
        (
            '    if layout == "pattern":\n        return runs',
            '    if layout == "abide":\n        return abide.runs_in_abide(folder, options.dataset)\n'
            '    if layout == "pattern":\n        return runs',
        ),
    )
    edit(
        copy / "sharding/discover/__init__.py",
        ("import bids, hcp, ukb", "import abide, bids, hcp, ukb"),
        ("in (bids, hcp, ukb)", "in (abide, bids, hcp, ukb)"),
    )
    with (copy / "tests/unit/test_sharding_layouts.py").open("a") as file:
        file.write("\n\n" + test)
    assert number_passed(copy, "abide", "tests/unit/test_sharding_layouts.py") == 1
    script = "import sys; from sharding.cli import main; sys.exit(main(sys.argv[1:]))"
    assert "ABIDE: every" in run(copy, "-c", script, "build", "--help")
