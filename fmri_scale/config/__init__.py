"""One typed configuration for every command: the schema, and how YAML files and overrides fill it."""

from fmri_scale.config.load import load_config, load_typed, save_config, to_dict
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
