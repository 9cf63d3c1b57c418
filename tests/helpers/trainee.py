"""A rank that trains several runs one after the other in one process, so that tests pay for one start only.

`python -m tests.helpers.trainee JOBS.json`: a list of `{"arguments": [...], "faults": {...}, "copies": [...]}`. A run
leaves a record in its folder, `record_RANK.json`: exit code or error message, and what only a live engine can tell;
then its folder is copied to those in `copies`. `cut_all` lets ZeRO 3 cut even the smallest parameters.

Faults: `nan_volume: [rank, first micro-step, last]` spoils the input, `full_disk: rank` lets torch.save fail,
`stop_at: step` is a SIGTERM in that step; the step a run begins at saves what was loaded and leaves. `slow: [rank, s]`
sleeps in every micro-step, `hang: [rank, micro-step]` for ever in one; `flip: [rank, step]` changes one bit of one
weight after a step; `ends_in: s` is the time the job has left; `die_in_save: [rank, file]` is a SIGKILL when a rank
writes that many files, `told_at: [rank, micro-step]` a SIGTERM there. `forget: step` deletes a checkpoint first.
"""

import contextlib
import itertools
import json
import math
import os
import shutil
import signal
import sys
import time
from collections.abc import Callable, Iterator
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
from fmri_scale.training.signals import REQUEUE, StopRequest


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


@contextlib.contextmanager
def faults(wanted: dict[str, Any], rank: int) -> Iterator[None]:
    """Let this rank meet the faults that are meant for it."""
    from fmri_scale.training import objective

    original_call, micro_steps = objective.ClipInput.__call__, 0
    bad_rank, first, last = wanted.get("nan_volume", (-1, 0, 0))

    def call(self: objective.ClipInput, *arguments: Any) -> tuple:
        nonlocal micro_steps
        micro_steps += 1
        wait(wanted, rank, micro_steps)
        clips, *rest = original_call(self, *arguments)
        if rank == bad_rank and first <= micro_steps <= last:
            clips = clips._replace(gain=clips.gain * math.nan) if isinstance(clips, tuple) else clips * math.nan
        return clips, *rest

    def save(*arguments: Any, **options: Any) -> None:
        raise RuntimeError("PytorchStreamWriter failed writing file: No space left on device")

    with contextlib.ExitStack() as stack:
        stack.enter_context(mock.patch.object(objective.ClipInput, "__call__", call))
        if wanted.get("full_disk") == rank:
            stack.enter_context(mock.patch.object(torch, "save", save))
        dying_rank, number = wanted.get("die_in_save", (-1, 0))
        if dying_rank == rank:
            stack.enter_context(mock.patch.object(torch, "save", dying(number)))
        if "stop_at" in wanted:
            stack.enter_context(stopping_at(wanted["stop_at"]))
        if "ends_in" in wanted:
            end = {"FMRI_SCALE_END_TIME": str(time.time() + wanted["ends_in"])}
            stack.enter_context(mock.patch.dict(os.environ, end))
        flipped_rank, step = wanted.get("flip", (-1, 0))
        if flipped_rank == rank:
            stack.enter_context(flipping(step))
        yield


def wait(wanted: dict[str, Any], rank: int, micro_step: int) -> None:
    """Be slow, hang, or be told to stop, where this rank is meant to."""
    if [rank, micro_step] == wanted.get("told_at"):
        os.kill(os.getpid(), signal.SIGTERM)
    slow_rank, seconds = wanted.get("slow", (-1, 0.0))
    hanging_rank, last = wanted.get("hang", (-1, 0))
    time.sleep(1e6 if (rank, micro_step) == (hanging_rank, last) else seconds if rank == slow_rank else 0.0)


def dying(number: int) -> Callable[..., None]:
    """Return a `torch.save` that kills this process in its `number`-th file, half written."""
    write, count = torch.save, itertools.count(1)

    def save(content: Any, path: str) -> None:
        if next(count) < number:
            return write(content, path)
        Path(path).write_bytes(b"half")
        time.sleep(1.0)  # the other ranks are done with theirs
        os.kill(os.getpid(), signal.SIGKILL)

    return save


@contextlib.contextmanager
def flipping(step: int) -> Iterator[None]:
    """Change the lowest bit of the first weight after a step."""
    from fmri_scale.training import watch

    after_step = watch.Watch.after_step

    def patched(self: watch.Watch, now: int, *arguments: Any) -> None:
        if now == step:
            next(self._module.parameters()).data.view(torch.int32).view(-1)[0] ^= 1
        after_step(self, now, *arguments)

    with mock.patch.object(watch.Watch, "after_step", patched):
        yield


@contextlib.contextmanager
def stopping_at(step: int) -> Iterator[None]:
    """Let this rank be told to stop in a step; a run that begins after it saves what it has loaded and leaves."""
    from fmri_scale.training import loop

    train, count = loop.Trainer.train, loop.Trainer._count

    def warn(self: loop.Trainer) -> None:
        self.stop.received = signal.SIGTERM if self.step == step - 1 else 0

    def patched_train(self: loop.Trainer) -> int:
        if self.step == step:
            self.saved_step = -1
            return self._leave(REQUEUE)
        warn(self)
        return train(self)

    def patched_count(self: loop.Trainer, result: Any) -> None:
        count(self, result)
        warn(self)

    patched = {"train": patched_train, "_count": patched_count}
    with mock.patch.multiple(loop.Trainer, **patched):
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
