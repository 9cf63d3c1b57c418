"""Can W&B be reached, and is there a port for rank 0?"""

import os
import socket
from collections.abc import Iterator
from urllib.parse import urlsplit
from urllib.request import getproxies

from fmri_scale.config import Config
from fmri_scale.training.doctor.findings import NOTE, OK, WARN, Finding
from fmri_scale.training.metrics import wandb_mode
from fmri_scale.training.supervise import port

WANDB = "https://api.wandb.ai"
CONNECT_S = 5.0


def wandb(config: Config) -> Iterator[Finding]:
    """Yield how metrics will get to W&B."""
    mode = wandb_mode(config.log.wandb)
    if mode != "online":
        why = "log.wandb" if config.log.wandb == mode else "no key: `wandb login` makes auto online"
        yield Finding("W&B", NOTE, f"{mode} ({why})")
        return
    url = os.environ.get("WANDB_BASE_URL", WANDB)
    host, number = _address(url)
    try:
        socket.create_connection((host, number), CONNECT_S).close()
    except OSError as error:
        remedy = "training goes on offline, `wandb sync` sends it later; or set https_proxy, or log.wandb=offline"
        yield Finding("W&B", WARN, f"{host}:{number} cannot be reached: {error.strerror or error}", remedy)
        return
    yield Finding("W&B", OK, f"online, {host}:{number} answers")


def listening() -> Iterator[Finding]:
    """Yield whether a port for rank 0 is free on this machine."""
    yield Finding("port", OK, f"{port.choose('doctor')} is free for rank 0")


def _address(url: str) -> tuple[str, int]:
    """Return where a connection to the URL goes: to itself or to the proxy."""
    parts = urlsplit(url)
    proxy = getproxies().get(parts.scheme)
    if proxy:
        parts = urlsplit(proxy if "://" in proxy else f"http://{proxy}")
    return parts.hostname or url, parts.port or (443 if parts.scheme == "https" else 80)
