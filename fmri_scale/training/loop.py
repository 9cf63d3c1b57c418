"""A run from its start to its end: prepare, step, log, save, stop.

`run` is called on every rank with the same configuration and returns the process' exit code. Read with it:
step.py (one optimizer step), build.py (the engine), folder.py (the run's folder), guards.py, signals.py.
"""

import contextlib
import logging
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, TextIO

import torch

from fmri_scale.checkpoint import TrainingState, collective, commit, engine_files, layout, retention
from fmri_scale.config import Config
from fmri_scale.data import ClipBatch, check_ranks, open_corpora, preflight
from fmri_scale.errors import DataError, FmriScaleError, LostRankError, TrainingError
from fmri_scale.log import ROOT, configure_logging, counted, get_logger
from fmri_scale.training import build, dist, folder, pictures, rng
from fmri_scale.training.agreement import require_same
from fmri_scale.training.average import Average
from fmri_scale.training.energy import GpuEnergy, total_energy
from fmri_scale.training.estimate import checkpoint_bytes
from fmri_scale.training.folder import Status
from fmri_scale.training.guards import BadSteps
from fmri_scale.training.launch import Launch
from fmri_scale.training.metrics import MetricsFile, NullTracker, Tracker, start_tracker
from fmri_scale.training.objective import ClipInput
from fmri_scale.training.phases import Phases
from fmri_scale.training.progress import Progress
from fmri_scale.training.signals import INTERRUPTED, REQUEUE, StopRequest, exit_code
from fmri_scale.training.software import software_versions
from fmri_scale.training.step import StepResult, train_step
from fmri_scale.training.throughput import Speed
from fmri_scale.training.tracing import Profiler
from fmri_scale.training.validate import require_validation, validation_loss
from fmri_scale.training.watch import Watch, finite, space
from fmri_scale.training.watch.hang import LOST
from sharding.errors import ShardingError

log = get_logger(__name__)

Begin = Callable[[torch.nn.Module], None]
"Gives a new run's model its first weights, in place."


def run(config: Config, launch: Launch, device: torch.device, stop: StopRequest, begin: Begin | None = None) -> int:
    """Train to the last step, or until a signal or an error; return the exit code. `begin` sets the first weights.

    Raises
    ------
    FmriScaleError, ShardingError : what the user can mend, on every rank or on the one that met it; status.json says
        `failed` with the message.
    """
    run_dir = Path(config.run_dir)
    made = folder.absent(run_dir) if launch.world_size == 1 else []
    lock: list[TextIO] = []
    collective.on_rank_0(lambda: lock.append(folder.take(run_dir)))
    configure_logging(launch.rank, config.log.level, run_dir / "logs" / f"rank_{launch.rank}.log")
    status = Status(run_dir, launch.rank == 0, config.optim.steps)
    trainer = None
    code = 1
    try:
        status.write("starting", 0)
        trainer = Trainer(config, launch, device, stop, status, begin)
        code = trainer.train()
        return code
    except KeyboardInterrupt:  # the second one, which does not wait for a checkpoint
        code = INTERRUPTED
        status.write("interrupted", trainer.step if trainer else 0, exit_code=code)
        raise
    except Exception as error:
        log.debug("stopped by", exc_info=True)
        plain = _plain(error, run_dir)
        code = 1 if plain is None or isinstance(plain, LostRankError) else 2
        message = (trainer.watch.hung if trainer else "") or (repr(error) if plain is None else str(plain))
        with contextlib.suppress(OSError):  # on a full disk the error itself is what matters
            status.write("failed", trainer.step if trainer else 0, exit_code=code, message=message)
        if plain is None or plain is error:
            raise
        raise plain from error
    finally:
        if trainer:
            trainer.close(code)
        elif code == 2:  # nothing was trained: a mistake to mend leaves nothing behind
            folder.remove(made)
        for file in lock:
            file.close()


def _plain(error: Exception, run_dir: Path) -> FmriScaleError | ShardingError | None:
    """Return an error as one that can be said in a line; None for a defect of this program."""
    if isinstance(error, FmriScaleError | ShardingError):
        return error
    if isinstance(error, OSError):  # a full disk, a folder that has gone
        return TrainingError(f"{error.filename or run_dir}: {error.strerror or error}")
    return dist.explain(error, run_dir) if isinstance(error, RuntimeError) else None


class Trainer:
    """Everything one rank needs to train, and how far it has come."""

    def __init__(
        self,
        config: Config,
        launch: Launch,
        device: torch.device,
        stop: StopRequest,
        status: Status,
        begin: Begin | None = None,
    ) -> None:
        self.config, self.launch, self.device, self.stop, self.status = config, launch, device, stop, status
        self.run_dir, self.main = Path(config.run_dir), launch.rank == 0
        require_same(config)
        self.corpora = open_corpora(config.data, check_shards=False)
        collective.on_rank_0(lambda: preflight(self.corpora, config.data))
        if config.log.validate_every:
            require_validation(self.corpora, config.model.num_frames)
        checkpoint = collective.on_rank_0(lambda: folder.find_checkpoint(config))
        rng.seed(config.seed, launch.rank, config.engine.deterministic)
        self.model = build.build_model(config)
        build.tell_brain(self.model, self.corpora)
        state = build.check_checkpoint(checkpoint, config, self.model, launch.world_size) if checkpoint else None
        if begin and not state:
            begin(self.model)
        self.stream = build.open_stream(config, self.corpora, launch, state)
        check_ranks(self.stream)
        self.prepare = ClipInput(config, self.corpora, device)
        self.engine = build.build_engine(config, self.model, launch, device)
        if checkpoint and state:
            build.load_checkpoint(self.engine, checkpoint, state, config, launch.rank)
        self.average: Average | None = None
        if config.optim.ema_decay:
            self.average = Average(self.engine.module, config.optim.ema_decay, launch.rank, launch.world_size)
            if checkpoint and state:
                self.average.load(checkpoint, state)
        self.step = self.saved_step = state.step if state else 0
        self.bad_steps = BadSteps(self.run_dir, config.engine.max_bad_steps, **(state.guards if state else {}))
        patches = self.model.backbone.num_patches
        self.speed = Speed(config.model, config.optim.global_batch, launch.world_size, device, patches)
        self.phases = Phases(device)
        self.phases.watch_reduction(self.engine)
        self.profiler = Profiler(self.run_dir, config.log.profile_steps, launch.rank, device)
        self.watch = Watch(
            config.guard,
            self.run_dir,
            launch.rank,
            launch.world_size,
            self.engine.module,
            state.watch if state else {},
            self._tell_hang,
        )
        self.energy = GpuEnergy(device)
        self.energy_before = state.metrics.get("energy_j", 0.0) if state else 0.0
        self.metrics: MetricsFile | None = None
        self.tracker: Tracker = NullTracker(state.wandb_id if state else "")
        if self.main:
            folder.describe(config)
            self.metrics = MetricsFile(self.run_dir, self.step)
            self.tracker = start_tracker(config, self.tracker.run_id)
        self.progress = Progress(config.optim.steps, self.step, shown=self.main)
        for handler in logging.getLogger(ROOT).handlers:
            self.progress.share(handler)
        self.row: dict[str, Any] = {}
        self._describe()

    def train(self) -> int:
        """Step until the end or a signal; return the exit code."""
        steps = self.config.optim.steps
        if self.step >= steps:
            log.info("%s: all %d steps are done", self.run_dir, steps)
        while self.step < steps:
            self.profiler.before(self.step + 1)
            result = train_step(
                self.engine,
                self.stream,
                lambda batch: self.prepare(batch, self.step),
                self.config.optim,
                self.step,
                self.phases,
                self._request,
                lambda: len(self.stream.faults.bad),
            )
            self._count(result)
            if any(result.signals) and self.step < steps:
                self._report(result)
                return self._leave(exit_code(result.signals))
            self._report(result, self._validate() if self._due(self.config.log.validate_every) else None)
            if self._due(self.config.checkpoint.every_steps):
                self._save()
            if self._due(self.config.log.pictures_every):
                self._draw()
        return self._finish()

    def close(self, code: int) -> None:
        """Let go of readers, files and W&B."""
        self.progress.end()
        self.watch.close()
        self.profiler.close(self.step)
        self.stream.close()
        self.tracker.close(code)
        if self.metrics:
            self.metrics.close()

    def _count(self, result: StepResult) -> None:
        """Move on by one step: a skipped step counts, and its clips are consumed."""
        self.step += 1
        self.stream.advance(self.config.optim.global_batch)
        if result.bad_clips > self.config.data.max_bad_clips:
            check_ranks(self.stream)  # of all ranks together: where that is too many, all stop with the list
        self.speed.add(result.seconds, result.wait_s)
        self.profiler.after(self.step)
        self.watch.after_step(self.step, result.loss, result.seconds)
        if result.applied:
            self.bad_steps.good()
            if self.average:
                self.average.update(self.step)
        else:
            ranks = collective.gather({"micro_batches": result.micro_batches})
            self.bad_steps.bad(self.step, result.grad_norm, ranks, writes=self.main)
            finite.require(self.engine.module, self.step)

    def _report(self, result: StepResult, validation: float | None = None) -> None:
        self.progress.update(self.step, result.loss, result.lr, self.speed.frames_per_s)
        due = self._due(self.config.log.every_steps) or self.step == self.config.optim.steps or validation is not None
        if not due:
            return
        times = self.phases.row()
        self.watch.compare(self.phases.own_s, self.step)
        if self.metrics is None:
            return
        row = {
            "step": self.step,
            "loss": result.loss,
            "lr": result.lr,
            "grad_norm": result.grad_norm,
            "masked_fraction": result.masked_fraction,
            "masked_fraction_brain": result.masked_fraction_brain,
            **result.drop_rates,
            **result.terms,
            "skipped_steps": self.bad_steps.total,
            "clips": self.stream.position,
            "clip_hash": f"{self.stream.clip_hash:016x}",
            "substituted_clips": result.bad_clips,
            "epoch": self.stream.position / self.clips_per_epoch,
            **self.speed.row(),
            **times,
            **self.watch.row(),
            **({} if validation is None else {"val_loss": validation}),
        }
        self.row = row
        self.metrics.write(row)
        self.tracker.log(row)
        self.status.write("running", self.step, loss=result.loss)

    def _request(self) -> int:
        """Return the signal that asks this rank to stop, its own or the one that the job's end amounts to; else 0."""
        return self.stop.received or self.watch.request()

    def _validate(self) -> float | None:
        how = (self.config, self.launch, self._request, self.watch.beat)
        loss = validation_loss(self.engine, self.corpora, self.prepare, *how)
        self.watch.saved(0.0)
        return loss

    def _tell_hang(self, message: str) -> None:
        """Write into the status that the run hangs, or (no message) that it gets on again."""
        if message:
            self.status.write("failed", self.step, exit_code=LOST, message=message)
        else:
            self.status.write("running", self.step)

    def _due(self, every: int) -> bool:
        return every > 0 and self.step % every == 0

    def _save(self) -> None:
        """Commit a checkpoint of this step and delete superseded ones."""
        if self.saved_step == self.step:
            return
        begin = time.monotonic()
        finite.require(self.engine.module, self.step)
        collective.on_rank_0(lambda: space.require(self.run_dir, checkpoint_bytes(self.config), self.step))
        check_ranks(self.stream)
        energy = total_energy(collective.gather(self.energy.joules()), self.energy_before)
        state = TrainingState(
            step=self.step,
            clips=self.stream.position,
            world_size=self.launch.world_size,
            zero_stage=self.config.engine.zero_stage,
            corpus_id=self.corpora[0].corpus_id,
            data=self.stream.state_dict(),
            guards=self.bad_steps.state(),
            watch=self.watch.state(),
            wandb_id=self.tracker.run_id,
            metrics={key: value for key, value in self.row.items() if isinstance(value, int | float)} | energy,
            software=software_versions(),
        )
        corpus = self.corpora[0].path
        attachments = {name: corpus / name for name in (layout.CORPUS, layout.MASK)}
        saved = commit.save(self.run_dir, state, self.config, self._write, rng.capture(), attachments)
        self.saved_step = self.step
        keep = self.config.checkpoint
        collective.on_rank_0(lambda: retention.prune(self.run_dir, keep.keep_last, keep.keep_every))
        seconds = time.monotonic() - begin
        self.watch.saved(seconds)
        self.speed.saved(seconds)
        log.info("checkpoint %s", saved.path)

    def _write(self, folder: Path) -> list[Path]:
        """Write this rank's part of the engine's state and of the average; return the files."""
        written = engine_files.writer(self.engine)(folder)
        return written + (self.average.save(folder) if self.average else [])

    def _draw(self) -> None:
        """Draw the fixed clip's reconstruction, where clips are reconstructed, and the loss curve."""
        if not self.config.objective.reconstruction:
            if self.main:
                pictures.draw_loss(self.run_dir, self.run_dir / pictures.PICTURES / "loss.png")
            return
        target = self.run_dir / pictures.PICTURES / f"reconstruction_{self.step:08d}.png"
        clip: ClipBatch | None
        try:  # rank 0 reads for all: whether there is a clip must be one answer, or ranks wait for each other
            clip = collective.on_rank_0(lambda: pictures.fixed_clip(self.config, self.corpora))
        except DataError as error:
            log.warning("no picture of step %d: %s", self.step, error)
            clip = None
        if clip is not None:
            self._draw_clip(clip, target)
        if self.main:
            alone = not self.config.objective.contrasts
            meaning = "mean squared error on hidden voxels" if alone else "loss"
            pictures.draw_loss(self.run_dir, target.with_name("loss.png"), meaning)
            if clip is not None:
                self.tracker.picture("reconstruction", target, self.step)
        self.watch.saved(0.0)

    def _draw_clip(self, clip: ClipBatch, target: Path) -> None:
        """Draw a clip's reconstruction; every rank calls it with the same clip."""
        title = f"step {self.step}, {clip.keys[0]}"
        volumes, signal = self.prepare.volumes, pictures.SIGNAL[self.config.data.normalisation]
        pictures.draw_reconstruction(self.engine, self.model, volumes, clip, target, title, signal, draws=self.main)

    def _leave(self, code: int) -> int:
        """Save and stop because a signal asked for it."""
        self._save()
        self.status.write("requeue" if code == REQUEUE else "interrupted", self.step, exit_code=code)
        log.warning("stopped by a signal after step %d; start the same command again to continue", self.step)
        return code

    def _finish(self) -> int:
        """Save and draw the end of the run."""
        self._save()
        self._draw()
        self.status.write("done", self.step, exit_code=0)
        log.info("done: %d steps; checkpoints, metrics and pictures are in %s", self.step, self.run_dir)
        return 0

    def _describe(self) -> None:
        """Log how the run is laid out."""
        optim, engine, ranks = self.config.optim, self.config.engine, self.launch.world_size
        passes = optim.global_batch // (optim.micro_batch * ranks)
        split = (counted(ranks, "rank"), counted(passes, "forward pass"), counted(optim.micro_batch, "clip"))
        log.info(
            "%s on %s, ZeRO %d, %s; a step is %s: %s x %s x %s; the model reads %s",
            *(split[0], self.device.type, engine.zero_stage, engine.dtype, counted(optim.global_batch, "clip"), *split),
            "codes" if self.prepare.reads_codes else "volumes",
        )

    @property
    def clips_per_epoch(self) -> int:
        """Clips of one pass over all datasets."""
        return sum(row["clips_per_epoch"] for row in self.stream.plan.report())
