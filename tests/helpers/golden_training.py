"""The recorded run in tests/golden/training: what it was started with, and how the record is made.

`python -m tests.helpers.golden_training` trains four steps on one rank for the losses, and two on two ranks with ZeRO 3
for the checkpoint; only to be repeated when the training itself is meant to change.
"""

import json
import shutil
import sys
from pathlib import Path

from fmri_scale.checkpoint import consolidated_state, layout
from fmri_scale.training.metrics import read_metrics
from tests.helpers.spawn import TRAINEE, run_ranks
from tests.helpers.tiny_training import arguments, write_tiny_corpus

FOLDER = Path(__file__).resolve().parents[1] / "golden" / "training"
RUN, RECORD = FOLDER / "run", FOLDER / "record.json"
STEPS, SAVED = 4, 2


def golden_arguments(run_dir: Path, corpus: Path, **changes: object) -> list[str]:
    """Return the command line of the run."""
    shape = {"model__embed_dim": 4, "model__depths": [1, 1], "optim__steps": STEPS, "optim__ema_decay": 0.9}
    return arguments(run_dir, corpus, **shape, **changes)


def sums(path: Path, averaged: bool) -> dict[str, float]:
    """Return the sum of each parameter in a checkpoint."""
    return {name: float(values.detach().double().sum()) for name, values in consolidated_state(path, averaged).items()}


def main() -> int:
    """Make the record anew; call it at the repository's root, to which the paths in the checkpoint are relative."""
    folder = Path("golden_scratch")
    folder.mkdir()
    corpus = write_tiny_corpus(folder / "corpus")
    whole = {"arguments": golden_arguments(folder / "whole", corpus)}
    half = golden_arguments(folder / "half", corpus, engine__zero_stage=3)
    for world_size, job in ((1, whole), (2, {"arguments": half, "faults": {"stop_at": SAVED}})):
        (folder / "jobs.json").write_text(json.dumps([job]))
        ended = run_ranks([str(folder / "jobs.json")], world_size, folder, TRAINEE)
        assert [process.code for process in ended] == [0] * world_size
    saved = layout.step_dir(folder / "half", SAVED)
    shutil.rmtree(FOLDER, ignore_errors=True)
    shutil.copytree(saved, RUN / layout.CHECKPOINTS / saved.name)
    rows = [{key: row[key] for key in ("step", "loss", "grad_norm")} for row in read_metrics(folder / "whole")]
    RECORD.write_text(
        json.dumps({"rows": rows, "weights": sums(RUN, False), "average": sums(RUN, True)}, indent=1) + "\n"
    )
    shutil.rmtree(folder)
    return 0


if __name__ == "__main__":
    sys.exit(main())
