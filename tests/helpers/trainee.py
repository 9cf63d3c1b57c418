"""A rank that trains several runs one after the other in one process, so that tests pay for one start only.

`python -m tests.helpers.trainee JOBS.json`: a list of `{"arguments": [...], "faults": {...}}`. Each run ends with a
record in its folder, `record_RANK.json`: exit code or error message, and what only a live engine can tell.

Faults (of the input, by rank): `nan_volume: [[rank, first micro-step, last]]`.
"""

import json
import math
import sys
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from fmri_scale.errors import FmriScaleError
from fmri_scale.train import read_arguments
from fmri_scale.training import dist, launch
from fmri_scale.training.signals import StopRequest


def main() -> int:
    """Run all jobs; return 0."""
    place = launch.discover()
    place.export()
    device = dist.start(place, timeout_s=120.0)
    for job in json.loads(Path(sys.argv[1]).read_text()):
        record = run_job(job, place, device)
        folder = Path(read_arguments(job["arguments"]).run_dir)
        (folder / f"record_{place.rank}.json").write_text(json.dumps(record))
    dist.stop()
    return 0


def run_job(job: dict[str, Any], place: launch.Launch, device: torch.device) -> dict[str, Any]:
    """Train one run; return its record."""
    from fmri_scale.training import build, loop, objective

    config = read_arguments(job["arguments"])
    seen: dict[str, Any] = {}
    original_engine, original_call = build.build_engine, objective.ClipInput.__call__

    def build_engine(*arguments: Any) -> Any:
        seen["engine"] = engine = original_engine(*arguments)
        return engine

    micro_steps = 0

    def call(self: objective.ClipInput, batch: Any) -> tuple:
        nonlocal micro_steps
        micro_steps += 1
        volume, mask, brain = original_call(self, batch)
        for rank, first, last in job.get("faults", {}).get("nan_volume", []):
            if rank == place.rank and first <= micro_steps <= last:
                volume = volume * math.nan
        return volume, mask, brain

    build.build_engine, objective.ClipInput.__call__ = build_engine, call  # type: ignore[method-assign]
    try:
        outcome: dict[str, Any] = {"code": loop.run(config, place, device, StopRequest())}
    except FmriScaleError as error:
        outcome = {"error": str(error), "kind": type(error).__name__}
    finally:
        build.build_engine, objective.ClipInput.__call__ = original_engine, original_call  # type: ignore[method-assign]
    engine = seen["engine"]
    save_live_weights(engine, Path(config.run_dir) / f"live_{place.rank}.safetensors")
    return {**outcome, "timeouts_s": group_timeouts(), "accumulation_dtype": str(engine.get_data_types()[1])}


def save_live_weights(engine: Any, path: Path) -> None:
    """Write the engine's full parameters, gathered where ZeRO-3 has sliced them."""
    import deepspeed

    parameters = dict(engine.module.model.named_parameters())
    with deepspeed.zero.GatheredParameters(list(parameters.values())):
        save_file({name: p.detach().clone().contiguous() for name, p in parameters.items()}, path)


def group_timeouts() -> list[float]:
    """Return the timeout of every process group in seconds."""
    from torch.distributed import distributed_c10d as c10d

    found: list[timedelta] = [
        group._get_backend(torch.device("cpu")).options._timeout for group in list(c10d._world.pg_map)
    ]
    return [timeout.total_seconds() for timeout in found]


if __name__ == "__main__":
    sys.exit(main())
