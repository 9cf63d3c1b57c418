"""How a result names the machine it was measured on: in words, and as part of a file's name."""

import os
import platform
import re
from pathlib import Path

NOISE = r"\((r|tm)\)|\b(cpu|processor|\d+-core|with .*)\b|@.*$"
"What makers write around a processor's name."


def cpuinfo() -> list[str]:
    """Return what Linux says of the processor, line by line."""
    path = Path("/proc/cpuinfo")
    return path.read_text().splitlines() if path.exists() else []


def processor() -> str:
    """Return the processor's name and the number of cores."""
    names = [line.partition(":")[2].strip() for line in cpuinfo() if line.startswith("model name")]
    return f"{names[0] if names else platform.machine()}, {os.cpu_count()} cores"


def slug(name: str | None = None) -> str:
    """Return a name, of this machine's processor where None, as part of a file's, without what says nothing."""
    parts = (name or processor()).lower().split(", ")
    return "-".join(re.findall("[a-z0-9]+", " ".join(re.sub(NOISE, "", part) for part in parts)))
