"""Make the parts of a run: model, optimizer, DeepSpeed's engine, stream of clips; load a checkpoint into them."""

import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from fmri_scale.checkpoint import CheckpointDir, TrainingState, engine_files, read_config, reshard, restore
from fmri_scale.config import Config, EngineConfig
from fmri_scale.data import ClipStream, reduced_mask
from fmri_scale.errors import LaunchError
from fmri_scale.log import get_logger
from fmri_scale.models import MaskedAutoencoder, cost
from fmri_scale.models.contrastive import ContrastiveAutoencoder
from fmri_scale.models.shapes import encoder_stages
from fmri_scale.training import rng
from fmri_scale.training.compiled import compile_blocks
from fmri_scale.training.dist import limit_waiting
from fmri_scale.training.ds_config import deepspeed_config
from fmri_scale.training.gather import gather_clips
from fmri_scale.training.launch import Launch
from fmri_scale.training.objective import Objective
from fmri_scale.training.views import stretch_frames
from fmri_scale.training.width import optimizer_groups
from sharding.corpus import Corpus

log = get_logger(__name__)


def build_model(config: Config) -> MaskedAutoencoder:
    """Return the model with weights drawn from the seed alone."""
    if config.objective.contrasts:
        model: MaskedAutoencoder = ContrastiveAutoencoder(
            config.model, config.seed, config.loss, config.objective, gather_clips
        )
    else:
        model = MaskedAutoencoder(config.model, config.seed, config.loss)
    _refuse_what_sharding_loses(model)
    log.info("model: %s parameters", f"{cost(config.model).total.parameters:,}")
    return model


def tell_brain(model: MaskedAutoencoder, corpora: Sequence[Corpus]) -> None:
    """Say which voxels are brain, to a model that computes these alone (model.brain_tokens)."""
    if not model.config.brain_tokens:
        return
    model.set_brain(reduced_mask(torch.from_numpy(corpora[0].mask), model.config.image_size))
    computed, every = model.backbone.num_patches or [], encoder_stages(model.config)
    share = [f"{count} of {stage.positions}" for count, stage in zip(computed, every, strict=True)]
    log.info("model: computes the patches that hold brain, by stage %s", ", ".join(share))


def build_engine(config: Config, model: MaskedAutoencoder, launch: Launch, device: torch.device) -> Any:
    """Return the DeepSpeed engine that trains the model on this rank's device."""
    import deepspeed

    _require_nvme(config.engine)
    objective = Objective(model, bf16=config.engine.dtype == "bf16")
    compile_blocks(objective, config.engine, device)
    optimizer = torch.optim.AdamW(
        optimizer_groups(objective, config),
        lr=config.optim.lr,
        betas=(config.optim.betas[0], config.optim.betas[1]),
        eps=config.optim.eps,
        fused=device.type == "cuda",
    )
    engine, *_ = deepspeed.initialize(
        model=objective, optimizer=optimizer, config=deepspeed_config(config, launch.world_size)
    )
    limit_waiting(config.engine.timeout_s)
    engine_files.install(engine)
    return engine


def open_stream(config: Config, corpora: Sequence[Corpus], launch: Launch, state: TrainingState | None) -> ClipStream:
    """Return this rank's clips, from where a checkpoint's state left off."""
    stream = ClipStream(
        corpora,
        config.data,
        stretch_frames(config),
        config.optim.global_batch,
        config.optim.micro_batch,
        launch.rank,
        launch.world_size,
        config.seed,
        quarantine=Path(config.run_dir) / "quarantine.jsonl",
    )
    if state:
        stream.load_state_dict(state.data, config.checkpoint.allow_change)
    return stream


def load_checkpoint(engine: Any, checkpoint: CheckpointDir, state: TrainingState, config: Config, rank: int) -> None:
    """Put weights, optimizer state and this rank's random number generators back.

    DeepSpeed 0.19.8 also takes the optimizer's hyper-parameters and the clipping norm from the checkpoint, silently
    overruling a changed configuration; they are set again (`test_changed_hyperparameters_take_effect_on_resume`).
    """
    kept = ("betas", "eps", "weight_decay", "lr_scale")
    wanted = [{key: group[key] for key in kept} for group in engine.optimizer.param_groups]
    before = read_config(checkpoint.path)
    same_groups = before.optim.base_width == config.optim.base_width
    if same_groups and restore.same_layout(state, config.engine.zero_stage, dist.get_world_size()):
        engine_files.read(engine, checkpoint)
    else:
        orders = [_order(engine.module, c) for c in (before, config)]
        reshard.load(engine, checkpoint, state, *orders)
    for group, settings in zip(engine.optimizer.param_groups, wanted, strict=True):
        group.update(settings)
    if hasattr(engine.optimizer, "clip_grad"):
        engine.optimizer.clip_grad = config.optim.clip_grad
    if rank < state.world_size:  # a rank that is new begins with the numbers of its own seed
        rng.restore(checkpoint.rng(rank))
    log.info("resumed from %s after %d steps, %d clips", checkpoint.path, state.step, state.clips)


def _order(module: torch.nn.Module, config: Config) -> list[str]:
    """Return the names of the parameters in the order of the optimizer's groups."""
    name_of = {id(parameter): name for name, parameter in module.named_parameters()}
    return [name_of[id(parameter)] for group in optimizer_groups(module, config) for parameter in group["params"]]


def _require_nvme(engine: EngineConfig) -> None:
    """Raise LaunchError unless DeepSpeed can read and write local disks, where that is wanted."""
    if "nvme" not in (engine.offload_optimizer, engine.offload_parameters):
        return
    from deepspeed.ops.op_builder import AsyncIOBuilder

    try:
        AsyncIOBuilder().load()
    except (RuntimeError, OSError, ImportError, subprocess.SubprocessError) as error:
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise LaunchError(
            f"offloading to nvme: DeepSpeed's async_io cannot be built ({reason}); install libaio-dev and a C++ "
            "compiler on every node, or offload to cpu"
        ) from error


def parameter_shapes(model: MaskedAutoencoder) -> dict[str, tuple[int, ...]]:
    """Return the shape of every parameter, before ZeRO-3 hides it."""
    return {name: tuple(parameter.shape) for name, parameter in model.named_parameters()}


def check_checkpoint(
    checkpoint: CheckpointDir, config: Config, model: MaskedAutoencoder, world_size: int
) -> TrainingState:
    """Return the state of a checkpoint that this run may continue from; CheckpointError otherwise."""
    state = restore.check(checkpoint, config, world_size)
    restore.check_shapes(checkpoint, parameter_shapes(model))
    return state


def _refuse_what_sharding_loses(model: MaskedAutoencoder) -> None:
    """DeepSpeed 0.19.8 does not restore buffers and frozen parameters from every kind of checkpoint."""
    frozen = [name for name, parameter in model.named_parameters() if not parameter.requires_grad]
    buffers = sorted(set(model.state_dict()) - {name for name, _ in model.named_parameters()})
    assert not frozen, f"frozen parameters in pretraining: {frozen}"
    assert not buffers, f"buffers that would be saved: {buffers}"
