"""Which runs are meant: files, folders of a known layout, or a table, each run with the entities that name it.

In: paths given by the user. Out: a `RunSource` for every run, and for everything met but left out, why. No image is
opened. One file a layout; `layout` recognises which a folder has.
"""

from sharding.discover import bids, hcp, ukb
from sharding.discover.layout import LAYOUTS, Discovery, FindOptions, discover, find_runs
from sharding.discover.source import LeftOut, RunSource
from sharding.discover.table import TABLE_COLUMNS

RULES = "\n".join(f"  {line}" for layout in (bids, hcp, ukb) for line in layout.RULE.splitlines())
"Which files of each layout are taken, for people to read."

__all__ = [
    "LAYOUTS",
    "RULES",
    "TABLE_COLUMNS",
    "Discovery",
    "FindOptions",
    "LeftOut",
    "RunSource",
    "discover",
    "find_runs",
]
