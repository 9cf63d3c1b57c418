"""Every command and every snippet of README.md works, in the order of the text, each on what those before it made.

They run in an empty folder, with this tree's paths made absolute and sizes reduced by what SMALLER adds. What needs
the network, an account or several hosts says so in its comment (`# needs ...`) and is skipped with these words;
multi-host scripts have tests of their own in tests/multinode.
"""

import contextlib
import io
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from fmri_scale import cli
from fmri_scale.cli.parity import read_case
from sharding.cli import main as shards_main
from tests.helpers.published_files import hyper_of, lightning, published_weights

pytestmark = pytest.mark.dist

ROOT = Path(__file__).resolve().parents[2]
BLOCK = re.compile(r"^```(bash|python)\n(.*?)^```", re.S | re.M)
TRAINING = "optim.warmup_steps=1 checkpoint.every_steps=2 log.wandb=off"
SMALLER = (
    ("launch/quickstart.sh", ""),
    ("fmri-shards phantom", "--volumes 40 --voxel-mm 4"),
    ("optim.steps=320", f"optim.steps=6 {TRAINING}"),
    ("optim.steps=340", f"optim.steps=8 {TRAINING}"),
    ("fmri_scale.train", f"optim.steps=4 {TRAINING}"),
)
"Part of a command, and what is added to it; the first that fits. The quickstart takes it as SET."
MAIN = {"fmri-shards": shards_main, "fmri-scale": cli.main}
SKIPPED = {"bash launch/test.sh": "is what runs this test"}


def pieces() -> list[tuple[str, str, str]]:
    """Return (kind, text, comment) of every command and snippet; indented ones are shown, not run."""
    found = []
    for kind, body in BLOCK.findall((ROOT / "README.md").read_text()):
        if kind == "python":
            found.append((kind, body, ""))
            continue
        for line in body.replace("\\\n", " ").splitlines():
            command, _, comment = line.partition(" #")
            if command.strip():
                found.append((kind, command.strip(), comment.strip()))
    return found


PIECES = pieces()


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """An empty folder but for a public checkpoint, as a reader would have downloaded it."""
    folder = tmp_path_factory.mktemp("reader")
    case, arguments = read_case(ROOT / "tests" / "golden" / "mae_window_patch6.safetensors")
    lightning(folder / "neurostorm.ckpt", published_weights(case), hyper_of(arguments))
    return folder


def made_smaller(command: str) -> str:
    return next((f"{command} {more}" for part, more in SMALLER if part in command), command)


def in_tree(command: str) -> str:
    return re.sub(r"(?<![\w./=-])(configs|launch|tests)/", f"{ROOT}/\\1/", command)


def run_here(program: str, arguments: list[str]) -> tuple[int, str]:
    """Run one of our commands in this process; return its exit code and what it printed."""
    said = io.StringIO()
    with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
        return MAIN[program](arguments), said.getvalue()


@pytest.mark.parametrize(("kind", "text", "comment"), PIECES, ids=[text.splitlines()[0][:60] for _, text, _ in PIECES])
def test_it_works(kind, text, comment, folder, monkeypatch):
    monkeypatch.chdir(folder)
    if comment.startswith("needs "):
        pytest.skip(comment)
    if text in SKIPPED:
        pytest.skip(SKIPPED[text])
    if kind == "python":
        script = subprocess.run([sys.executable, "-c", text], capture_output=True, text=True, timeout=300)
        assert script.returncode == 0, script.stderr
        return
    words = shlex.split(in_tree(made_smaller(text)))
    if words[0] in MAIN:
        code, said = run_here(words[0], words[1:])
    else:
        path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
        smaller = {"OUT": str(folder / "quickstart"), "SET": f"optim.steps=4 {TRAINING}"}
        environment = {**os.environ, **smaller, "OMP_NUM_THREADS": "1", "PATH": path}
        command = ["env", *words] if "=" in words[0] else words
        process = subprocess.run(command, capture_output=True, text=True, timeout=400, env=environment)
        code, said = process.returncode, process.stdout + process.stderr
    assert code == 0, said


def test_skips_are_few():
    needing = [comment for _, _, comment in PIECES if comment.startswith("needs ")]
    assert len(needing) <= 4
    assert len(PIECES) > 30
