"""The nodes of a hostfile, and reaching the processes of a launch on all of them at once over ssh.

DeepSpeed's own stop signals the ranks of a node one after the other, up to 30 s each, so that rank 7 learns of a
preemption minutes after rank 0. Here every rank of every node is signalled within one ssh connection's time.
"""

import json
import re
import shlex
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

from fmri_scale.errors import LaunchError

SSH_OPTIONS = (
    *("-o", "BatchMode=yes", "-o", "ConnectTimeout=10"),
    *("-o", "ServerAliveInterval=10", "-o", "ServerAliveCountMax=3"),  # a node without power is noticed in 30 s
)
_LINE = re.compile(r"(?P<host>[A-Za-z0-9._-]+)\s+slots=(?P<slots>[1-9]\d*)")


@dataclass(frozen=True)
class Answer:
    """What a node said: how many processes were signalled and which are left; `error` where it did not answer."""

    host: str
    signalled: int = 0
    left: list[str] = field(default_factory=list)
    error: str = ""


def read_hostfile(path: str | Path) -> dict[str, int]:
    """Return host -> slots (ranks) of a hostfile with lines `host slots=N`; # starts a comment.

    Raises
    ------
    LaunchError : missing, empty, a line of another form, or a host twice.
    """
    try:
        lines = Path(path).read_text().splitlines()
    except OSError as error:
        raise LaunchError(f"hostfile {path}: cannot be read: {error.strerror}") from error
    hosts: dict[str, int] = {}
    for number, line in enumerate(lines, 1):
        text = line.partition("#")[0].strip()
        if not text:
            continue
        match = _LINE.fullmatch(text)
        if not match:
            raise LaunchError(f"hostfile {path}, line {number}: {text!r}: expected `host slots=N`")
        if match["host"] in hosts:
            raise LaunchError(f"hostfile {path}, line {number}: {match['host']} stands there twice; add up its slots")
        hosts[match["host"]] = int(match["slots"])
    if not hosts:
        raise LaunchError(f"hostfile {path}: names no host; expected lines `host slots=N`")
    return hosts


def signal_all(hosts: list[str], token: str, name: str, timeout_s: float = 30.0) -> list[Answer]:
    """Signal the processes of a launch on all hosts; TERM reaches the ranks, KILL everything, 0 only looks."""
    if not hosts:
        return []
    with ThreadPoolExecutor(min(len(hosts), 64)) as pool:
        return list(pool.map(lambda host: _signal(host, token, name, timeout_s), hosts))


def _signal(host: str, token: str, name: str, timeout_s: float) -> Answer:
    root = Path(__file__).resolve().parents[3]
    remote = [sys.executable, "-m", "fmri_scale.training.supervise", "signal", name, token]
    command = ["ssh", *SSH_OPTIONS, host, f"cd {shlex.quote(str(root))} && {shlex.join(remote)}"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=timeout_s, stdin=subprocess.DEVNULL)
        found = json.loads(done.stdout)
        return Answer(host, found["signalled"], found["left"])
    except subprocess.TimeoutExpired:
        return Answer(host, error=f"no answer in {timeout_s:g} s")
    except (ValueError, KeyError, TypeError):
        said = (done.stderr or done.stdout).strip().splitlines()
        return Answer(host, error=said[-1] if said else f"ssh ended with {done.returncode}")
