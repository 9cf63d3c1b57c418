"""What a run may change between its start and its resume, and that weights are read without running code."""

import pickle
from types import SimpleNamespace

import pytest
import torch

from fmri_scale.checkpoint import consolidated_state, fragments, layout, reshard, restore
from fmri_scale.checkpoint.commit import save
from fmri_scale.checkpoint.reading import load_tensors
from fmri_scale.checkpoint.state import TrainingState
from fmri_scale.config import Config, MaskConfig
from fmri_scale.errors import CheckpointError, LaunchError
from fmri_scale.training import agreement


def checkpoint_of(run_dir, config, state_dicts, zero_stage=1, world_size=1):
    def write_engine(folder):
        (folder / layout.ENGINE).mkdir()
        for name, content in state_dicts.items():
            torch.save(content, folder / layout.ENGINE / name)
        return [folder / layout.ENGINE / name for name in state_dicts]

    state = TrainingState(4, 32, world_size, zero_stage, "corpus")
    return save(run_dir, state, config, write_engine, {}, {})


@pytest.fixture
def checkpoint(tmp_path):
    module = {"model.a": torch.arange(6.0).view(2, 3), "model.b": torch.ones(3)}
    return checkpoint_of(tmp_path, Config(), {"mp_rank_00_model_states.pt": {"module": module}})


def test_harmless_changes_are_reported(checkpoint, caplog):
    config = Config()
    config.optim.lr = 1e-3
    config.model.backend = "torch"
    config.log.every_steps = 7
    with caplog.at_level("WARNING", logger="fmri_scale"):
        assert restore.check(checkpoint, config, world_size=1).step == 4
    assert "optim.lr 5e-05 -> 0.001" in caplog.text
    assert "model.backend" in caplog.text
    assert "log.every_steps" not in caplog.text


@pytest.mark.parametrize(
    ("section", "key", "value"),
    [
        ("model", "embed_dim", 24),
        ("model", "window_size", [2, 2, 2, 2]),
        ("mask", "ratio", 0.75),
        ("data", "normalisation", "voxel_z"),
        ("optim", "global_batch", 16),
    ],
)
def test_changes_of_model_or_input_are_refused_unless_allowed(checkpoint, section, key, value):
    config = Config()
    setattr(getattr(config, section), key, value)
    with pytest.raises(CheckpointError, match=rf"{section}\.{key} .* -> .*checkpoint\.allow_change=true"):
        restore.check(checkpoint, config, world_size=1)
    config.checkpoint.allow_change = True
    restore.check(checkpoint, config, world_size=1)


def test_another_seed_is_refused_another_layout_told(checkpoint, caplog):
    with pytest.raises(CheckpointError, match="seed 0 -> 1"):
        restore.check(checkpoint, Config(seed=1), world_size=1)
    with caplog.at_level("INFO", logger="fmri_scale"):
        assert restore.check(checkpoint, Config(), world_size=2).world_size == 1
    assert "written by 1 rank and ZeRO 1, goes on with 2 ranks and ZeRO 1" in caplog.text


def test_another_model_size_is_one_line(checkpoint):
    restore.check_shapes(checkpoint, {"a": (2, 3), "b": (3,)})
    for shapes in ({"a": (2, 4), "b": (3,)}, {"a": (2, 3)}, {"a": (2, 3), "b": (3,), "c": ()}):
        with pytest.raises(CheckpointError, match=r"another model size: parameter [abc] is") as caught:
            restore.check_shapes(checkpoint, shapes)
        assert "\n" not in str(caught.value)


def test_zero_3_slices_are_joined(tmp_path):
    """Three ranks hold a third of each parameter, padded; groups lie end to end."""
    full = {
        "model.a": torch.arange(7.0),
        "model.b": torch.arange(100.0, 106.0).view(2, 3),
        "model.c": torch.tensor(9.0),
    }
    padded = {name: torch.cat([t.flatten(), torch.zeros(-t.numel() % 3)]).view(3, -1) for name, t in full.items()}
    shapes = [{"model.a": full["model.a"].shape}, {n: full[n].shape for n in ("model.b", "model.c")}]
    files = {}
    for rank in range(3):
        groups = [torch.cat([padded[n][rank] for n in group]) for group in shapes]
        name = f"zero_pp_rank_{rank}_mp_rank_00"
        files[f"{name}_optim_states.pt"] = {"optimizer_state_dict": {"fp32_flat_groups": groups}}
        files[f"{name}_model_states.pt"] = {"param_shapes": shapes}
    checkpoint = checkpoint_of(tmp_path, Config(), files, zero_stage=3, world_size=3)
    joined = consolidated_state(checkpoint.path)
    assert list(joined) == ["a", "b", "c"]
    assert all(torch.equal(joined[name], full[f"model.{name}"]) for name in joined)
    restore.check_shapes(checkpoint, {"a": (7,), "b": (2, 3), "c": ()})


def test_zero_0_moments_go_by_the_optimizers_order(tmp_path):
    """A parameter that never had a gradient has no moments: they are zero."""
    module = {"model.a": torch.ones(2), "model.b": torch.ones(3), "model.c": torch.ones(1)}
    state = {0: {"step": torch.tensor(5.0), "exp_avg": torch.full((3,), 2.0), "exp_avg_sq": torch.full((3,), 3.0)}}
    optimizer = {"state": state, "param_groups": [{"params": [0, 2]}, {"params": [1]}]}
    checkpoint = checkpoint_of(
        tmp_path, Config(), {"mp_rank_00_model_states.pt": {"module": module, "optimizer": optimizer}}
    )
    saved = fragments.read(checkpoint.engine, 0, 1, ["model.b", "model.c", "model.a"])
    assert saved.adam_steps == 5.0
    assert saved.whole("model.b", "exp_avg").tolist() == [2.0] * 3
    assert saved.whole("model.a", "exp_avg_sq").tolist() == [0.0] * 2
    with pytest.raises(CheckpointError, match="has 3 parameters, the run's 2"):
        fragments.read(checkpoint.engine, 0, 1, ["model.b", "model.c"])


def test_missing_piece_of_a_parameter_is_named():
    saved = fragments.Saved({"w": (4,)})
    saved.add("w", fragments.WEIGHT, 0, torch.ones(3))
    with pytest.raises(CheckpointError, match="parameter w: the checkpoint holds 3 of 4 values"):
        saved.whole("w")


def test_state_on_local_disks_is_not_resharded(checkpoint):
    engine = SimpleNamespace(zero_nvme_offload_optimizer=lambda: True)
    with pytest.raises(CheckpointError, match="resume once with cpu, then change to nvme"):
        reshard.load(engine, checkpoint, TrainingState(4, 32, 1, 3, "corpus"), [], [])


def test_weights_are_not_tied_to_the_file(checkpoint):
    weights = consolidated_state(checkpoint.path)
    (checkpoint.engine / "mp_rank_00_model_states.pt").write_bytes(b"")
    assert torch.equal(weights["a"], torch.arange(6.0).view(2, 3))


class RunsCode:
    def __reduce__(self):
        return (exec, ("raise SystemExit('code was run')",))


def test_pickle_that_runs_code_is_refused(tmp_path):
    path = tmp_path / "evil.pt"
    torch.save({"module": RunsCode()}, path)
    with pytest.raises(CheckpointError, match="cannot be read as tensors"):
        load_tensors(path)
    path.write_bytes(pickle.dumps(RunsCode()))
    with pytest.raises(CheckpointError, match="cannot be read as tensors"):
        load_tensors(path)


def test_engine_refuses_a_pickle_that_runs_code(tmp_path):
    from fmri_scale.checkpoint.engine_files import EngineFiles

    path = tmp_path / "evil.pt"
    torch.save({"module": RunsCode()}, path)
    with pytest.raises(CheckpointError, match="cannot be read as tensors"):
        EngineFiles().load(str(path))


@pytest.mark.parametrize("mixture", [{"token": 1.0}, {"token": 1.0, "tube": 1.0, "window": 2.0}])
def test_a_mixture_that_lost_or_gained_a_strategy_is_another_one(tmp_path, mixture):
    module = {"mp_rank_00_model_states.pt": {"module": {"model.a": torch.ones(2)}}}
    saved, now = (
        Config(mask=MaskConfig(strategy="mixture", mixture=m)) for m in ({"token": 1.0, "tube": 1.0}, mixture)
    )
    checkpoint = checkpoint_of(tmp_path, saved, module)
    with pytest.raises(CheckpointError, match=r"mask\.mixture \{'token': 1\.0, 'tube': 1\.0\} -> \{"):
        restore.check(checkpoint, now, world_size=1)
    now.checkpoint.allow_change = True
    restore.check(checkpoint, now, world_size=1)


def test_ranks_with_other_weights_of_datasets_are_found(monkeypatch):
    first, other = Config(), Config()
    first.data.weights = {"one": 1.0}
    for pair in ((first, other), (other, first)):
        monkeypatch.setattr(agreement, "gather", lambda mine, pair=pair: [(config, "host") for config in pair])
        with pytest.raises(LaunchError, match=r"data\.weights="):
            agreement.require_same(pair[0])
