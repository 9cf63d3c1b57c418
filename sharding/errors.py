"""Errors of the sharding tool. Each message names the file, the value found, and the remedy."""


class ShardingError(Exception):
    """Base of all errors the user can mend; the command line prints one line and exits with code 2."""


class InputError(ShardingError):
    """An input file (NIfTI, mask, atlas, table) that cannot be used as it is."""


class NotASeriesError(InputError):
    """An image without a time axis."""


class CorpusError(ShardingError):
    """A corpus folder that is missing, incomplete or damaged."""
