"""Training state on disk: written aside, verified, then named.

`newest` and `locate` find a whole checkpoint, `consolidated_state` gives its weights, `read_config` and
`read_state` what it was trained with. Writing and resuming (`commit`, `engine_files`, `restore`) belong to training.
"""

from fmri_scale.checkpoint.consolidate import consolidated_state
from fmri_scale.checkpoint.layout import CheckpointDir
from fmri_scale.checkpoint.newest import locate, newest
from fmri_scale.checkpoint.state import TrainingState, read_config, read_state

__all__ = ["CheckpointDir", "TrainingState", "consolidated_state", "locate", "newest", "read_config", "read_state"]
