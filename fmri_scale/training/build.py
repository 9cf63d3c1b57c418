"""Make the engine of a run: model, optimizer, DeepSpeed; and put a checkpoint's state into it."""

from typing import Any

import torch
import torch.distributed as dist

from fmri_scale.checkpoint import CheckpointDir, TrainingState, engine_files, reshard, restore
from fmri_scale.config import Config
from fmri_scale.log import get_logger
from fmri_scale.models import MaskedAutoencoder, cost, parameter_groups
from fmri_scale.training import rng
from fmri_scale.training.dist import limit_waiting
from fmri_scale.training.ds_config import deepspeed_config
from fmri_scale.training.launch import Launch
from fmri_scale.training.objective import Objective

log = get_logger(__name__)


def build_model(config: Config) -> MaskedAutoencoder:
    """Return the model with weights drawn from the seed alone."""
    model = MaskedAutoencoder(config.model, config.seed)
    _refuse_what_sharding_loses(model)
    log.info("model: %s parameters", f"{cost(config.model).total.parameters:,}")
    return model


def build_engine(config: Config, model: MaskedAutoencoder, launch: Launch, device: torch.device) -> Any:
    """Return the DeepSpeed engine that trains the model on this rank's device."""
    import deepspeed

    objective = Objective(model, bf16=config.engine.dtype == "bf16")
    optimizer = torch.optim.AdamW(
        parameter_groups(objective, config.optim.weight_decay),
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


def load_checkpoint(engine: Any, checkpoint: CheckpointDir, state: TrainingState, config: Config, rank: int) -> None:
    """Put weights, optimizer state and this rank's random number generators back.

    DeepSpeed 0.19.8 also takes the optimizer's hyper-parameters and the clipping norm from the checkpoint, silently
    overruling a changed configuration; they are set again (`test_changed_hyperparameters_take_effect_on_resume`).
    """
    wanted = [{key: group[key] for key in ("betas", "eps", "weight_decay")} for group in engine.optimizer.param_groups]
    if restore.same_layout(state, config.engine.zero_stage, dist.get_world_size()):
        engine_files.read(engine, checkpoint)
    else:
        groups = parameter_groups(engine.module, config.optim.weight_decay)
        reshard.load(engine, checkpoint, state, [group["params"] for group in groups])
    for group, settings in zip(engine.optimizer.param_groups, wanted, strict=True):
        group.update(settings)
    if hasattr(engine.optimizer, "clip_grad"):
        engine.optimizer.clip_grad = config.optim.clip_grad
    if rank < state.world_size:  # a rank that is new begins with the numbers of its own seed
        rng.restore(checkpoint.rng(rank))
    log.info("resumed from %s after %d steps, %d clips", checkpoint.path, state.step, state.clips)


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
