"""Checkpoint files as the published NeuroSTORM trainer leaves them, made from golden cases."""

from pathlib import Path

import torch

HYPER = ("in_chans", "embed_dim", "patch_size", "c_multiplier", "img_size", "depths", "window_size")
HYPER += ("first_window_size", "last_layer_full_MSA", "mask_ratio", "spatial_mask", "time_mask")


def published_weights(case: dict) -> dict[str, torch.Tensor]:
    return {key.removeprefix("param."): value for key, value in case.items() if key.startswith("param.")}


def lightning(path: Path, weights: dict[str, torch.Tensor], hyper: dict, **more: object) -> Path:
    """Write a file as the published trainer leaves it (without the version key, which it removes)."""
    state = {f"model.{name}": value for name, value in weights.items()} | more.pop("heads", {})
    content = {
        "epoch": 29,
        "state_dict": state,
        "loops": {"fit_loop": {"state_dict": {}}},
        "callbacks": {"ModelCheckpoint{'monitor': 'valid_loss'}": {"best_model_score": torch.tensor(0.3)}},
        "optimizer_states": [{"state": {0: {"exp_avg": torch.zeros(3)}}, "param_groups": [{"lr": 5e-5}]}],
        "lr_schedulers": [],
        "hparams_name": "kwargs",
        "hyper_parameters": hyper,
        **more,
    }
    torch.save(content, path)
    return path


def hyper_of(arguments: dict) -> dict:
    """Return what the published trainer keeps: its arguments, as a dict of plain values."""
    return {name: arguments[name] for name in HYPER if name in arguments} | {"model": "neurostorm", "pretraining": True}
