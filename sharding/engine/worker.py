"""One worker: has units made in a child process, and answers for that process' life.

In: a unit. Out: its shard. When the child dies the unit is made again in a new one; a run at which it died MAX_DEATHS
times is left out with that reason. So a file that crashes a library, or needs more memory than there is, fails alone.
"""

import os
import subprocess
import sys
from collections import Counter
from multiprocessing import Pipe
from pathlib import Path
from types import TracebackType

from sharding.engine.unit import Unit
from sharding.errors import CorpusError
from sharding.shard import Progress

MAX_DEATHS = 3
"Deaths of a process at one run, or at none, that are put down to that."

ROOT = Path(__file__).resolve().parents[2]


class Worker:
    """Makes units one after another in a child process that is started when first needed.

    Parameters
    ----------
    folder
        Where relative names of files begin; None: where this process stands.
    """

    def __init__(self, folder: str | None = None) -> None:
        self._folder = folder
        self._child: _Child | None = None
        self._closed = False

    def __enter__(self) -> "Worker":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None):
        self.close()

    def make(self, unit: Unit, progress: Progress) -> None:
        """Make a unit.

        Raises
        ------
        CorpusError, OSError
            As of `make_unit`, or its process dies again and again without having begun a run, or `close` was called.
        """
        deaths: Counter[str] = Counter()
        while True:
            try:
                return self._make_once(unit, progress)
            except _DeathError as death:
                self._child = None
                deaths[death.label] += 1
                progress(-death.done)
                if deaths[death.label] < MAX_DEATHS:
                    continue
                said = f"its process ended {MAX_DEATHS} times ({death.how})"
                if not death.label:
                    raise CorpusError(f"{unit.out}: shard {unit.name} cannot be made: {said}") from death
                reason = f"{unit.source(death.label)}: {said}; too little memory, or a fault in a library: left out"
                unit = unit.without(death.label, reason)

    def close(self) -> None:
        """End the child at once, from whatever thread; a `make` that is under way fails."""
        self._closed = True
        if self._child:
            self._child.kill()

    def _make_once(self, unit: Unit, progress: Progress) -> None:
        self._child = self._child or _Child(self._folder)
        if self._closed:
            self._child.kill()
            raise CorpusError(f"{unit.out}: stopped")
        try:
            self._child.make(unit, progress)
        except _DeathError as death:
            if self._closed:
                raise CorpusError(f"{unit.out}: stopped") from death
            raise


class _DeathError(Exception):
    """A child is gone."""

    def __init__(self, label: str, done: int, how: str) -> None:
        super().__init__(how)
        self.label, self.done, self.how = label, done, how


class _Child:
    """A process of `child.main`, out of reach of the terminal's Ctrl-C: its parent answers for it."""

    def __init__(self, folder: str | None) -> None:
        self._connection, theirs = Pipe()
        paths = [str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
        # Workers fill the cores already; threads of theirs would only get into each other's way.
        environment = {"OMP_NUM_THREADS": "1", **os.environ, "PYTHONPATH": os.pathsep.join(paths)}
        command = [sys.executable, "-m", "sharding.engine.child", str(theirs.fileno())]
        self._process = subprocess.Popen(
            command,
            pass_fds=[theirs.fileno()],
            cwd=folder,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=2,
            start_new_session=True,
        )
        theirs.close()

    def make(self, unit: Unit, progress: Progress) -> None:
        label, done = "", 0
        try:
            self._connection.send(unit)
            while True:
                kind, *rest = self._connection.recv()
                if kind == "at":
                    label = rest[0]
                elif kind == "frames":
                    done += rest[0]
                    progress(rest[0])
                elif kind == "unwritable":
                    raise OSError(*rest)
                elif kind == "refused":
                    raise CorpusError(rest[0])
                else:
                    return
        except (EOFError, ConnectionError) as error:
            raise _DeathError(label, done, self._obituary()) from error

    def kill(self) -> None:
        self._process.kill()
        self._process.wait()

    def _obituary(self) -> str:
        code = self._process.wait()
        return f"signal {-code}" if code < 0 else f"exit code {code}"
