"""The one logger of the project: every rank logs with its number, rank 0 alone talks on the terminal.

`get_logger(name)` gives a child of the logger `fmri_scale`. Rank and level are set once, by
`configure_logging`; before that call messages go to stderr without a rank.
"""

import logging
import sys
from pathlib import Path

ROOT = "fmri_scale"


def get_logger(name: str) -> logging.Logger:
    """Return the logger for a module; pass `__name__`."""
    return logging.getLogger(name if name.startswith(ROOT) else f"{ROOT}.{name}")


def counted(number: int, noun: str) -> str:
    """Return `1 rank`, `2 ranks`, `2 passes`."""
    ending = "" if number == 1 else "es" if noun.endswith("s") else "s"
    return f"{number} {noun}{ending}"


def configure_logging(rank: int = 0, level: str = "INFO", file: Path | None = None) -> None:
    """Send messages of this process to stderr (rank 0: `level`, others: warnings) and, if given, to `file`."""
    root = logging.getLogger(ROOT)
    root.handlers.clear()
    root.setLevel(logging.DEBUG)
    root.propagate = False
    form = logging.Formatter(f"%(asctime)s [{rank}] %(levelname)s %(message)s", "%H:%M:%S")
    terminal = logging.StreamHandler(sys.stderr)
    terminal.setLevel(level if rank == 0 else "WARNING")
    terminal.setFormatter(form)
    root.addHandler(terminal)
    if file is not None:
        file.parent.mkdir(parents=True, exist_ok=True)
        to_file = logging.FileHandler(file)
        to_file.setLevel(logging.DEBUG)
        to_file.setFormatter(form)
        root.addHandler(to_file)
