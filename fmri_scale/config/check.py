"""Checks of a complete configuration that types alone cannot make. Each error names the key and the remedy."""

import math

from fmri_scale.config.schema import (
    AugmentConfig,
    Config,
    DataConfig,
    EngineConfig,
    LossConfig,
    MaskConfig,
    ModelConfig,
    OptimConfig,
)
from fmri_scale.errors import ConfigError

SMALL_WINDOW = 2**16
"Tokens of a window that are allowed whatever the clip has."
CHOICES = {
    "model.strd": ("off", "published", "paper"),
    "model.backend": ("auto", "torch", "triton", "mamba_ssm"),
    "mask.strategy": ("token", "window", "tube", "region", "group", "mixture"),
    "mask.ratio_of": ("units", "brain", "regions"),
    "mask.loss_on": ("brain", "all"),
    "data.split": ("train", "val", "test", "all"),
    "data.normalisation": ("run_z", "voxel_z", "frame_z", "none"),
    "data.on_bad_sample": ("raise", "substitute"),
    "data.access": ("auto", "range", "stream"),
    "engine.dtype": ("fp32", "bf16"),
    "engine.zero_stage": (0, 1, 2, 3),
    "engine.offload_optimizer": ("none", "cpu", "nvme"),
    "engine.offload_parameters": ("none", "cpu", "nvme"),
    "engine.compile": ("off", "inductor", "aot_eager"),
    "checkpoint.resume": ("auto", "never"),
    "log.wandb": ("auto", "online", "offline", "off"),
    "log.level": ("DEBUG", "INFO", "WARNING", "ERROR", "CRITICAL"),
}
LONGEST_S = 1e9
"Seconds that a limit in time may have at most, 30 years: clocks of the system overflow at some larger number."


def check(config: Config) -> None:
    """Raise ConfigError for the first value that is out of range or does not fit another."""
    for key, allowed in CHOICES.items():
        section, name = key.split(".")
        value = getattr(getattr(config, section), name)
        if value not in allowed:
            raise ConfigError(f"{key}={value!r}: expected one of {', '.join(map(str, allowed))}")
    if not -(2**63) <= config.seed < 2**63:
        raise ConfigError(f"seed={config.seed}: expected a number of 64 bits, from -2**63 to 2**63 - 1")
    _check_times(config)
    check_model(config.model)
    _check_mask(config.mask)
    _check_brain_tokens(config)
    _check_loss(config.loss, config)
    _check_objective(config)
    _check_optim(config.optim)
    _check_data(config.data)
    for key in ("rotation_deg", "translation_mm", "shift_frames", "noise_sd"):
        _at_least(f"augment.{key}", getattr(config.augment, key), 0)
    _fraction("augment.scale", config.augment.scale)
    _positive("log.every_steps", config.log.every_steps)
    for key in ("pictures_every", "validate_every", "validate_clips"):
        _at_least(f"log.{key}", getattr(config.log, key), 0)
    _positive("checkpoint.keep_last", config.checkpoint.keep_last)
    for key in ("every_steps", "keep_every"):
        _at_least(f"checkpoint.{key}", getattr(config.checkpoint, key), 0)
    _check_engine(config.engine)
    for key in ("spike_sd", "hash_every", "hang_s", "straggler_ratio", "end_margin_s"):
        _at_least(f"guard.{key}", getattr(config.guard, key), 0)
    _positive("guard.spike_window", config.guard.spike_window)
    traced = config.log.profile_steps
    if traced and not (len(traced) == 2 and 1 <= traced[0] <= traced[1]):
        raise ConfigError(f"log.profile_steps={traced}: expected the first and the last step, for example [100,102]")
    if config.optim.ema_decay and config.engine.offload_parameters == "nvme":
        raise ConfigError("optim.ema_decay needs the weights in memory: engine.offload_parameters=cpu or none")


def _check_times(config: Config) -> None:
    times = {
        "engine.timeout_s": config.engine.timeout_s,
        "guard.hang_s": config.guard.hang_s,
        "data.stall_timeout_s": config.data.stall_timeout_s,
    }
    for key, seconds in times.items():
        if seconds > LONGEST_S:
            raise ConfigError(f"{key}={seconds:g}: expected at most {LONGEST_S:g} seconds")


def check_model(model: ModelConfig) -> None:
    """Raise ConfigError unless the shapes divide: image by patch, token grid by the merging of every stage."""
    for key, length in (("image_size", 3), ("patch_size", 4), ("window_size", 4), ("first_window_size", 4)):
        value = getattr(model, key)
        if len(value) != length or min(value) < 1:
            raise ConfigError(f"model.{key}={value}: expected {length} positive integers")
    if not model.depths or min(model.depths) < 1:
        raise ConfigError(f"model.depths={model.depths}: expected at least one positive integer")
    for axis, voxels, patch in zip("xyz", model.image_size, model.patch_size, strict=False):
        if voxels % patch:
            raise ConfigError(f"model.image_size: {voxels} voxels along {axis} are not whole patches of {patch}")
        halvings = len(model.depths) - 1
        if voxels // patch % 2**halvings:
            raise ConfigError(
                f"model.depths={model.depths}: {voxels // patch} patches along {axis} cannot be halved "
                f"{halvings} times; take fewer stages or another patch_size"
            )
    _check_windows(model)
    for key in ("num_frames", "in_channels", "embed_dim", "channel_multiplier", "state_dim", "conv_dim", "expand"):
        _positive(f"model.{key}", getattr(model, key))
    if model.patch_size[3] != 1:
        raise ConfigError(f"model.patch_size={model.patch_size}: a patch is one frame; the last entry must be 1")
    _fraction("model.dropout", model.dropout)
    _fraction("model.drop_path", model.drop_path)
    _fraction("model.strd_rate", model.strd_rate)
    _at_least("model.prompt_len", model.prompt_len, 0)
    if model.brain_tokens and model.backend == "mamba_ssm":
        raise ConfigError("model.brain_tokens=true: windows differ in length, which mamba_ssm cannot scan; take auto")
    if model.mlp_ratio <= 0:
        raise ConfigError(f"model.mlp_ratio={model.mlp_ratio}: expected a positive number")


def _check_windows(model: ModelConfig) -> None:
    """Refuse windows of more tokens than a clip has: each token of a window has weights of its own, with moments."""
    clip = model.num_frames * math.prod(n // p for n, p in zip(model.image_size, model.patch_size, strict=False))
    most = max(clip, SMALL_WINDOW)
    for key in ("window_size", "first_window_size"):
        tokens = math.prod(getattr(model, key))
        if tokens > most:
            raise ConfigError(f"model.{key}={getattr(model, key)}: {tokens} tokens, but a clip has {clip}")


def _check_mask(mask: MaskConfig) -> None:
    drawn = {name for weights in (mask.mixture, mask.mixture_start) for name in weights}
    drawn = drawn if mask.strategy == "mixture" else {mask.strategy}
    anatomical = drawn & {"region", "group"}
    whole = mask.ratio == 1.0 and bool(mask.groups) and drawn == anatomical
    if not (0.0 < mask.ratio < 1.0 or whole):
        raise ConfigError(f"mask.ratio={mask.ratio}: expected a fraction between 0 and 1, both excluded")
    if anatomical and not mask.atlas:
        raise ConfigError(
            f"mask.strategy={min(anatomical)} needs mask.atlas, a folder made by fmri-shards atlas or a label image "
            "(NIfTI) in the corpus' space"
        )
    if mask.groups and not anatomical:
        raise ConfigError(f"mask.groups={mask.groups}: has a meaning for the strategies region and group alone")
    if mask.ratio_of == "regions" and drawn != anatomical:
        raise ConfigError("mask.ratio_of=regions: has a meaning for the strategies region and group alone")
    _at_least("mask.tube_len", mask.tube_len, 0)
    _check_mixture(mask, drawn)


def _check_brain_tokens(config: Config) -> None:
    mask = config.mask
    drawn = {*mask.mixture, *mask.mixture_start} if mask.strategy == "mixture" else {mask.strategy}
    blind = drawn & {"token", "window", "tube"}
    if config.model.brain_tokens and mask.ratio_of == "units" and blind:
        raise ConfigError(
            f"model.brain_tokens=true: mask.strategy={min(blind)} would count patches that are left out; set "
            "mask.ratio_of=brain"
        )


def _check_objective(config: Config) -> None:
    objective, frames = config.objective, config.model.num_frames
    for key in ("reconstruction", "instance", "local"):
        _at_least(f"objective.{key}", getattr(objective, key), 0)
    if not (objective.reconstruction or objective.contrasts):
        raise ConfigError("objective: all weights are 0; give reconstruction, instance or local one")
    if not objective.contrasts:
        return
    if objective.temperature <= 0:
        raise ConfigError(f"objective.temperature={objective.temperature}: expected a number above 0")
    _positive("objective.width", objective.width)
    if objective.span_frames and objective.span_frames < 2 * frames:
        raise ConfigError(
            f"objective.span_frames={objective.span_frames}: two clips of {frames} frames need {2 * frames}"
        )
    if objective.instance and config.optim.micro_batch < 2:
        raise ConfigError("objective.instance compares the clips of a micro-batch: set optim.micro_batch=2 or more")
    if objective.local and config.augment == AugmentConfig():
        raise ConfigError("objective.local compares changes of a clip: set augment.*, or both would be the same")
    if not objective.reconstruction and (config.log.validate_every or config.engine.zero_stage == 3):
        raise ConfigError(
            "objective.reconstruction=0 trains no decoder: set log.validate_every=0 (what validation measures) and "
            "engine.zero_stage=0, 1 or 2"
        )


def _check_mixture(mask: MaskConfig, drawn: set[str]) -> None:
    if (mask.strategy == "mixture") != bool(mask.mixture):
        raise ConfigError(
            "mask.strategy=mixture and mask.mixture go together: weights by strategy, {token: 1, tube: 1}"
        )
    if mask.mixture_start and not mask.mixture:
        raise ConfigError("mask.mixture_start needs mask.mixture, in which it ends")
    allowed = {str(name) for name in CHOICES["mask.strategy"]} - {"mixture"}
    if mask.mixture and not drawn <= allowed:
        raise ConfigError(f"mask.mixture: {', '.join(sorted(drawn - allowed))} is none of {', '.join(sorted(allowed))}")
    for key in ("mixture", "mixture_start"):
        weights = getattr(mask, key)
        for name, weight in weights.items():
            _at_least(f"mask.{key}.{name}", weight, 0)
        if weights and not sum(weights.values()):
            raise ConfigError(f"mask.{key}={dict(weights)}: at least one weight must be positive")
    _at_least("mask.schedule_steps", mask.schedule_steps, 0)
    _fraction("mask.ratio_start", mask.ratio_start)
    if bool(mask.schedule_steps) != bool(mask.ratio_start or mask.mixture_start):
        raise ConfigError("mask.schedule_steps goes with mask.ratio_start or mask.mixture_start: set both or neither")


def _check_loss(loss: LossConfig, config: Config) -> None:
    if not 0.0 <= loss.temporal_weight <= 1.0:
        raise ConfigError(f"loss.temporal_weight={loss.temporal_weight}: expected a share from 0 to 1")
    if loss.temporal_weight and config.model.num_frames < 2:
        raise ConfigError("loss.temporal_weight: clips of one frame have no change; set it to 0")
    for name, weight in loss.region_weights.items():
        _at_least(f"loss.region_weights.{name}", weight, 0)
    if (loss.region_weights or loss.equal_regions) and not config.mask.atlas:
        raise ConfigError("loss.region_weights and loss.equal_regions need mask.atlas, whose regions they weigh")


def _check_data(data: DataConfig) -> None:
    for key in ("prefetch_mb", "lanes", "temperature", "stall_timeout_s"):
        _positive(f"data.{key}", getattr(data, key))
    for key in ("num_readers", "shuffle_block", "min_jitter", "retries"):
        _at_least(f"data.{key}", getattr(data, key), 0)
    for key in ("max_bad_fraction", "max_bad_clips", "cache_gb"):
        _at_least(f"data.{key}", getattr(data, key), 0)
    for name, weight in data.weights.items():
        _at_least(f"data.weights.{name}", weight, 0)


def _check_engine(engine: EngineConfig) -> None:
    _positive("engine.max_bad_steps", engine.max_bad_steps)
    _positive("engine.timeout_s", engine.timeout_s)
    stage, optimizer, parameters = engine.zero_stage, engine.offload_optimizer, engine.offload_parameters
    if optimizer != "none" and stage == 0:
        raise ConfigError(f"engine.offload_optimizer={optimizer}: ZeRO 0 cannot offload; set engine.zero_stage=1")
    if "nvme" in (optimizer, parameters) and (stage != 3 or not engine.offload_dir):
        raise ConfigError(
            "offloading to nvme needs engine.zero_stage=3 and engine.offload_dir, a folder on a local disk"
        )
    if parameters != "none" and stage != 3:
        raise ConfigError(f"engine.offload_parameters={parameters}: needs engine.zero_stage=3, which cuts the weights")
    if engine.compile != "off" and stage == 3:
        raise ConfigError(
            f"engine.compile={engine.compile}: ZeRO 3 fetches weights inside the blocks; use stages 0 to 2"
        )
    if engine.cuda_graphs and engine.compile != "inductor":
        raise ConfigError("engine.cuda_graphs=true needs engine.compile=inductor, which records the graphs")


def _check_optim(optim: OptimConfig) -> None:
    for key in ("steps", "global_batch", "micro_batch", "lr", "eps"):
        _positive(f"optim.{key}", getattr(optim, key))
    for key in ("warmup_steps", "weight_decay", "clip_grad", "min_lr_ratio", "base_width"):
        _at_least(f"optim.{key}", getattr(optim, key), 0)
    _fraction("optim.ema_decay", optim.ema_decay)
    if len(optim.betas) != 2 or not all(0.0 <= beta < 1.0 for beta in optim.betas):
        raise ConfigError(f"optim.betas={optim.betas}: expected two numbers in [0, 1)")
    if optim.global_batch % optim.micro_batch:
        raise ConfigError(
            f"optim.global_batch={optim.global_batch} is not a multiple of optim.micro_batch={optim.micro_batch}"
        )


def _positive(key: str, value: float) -> None:
    if not (math.isfinite(value) and value > 0):
        raise ConfigError(f"{key}={value}: expected a positive number")


def _at_least(key: str, value: float, low: float) -> None:
    if not (math.isfinite(value) and value >= low):
        raise ConfigError(f"{key}={value}: expected a number of at least {low}")


def _fraction(key: str, value: float) -> None:
    if not 0.0 <= value < 1.0:
        raise ConfigError(f"{key}={value}: expected a fraction in [0, 1)")
