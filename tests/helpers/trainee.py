"""A rank that trains several runs one after the other in one process, so that tests pay for one start only.

`python -m tests.helpers.trainee JOBS.json`: a list of `{"arguments": [...], "faults": {...}, "copies": [...]}`. A run
leaves a record in its folder, `record_RANK.json`: exit code or error message, and what only a live engine can tell;
then its folder is copied to those in `copies`. `cut_all` lets ZeRO 3 cut even the smallest parameters.

Faults are those of tests/helpers/faults.py; `forget: step` deletes a checkpoint first.
"""

import contextlib
import json
import shutil
import sys
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from safetensors.torch import save_file

from fmri_scale.checkpoint import collective, layout
from fmri_scale.config import Config
from fmri_scale.errors import FmriScaleError
from fmri_scale.train import read_arguments
from fmri_scale.training import dist, launch
from fmri_scale.training.signals import StopRequest
from tests.helpers.faults import faults


def main() -> int:
    """Run all jobs; return 0."""
    place = launch.discover()
    place.export()
    device = dist.start(place, timeout_s=120.0)
    for job in json.loads(Path(sys.argv[1]).read_text()):
        run_job(job, place, device)
    dist.stop()
    return 0


def run_job(job: dict[str, Any], place: launch.Launch, device: torch.device) -> None:
    """Train one run and write its record."""
    from fmri_scale.training import build, loop

    own = job.get("arguments_of_rank_1", []) if place.rank == 1 else []
    config = read_arguments([*job["arguments"], *own])
    engines: list[Any] = []
    original = build.build_engine

    def build_engine(*arguments: Any) -> Any:
        engines.append(original(*arguments))
        return engines[-1]

    forgotten = layout.step_dir(Path(config.run_dir), job.get("faults", {}).get("forget", 0))
    collective.on_rank_0(lambda: shutil.rmtree(forgotten, ignore_errors=True))
    patched = mock.patch.object(build, "build_engine", build_engine)
    stop = StopRequest().listen()
    with patched, cut(job.get("cut_all", False)), faults(job.get("faults", {}), place.rank):
        try:
            outcome: dict[str, Any] = {"code": loop.run(config, place, device, stop)}
        except FmriScaleError as error:
            outcome = {"error": str(error), "kind": type(error).__name__}
        finally:
            stop.release()
    folder = Path(config.run_dir)
    if engines:
        save_live_weights(engines[0], folder / f"live_{place.rank}.safetensors")
        outcome |= facts(engines[0], config)
    (folder / f"record_{place.rank}.json").write_text(json.dumps(outcome))
    copies = job.get("copies", [])
    collective.on_rank_0(lambda: [shutil.copytree(folder, copy) for copy in copies])


@contextlib.contextmanager
def cut(everything: bool) -> Iterator[None]:
    """Let ZeRO 3 cut every parameter, where DeepSpeed keeps those of less than 100,000 numbers whole."""
    from fmri_scale.training import build

    original = build.deepspeed_config

    def deepspeed_config(*arguments: Any) -> dict[str, Any]:
        made = original(*arguments)
        if everything:
            made["zero_optimization"]["stage3_param_persistence_threshold"] = 0
        return made

    with mock.patch.object(build, "deepspeed_config", deepspeed_config):
        yield


def facts(engine: Any, config: Config) -> dict[str, Any]:
    """Return what a live engine is set to."""
    from fmri_scale.training import build

    groups = engine.optimizer.param_groups
    return {
        "timeouts_s": group_timeouts(),
        "accumulation_dtype": str(engine.get_data_types()[1]),
        "clip_grad": getattr(engine.optimizer, "clip_grad", None),
        "whole_parameters": sum(getattr(p, "ds_persist", False) for p in engine.module.parameters()),
        "groups": [{key: group[key] for key in ("weight_decay", "betas", "eps", "lr", "lr_scale")} for group in groups],
        "adam_steps": adam_steps(engine),
        "order": build._order(engine.module, config),
    }


def adam_steps(engine: Any) -> list[tuple[int, float]]:
    """Return the step counters of the optimizer's tensors: where each lies in memory, and its value."""
    adam = getattr(engine.optimizer, "optimizer", engine.optimizer)
    return [(state["step"].data_ptr(), float(state["step"])) for state in adam.state.values()]


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
