"""Faults that a rank of `tests.helpers.trainee` meets in a run, by their names in a job's `faults`.

In the input and the gradient: `nan_volume: [rank, first micro-step, last]`, `nan_gradient: [rank, micro-step]`.
In the weights after a step: `flip: [rank, step]` changes one bit of one weight, `nan_parameter: [rank, step]` makes one
weight NaN. On the disk: `full_disk: rank` lets torch.save fail, `fill_disk: FOLDER` fills the disk of a folder when a
checkpoint has been found to fit, `die_in_save: [rank, file]` is a SIGKILL when a rank writes that many files. In time:
`slow: [rank, s]` sleeps in every micro-step, `hang: [rank, micro-step]` for ever in one, `ends_in: s` is the time the
job has left. Requests: `told_at: [rank, micro-step]` is a SIGTERM there, `stop_at: step` one in that step; the step
a run begins at saves what was loaded and leaves. `other_corpus: [rank, CORPUS]` is what lies at the corpus' place on a
rank's machine. W&B: `wandb: {variable: value}` is its environment, `kill_wandb: step` a SIGKILL to its service.
"""

import contextlib
import itertools
import math
import os
import shutil
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import torch

from fmri_scale.training import objective, watch
from fmri_scale.training.signals import REQUEUE

WANDB_PATIENCE_S = 4.0
"Seconds that W&B may take to start; a run gives it longer."


@contextlib.contextmanager
def faults(wanted: dict[str, Any], rank: int) -> Iterator[None]:
    """Let this rank meet the faults that are meant for it."""
    whose = ("full_disk", "die_in_save", "flip", "nan_parameter", "other_corpus")
    kept = {name: value for name, value in wanted.items() if name not in whose or _rank_of(value) == rank}
    with contextlib.ExitStack() as stack:
        stack.enter_context(in_micro_steps(wanted, rank))
        for name, value in kept.items():
            if name in MAKERS:
                stack.enter_context(MAKERS[name](value))
        yield


def _rank_of(value: Any) -> int:
    return value[0] if isinstance(value, list) else value


@contextlib.contextmanager
def in_micro_steps(wanted: dict[str, Any], rank: int) -> Iterator[None]:
    """Spoil input or gradient, be slow, hang, or be told to stop, where this rank is meant to."""
    from fmri_scale.training import step as steps

    original_call, original_poison, micro_step = objective.ClipInput.__call__, steps.poison, 0
    bad_rank, first, last = wanted.get("nan_volume", (-1, 0, 0))

    def call(self: objective.ClipInput, *arguments: Any) -> tuple:
        nonlocal micro_step
        micro_step += 1
        wait(wanted, rank, micro_step)
        clips, *rest = original_call(self, *arguments)
        if rank == bad_rank and first <= micro_step <= last:
            clips = clips._replace(gain=clips.gain * math.nan) if isinstance(clips, tuple) else clips * math.nan
        return clips, *rest

    def poison(loss: torch.Tensor) -> torch.Tensor:
        made = original_poison(loss)
        if [rank, micro_step] == wanted.get("nan_gradient"):
            made.register_hook(lambda gradient: gradient * math.nan)
        return made

    with mock.patch.object(objective.ClipInput, "__call__", call), mock.patch.object(steps, "poison", poison):
        yield


def wait(wanted: dict[str, Any], rank: int, micro_step: int) -> None:
    """Be slow, hang, or be told to stop, where this rank is meant to."""
    if [rank, micro_step] == wanted.get("told_at"):
        os.kill(os.getpid(), signal.SIGTERM)
    slow_rank, seconds = wanted.get("slow", (-1, 0.0))
    hanging_rank, last = wanted.get("hang", (-1, 0))
    time.sleep(1e6 if (rank, micro_step) == (hanging_rank, last) else seconds if rank == slow_rank else 0.0)


def full_disk(value: int) -> Any:
    """Let torch.save fail as it does on a full disk."""

    def save(*arguments: Any, **options: Any) -> None:
        raise RuntimeError("PytorchStreamWriter failed writing file: No space left on device")

    return mock.patch.object(torch, "save", save)


@contextlib.contextmanager
def fill_disk(folder: str) -> Iterator[None]:
    """Fill a disk up once it has been found to have room, and empty it when the run has ended."""
    from fmri_scale.training.watch import space

    require, filler = space.require, Path(folder) / "filler"

    def then_fill(*arguments: Any) -> None:
        require(*arguments)
        with contextlib.suppress(OSError), filler.open("wb", buffering=0) as file:
            while file.write(bytes(4096)):
                pass

    with mock.patch.object(space, "require", then_fill):
        yield
    filler.unlink(missing_ok=True)
    while shutil.disk_usage(folder).free < 1 << 20:  # the other rank is in it still
        time.sleep(0.05)


def die_in_save(value: list[int]) -> Any:
    """Let `torch.save` kill this process in its n-th file, half written."""
    write, count = torch.save, itertools.count(1)

    def save(content: Any, path: str) -> None:
        if next(count) < value[1]:
            return write(content, path)
        Path(path).write_bytes(b"half")
        time.sleep(1.0)  # the other ranks are done with theirs
        os.kill(os.getpid(), signal.SIGKILL)

    return mock.patch.object(torch, "save", save)


def after_step(step: int, act: Callable[[torch.nn.Module], None]) -> Any:
    """Act on the model after a step, before the watches look at it."""
    original = watch.Watch.after_step

    def patched(self: watch.Watch, now: int, *arguments: Any) -> None:
        if now == step:
            act(self._module)
        original(self, now, *arguments)

    return mock.patch.object(watch.Watch, "after_step", patched)


def flip(module: torch.nn.Module) -> None:
    """Change the lowest bit of the first weight."""
    next(module.parameters()).data.view(torch.int32).view(-1)[0] ^= 1


def spoil(module: torch.nn.Module) -> None:
    """Make the first weight that this rank holds NaN."""
    parameter = next(module.parameters())
    held = parameter.data if parameter.numel() else parameter.ds_tensor.data  # cut by ZeRO 3
    held.view(-1)[0] = math.nan


def kill_wandb(module: torch.nn.Module) -> None:
    """SIGKILL to W&B's service, a child of this process."""
    children = Path(f"/proc/self/task/{os.getpid()}/children").read_text().split()
    (service,) = (pid for pid in children if b"wandb-core" in Path(f"/proc/{pid}/cmdline").read_bytes())
    os.kill(int(service), signal.SIGKILL)


@contextlib.contextmanager
def wandb(variables: dict[str, str]) -> Iterator[None]:
    """Let W&B be found where these variables say, and forget that afterwards."""
    from fmri_scale.training import metrics

    patience = mock.patch.object(metrics, "_PATIENCE_S", WANDB_PATIENCE_S)
    with mock.patch.dict(os.environ, variables), patience:
        yield
    import wandb as library

    library.teardown()


def other_corpus(value: list[Any]) -> Any:
    """Let another corpus lie where the configuration names one."""
    from fmri_scale.training import loop

    opened = loop.open_corpora

    def elsewhere(data: Any, **options: Any) -> Any:
        with mock.patch.object(data, "corpus", value[1]):
            return opened(data, **options)

    return mock.patch.object(loop, "open_corpora", elsewhere)


def stop_at(step: int) -> Any:
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

    return mock.patch.multiple(loop.Trainer, train=patched_train, _count=patched_count)


def ends_in(seconds: float) -> Any:
    """Let the job end soon."""
    return mock.patch.dict(os.environ, {"FMRI_SCALE_END_TIME": str(time.time() + seconds)})


MAKERS: dict[str, Callable[[Any], Any]] = {
    "full_disk": full_disk,
    "fill_disk": fill_disk,
    "die_in_save": die_in_save,
    "flip": lambda value: after_step(value[1], flip),
    "nan_parameter": lambda value: after_step(value[1], spoil),
    "kill_wandb": lambda step: after_step(step, kill_wandb),
    "wandb": wandb,
    "other_corpus": other_corpus,
    "stop_at": stop_at,
    "ends_in": ends_in,
}
