"""Decide a launch before anything starts: one resolved configuration, a name, a port, the variables of all ranks.

In: YAML files and overrides as given to a script of launch/. Out: files in `run_dir/launch/` and shell assignments.
The ranks are given one file: no override has to survive the quoting of ssh and pdsh, every rank has the same
configuration, and a mistake in it is reported before a single process starts. With `start_from` the file leaves out
what a release decides.
"""

import os
import secrets
import shlex
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from fmri_scale.config import Config, load_config, load_typed, to_dict
from fmri_scale.config.load import read_given
from fmri_scale.errors import ConfigError, LaunchError
from fmri_scale.training.supervise import environment, port, processes

FOLDER = "launch"


@dataclass(frozen=True)
class Plan:
    """A launch that can start: its name, folder, configuration file, variables' file and port."""

    job: str
    run_dir: Path
    config: Path
    env_file: Path
    port: int

    def as_shell(self) -> str:
        """Return assignments for `eval`."""
        values = {"job": self.job, "run_dir": self.run_dir, "config": self.config}
        more = {"env_file": self.env_file, "port": self.port}
        return "\n".join(f"{name}={shlex.quote(str(value))}" for name, value in {**values, **more}.items())


def make(items: Sequence[str], ranks_per_node: int, job: str = "") -> Plan:
    """Resolve the configuration, choose name and port, write the files.

    Parameters
    ----------
    items : YAML files and `key=value` overrides.
    ranks_per_node : processes that will share a machine's cores.
    job : the launch's name; empty makes one of the time.

    Raises
    ------
    ConfigError : the configuration, or no run_dir, or one that cannot be written.
    LaunchError : a path with a blank, which DeepSpeed's launcher would tear apart.
    """
    config, content = _resolve([i for i in items if "=" not in i], [i for i in items if "=" in i])
    if not config.run_dir:
        raise ConfigError("run_dir is not set: give it in a YAML file or as run_dir=FOLDER")
    run_dir = Path(config.run_dir).resolve()
    if " " in f"{run_dir}{Path.cwd()}":
        raise LaunchError(f"{run_dir} or {Path.cwd()} has a blank in its path, which the launchers cannot carry")
    job = job or job_name()
    return Plan(
        job,
        run_dir,
        _write_config(content, run_dir, job),
        _write_environment(config, run_dir, job, ranks_per_node),
        port.choose(job),
    )


def job_name() -> str:
    """Return a name for a launch: Slurm's job and restart, or the time and something random."""
    slurm = os.environ.get("SLURM_JOB_ID")
    if slurm:
        return f"slurm-{slurm}-{os.environ.get('SLURM_RESTART_COUNT', '0')}"
    return f"{time.strftime('%Y%m%d-%H%M%S')}-{secrets.token_hex(3)}"


def _resolve(files: Sequence[str], overrides: Sequence[str]) -> tuple[Config, dict[str, Any]]:
    """Return the configuration as far as it is known here, and what the ranks' file says.

    Where a run starts from a release, that release decides what the user does not say: only what was said is written
    then, and the ranks check the whole.
    """
    config = load_typed(Config, files, overrides)
    if config.start_from:
        return config, read_given(files, overrides)
    config = load_config(files, overrides)
    return config, to_dict(config)


def _write_config(content: dict[str, Any], run_dir: Path, job: str) -> Path:
    folder = run_dir / FOLDER
    try:
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / f"{job}.yaml"
        path.write_text(yaml.safe_dump(content, sort_keys=False))
    except OSError as error:
        raise ConfigError(f"run_dir={run_dir}: cannot be written: {error.strerror}") from error
    return path


def _write_environment(config: Config, run_dir: Path, job: str, ranks_per_node: int) -> Path:
    base = environment.defaults(run_dir, ranks_per_node)
    variables = environment.collect(config.launch.env, os.environ, base)
    return environment.write(run_dir / FOLDER / f"{job}.env", {**variables, processes.MARK: job})
