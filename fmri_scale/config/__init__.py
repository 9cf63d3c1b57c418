"""One typed configuration for every command: the schema, and how YAML files and overrides fill it."""

from typing import TYPE_CHECKING, Any

from fmri_scale.config.schema import (
    AugmentConfig,
    CheckpointConfig,
    Config,
    DataConfig,
    EngineConfig,
    GuardConfig,
    LaunchConfig,
    LogConfig,
    LossConfig,
    MaskConfig,
    ModelConfig,
    OptimConfig,
)

if TYPE_CHECKING:
    from fmri_scale.config.load import load_config, load_typed, save_config, to_dict

__all__ = [
    "AugmentConfig",
    "CheckpointConfig",
    "Config",
    "DataConfig",
    "EngineConfig",
    "GuardConfig",
    "LaunchConfig",
    "LogConfig",
    "LossConfig",
    "MaskConfig",
    "ModelConfig",
    "OptimConfig",
    "load_config",
    "load_typed",
    "save_config",
    "to_dict",
]


def __getattr__(name: str) -> Any:
    """Reading files needs OmegaConf; the schema alone, which models and their benchmarks use, needs nothing."""
    if name in ("load_config", "load_typed", "save_config", "to_dict"):
        from fmri_scale.config import load

        return getattr(load, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
