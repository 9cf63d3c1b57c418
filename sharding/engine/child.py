"""A process that makes units: `python -m sharding.engine.child FD`, started by `worker.Worker` alone.

In: units over the connection FD. Out, over the same: ("at", label) before each run, ("frames", n), and for each unit
at last ("made",), ("refused", reason) or ("unwritable", errno, strerror, file). It ends when its parent does.
"""

import os
import queue
import sys
import threading
import traceback
from multiprocessing.connection import Connection

from sharding.engine.unit import Unit, make_unit
from sharding.errors import ShardingError


def main() -> None:
    """Make units until the parent closes the connection or ends."""
    parent = Connection(int(sys.argv[1]))
    units: queue.SimpleQueue[Unit] = queue.SimpleQueue()
    threading.Thread(target=_receive, args=(parent, units), daemon=True).start()
    while True:
        parent.send(_make(units.get(), parent))


def _receive(parent: Connection, units: "queue.SimpleQueue[Unit]") -> None:
    try:
        while True:
            units.put(parent.recv())
    except (EOFError, ConnectionError):
        os._exit(0)  # whatever is under way is nobody's any more; unfinished files are swept by the next start


def _make(unit: Unit, parent: Connection) -> tuple:
    try:
        make_unit(unit, lambda frames: parent.send(("frames", frames)), lambda label: parent.send(("at", label)))
    except ShardingError as error:
        return "refused", str(error)
    except OSError as error:
        return "unwritable", error.errno, error.strerror, error.filename
    except Exception:
        return "refused", f"{unit.out}: shard {unit.name} cannot be made; please report this:\n{traceback.format_exc()}"
    return ("made",)


if __name__ == "__main__":
    main()
