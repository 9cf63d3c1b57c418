"""`python -m fmri_scale COMMAND`: the same as `fmri-scale COMMAND`, for launchers that start modules."""

import sys

from fmri_scale.cli import main

sys.exit(main())
