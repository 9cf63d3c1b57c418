"""The errors a user can meet. Each message says what was found, what was expected, where, and what to do.

Command-line entry points turn every `FmriScaleError` into one line on stderr and exit code 2; anything else
is a defect of this program and keeps its traceback.
"""


class FmriScaleError(Exception):
    """Base of all errors that the user can mend."""


class ConfigError(FmriScaleError):
    """A configuration key or value that cannot be used."""


class DataError(FmriScaleError):
    """A corpus, shard or sample that is missing, damaged or does not fit the request."""


class CheckpointError(FmriScaleError):
    """A training checkpoint or release that is incomplete, damaged or of another model."""


class LaunchError(FmriScaleError):
    """A distributed launch whose environment or resources do not add up."""


class LostRankError(FmriScaleError):
    """Another rank has gone or does not answer; nothing to mend here, starting again continues the run."""


class TrainingError(FmriScaleError):
    """A run that cannot go on, such as one whose numbers are not finite any more."""
