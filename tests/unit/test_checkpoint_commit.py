"""A checkpoint exists whole or not at all, whatever kills its writer; only whole ones are ever selected."""

import functools
import json
import os
import signal
import sys
from pathlib import Path

import pytest

from fmri_scale.checkpoint import commit as commit_module
from fmri_scale.checkpoint import layout, manifest, newest
from fmri_scale.checkpoint.commit import save
from fmri_scale.checkpoint.newest import locate
from fmri_scale.checkpoint.retention import prune, superseded, sweep
from fmri_scale.checkpoint.state import TrainingState, read_config, read_state
from fmri_scale.config import Config
from fmri_scale.errors import CheckpointError


def state_of(step: int) -> TrainingState:
    return TrainingState(step=step, clips=8 * step, world_size=1, zero_stage=1, corpus_id="c" * 64)


def write_engine(folder: Path) -> list[Path]:
    (folder / layout.ENGINE).mkdir()
    written = [folder / layout.ENGINE / name for name in ("weights.pt", "optimizer.pt")]
    for path in written:
        path.write_bytes(os.urandom(3000))
    return written


def commit(run_dir: Path, step: int, attachments: dict[str, Path] | None = None) -> layout.CheckpointDir:
    return save(run_dir, state_of(step), Config(seed=step), write_engine, {"torch": "x"}, attachments or {})


def test_checkpoint_holds_what_was_given(tmp_path):
    (tmp_path / "facts.json").write_text("{}")
    checkpoint = commit(tmp_path, 3, {"corpus.json": tmp_path / "facts.json"})
    assert checkpoint == newest(tmp_path) == locate(checkpoint.path)
    assert read_state(checkpoint.path) == state_of(3)
    assert read_config(checkpoint.path) == Config(seed=3)
    assert (layout.folder(tmp_path) / layout.LATEST).read_text() == "step_00000003\n"
    listed = manifest.read(checkpoint.path)["files"]
    assert set(listed) == {
        "engine/weights.pt", "engine/optimizer.pt", "rng_00000.json", "state.json", "config.yaml", "corpus.json"
    }  # fmt: skip


def commit_and_prune(run_dir: Path) -> None:
    commit(run_dir, 2)
    prune(run_dir, 1, 0)


def killed_at_line(work, line: int) -> bool:
    """Run `work` in a child that SIGKILLs itself before the package's `line`-th line; return whether it got there."""
    child = os.fork()
    if child == 0:
        counted = 0
        package = str(Path(commit_module.__file__).parent)

        def trace(frame, event, arg):
            nonlocal counted
            if not frame.f_code.co_filename.startswith(package):
                return None
            if event == "line":
                counted += 1
                if counted == line:
                    os.kill(os.getpid(), signal.SIGKILL)
            return trace

        sys.settrace(trace)
        try:
            work()
        finally:
            os._exit(0)
    _, status = os.waitpid(child, 0)
    assert os.WIFSIGNALED(status) or os.WEXITSTATUS(status) == 0
    return os.WIFSIGNALED(status)


def test_killed_save_is_never_selected(tmp_path):
    """Killed before every single line of writing, naming and pruning: old or new is found whole, and goes on."""
    outcomes = []
    line = 1
    while True:
        run_dir = tmp_path / f"line_{line}"
        commit(run_dir, 1)
        killed = killed_at_line(functools.partial(commit_and_prune, run_dir), line)
        found = newest(run_dir)
        outcomes.append(found.step)
        sweep(run_dir)
        assert layout.leftovers(run_dir) == []
        assert commit(run_dir, 2).step == newest(run_dir).step == 2
        if not killed:
            break
        line += 3
    assert len(outcomes) > 40
    assert set(outcomes) == {1, 2}
    assert outcomes == sorted(outcomes)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda c: (c / "engine" / "weights.pt").write_bytes(b"short"), "expected 3000"),
        (lambda c: (c / "engine" / "weights.pt").write_bytes(b"x" * 3000), "checksum differs"),
        (lambda c: (c / "engine" / "optimizer.pt").unlink(), "missing"),
        (lambda c: (c / "manifest.json").unlink(), "no manifest.json"),
        (lambda c: (c / "manifest.json").write_text("{"), "not a checkpoint's manifest"),
    ],
)
def test_falls_back_to_the_newest_whole_one_and_says_so(tmp_path, caplog, damage, message):
    commit(tmp_path, 1)
    damage(commit(tmp_path, 2).path)
    with caplog.at_level("WARNING", logger="fmri_scale"):
        assert newest(tmp_path).step == 1
    assert message in caplog.text
    assert "falling back" in caplog.text
    damage(layout.step_dir(tmp_path, 1))
    with pytest.raises(CheckpointError, match="no checkpoint is whole"):
        newest(tmp_path)


def test_renamed_checkpoint_is_not_taken_for_another_step(tmp_path):
    commit(tmp_path, 1)
    layout.step_dir(tmp_path, 1).rename(layout.step_dir(tmp_path, 9))
    with pytest.raises(CheckpointError, match="manifest is of step 1"):
        newest(tmp_path)


def test_missing_run_is_one_clear_line(tmp_path):
    with pytest.raises(CheckpointError, match="holds no checkpoint"):
        newest(tmp_path / "nothing")
    with pytest.raises(CheckpointError, match="no such run or checkpoint folder"):
        locate(tmp_path / "nothing")


def test_failed_write_leaves_nothing_behind(tmp_path):
    commit(tmp_path, 1)

    def disk_full(folder: Path) -> list[Path]:
        (folder / "part").write_bytes(b"x")
        raise OSError(28, "No space left on device")

    with pytest.raises(CheckpointError, match=r"rank 0: .*No space left"):
        save(tmp_path, state_of(2), Config(), disk_full, {}, {})
    assert layout.leftovers(tmp_path) == []
    assert newest(tmp_path).step == 1


def test_unreported_file_is_an_error(tmp_path):
    def careless(folder: Path) -> list[Path]:
        (folder / "extra").write_bytes(b"x")
        return []

    with pytest.raises(CheckpointError, match=r"seen but not reported: \['extra'\]"):
        save(tmp_path, state_of(2), Config(), careless, {}, {})


def test_retention_keeps_the_newest_and_every_nth(tmp_path):
    assert superseded([10, 20, 30, 40, 50], keep_last=2, keep_every=0) == [10, 20, 30]
    assert superseded([10, 20, 30, 40, 50], keep_last=2, keep_every=20) == [10, 30]
    assert superseded([10], keep_last=3, keep_every=0) == []
    for step in (1, 2, 3, 4):
        commit(tmp_path, step)
    assert prune(tmp_path, keep_last=1, keep_every=2) == [1, 3]
    assert [c.step for c in layout.committed(tmp_path)] == [4, 2]


def test_newer_schema_is_refused(tmp_path):
    path = commit(tmp_path, 1).path / "state.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "schema_version": 99}))
    with pytest.raises(CheckpointError, match="newer than"):
        read_state(path.parent)
