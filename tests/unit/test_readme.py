"""README.md names only commands, options, configuration keys, files and folders that exist."""

import re
import shlex
from pathlib import Path

import pytest

from fmri_scale import cli
from fmri_scale.config import load_config
from sharding.cli import main as shards_main

ROOT = Path(__file__).resolve().parents[2]
README = (ROOT / "README.md").read_text()
LINES = [
    line.split("#")[0].strip()
    for block in re.findall(r"```bash\n(.*?)```", README, re.S)
    for line in block.replace("\\\n", " ").splitlines()
    if line.split("#")[0].strip()
]
MADE_BY_THE_TOUR = {
    "config.yaml",
    "runs",
    "cohort",
    "corpus",
    "release",
    "features.npz",
    "metrics.jsonl",
    "pictures",
    "checkpoints",
}


def help_of(main, command, capsys) -> str:
    with pytest.raises(SystemExit) as stop:
        main([command, "--help"])
    assert stop.value.code == 0
    return capsys.readouterr().out


@pytest.mark.parametrize("line", [line for line in LINES if line.startswith(("fmri-shards", "fmri-scale"))])
def test_a_command_of_the_tour_has_the_options_it_is_given(line, capsys):
    program, command, *arguments = shlex.split(line)
    text = help_of(shards_main if program == "fmri-shards" else cli.main, command, capsys)
    for option in (a for a in arguments if a.startswith("--")):
        assert option in text, f"{line}: {option} is unknown"


@pytest.mark.parametrize("line", [line for line in LINES if ".yaml" in line])
def test_a_training_command_of_the_tour_has_a_valid_configuration(line):
    words = [w for w in shlex.split(line) if not re.fullmatch(r"[A-Z_]+=.*", w)]
    files = [ROOT / w for w in words if w.endswith(".yaml")]
    config = load_config(files, [w for w in words if "=" in w and not w.startswith("-")])
    assert config.data.corpus
    assert config.run_dir


def test_every_path_it_names_exists():
    named = set(re.findall(r"`([\w./-]+(?:/|\.py|\.sh|\.yaml|\.md|\.sbatch))`", README))
    named |= set(re.findall(r"bash (launch/\w+\.sh)", README))
    named |= set(re.findall(r"\]\(((?!http)[^)]+)\)", README))
    missing = {n for n in named if n.split("/")[0] not in MADE_BY_THE_TOUR and not (ROOT / n).exists()} - {".venv/"}
    assert not missing
    assert len(named) > 15
