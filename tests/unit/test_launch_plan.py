"""What a launch decides before it starts: environment, port, hosts, configuration; and what it concludes at the end."""

import shlex
import socket
import stat
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fmri_scale.config import load_config
from fmri_scale.errors import ConfigError, LaunchError
from fmri_scale.training import folder, signals
from fmri_scale.training.supervise import environment, hosts, plan, port, verdict

ROOT = Path(__file__).resolve().parents[2]


def as_deepspeed_passes_it(path: Path) -> dict[str, str]:
    """Return what a shell on another node gets, by the launcher's own parsing and quoting."""
    from deepspeed.launcher.multinode_runner import PDSHRunner

    runner = PDSHRunner.__new__(PDSHRunner)
    runner.exports = {}
    for line in path.read_text().splitlines(keepends=True):
        name, value = line.split("=", maxsplit=1)  # runner.py, without which a comment or an empty line crashes
        runner.add_export(name, value)
    script = "".join(f"export {name}={value}; " for name, value in runner.exports.items()) + "env -0"
    out = subprocess.run(["bash", "-c", script], env={"PATH": "/usr/bin:/bin"}, capture_output=True, check=True)
    return dict(entry.split("=", 1) for entry in out.stdout.decode().split("\0") if entry)


@settings(max_examples=25, deadline=None)
@given(st.dictionaries(st.from_regex(r"FMRI_[A-Z]{1,8}", fullmatch=True), st.text(max_size=20), max_size=4))
def test_environment_arrives_as_it_was_or_is_refused(tmp_path_factory, variables):
    path = tmp_path_factory.mktemp("env") / "job.env"
    try:
        environment.write(path, variables)
    except ConfigError:
        assert any(set(v) & set('"$`\\%') or v != v.strip() or not v.isprintable() for v in variables.values())
        return
    arrived = as_deepspeed_passes_it(path)
    assert {name: arrived[name] for name in variables} == variables


def test_environment_file_is_private_and_read_back(tmp_path):
    path = environment.write(tmp_path / "job.env", {"B": "x=y z", "A": ""})
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert environment.read(path) == {"A": "", "B": "x=y z"}


def test_environment_of_the_configuration_wins_and_secrets_stay(caplog):
    shell = {"NCCL_DEBUG": "WARN", "WANDB_API_KEY": "s3cret", "HF_TOKEN": "t", "HOME": "/root", "OMP_NUM_THREADS": "3"}
    found = environment.collect(["NCCL_DEBUG=INFO", "MY_OWN=1"], shell, {"OMP_NUM_THREADS": "8", "X": "y"})
    assert found == {"NCCL_DEBUG": "INFO", "MY_OWN": "1", "OMP_NUM_THREADS": "3", "X": "y"}


def test_bad_entry_of_launch_env_is_named():
    with pytest.raises(ConfigError, match=r"launch.env: 'NCCL_DEBUG'"):
        environment.parse(["NCCL_DEBUG"])


def test_port_is_of_the_job_and_free():
    chosen = port.choose("job-1")
    assert port.FIRST <= chosen < port.FIRST + port.COUNT
    with socket.socket() as taken:
        taken.bind(("", port.of("job-1")))
        taken.listen()
        other = port.choose("job-1")
        assert other != port.of("job-1")
        assert port.is_free(other)


def test_hostfile_is_read_and_its_faults_are_named(tmp_path):
    path = tmp_path / "hosts"
    path.write_text("# two machines\nnode-a slots=8\n\nnode-b.example  slots=4 # half\n")
    assert hosts.read_hostfile(path) == {"node-a": 8, "node-b.example": 4}
    for text, fault in (
        ("a slots=0\n", "line 1"),
        ("a\n", "line 1"),
        ("a slots=1\na slots=1\n", "twice"),
        ("", "no host"),
    ):
        path.write_text(text)
        with pytest.raises(LaunchError, match=fault):
            hosts.read_hostfile(path)
    with pytest.raises(LaunchError, match="cannot be read"):
        hosts.read_hostfile(tmp_path / "missing")


def test_unreachable_host_is_reported_not_raised():
    answer = hosts.signal_all(["no-such-host.invalid"], "token", "0")[0]
    assert answer.error
    assert not answer.left


def test_plan_gives_all_ranks_one_checked_configuration(tmp_path, monkeypatch):
    monkeypatch.setenv("SLURM_JOB_ID", "41")
    monkeypatch.setenv("SLURM_RESTART_COUNT", "2")
    items = [f"run_dir={tmp_path}/run", "optim.lr=3e-4", "model.depths=[2,2]", 'launch.env=["NCCL_IB_HCA=mlx5_0"]']
    made = plan.make(items, ranks_per_node=2)
    assert made.job == "slurm-41-2"
    config = load_config([made.config])
    assert (config.optim.lr, config.model.depths) == (3e-4, [2, 2])
    variables = environment.read(made.env_file)
    assert variables["NCCL_IB_HCA"] == "mlx5_0"
    assert variables["FMRI_SCALE_LAUNCH"] == made.job
    words = dict(word.split("=", 1) for word in shlex.split(made.as_shell()))
    assert words["run_dir"] == str(tmp_path / "run")
    assert int(words["port"]) == made.port


def test_mistake_in_the_configuration_is_reported_before_anything_starts(tmp_path):
    command = [sys.executable, "-m", "fmri_scale.training.supervise", "plan", f"run_dir={tmp_path}", "optim.lrr=1"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode == 2
    assert "unknown key 'optim.lrr'; did you mean 'optim.lr'?" in done.stderr
    with pytest.raises(ConfigError, match="run_dir is not set"):
        plan.make([], 1)
    with pytest.raises(LaunchError, match="blank"):
        plan.make([f"run_dir={tmp_path}/my run"], 1)


def test_names_agree_with_the_training():
    assert verdict.STATUS == folder.STATUS
    assert (verdict.REQUEUE_CODE, verdict.INTERRUPTED_CODE) == (signals.REQUEUE, signals.INTERRUPTED)


OLD = {"state": "requeue", "step": 3}


@pytest.mark.parametrize(
    ("code", "after", "orphans", "expected"),
    [
        (0, {"state": "done", "step": 9}, [], 0),
        (0, {"state": "done", "step": 9}, ["12 rank"], 1),
        (134, {"state": "done", "step": 9}, [], 134),
        (0, {"state": "running", "step": 5}, [], 1),
        (0, OLD, [], 1),
        (0, {}, [], 1),
        (247, {"state": "running", "step": 5}, [], 247),
        (0, {"state": "requeue", "step": 5}, [], 75),
        (1, {"state": "requeue", "step": 5}, ["12 rank"], 75),
        (143, {"state": "interrupted", "step": 5}, [], 130),
        (1, {"state": "failed", "step": 5, "exit_code": 2, "message": "no corpus"}, [], 2),
    ],
)
def test_verdict_believes_status_not_the_launcher(code, after, orphans, expected):
    assert verdict.judge(code, OLD, after, orphans).code == expected


def test_scripts_are_valid_shell():
    for script in (*ROOT.glob("launch/*.sh"), ROOT / "launch/slurm.sbatch"):
        subprocess.run(["bash", "-n", str(script)], check=True)
