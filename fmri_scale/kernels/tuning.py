"""Launch parameters from tables that are checked in, one JSON a GPU architecture; nothing is tuned while training.

Ranks must launch the same code on the same step, and a first step must not stall, so there is no autotuning. For the
scan a table lists rules, tried from the top: the first one whose `channel_windows_at_least` is met by the launch's
width times windows (of all clips) gives the channels a program may own, how many tokens are unrolled and the warps of
a program. For the convolution it gives the channels, the slots that are walked one after the other and the values of
a thread, for the MLP the tile of its maps' gradients. `python -m fmri_scale.kernels.tune` writes the tables, from
machine code or, on a GPU, from times; `basis` says which. An architecture without a table takes the one of its nearest
relative, and a warning says so once.
"""

import contextlib
import functools
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch

from fmri_scale.log import get_logger

TABLES = Path(__file__).parent / "tables"
DEFAULT = "sm_90"
"The table where there is no GPU (interpreter, compilation), and for GPUs of another make."
_pretended: list[str] = []
_override: list[dict] = []


@dataclass(frozen=True)
class Tile:
    """How a scan is laid over programs."""

    main: int
    tail: int
    programs: int
    "Channel tiles of a window: the second axis of the launch."
    unroll: int
    num_warps: int

    @property
    def constants(self) -> dict[str, int]:
        """Constants and options of the launch."""
        return {"MAIN": self.main, "TAIL": self.tail, "UNROLL": self.unroll, "num_warps": self.num_warps}


def architecture(device: torch.device) -> str:
    """Name the GPU architecture: `sm_90`, `gfx942`; the default's where there is none (interpreter, compile only)."""
    if device.type != "cuda":
        return _pretended[-1] if _pretended else DEFAULT
    return _cuda_architecture(device.index or 0)


def scan_tile(kernel: str, device: torch.device, width: int, windows: int, frames: int) -> Tile:
    """Choose the tile of a scan kernel.

    Parameters
    ----------
    kernel : str
        `scan_forward` or `scan_backward`.
    device : torch.device
        Where it runs.
    width : int
        Channels E.
    windows : int
        Windows of the whole batch.
    frames : int
        Tokens of a window along time; the unrolled steps divide it.
    """
    rule = next(r for r in table(architecture(device))[kernel] if windows * width >= r["channel_windows_at_least"])
    main, tail = split(width, rule["channels"])
    unroll = max(u for u in range(1, rule["unroll"] + 1) if frames % u == 0)
    return Tile(main, tail, -(-width // (main + tail)), unroll, rule["num_warps"])


@dataclass(frozen=True)
class ConvTile:
    """How a convolution is laid over programs: a tile holds all runs of a window."""

    main: int
    tail: int
    programs: int
    run: int
    "Consecutive slots that are walked one after the other."
    runs: int
    "Runs of a window, a power of two."
    num_warps: int

    @property
    def constants(self) -> dict[str, int]:
        """Constants and options of the launch."""
        names = {"MAIN": self.main, "TAIL": self.tail, "RUN": self.run, "RUNS": self.runs}
        return {**names, "num_warps": self.num_warps}


def conv_tile(kernel: str, device: torch.device, width: int, length: int) -> ConvTile:
    """Choose the tile of `conv_forward` or `conv_backward` for E channels and windows of `length` slots."""
    rule = table(architecture(device))[kernel]
    main, tail = split(width, rule["channels"])
    run = min(rule["run"], length)
    runs = 1 << (-(-length // run) - 1).bit_length()
    warps = max(1, min(8, runs * main // (32 * rule["elements_per_thread"])))
    return ConvTile(main, tail, -(-width // (main + tail)), run, runs, warps)


def mlp_tile(device: torch.device) -> tuple[int, int]:
    """Tokens at a time and hidden values of a program that makes the gradients of an MLP's maps."""
    rule = table(architecture(device))["mlp_weight"]
    return rule["tokens"], rule["hidden"]


@functools.lru_cache(maxsize=256)
def split(width: int, channels: int) -> tuple[int, int]:
    """Cut a width into equal programs of a power of two, or of two of them, with at most `channels` channels.

    The least padding wins, then the fewest programs: 72 is (64, 8), 144 is twice (64, 8), 96 is (64, 32) or, in
    programs of 72 at most, twice (32, 16).
    """
    powers = [1 << i for i in range(2, 8)]
    pairs = [(m, t) for m in powers for t in (0, *powers) if t < m and m + t <= max(channels, 4)]
    programs = {pair: -(-width // sum(pair)) for pair in pairs}
    return min(pairs, key=lambda pair: (programs[pair] * sum(pair), programs[pair], pair[1] > 0))


def table(arch: str) -> dict:
    """Read the table of an architecture, or of its nearest relative."""
    return _override[-1] if _override else _read(arch)


@contextlib.contextmanager
def override(entries: dict) -> Iterator[None]:
    """Launch by these entries inside, whatever the table says of those kernels: for the tuner and for tests."""
    _override.append({**table(DEFAULT), **entries})
    try:
        yield
    finally:
        _override.pop()


@functools.lru_cache(maxsize=8)
def _read(arch: str) -> dict:
    known = sorted(path.stem for path in TABLES.glob("*.json"))
    chosen = arch if arch in known else nearest(arch, known)
    if chosen != arch:
        get_logger(__name__).warning(
            "kernels: no launch table for %s, using that of %s: results are right, speed is untuned; on such a GPU "
            "`python -m fmri_scale.kernels.tune --arch %s --measure` writes one",
            *(arch, chosen, arch),
        )
    return json.loads((TABLES / f"{chosen}.json").read_text())


def nearest(arch: str, known: list[str]) -> str:
    """The newest known NVIDIA architecture no newer than `arch`, else the oldest; the default for another make."""
    number = re.fullmatch(r"sm_(\d+)", arch)
    if number is None:
        return DEFAULT
    ordered = sorted(known, key=lambda name: int(name[3:]))
    older = [name for name in ordered if int(name[3:]) <= int(number[1])]
    return older[-1] if older else ordered[0]


@functools.lru_cache(maxsize=8)
def _cuda_architecture(index: int) -> str:
    if torch.version.hip:
        return torch.cuda.get_device_properties(index).gcnArchName.split(":")[0]
    major, minor = torch.cuda.get_device_capability(index)
    return f"sm_{major}{minor}"
