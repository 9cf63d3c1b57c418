"""One typed configuration: files compose, overrides win, and every mistake is one line that names the remedy."""

import dataclasses
import os
from pathlib import Path
from unittest import mock

import pytest
import yaml

from fmri_scale.config import Config, load_config, save_config, schema
from fmri_scale.config.load import PATHS, read_given, valid_keys
from fmri_scale.config.reference import reference
from fmri_scale.errors import ConfigError
from fmri_scale.train import main, read_arguments
from fmri_scale.training.ds_config import accumulation


def write(path, content):
    path.write_text(yaml.safe_dump(content))
    return path


def test_later_values_win(tmp_path):
    write(tmp_path / "base.yaml", {"optim": {"lr": 1.0, "steps": 5}, "seed": 1})
    file = write(tmp_path / "run.yaml", {"include": "base.yaml", "optim": {"lr": 2.0}})
    config = load_config([file], ["seed=9", "model.depths=[1, 2]"])
    assert (config.optim.lr, config.optim.steps, config.seed, config.model.depths) == (2.0, 5, 9, [1, 2])


def test_saved_configuration_comes_back_whole(tmp_path):
    config = load_config([], ["optim.lr=3e-4", "data.corpus=some folder", "mask.ratio=0.75"])
    save_config(config, tmp_path / "config.yaml")
    assert load_config([tmp_path / "config.yaml"]) == config


@pytest.mark.parametrize("word", ["off", "'off'", "false"])
def test_off_is_a_word_where_a_word_is_wanted(tmp_path, word):
    """YAML 1.1 reads an unquoted off as false."""
    (tmp_path / "run.yaml").write_text(f"log:\n  wandb: {word}\nmodel:\n  strd: off\n")
    config = load_config([tmp_path / "run.yaml"])
    assert (config.log.wandb, config.model.strd) == ("off", "off")
    assert load_config([], ["log.wandb=off"]).log.wandb == "off"
    assert load_config([], ["engine.deterministic=on"]).engine.deterministic is True


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("optim.lrr=1", r"unknown key 'optim\.lrr'; did you mean 'optim\.lr'"),
        ("optm.lr=1", r"unknown key 'optm'; did you mean 'optim"),
        ("engine.zero_stag=1", r"did you mean 'engine\.zero_stage'"),
        ("optim.steps=many", r"optim\.steps"),
        ("optim.steps=1.5", r"optim\.steps"),
        ("optim.steps", "expected key=value"),
        ("optim.steps=0", "expected a positive number"),
        ("engine.zero_stage=4", "expected one of 0, 1, 2, 3"),
        ("engine.dtype=fp16", "expected one of fp32, bf16"),
        ("optim.betas=[0.9]", "expected two numbers"),
        ("optim.global_batch=3", None),
        ("optim.micro_batch=3", "is not a multiple of"),
        ("mask.ratio=1.0", "expected a fraction"),
        ("mask.strategy=region", r"needs mask\.atlas"),
        ("log.level=foo", r"log\.level='foo': expected one of DEBUG, INFO"),
        ("seed=18446744073709551616", "seed=18446744073709551616: expected a number of 64 bits"),
        ("engine.timeout_s=1e15", r"engine\.timeout_s=1e\+15: expected at most 1e\+09 seconds"),
        ("guard.hang_s=1e15", r"guard\.hang_s=1e\+15: expected at most"),
        ("data.stall_timeout_s=1e15", r"data\.stall_timeout_s=1e\+15: expected at most"),
        ("run_dir=${HOME}/zz", r"run_dir: .*HOME.*\$\{oc\.env:HOME\}"),
        ("model.window_size=[100,100,100,100]", r"model\.window_size=.*: 100000000 tokens, but a clip has 81920"),
        ("model.first_window_size=[100,100,100,100]", r"model\.first_window_size"),
        ("model.window_size=[8,8,8,40]", None),
    ],
)
def test_mistakes_are_one_line_that_names_the_remedy(override, message):
    if message is None:
        load_config([], [override])
        return
    with pytest.raises(ConfigError, match=message) as caught:
        load_config([], [override])
    assert "\n" not in str(caught.value)


def test_files_that_cannot_be_read_are_named(tmp_path):
    with pytest.raises(ConfigError, match=r"none\.yaml: no such configuration file"):
        load_config([tmp_path / "none.yaml"])
    (tmp_path / "list.yaml").write_text("- 1\n")
    with pytest.raises(ConfigError, match=r"list\.yaml: expected keys and values"):
        load_config([tmp_path / "list.yaml"])
    (tmp_path / "broken.yaml").write_text("a: [1\n")
    with pytest.raises(ConfigError, match=r"broken\.yaml: cannot be read as YAML"):
        load_config([tmp_path / "broken.yaml"])
    write(tmp_path / "round.yaml", {"include": "round.yaml"})
    with pytest.raises(ConfigError, match="includes itself"):
        load_config([tmp_path / "round.yaml"])


RUNS = Path(__file__).resolve().parents[2] / "configs" / "run"


@pytest.mark.parametrize("name", [path.name for path in sorted(RUNS.glob("*.yaml"))])
def test_configurations_of_runs_are_whole(name):
    """They load, and their batch divides over 1 to 32 ranks."""
    config = load_config([RUNS / name], ["data.corpus=c", "run_dir=r"])
    ranks = [n for n in (1, 2, 4, 8, 16, 32) if n * config.optim.micro_batch <= config.optim.global_batch]
    assert all(accumulation(config.optim.global_batch, config.optim.micro_batch, n) >= 1 for n in ranks)
    assert config.optim.warmup_steps < config.optim.steps
    large = load_config([RUNS / name, RUNS.parent / "model" / "xl.yaml"])
    assert large.model.embed_dim == 192


def test_every_key_is_documented():
    text = reference()
    assert all(f"\n{key} (" in text for key in valid_keys())
    assert len(list(valid_keys())) > 50
    assert dataclasses.is_dataclass(schema.Config)
    assert Config() == load_config()


def test_launchers_arguments_are_passed_over():
    config = read_arguments(["--local_rank=3", "run_dir=r", "data.corpus=c"])
    assert (config.run_dir, config.data.corpus) == ("r", "c")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["run_dir=r", "data.corpus=c", "optim.lrr=1"], "unknown key 'optim.lrr'; did you mean 'optim.lr'?"),
        (["run_dir=r"], "data.corpus is not set"),
        (["data.corpus=c"], "run_dir is not set"),
        (["--steps", "3"], "option '--steps': expected YAML files and key=value"),
        (["missing.yaml"], "missing.yaml: no such configuration file"),
    ],
)
def test_bad_command_line_is_one_line_and_exit_code_2(capsys, arguments, message):
    with mock.patch.dict(os.environ):  # which `main` writes to
        for key in ("RANK", "WORLD_SIZE", "LOCAL_RANK"):
            os.environ.pop(key, None)
        assert main(arguments) == 2
    captured = capsys.readouterr()
    assert captured.err.count("\n") == 1
    assert captured.err.startswith("train: ")
    assert message in captured.err
    assert captured.out == ""


def test_help_says_how_to_start(capsys):
    assert main(["--help"]) == 0
    assert "deepspeed --num_gpus 8 fmri_scale/train.py" in capsys.readouterr().out


@pytest.mark.parametrize("include", ["", "5", "[1]", "{a: b}"])
def test_include_that_is_no_path_is_named(tmp_path, include):
    (tmp_path / "run.yaml").write_text(f"include: {include}\nseed: 1\n")
    with pytest.raises(ConfigError, match=r"run\.yaml: include: .* expected a path or a list of paths"):
        load_config([tmp_path / "run.yaml"])


def test_home_is_put_into_paths(monkeypatch):
    monkeypatch.setenv("HOME", "/home/me")
    config = load_config([], [*(f"{key}=~/there" for key in PATHS), "data.more_corpora=[~/a, s3://b]"])
    found = [getattr(config, key) if "." not in key else None for key in ("run_dir", "start_from")]
    assert found == ["/home/me/there"] * 2
    assert (config.data.corpus, config.mask.atlas) == ("/home/me/there",) * 2
    assert config.data.more_corpora == ["/home/me/a", "s3://b"]
    assert load_config([], ["log.wandb_name=~x", "run_dir=${oc.env:HOME}/r"]).run_dir == "/home/me/r"


def test_given_values_are_those_of_files_and_overrides_alone(tmp_path, monkeypatch):
    monkeypatch.setenv("SCRATCH", "/scratch")
    write(tmp_path / "base.yaml", {"optim": {"lr": 1.0, "steps": 5}, "mask": {"mixture": {"token": 1.0}}})
    file = write(tmp_path / "run.yaml", {"include": "base.yaml", "optim": {"lr": 2.0}, "log": {"wandb": False}})
    overrides = ["run_dir=${oc.env:SCRATCH}/r", "mask.mixture.tube=2", "model.depths=[1]"]
    wanted = {
        "optim": {"lr": 2.0, "steps": 5},
        "mask": {"mixture": {"token": 1.0, "tube": 2}},
        "log": {"wandb": "off"},
        "run_dir": "/scratch/r",
        "model": {"depths": [1]},
    }
    assert read_given([file], overrides) == wanted
    told = read_given([], ["objective.span_frames=${model.num_frames}"])
    assert told == {"objective": {"span_frames": "${model.num_frames}"}}
    with pytest.raises(ConfigError, match="unknown key"):
        read_given([], ["optim.lrr=1"])
