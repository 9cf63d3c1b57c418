"""What is reported: metrics.jsonl as one curve, W&B under one id, the progress line, speeds, pictures."""

import io
import json
import math
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from fmri_scale.config import Config, ModelConfig
from fmri_scale.data.reading import ClipReader, ReadFault
from fmri_scale.errors import DataError
from fmri_scale.models import cost
from fmri_scale.training import folder, loop, metrics, pictures, throughput
from fmri_scale.training.estimate import devices
from fmri_scale.training.estimate.speed import compute_seconds
from fmri_scale.training.launch import Launch
from fmri_scale.training.progress import Progress, duration
from fmri_scale.training.supervise import verdict
from fmri_scale.training.validate import require_validation, validation_loss
from sharding.corpus import open_corpus
from tests.helpers.corpora import Segment, write_corpus


def test_rows_of_repeated_steps_are_dropped_on_resume(tmp_path):
    first = metrics.MetricsFile(tmp_path, 0)
    for step in (1, 2, 3):
        first.write({"step": step, "loss": math.nan if step == 2 else 0.5})
    first.close()
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 4, "lo')  # killed while writing
    second = metrics.MetricsFile(tmp_path, 2)
    second.write({"step": 3, "loss": 0.25})
    second.close()
    assert metrics.read_metrics(tmp_path) == [
        {"step": 1, "loss": 0.5},
        {"step": 2, "loss": None},
        {"step": 3, "loss": 0.25},
    ]


def test_wandb_is_online_only_with_a_key(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    monkeypatch.delenv("NETRC", raising=False)
    assert metrics.wandb_mode("auto") == "offline"
    assert metrics.wandb_mode("off") == "off"
    (tmp_path / ".netrc").write_text("machine api.wandb.ai\n  login user\n  password x\n")
    (tmp_path / ".netrc").chmod(0o600)
    assert metrics.wandb_mode("auto") == "online"
    (tmp_path / ".netrc").unlink()
    monkeypatch.setenv("WANDB_API_KEY", "x" * 40)
    assert metrics.wandb_mode("auto") == "online"
    assert metrics.wandb_mode("offline") == "offline"


def lost_service(row: dict) -> None:
    raise BrokenPipeError("broken pipe")


def test_offline_wandb_keeps_its_id_over_a_resume(monkeypatch, caplog, tmp_path):
    """And a run goes on, with one warning, when W&B's service is lost in the middle of it."""
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    config = Config(run_dir=str(tmp_path / "run"))
    Path(config.run_dir).mkdir()
    ids = []
    for step in (1, 2):
        tracker = metrics.start_tracker(config, ids[0] if ids else "")
        tracker.log({"step": step, "loss": 1.0})
        assert isinstance(tracker, metrics.WandbTracker)
        if step == 1:
            tracker.close(0)
        else:
            with monkeypatch.context() as patch:
                patch.setattr(tracker._run, "log", lost_service)
                with caplog.at_level("WARNING", logger="fmri_scale"):
                    tracker.log({"step": 3})
                    tracker.log({"step": 4})
                    tracker.close(0)
        ids.append(tracker.run_id)
    assert caplog.text.count("W&B is lost (broken pipe)") == 1
    assert ids[0] == ids[1] != ""
    files = list((tmp_path / "run" / "wandb").glob(f"offline-run-*-{ids[0]}/run-{ids[0]}.wandb"))
    assert files
    assert all(file.stat().st_size > 0 for file in files)


def test_no_wandb_keeps_the_id_for_later():
    config = Config()
    config.log.wandb = "off"
    tracker = metrics.start_tracker(config, "abc")
    tracker.log({"step": 1})
    tracker.close(0)
    assert tracker.run_id == "abc"


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_progress_renews_one_line_on_a_terminal():
    out = Terminal()
    progress = Progress(4, done=0, stream=out)
    for step in (1, 2):
        progress.update(step, 0.5 / step, 1e-3, 1234.0)
    progress.end()
    text = out.getvalue()
    assert text.count("\n") == 1
    assert text.split("\r")[-1].startswith("step 2/4  loss 0.2500  lr 1.00e-03  1,234 frames/s  ETA 0:00:00")


def test_progress_writes_few_lines_to_a_file_and_none_on_other_ranks():
    out, silent = io.StringIO(), io.StringIO()
    for stream, shown in ((out, True), (silent, False)):
        progress = Progress(100, done=0, stream=stream, shown=shown)
        for step in range(1, 101):
            progress.update(step, 0.5, 1e-3, 10.0)
        progress.end()
    assert [line.split()[1] for line in out.getvalue().splitlines()] == ["1/100", "100/100"]
    assert silent.getvalue() == ""


def test_duration():
    assert [duration(s) for s in (0, 61.4, 3600 * 30)] == ["0:00:00", "0:01:01", "30:00:00"]


def test_speed_adds_up():
    model = ModelConfig(num_frames=20)
    speed = throughput.Speed(model, global_batch=8, world_size=4, device=torch.device("cpu"))
    for _ in range(5):
        speed.add(seconds=2.0, wait_s=0.5)
    row = speed.row()
    assert row["step_s"] == pytest.approx(2.0)
    assert row["frames_per_s"] == pytest.approx(80.0)
    assert row["frames_per_s_per_rank"] == pytest.approx(20.0)
    assert row["data_wait_fraction"] == pytest.approx(0.25)
    total = cost(model).total
    assert row["model_tflops_per_rank"] == pytest.approx((total.forward_flops + total.backward_flops) / 1e12)
    assert row["mfu"] is row["roofline_fraction"] is None
    assert speed.frames_per_s == row["checkpoint_s"] == 0.0
    speed.saved(1.5)
    assert [speed.row()["checkpoint_s"] for _ in range(2)] == [1.5, 0.0]


def test_recomputation_is_no_useful_work():
    plain, again = ModelConfig(), ModelConfig(checkpoint_blocks=True)
    speeds = [throughput.Speed(model, 1, 1, torch.device("cpu")) for model in (plain, again)]
    for speed in speeds:
        speed.add(1.0, 0.0)
    assert speeds[0].row()["model_tflops_per_rank"] == speeds[1].row()["model_tflops_per_rank"]


def test_share_of_the_peak_of_a_known_gpu(monkeypatch):
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "NVIDIA H100 PCIe")
    assert throughput.peak_flops(torch.device("cuda", 0)) == 7.56e14
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "NVIDIA H200")
    assert throughput.peak_flops(torch.device("cuda", 0)) == 9.89e14
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "Unheard Of")
    assert throughput.peak_flops(torch.device("cuda", 0)) is None


@pytest.mark.parametrize(
    ("name", "best"), [("NVIDIA H200", True), ("NVIDIA H100 80GB HBM3", True), ("Unheard Of", False)]
)
def test_roofline_is_the_time_of_what_binds_and_no_run_can_be_faster(monkeypatch, name, best):
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: name)
    model, gpu = ModelConfig(), torch.device("cuda", 0)
    least = throughput.least_seconds(model, gpu)
    if not best:
        assert least is None
        return
    config = Config(model=model)
    config.engine.dtype, config.optim.global_batch, config.optim.micro_batch = "bf16", 8, 8
    predicted = compute_seconds(config, devices.GPUS[name.split()[1].lower()], world_size=1) / 8
    assert 0.05 * predicted < least < predicted
    total = cost(model).total
    assert (total.forward_flops + total.backward_flops) / throughput.peak_flops(gpu) < least, (
        "matrix products do not bind"
    )


def test_panels_show_what_was_hidden_and_what_was_made_of_it():
    seen, predicted = np.full((2, 2, 2), 1.0), np.full((2, 2, 2), 5.0)
    covered = np.zeros((2, 2, 2), dtype=bool)
    covered[0] = True
    scored = np.ones((2, 2, 2), dtype=bool)
    scored[0, 0, 0] = False
    panels = pictures.three_panels(seen, covered, predicted, scored)
    hidden = panels["masked input (blue: hidden)"]
    assert np.isnan(hidden[0]).all()
    assert (hidden[1] == 1).all()
    assert (panels["reconstruction"] == 5).sum() == 3
    assert panels["reconstruction"][0, 0, 0] == 1
    assert (panels["reconstruction"][1] == 1).all()


def test_places_of_a_picture_are_in_mm_whatever_the_size_of_the_image():
    assert pictures.place_mm(48, 0, (96, 96, 96)) == 0.0
    assert pictures.place_mm(39, 2, (96, 96, 96)) == 0.0
    assert pictures.place_mm(12, 0, (24, 24, 24)) == 3.0  # the mean of voxels at 0, 2, 4 and 6 mm


def test_planes_of_a_ras_volume_stand_upright():
    volume = np.zeros((4, 5, 6))
    volume[3, 4, 5] = 1.0  # right, anterior, superior corner: upper right in all three planes
    for plane, index in enumerate((3, 4, 5)):
        image = pictures.slice_of(volume, plane, index)
        assert image[0, -1] == 1.0
        assert image.sum() == 1.0


def test_loss_curve_is_drawn_over_gaps(tmp_path):
    rows = [{"step": i, "loss": None if i == 3 else 1.0 / i} for i in range(1, 6)]
    rows[3]["val_loss"] = 0.5
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    pictures.draw_loss(tmp_path, tmp_path / "pictures" / "loss.png", "mean squared error")
    assert (tmp_path / "pictures" / "loss.png").read_bytes().startswith(b"\x89PNG")
    assert [path.name for path in (tmp_path / "pictures").iterdir()] == ["loss.png"]


def test_peak_memory_is_the_process_own_and_not_that_of_who_started_it():
    own = "from fmri_scale.training.throughput import *; print(peak_memory_gb(torch.device('cpu')))"
    starter = (
        "import subprocess, sys; held = bytearray(b'x') * 1_500_000_000; "
        f"print(subprocess.run([sys.executable, '-c', {own!r}], capture_output=True, text=True, check=True).stdout)"
    )
    done = subprocess.run([sys.executable, "-c", starter], capture_output=True, text=True, check=True)
    assert 0.05 < float(done.stdout) < 1.4


def test_bytes_that_are_no_text_are_a_damaged_line(tmp_path):
    (tmp_path / "metrics.jsonl").write_bytes(b'{"step": 1, "loss": 0.5}\n\xff\xfe\x00\n\xe2\x82')
    metrics.MetricsFile(tmp_path, 1).close()
    assert metrics.read_metrics(tmp_path) == [{"step": 1, "loss": 0.5}]


@pytest.mark.parametrize("content", [b"", b'{"state": "run', b"\xff\xfe", b"[1]"])
def test_a_cut_status_is_none(tmp_path, content):
    (tmp_path / "status.json").write_bytes(content)
    assert folder.read_status(tmp_path) == {}
    assert verdict.read_status(tmp_path) == {}


def unreadable(monkeypatch, rows: int):
    """Let the first clips that are asked for be bad, that many; return the list of those asked for."""
    asked, original = [], ClipReader.read

    def read(self, request, *more):
        asked.append((request.row, request.start_frame))
        if len(asked) <= rows:
            raise ReadFault("rotten")
        return original(self, request, *more)

    monkeypatch.setattr(ClipReader, "read", read)
    return asked


def test_a_picture_takes_another_clip_where_bad_ones_are_substituted(tmp_path, monkeypatch):
    corpora = [open_corpus(write_corpus(tmp_path / "corpus", [Segment(60)] * 4))]
    config = Config(model=ModelConfig(num_frames=20))
    assert pictures.fixed_clip(config, corpora).valid.all()
    asked = unreadable(monkeypatch, rows=2)
    with pytest.raises(DataError, match="rotten"):
        pictures.fixed_clip(config, corpora)
    config.data.on_bad_sample = "substitute"
    asked.clear()
    clip = pictures.fixed_clip(config, corpora)
    assert clip.valid.all()
    assert len(set(asked)) == 3


def test_a_run_without_a_clip_to_draw_goes_on(tmp_path, monkeypatch, caplog):
    def none(*arguments):
        raise DataError("rotten")

    monkeypatch.setattr(pictures, "fixed_clip", none)
    (tmp_path / "metrics.jsonl").write_text('{"step": 1, "loss": 0.5}\n')
    trainer = SimpleNamespace(
        config=Config(), corpora=[], run_dir=tmp_path, step=7, main=True, watch=SimpleNamespace(saved=lambda s: None)
    )
    with caplog.at_level("WARNING", logger="fmri_scale"):
        loop.Trainer._draw(trainer)
    assert "no picture of step 7: rotten" in caplog.text
    assert [path.name for path in (tmp_path / "pictures").iterdir()] == ["loss.png"]


def test_validation_samples_shorter_than_a_clip_are_told_at_the_start(tmp_path):
    corpora = [open_corpus(write_corpus(tmp_path / "corpus", [Segment(60)] * 2 + [Segment(12, split="val")]))]
    require_validation(corpora, 12)
    with pytest.raises(
        DataError, match=r"no validation sample has 13 frames.*log\.validate_every=0.*model\.num_frames"
    ):
        require_validation(corpora, 13)


def test_every_batch_of_a_validation_beats_the_watch(tmp_path, monkeypatch):
    monkeypatch.setattr("fmri_scale.training.validate.exchange", lambda values, device: [tuple(values)])
    corpora = [open_corpus(write_corpus(tmp_path / "corpus", [Segment(60), Segment(60, split="val")]))]
    beats = []

    class Engine:
        device = torch.device("cpu")
        eval = train = staticmethod(lambda: None)

        def __call__(self, batch):
            return SimpleNamespace(loss=torch.tensor(2.0))

    how = (Config(), Launch(0, 1, 0, "", 0, "single"), lambda: 0, lambda: beats.append(1))
    assert validation_loss(Engine(), corpora, lambda batch: (batch,), *how) == 2.0
    assert len(beats) == 3
