"""Which runs are meant: files, folders of a known layout, or a table, each run with the entities that name it.

In: paths given by the user. Out: a `RunSource` for every run, and for everything met but left out, why. No image is
opened. One file a layout; `layout` recognises which a folder has.
"""

from sharding.discover.layout import LAYOUTS, Discovery, FindOptions, discover, find_runs
from sharding.discover.source import LeftOut, RunSource
from sharding.discover.table import TABLE_COLUMNS

__all__ = ["LAYOUTS", "TABLE_COLUMNS", "Discovery", "FindOptions", "LeftOut", "RunSource", "discover", "find_runs"]
