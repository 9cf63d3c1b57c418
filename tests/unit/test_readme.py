"""README.md names only commands, options, keys, files and messages that exist; test_readme_runs.py runs them."""

import re
import shlex
from pathlib import Path

import pytest

from fmri_scale import cli
from fmri_scale.config import load_config
from fmri_scale.config.load import valid_keys
from sharding.cli import main as shards_main

ROOT = Path(__file__).resolve().parents[2]
README = (ROOT / "README.md").read_text()
LINES = [
    line.split(" #")[0].strip()
    for block in re.findall(r"^```bash\n(.*?)^```", README, re.S | re.M)
    for line in block.replace("\\\n", " ").splitlines()
    if line.split(" #")[0].strip()
]
INLINE = [" ".join(text.split()) for text in re.findall(r"`(fmri-(?:scale|shards) [a-z][^`]*)`", README)]
MADE_BY_THE_TOUR = {
    *("config.yaml", "runs", "cohort", "corpus", "release", "features.npz", "metrics.jsonl", "pictures", "checkpoints")
}
TO_BE_WRITTEN = {
    *(f"rms/{name}.py" for name in ("__init__", "reference", "cpu", "triton", "op", "cases")),
    "sharding/discover/abide.py",
}
"By someone who follows the examples, as test_readme_examples.py does."
SOURCE = re.sub(
    r'"\s*\n\s*f?"',
    "",
    "\n".join(path.read_text() for folder in ("fmri_scale", "sharding") for path in (ROOT / folder).rglob("*.py")),
)
"The code, with messages that go over several lines put together."


def help_of(main, command, capsys) -> str:
    with pytest.raises(SystemExit) as stop:
        main([command, "--help"])
    assert stop.value.code == 0
    return capsys.readouterr().out


@pytest.mark.parametrize("line", [*(line for line in LINES if line.startswith(("fmri-shards", "fmri-scale"))), *INLINE])
def test_a_command_has_the_options_it_is_given(line, capsys):
    program, command, *arguments = shlex.split(line)
    text = help_of(shards_main if program == "fmri-shards" else cli.main, command, capsys)
    for option in (a for a in arguments if a.startswith("--")):
        assert option in text, f"{line}: {option} is unknown"


@pytest.mark.parametrize("line", [line for line in LINES if "data.corpus=" in line])
def test_a_training_command_has_a_valid_configuration(line):
    words = [w for w in shlex.split(line) if not re.fullmatch(r"[A-Z_]+=.*", w)]
    files = [ROOT / w for w in words if w.endswith(".yaml")]
    config = load_config(files, [w for w in words if "=" in w and not w.startswith("-")])
    assert config.data.corpus


def test_every_path_it_names_exists():
    named = set(re.findall(r"`([\w./-]+(?:/|\.py|\.sh|\.yaml|\.md|\.sbatch))`", README))
    named |= set(re.findall(r"(launch/\w+\.(?:sh|sbatch))", README))
    named |= set(re.findall(r"\]\(((?!http|#)[^)]+)\)", README))
    named = {name for name in named if name.split("/")[0] not in MADE_BY_THE_TOUR} - {".venv/"} - TO_BE_WRITTEN
    assert not {name for name in named if not (ROOT / name).exists()}
    anchors = {name.removeprefix("#") for name in re.findall(r"\]\((#[^)]+)\)", README)}
    assert anchors <= {title.lower().replace(" ", "-") for title in re.findall(r"^##+ (.+)$", README, re.M)}
    assert len(named) > 40


def test_every_key_it_names_exists():
    keys = set(valid_keys())
    sections = {key.split(".")[0] for key in keys if "." in key}
    named = {k for k in re.findall(r"`([a-z_]+\.[a-z_]+)(?:=[^`]*)?`", README) if k.split(".")[0] in sections}
    assert named <= keys
    assert len(named) > 20


TABLE = README.split("## Troubleshooting")[1].split("\n## ")[0]


@pytest.mark.parametrize("message", re.findall(r"^\| `([^`]+)` \|", TABLE, re.M))
def test_a_message_of_the_troubleshooting_table_is_one_that_is_said(message):
    for part in message.split("…"):
        said = part.replace("[train]", "[{extra}]") if "pip install" in part else part
        assert said.strip(", ") in SOURCE, part
