"""A release goes to the hub and comes back the same, at any revision; what differs on the way is refused."""

import shutil
from pathlib import Path

import pytest
import torch

import fmri_scale
from fmri_scale import cli
from fmri_scale.errors import CheckpointError
from fmri_scale.release import layout
from fmri_scale.release.export import ExportSettings, export
from fmri_scale.release.hub import push_to_hub
from fmri_scale.release.reference import reference_clip
from fmri_scale.release.verify import verify_release
from tests.helpers import hub_server
from tests.helpers.tiny_run import write_run

pytest.importorskip("huggingface_hub")
NAME = "my-lab/brain-tiny"


@pytest.fixture(scope="module")
def releases(tmp_path_factory) -> list[Path]:
    folder = tmp_path_factory.mktemp("releases")
    made = []
    for seed in (3, 4):
        write_run(folder / f"run{seed}", seed=seed)
        made.append(export(folder / f"run{seed}", folder / f"release{seed}", ExportSettings(name=NAME)))
    return made


@pytest.fixture
def hub(monkeypatch, tmp_path):
    with hub_server.serving() as server:
        monkeypatch.setenv("HF_ENDPOINT", server.url)
        monkeypatch.setenv("HF_TOKEN", hub_server.TOKEN)
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))
        # the stand-in moves large files by Git LFS, as the hub does for clients without hf_xet
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_DISABLE_XET", True)
        yield server


def files_of(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_push_and_pull_give_the_same_bytes_and_features(hub, releases, tmp_path):
    commit = push_to_hub(releases[0], NAME)
    model = fmri_scale.from_pretrained(NAME, cache_dir=tmp_path / "mine")
    assert commit == hub.repos[NAME].refs["main"]
    assert files_of(model.path) == files_of(releases[0])
    local = fmri_scale.from_pretrained(releases[0])
    clip = reference_clip(local, 6)
    assert torch.equal(local.features(clip), model.features(clip))
    assert model.identity == local.identity


def test_revisions_are_told_apart(hub, releases, tmp_path):
    first = push_to_hub(releases[0], NAME, tag="v1")
    second = push_to_hub(releases[1], NAME)
    identities = {r: fmri_scale.from_pretrained(NAME, revision=r).identity for r in (None, "main", "v1", first, second)}
    one, two = (fmri_scale.from_pretrained(path).identity for path in releases)
    assert identities == {None: two, "main": two, "v1": one, first: one, second: two}
    with pytest.raises(CheckpointError, match=r"my-lab/brain-tiny at v9: cannot be fetched"):
        fmri_scale.from_pretrained(NAME, revision="v9")


def test_what_is_here_already_is_not_fetched_again(hub, releases, tmp_path):
    push_to_hub(releases[0], NAME)
    fmri_scale.from_pretrained(NAME, cache_dir=tmp_path / "mine")
    before = len(hub.downloads)
    fmri_scale.from_pretrained(NAME, cache_dir=tmp_path / "mine")
    assert len(hub.downloads) == before > 0


def test_a_push_replaces_what_the_former_release_had_beside(hub, releases, tmp_path):
    push_to_hub(releases[0], NAME)
    main = hub.repos[NAME].refs["main"]
    hub.repos[NAME].commits[main]["pytorch_model.bin"] = next(iter(hub.blobs))
    push_to_hub(releases[1], NAME)
    tree = hub.repos[NAME].commits[hub.repos[NAME].refs["main"]]
    assert set(tree) == {*layout.REQUIRED, layout.CHECKSUMS, ".gitattributes"}


@pytest.mark.parametrize("name", [layout.WEIGHTS, layout.CONFIG, layout.MASK])
def test_a_byte_changed_on_arrival_is_noticed(hub, releases, name):
    hub.spoil_on_arrival = name
    with pytest.raises(CheckpointError, match="is not what was sent"):
        push_to_hub(releases[0], NAME, tag="v1")
    assert "v1" not in hub.repos[NAME].refs


@pytest.mark.parametrize("name", [*layout.REQUIRED, layout.CHECKSUMS])
def test_a_byte_changed_on_the_way_is_refused(hub, releases, name, tmp_path):
    push_to_hub(releases[0], NAME)
    hub.spoil_on_the_way = name
    with pytest.raises(CheckpointError, match=name):
        fmri_scale.from_pretrained(NAME, cache_dir=tmp_path / "mine")


def test_a_file_cut_short_is_refused(hub, releases, tmp_path):
    push_to_hub(releases[0], NAME)
    hub.cut_short = layout.WEIGHTS
    with pytest.raises(CheckpointError):
        fmri_scale.from_pretrained(NAME, cache_dir=tmp_path / "mine")


def test_a_spoilt_cache_is_refused(hub, releases, tmp_path):
    push_to_hub(releases[0], NAME)
    model = fmri_scale.from_pretrained(NAME, cache_dir=tmp_path / "mine")
    path = (model.path / layout.WEIGHTS).resolve()
    whole = path.read_bytes()
    path.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    with pytest.raises(CheckpointError, match=r"model\.safetensors: content differs"):
        fmri_scale.from_pretrained(NAME, cache_dir=tmp_path / "mine")


def test_a_spoilt_release_is_not_pushed(hub, releases, tmp_path):
    copy = Path(shutil.copytree(releases[0], tmp_path / "copy"))
    (copy / layout.CARD).write_text("edited")
    with pytest.raises(CheckpointError, match=r"README\.md"):
        push_to_hub(copy, NAME)
    assert NAME not in hub.repos


def test_refusals_of_the_hub_are_one_line(hub, releases, tmp_path, monkeypatch):
    with pytest.raises(CheckpointError, match="none-such/model: cannot be fetched"):
        fmri_scale.from_pretrained("none-such/model")
    with pytest.raises(CheckpointError, match="the hub did not take the release") as caught:
        push_to_hub(releases[0], NAME, token="hf_wrong")
    assert len(str(caught.value).splitlines()) == 1
    push_to_hub(releases[0], "my-lab/secret", private=True)
    assert fmri_scale.from_pretrained("my-lab/secret", token=hub_server.TOKEN).identity
    monkeypatch.delenv("HF_TOKEN")
    with pytest.raises(CheckpointError, match="my-lab/secret: cannot be fetched"):
        fmri_scale.from_pretrained("my-lab/secret", cache_dir=tmp_path / "other")
    hub.repos["my-lab/empty"] = hub_server.Repo()
    hub.repos["my-lab/empty"].commit({})
    with pytest.raises(CheckpointError, match="no release of fmri_scale"):
        fmri_scale.from_pretrained("my-lab/empty")


def test_no_hub_at_all_is_one_line(monkeypatch, releases, tmp_path):
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(CheckpointError, match="cannot be fetched from the hub"):
        fmri_scale.from_pretrained(NAME, cache_dir=tmp_path)


def test_commands_push_and_verify(hub, releases, capsys):
    assert cli.main(["push", str(releases[0]), NAME, "--tag", "v1"]) == 0
    assert cli.main(["verify-release", NAME, "--revision", "v1"]) == 0
    assert "checksums agree" in capsys.readouterr().out
    assert verify_release(NAME, "v1")
    assert cli.main(["push", str(releases[0]), "no-slash"]) == 2
    assert "expected organisation/name" in capsys.readouterr().err
