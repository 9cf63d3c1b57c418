"""Which environment variables travel to the ranks, and the file by which DeepSpeed's launcher carries them.

`deepspeed --hostfile` reads NAME=VALUE lines from the file that DS_ENV_FILE names and puts them, unquoted by any
shell rules of its own, into the command line that ssh runs on every node. So: an empty line or a comment crashes it,
quotes and dollar signs change their meaning on the way, and every user of a node can read the values in `ps`.
"""

import importlib.metadata
import os
import re
from collections.abc import Iterable, Mapping
from pathlib import Path

from fmri_scale.errors import ConfigError
from fmri_scale.log import get_logger

log = get_logger(__name__)

PASSED = (
    *("NCCL_", "TORCH_", "TORCHINDUCTOR_", "PYTORCH_", "CUDA_", "GLOO_", "UCX_", "FI_", "OMP_", "MKL_"),
    *("TRITON_", "FMRI_SCALE_", "WANDB_", "HF_", "OMPI_MCA_"),
)
"Prefixes of variables that are passed on from the shell that starts the run."
PASSED_NAMES = (
    *("PATH", "LD_LIBRARY_PATH", "TMPDIR", "XDG_CACHE_HOME", "SSL_CERT_FILE", "REQUESTS_CA_BUNDLE"),
    *("HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY", "http_proxy", "https_proxy", "no_proxy"),
)
"Single variables likewise; without PATH the nodes' ssh sessions find neither ninja nor the CUDA compiler."
OWN = ("CUDA_VISIBLE_DEVICES", "FMRI_SCALE_TORCH_INDEX")
"Variables that the launcher sets for each rank, or that mean nothing to one."
SECRET = re.compile(r"(^|_)(API_KEY|TOKEN|SECRET|PASSWORD|PASSWD|CREDENTIALS?)($|_)|ACCESS_KEY", re.IGNORECASE)
_OLD_RECORDER = {
    "TORCH_FR_BUFFER_SIZE": "TORCH_NCCL_TRACE_BUFFER_SIZE",
    "TORCH_FR_DUMP_TEMP_FILE": "TORCH_NCCL_DEBUG_INFO_TEMP_FILE",
}
"Names of the flight recorder's settings before torch 2.9, which warns of them since."
_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_UNSAFE = re.compile(r"[\"$`\\%]")
"The shell's, and pdsh's: it replaces %h, %n and %u."


def defaults(run_dir: Path, ranks_per_node: int) -> dict[str, str]:
    """Return settings that every run wants unless the user says otherwise.

    Parameters
    ----------
    ranks_per_node : processes that share the cores of a machine.
    """
    recorder = {"TORCH_FR_BUFFER_SIZE": "2000", "TORCH_FR_DUMP_TEMP_FILE": str(run_dir / "logs" / "collectives_")}
    if _torch_version() < (2, 9):
        recorder = {_OLD_RECORDER[name]: value for name, value in recorder.items()}
    return {
        "NCCL_DEBUG": "WARN",  # its errors name the link and the peer
        "OMP_NUM_THREADS": str(max(1, (os.cpu_count() or 1) // ranks_per_node)),  # torch takes all cores per rank
        "PYTHONFAULTHANDLER": "1",  # a crash in C++ prints the Python stack
        "PYTHONUNBUFFERED": "1",
        **recorder,  # NCCL's last collectives, written down where one of them does not return
        "TORCH_NCCL_DUMP_ON_TIMEOUT": "1",
    }


def collect(config_env: Iterable[str], shell: Mapping[str, str], base: Mapping[str, str]) -> dict[str, str]:
    """Return the variables of a run: `base`, over it what the shell has of PASSED, over it the configuration's.

    Raises
    ------
    ConfigError : an entry of launch.env that is not NAME=VALUE.
    """
    passed = {name: value for name, value in shell.items() if _is_passed(name)}
    withheld = sorted(name for name in passed if SECRET.search(name))
    if withheld:
        log.warning(
            "%s: not passed on to other nodes, where every user could read it; put it into a file in the home folder "
            "there (W&B: `wandb login`, Hugging Face: `hf auth login`)", ", ".join(withheld),
        )  # fmt: skip
    kept = {name: value for name, value in passed.items() if name not in withheld}
    return {**base, **kept, **parse(config_env)}


def parse(entries: Iterable[str]) -> dict[str, str]:
    """Return NAME=VALUE entries as a dict."""
    found = {}
    for entry in entries:
        name, sign, value = entry.partition("=")
        if not sign or not _NAME.fullmatch(name):
            raise ConfigError(f"launch.env: {entry!r}: expected NAME=VALUE")
        found[name] = value
    return found


def write(path: Path, variables: Mapping[str, str]) -> Path:
    """Write the file for DS_ENV_FILE, readable by its owner alone; return its absolute path.

    Raises
    ------
    ConfigError : a value that would not arrive as it is.
    """
    for name, value in variables.items():
        if not _NAME.fullmatch(name):
            raise ConfigError(f"environment variable {name!r}: not a name that a shell can export")
        if _UNSAFE.search(value) or value != value.strip() or not value.isprintable():
            raise ConfigError(
                f"environment variable {name}={value!r}: double quotes, $, backquotes, backslashes, % and control "
                "characters or outer blanks do not survive the way to other nodes; unset it or choose another value"
            )
    aside = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    aside.touch(mode=0o600)
    aside.write_text("".join(f"{name}={value}\n" for name, value in sorted(variables.items())))
    os.replace(aside, path)
    return path.resolve()


def read(path: Path) -> dict[str, str]:
    """Return the variables of a file made by `write`."""
    return parse(path.read_text().rstrip("\n").split("\n"))


def _torch_version() -> tuple[int, int]:
    major, minor = importlib.metadata.version("torch").split(".")[:2]
    return int(major), int(minor)


def _is_passed(name: str) -> bool:
    return name not in OWN and (name in PASSED_NAMES or name.startswith(PASSED))
