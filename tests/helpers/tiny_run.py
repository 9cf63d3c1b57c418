"""A training run of a very small model, as training leaves it, with no training done: for tests of releases."""

import json
import shutil
from pathlib import Path

import numpy as np
import torch

from fmri_scale.checkpoint import CheckpointDir, TrainingState, layout
from fmri_scale.checkpoint import average as averages
from fmri_scale.checkpoint.commit import save
from fmri_scale.config import Config, DataConfig, MaskConfig, ModelConfig
from fmri_scale.models import MaskedAutoencoder
from sharding.format import GRID_AFFINE, GRID_SHAPE, SCHEMA_VERSION
from sharding.mask import brain_mask, mask_sha256
from sharding.mask_image import mask_bytes
from sharding.prepare import PreprocessingSettings

CORPUS_ID = "c0ffee" + "0" * 58


def tiny_model(**changes: object) -> ModelConfig:
    """Return a model on the canonical grid that runs in a few milliseconds."""
    shape: dict = {
        "patch_size": [24, 24, 24, 1],
        "num_frames": 6,
        "embed_dim": 8,
        "depths": [2, 1],
        "window_size": [2, 2, 2, 4],
        "first_window_size": [2, 2, 2, 4],
        "state_dim": 4,
    }
    return ModelConfig(**(shape | changes))


def tiny_config(model: ModelConfig | None = None) -> Config:
    """Return the configuration of the run."""
    return Config(
        model=model or tiny_model(),
        mask=MaskConfig(ratio=0.5),
        data=DataConfig(corpus="/somewhere/private/corpus", normalisation="run_z"),
    )


def weights_of(config: Config, seed: int = 3) -> dict[str, torch.Tensor]:
    """Return the run's weights: random, the mask tokens included, so that no two tensors are alike."""
    state = MaskedAutoencoder(config.model, seed).state_dict()
    rng = torch.Generator().manual_seed(seed)
    return {k: v + 0.02 * torch.randn(v.shape, generator=rng) for k, v in state.items()}


def corpus_facts(mask: np.ndarray) -> dict:
    """Return the `corpus.json` that the run was fed with."""
    return {
        "schema_version": SCHEMA_VERSION,
        "corpus_id": CORPUS_ID,
        "grid": {"shape": list(GRID_SHAPE), "affine": GRID_AFFINE.tolist()},
        "mask": {"voxels": int(mask.sum()), "sha256": mask_sha256(mask)},
        "tr": 0.8,
        "totals": {"runs": 3, "failed": 0, "subjects": 2, "samples": 4, "frames": 400, "bytes": 123456},
        "shards": [
            {"name": "rest-one-000000.tar", "bytes": 100000, "sha256": "0" * 64, "samples": 3, "frames": 300},
            {"name": "task-000000.tar", "bytes": 23456, "sha256": "1" * 64, "samples": 1, "frames": 100},
        ],
        "settings": {"preprocessing": PreprocessingSettings().to_json(), "assume_mni": False, "licence_note": "CC0"},
        "software": {"nibabel": "5"},
        "licence_note": "CC0",
    }


def write_run(
    run_dir: Path,
    config: Config | None = None,
    step: int = 30,
    seed: int = 3,
    corpus: Path | None = None,
    average: dict[str, torch.Tensor] | None = None,
) -> CheckpointDir:
    """Commit a checkpoint into a run folder, and metrics beside it; of a made-up corpus unless one is given.

    `average` is kept beside the weights, as the whole of one rank.
    """
    config, mask = config or tiny_config(), brain_mask()
    run_dir.mkdir(parents=True, exist_ok=True)
    if corpus is None:
        (run_dir / "corpus.json").write_text(json.dumps(corpus_facts(mask)))
        (run_dir / "mask.nii.gz").write_bytes(mask_bytes(mask))
    else:
        for name in ("corpus.json", "mask.nii.gz"):
            shutil.copyfile(corpus / name, run_dir / name)
    rows = [{"step": i, "loss": 1.0 / i, "frames_per_s": 100.0 + i} for i in range(1, step + 6)]
    (run_dir / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows) + '{"step": 99')
    state = TrainingState(
        step=step,
        clips=8 * step,
        world_size=1,
        zero_stage=1,
        corpus_id=CORPUS_ID,
        software={"torch": "x", "git": "abc"},
    )

    def write_engine(folder: Path) -> list[Path]:
        path = folder / layout.ENGINE / "mp_rank_00_model_states.pt"
        path.parent.mkdir()
        torch.save({"module": {f"model.{name}": value for name, value in weights_of(config, seed).items()}}, path)
        if average is None:
            return [path]
        flat = {f"model.{name}": value.flatten() for name, value in average.items()}
        return [path, averages.write(folder, 0, flat)]

    attachments = {name: run_dir / name for name in ("corpus.json", "mask.nii.gz")}
    return save(run_dir, state, config, write_engine, {"torch": "x"}, attachments)
