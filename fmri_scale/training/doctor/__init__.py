"""Look before the run: is this machine, or are these machines together, fit to train what a configuration asks for?

`examine` gives findings about this process' machine; `ranks.compare` those of all ranks of a launch, and measures the
network between them. Nothing is changed; probe files are deleted. `fmri-scale doctor` prints it.
"""

from fmri_scale.training.doctor.examine import examine
from fmri_scale.training.doctor.findings import BLOCK, NOTE, OK, WARN, Finding

__all__ = ["BLOCK", "NOTE", "OK", "WARN", "Finding", "examine"]
