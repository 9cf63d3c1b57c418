"""Several hosts on one Linux machine: network, mount, process and host-name namespaces with an sshd in each.

In: root, `ip`, `unshare`, `nsenter`, `sshd`, and for `slurm()` Slurm's and munge's programs. Out: hosts node0,
node1, ... on one private bridge, that share the machine's files but see only their own processes and network.
`power_off` and `link` are what happens to machines in a rack. Nothing of the machine's own ssh, Slurm or network is
touched; all of it is gone after `close()`, also when the test process is killed in the middle (hosts end with it).
"""

import os
import shlex
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from tests.multinode import slurm_files

NETWORK = "10.83.7"
PROGRAMS = ("ip", "setpriv", "unshare", "nsenter", "sshd", "ssh-keygen", "pdsh")
SLURM_PROGRAMS = ("slurmctld", "slurmd", "munged", "sbatch", "srun", "scontrol")
HOST = ("setpriv", "--pdeathsig", "KILL")  # hosts end with the test process, whatever ends it
ROOM = ("unshare", "--mount", "--uts", "--pid", "--fork", "--mount-proc", "--kill-child")
PACKAGES = "apt-get install -y --no-install-recommends openssh-server pdsh iproute2 slurm-wlm munge"


def missing() -> str:
    """Return why hosts cannot be made here, empty where they can."""
    if os.geteuid() != 0:
        return "making network namespaces needs root"
    path = os.environ.get("PATH", "") + ":/usr/sbin:/sbin"
    absent = [name for name in (*PROGRAMS, *SLURM_PROGRAMS) if shutil.which(name, path=path) is None]
    if absent:
        return f"not installed: {', '.join(absent)} ({PACKAGES})"
    probe = subprocess.run(["unshare", "--net", "--mount", "--pid", "--fork", "true"], capture_output=True, text=True)
    return f"namespaces are not allowed here: {probe.stderr.strip()}" if probe.returncode else ""


class Cluster:
    """Hosts node0 ... node{n-1}; `with Cluster(n, folder) as cluster:`.

    Attributes
    ----------
    folder : keys, settings and logs of the hosts.
    names : the hosts' names.
    """

    def __init__(self, number: int, folder: Path) -> None:
        self.folder = folder
        self.names = [f"node{i}" for i in range(number)]
        self._space = f"fmri{os.getpid()}"  # namespaces have global names
        self._hosts: dict[str, subprocess.Popen[bytes]] = {}

    def __enter__(self) -> "Cluster":
        self.folder.mkdir(parents=True, exist_ok=True)
        self._write_files()
        try:
            self._make_switch()
            for name in self.names:
                self.power_on(name)
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(self, *unused: object) -> None:
        self.close()

    def run(self, name: str, command: str, timeout: float = 300, check: bool = True) -> subprocess.CompletedProcess:
        """Run a shell command on a host, not over the network (so it works with the link down)."""
        done = subprocess.run(
            self._inside(name, command), capture_output=True, text=True, timeout=timeout, stdin=subprocess.DEVNULL
        )
        if check and done.returncode:
            raise AssertionError(f"{name}: {command}\nexit code {done.returncode}\n{done.stdout}\n{done.stderr}")
        return done

    def start(self, name: str, command: str, output: Path) -> subprocess.Popen[bytes]:
        """Start a shell command on a host in the background; its output goes to a file."""
        with output.open("wb") as file:
            return subprocess.Popen(
                self._inside(name, command), stdout=file, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL
            )

    def processes(self, pattern: str) -> dict[str, list[str]]:
        """Return, by host, the command lines that contain `pattern`; hosts without any are left out."""
        found = {}
        for name in self.names:
            if name in self._hosts:
                listed = self.run(name, "ps -eo pid=,args= ww").stdout.splitlines()
                lines = [line for line in listed if pattern in line and "ps -eo" not in line]
                if lines:
                    found[name] = lines
        return found

    def link(self, name: str, up: bool) -> None:
        """Plug a host's network in or pull it."""
        _do(f"ip -n {self._space}-{name} link set eth0 {'up' if up else 'down'}")

    def power_off(self, name: str) -> None:
        """Kill every process of a host at once and drop its link, as a power cut does."""
        host = self._hosts.pop(name)
        _do(f"ip -n {self._space}-{name} link set eth0 down")
        os.killpg(host.pid, signal.SIGKILL)  # unshare --kill-child takes the process namespace with it
        host.wait()

    def power_on(self, name: str) -> None:
        """Start a host and wait for its sshd."""
        space = f"{self._space}-{name}"
        if not Path(f"/run/netns/{space}").exists():
            self._wire(name, space)
        _do(f"ip -n {space} link set eth0 up")
        log = (self.folder / f"{name}.log").open("ab")
        self._hosts[name] = subprocess.Popen(
            [*HOST, "ip", "netns", "exec", space, *ROOM, "bash", "-c", self._boot(name)],
            stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True,
        )  # fmt: skip
        log.close()
        ready = f"ssh -o ConnectTimeout=1 {self.names[0]} true"
        wait_for(lambda: self.run(name, ready, check=False).returncode == 0 or name != self.names[0], 20, ready)

    def close(self) -> None:
        """End all hosts and remove their network."""
        for name in list(self._hosts):
            self.power_off(name)
        for name in [*self.names, "switch"]:
            if Path(f"/run/netns/{self._space}-{name}").exists():
                _do(f"ip netns del {self._space}-{name}")

    def slurm(self) -> str:
        """Start munge, slurmctld (node0) and slurmd (all hosts); return the shell prefix that makes clients use it."""
        folder = self.folder / "slurm"
        conf = slurm_files.write(folder, self.names, [self.address(name) for name in self.names])
        for name in self.names:
            self.run(name, slurm_files.start_commands(folder, name, controller=name == self.names[0]))
        use = f"export SLURM_CONF={conf}; "
        idle = f"test $(sinfo -h -N -o %T | grep -cx idle) = {len(self.names)}"
        wait_for(lambda: self.run(self.names[0], use + idle, check=False).returncode == 0, 60, "Slurm's nodes idle")
        return use

    def address(self, name: str) -> str:
        """Return a host's IP address."""
        return f"{NETWORK}.{self.names.index(name) + 1}"

    def _inside(self, name: str, command: str) -> list[str]:
        init = self._init_pid(name)
        return ["nsenter", "--target", str(init), "--net", "--mount", "--uts", "--pid", "bash", "-c", command]

    def _init_pid(self, name: str) -> int:
        """Return the pid, seen from outside, of the host's first process: the only child of `unshare`."""
        unshare = self._hosts[name].pid
        children = Path(f"/proc/{unshare}/task/{unshare}/children")
        wait_for(lambda: bool(children.read_text().split()), 10, f"{name} to boot")
        return int(children.read_text().split()[0])

    def _make_switch(self) -> None:
        for old in Path("/run/netns").glob("fmri*-*"):  # of a test process that was killed
            if not Path("/proc", old.name.removeprefix("fmri").partition("-")[0]).exists():
                _do(f"ip netns del {old.name}")
        switch = f"{self._space}-switch"
        _do(f"ip netns add {switch}")
        _do(f"ip -n {switch} link add br0 type bridge")
        _do(f"ip -n {switch} link set br0 up")

    def _wire(self, name: str, space: str) -> None:
        port = f"port{self.names.index(name)}"
        _do(f"ip netns add {space}")
        _do(f"ip -n {space} link add eth0 type veth peer name {port} netns {self._space}-switch")
        _do(f"ip -n {self._space}-switch link set {port} master br0 up")
        _do(f"ip -n {space} addr add {self.address(name)}/24 dev eth0")
        _do(f"ip -n {space} link set lo up")

    def _boot(self, name: str) -> str:
        """Shell text of a host's first process: its name, its own /dev/shm and ~/.ssh, then sshd."""
        f = shlex.quote(str(self.folder))
        return (
            f"set -e; hostname {name}; mount --bind {f}/hosts /etc/hosts; mount -t tmpfs tmpfs /dev/shm; "
            f"mkdir -p ~/.ssh /run/sshd; mount -t tmpfs tmpfs ~/.ssh; install -m 600 {f}/ssh_config ~/.ssh/config; "
            f"exec $(PATH=$PATH:/usr/sbin command -v sshd) -D -e -f {f}/sshd_config"
        )

    def _write_files(self) -> None:
        folder = self.folder
        for key in ("user_key", "host_key"):
            if not (folder / key).exists():
                _do(f"ssh-keygen -q -t ed25519 -N '' -f {shlex.quote(str(folder / key))}")
        addresses = [f"{self.address(name)} {name}" for name in self.names]
        (folder / "hosts").write_text("\n".join(["127.0.0.1 localhost", *addresses]) + "\n")
        (folder / "ssh_config").write_text(
            f"Host node*\n  IdentityFile {folder}/user_key\n  UserKnownHostsFile /dev/null\n"
            "  StrictHostKeyChecking no\n  LogLevel ERROR\n"
        )
        (folder / "sshd_config").write_text(
            f"HostKey {folder}/host_key\nAuthorizedKeysFile {folder}/user_key.pub\nStrictModes no\nUsePAM no\n"
            "PermitRootLogin prohibit-password\nPasswordAuthentication no\nPidFile none\nMaxStartups 100\n"
        )


def wait_for(condition: Callable[[], bool], seconds: float, what: str) -> None:
    """Poll until `condition` holds; AssertionError after `seconds`."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, f"waited {seconds:g} s in vain for {what}"
        time.sleep(0.1)


def _do(command: str | Sequence[str]) -> None:
    words = shlex.split(command) if isinstance(command, str) else list(command)
    done = subprocess.run(words, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"{shlex.join(words)}: {done.stderr.strip()}")
