"""Settings of a small Slurm for the hosts of cluster.py: who runs what, and the three things Debian's 22.05 needs.

In: a folder and the hosts. Out: slurm.conf, cgroup.conf and a munge key there, and the shell commands that start the
daemons on a host. Logs and spool lie in the same folder.
"""

import os
from pathlib import Path

SOCKET = "/run/munge/cluster.sock"


def write(folder: Path, names: list[str], addresses: list[str]) -> Path:
    """Write all settings; return the path of slurm.conf."""
    folder.mkdir(parents=True, exist_ok=True)
    key = folder / "munge.key"
    key.touch(mode=0o600)
    key.write_bytes(os.urandom(1024))
    key.chmod(0o400)
    # inside a network namespace /sys is mounted anew without cgroups: slurmd must neither look for nor make them
    (folder / "cgroup.conf").write_text(
        "CgroupPlugin=cgroup/v1\nCgroupAutomount=no\nConstrainCores=no\nConstrainRAMSpace=no\n"
    )
    conf = folder / "slurm.conf"
    conf.write_text(_slurm_conf(folder, names, addresses))
    return conf


def _slurm_conf(folder: Path, names: list[str], addresses: list[str]) -> str:
    # Sockets x CoresPerSocket must be what the machine has, or slurmd drains its node
    shape = f"Sockets=1 CoresPerSocket={os.cpu_count()} ThreadsPerCore=1 RealMemory=2000 State=UNKNOWN"
    nodes = [f"NodeName={n} NodeAddr={a} {shape}" for n, a in zip(names, addresses, strict=True)]
    settings = {
        "ClusterName": "test",
        "SlurmctldHost": f"{names[0]}({addresses[0]})",
        "SlurmUser": "root",
        "SlurmdUser": "root",
        "AuthType": "auth/munge",
        "AuthInfo": f"socket={SOCKET},cred_expire=10",  # also the pause before a requeued job, 120 s by default
        "MpiDefault": "none",
        "ProctrackType": "proctrack/linuxproc",
        "TaskPlugin": "task/none",
        "JobAcctGatherType": "jobacct_gather/none",
        "AccountingStorageType": "accounting_storage/none",
        "SelectType": "select/cons_tres",
        "SelectTypeParameters": "CR_Core",
        "ReturnToService": "2",
        "JobRequeue": "1",
        "KillWait": "40",
        "SlurmdTimeout": "20",
        "StateSaveLocation": f"{folder}/state",
        "SlurmdSpoolDir": f"{folder}/spool.%n",
        "SlurmctldPidFile": f"{folder}/slurmctld.pid",
        "SlurmdPidFile": f"{folder}/slurmd.%n.pid",
        "SlurmctldLogFile": f"{folder}/slurmctld.log",
        "SlurmdLogFile": f"{folder}/slurmd.%n.log",
    }
    lines = [f"{key}={value}" for key, value in settings.items()]
    return "\n".join([*lines, *nodes, "PartitionName=main Nodes=ALL Default=YES MaxTime=INFINITE State=UP"]) + "\n"


def start_commands(folder: Path, name: str, controller: bool) -> str:
    """Return the shell text that starts munge and Slurm's daemons on a host."""
    munge = (
        f"munged --force --socket={SOCKET} --key-file={folder}/munge.key --pid-file=/run/munge/cluster.pid "
        f"--log-file={folder}/munged.{name}.log --seed-file=/run/munge/cluster.seed"
    )
    lines = [
        "export PATH=$PATH:/usr/sbin",
        f"mkdir -p /run/munge {folder}/state {folder}/spool.{name}",
        "mount -t tmpfs -o mode=755 tmpfs /run/munge",
        munge,
        f"slurmctld -f {folder}/slurm.conf" if controller else ":",
        f"slurmd -f {folder}/slurm.conf -N {name}",
    ]
    return " && ".join(lines)
