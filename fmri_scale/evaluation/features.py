"""From NIfTI runs to embeddings, by the very preprocessing the model was trained on.

In: a released model and runs (files, folders, tables, as `fmri-shards build` takes them). A run goes through
`sharding.prepare_run` with the release's settings and mask, is cut into clips, decoded as the loader decodes a corpus,
and encoded. Out: for each run a vector per clip and their mean, with what is needed to find each clip again.
Needs none of the training libraries. Shape suffixes: N clips, E width of a feature, T frames, V voxels.
"""

import contextlib
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
import torch

from fmri_scale.data import ClipBatch, decode
from fmri_scale.errors import DataError
from fmri_scale.release import Pretrained
from sharding.discover import RunSource, find_runs
from sharding.keys import run_label
from sharding.prepare import prepare_run

Progress = Callable[[int, int], None]
"Told how many clips of a run are done, of how many."


@dataclass(frozen=True)
class RunFeatures:
    """What a model says about one run.

    Attributes
    ----------
    file, key : the run, and its name as in a corpus (DATASET__sub-..._task-..._run-...).
    clips : float32 `[N, E]`, a vector for each clip.
    start_frames : int64 `[N]`, first frame of each clip, counted at the spacing `tr`.
    tr : spacing of frames in s, after resampling.
    frames : frames of the run after resampling; those after the last whole clip are not used.
    space : what says that the run is in MNI152 space (file name, header, overlap, assumed; or corpus).
    tokens : float32 `[N, L, E]`, a vector for each of L places of the latent map (mean over time), where asked for;
        of a model with brain_tokens for those that hold brain.
    """

    file: Path
    key: str
    clips: np.ndarray
    start_frames: np.ndarray
    tr: float
    frames: int
    space: str
    tokens: np.ndarray | None = None

    @property
    def mean(self) -> np.ndarray:
        """Mean over clips, float32 `[E]`."""
        return self.clips.mean(axis=0)


def extract(
    model: Pretrained,
    inputs: Sequence[str | Path],
    *,
    batch_size: int = 1,
    stride: int | None = None,
    tr: float | None = None,
    mask: Path | None = None,
    assume_mni: bool = False,
) -> list[RunFeatures]:
    """Embed runs; the first that cannot be used ends it with an error that names its file.

    Parameters
    ----------
    model : from `fmri_scale.from_pretrained`; runs where its weights are.
    inputs : NIfTI files, folders or tables.
    batch_size : clips at a time.
    stride : frames from one clip's start to the next; a clip's length if None, so that clips do not overlap.
    tr : repetition time in s, where files are wrong or silent.
    mask : brain mask for the run's statistics; the MNI152 brain if None.
    assume_mni : take images as they lie, whatever space they say.

    Raises
    ------
    InputError, DataError : a file that cannot be used, or is shorter than a clip.
    """
    sources, _ = find_runs(inputs, tr=tr, mask=mask)
    return [extract_run(model, source, batch_size, stride, assume_mni) for source in sources]


def extract_run(
    model: Pretrained,
    source: RunSource,
    batch_size: int = 1,
    stride: int | None = None,
    assume_mni: bool = False,
    progress: Progress = lambda done, total: None,
    tokens: bool = False,
) -> RunFeatures:
    """Embed one run; parameters as for `extract`, and `tokens`: also a vector for each place."""
    preprocessing = model.preprocessing
    run = prepare_run(
        source.path,
        preprocessing.settings,
        tr=source.tr,
        mask_path=source.mask,
        confounds_path=source.confounds,
        assume_mni=assume_mni,
        mask=model.mask,
    )
    with contextlib.closing(run):
        starts = clip_starts(run.num_frames, preprocessing.num_frames, stride)
        if starts.size == 0:
            raise DataError(
                f"{source.path}: {run.num_frames} frames of {run.tr:g} s are fewer than the {preprocessing.num_frames} "
                "of the model's clip; give a longer run"
            )
        clips, places = encode_clips(model, run, starts, batch_size, tokens, progress)
    return RunFeatures(source.path, run_label(source), clips, starts, run.tr, run.num_frames, run.space, places)


def encode_clips(
    model: Pretrained,
    run: "CodedRun",
    starts: np.ndarray,
    batch_size: int = 1,
    tokens: bool = False,
    progress: Progress = lambda done, total: None,
) -> tuple[np.ndarray, np.ndarray | None]:
    """Return the vector of each clip, float32 `[N, E]`, and of each of its places, `[N, L, E]` or None."""
    rows, places = [], []
    for volume in clip_volumes(model, run, starts, batch_size):
        pooled, latent = _encode(model, volume, tokens)
        rows.append(pooled)
        if latent is not None:
            places.append(latent)
        progress(sum(map(len, rows)), len(starts))
    return np.concatenate(rows), np.concatenate(places) if tokens else None


def clip_starts(num_frames: int, clip_frames: int, stride: int | None = None) -> np.ndarray:
    """Return the first frame of every whole clip, int64 `[N]`."""
    step = clip_frames if stride is None else stride
    if step < 1:
        raise DataError(f"stride of {step} frames: expected 1 or more")
    return np.arange(0, num_frames - clip_frames + 1, step, dtype=np.int64)


class CodedRun(Protocol):
    """What a run must give to be cut into clips: a `PreparedRun`, or a run of a corpus."""

    @property
    def scale(self) -> np.ndarray: ...
    @property
    def stats(self) -> np.ndarray: ...
    @property
    def unit(self) -> float: ...
    @property
    def mean(self) -> float: ...
    @property
    def sd(self) -> float: ...
    @property
    def background(self) -> float: ...
    def segment(self, start: int, stop: int) -> np.ndarray: ...


def clip_volumes(model: Pretrained, run: CodedRun, starts: np.ndarray, batch_size: int) -> Iterator[torch.Tensor]:
    """Yield normalised clips as the model takes them, `[up to batch_size, 1, X, Y, Z, T]` on its device."""
    place = torch.from_numpy(np.flatnonzero(model.mask).astype(np.int64)).to(model.device)
    size = model.config.image_size
    for begin in range(0, len(starts), max(1, batch_size)):
        batch = clip_batch(run, starts[begin : begin + max(1, batch_size)], model.preprocessing.num_frames)
        yield decode(batch.to(model.device), model.preprocessing.normalisation, place, size)


def clip_batch(run: CodedRun, starts: np.ndarray, clip_frames: int) -> ClipBatch:
    """Return clips of a prepared run as the loader would hand them over, codes int8 `[B, T, V]`."""
    codes = np.stack([run.segment(start, start + clip_frames) for start in starts.tolist()])
    clips = len(starts)

    def every(value: float) -> torch.Tensor:
        return torch.full((clips,), value, dtype=torch.float32)

    zeros = torch.zeros(clips, dtype=torch.int64)
    return ClipBatch(
        codes=torch.from_numpy(codes),
        scale=torch.from_numpy(run.scale).expand(clips, -1, -1),
        stats=torch.from_numpy(run.stats).expand(clips, -1, -1),
        unit=every(run.unit),
        mean=every(run.mean),
        sd=every(run.sd),
        background=every(run.background),
        clip_id=zeros,
        epoch=zeros,
        position=zeros,
        start_frame=torch.from_numpy(starts),
        keys=[""] * clips,
        valid=torch.ones(clips, dtype=torch.bool),
    )


def save_features(runs: Sequence[RunFeatures], model: Pretrained, path: Path, overwrite: bool = False) -> None:
    """Write an .npz that holds plain arrays only, whole or not at all.

    It holds `clip_features` [N, E], `clip_run` [N] (row of the run), `clip_start_frame` [N], `clip_start_s` [N];
    `run_features` [R, E] (means over clips), `run_key`, `run_file`, `run_tr`, `run_frames`, `run_space` [R]; and
    `clip_frames`, `normalisation`, `release` (the digest of the model's release); and, where runs have them,
    `clip_tokens` [N, L, E].
    """
    check_output(path, overwrite)
    counts = [len(run.clips) for run in runs]
    arrays = {
        "clip_features": np.concatenate([run.clips for run in runs]),
        "clip_run": np.repeat(np.arange(len(runs)), counts),
        "clip_start_frame": np.concatenate([run.start_frames for run in runs]),
        "clip_start_s": np.concatenate([run.start_frames * run.tr for run in runs]),
        "run_features": np.stack([run.mean for run in runs]),
        "run_key": _texts(run.key for run in runs),
        "run_file": _texts(str(run.file) for run in runs),
        "run_tr": np.array([run.tr for run in runs]),
        "run_frames": np.array([run.frames for run in runs]),
        "run_space": _texts(run.space for run in runs),
        "clip_frames": np.array(model.preprocessing.num_frames),
        "normalisation": np.array(model.preprocessing.normalisation),
        "release": np.array(model.identity),
    }
    held = [run.tokens for run in runs if run.tokens is not None]
    if held:
        arrays["clip_tokens"] = np.concatenate(held)
    aside = path.with_name(f".{path.name}.partial.{os.getpid()}")
    try:
        with aside.open("wb") as file:
            np.savez(file, allow_pickle=False, **arrays)
            file.flush()
            os.fsync(file.fileno())
        os.replace(aside, path)
    except OSError as error:
        raise DataError(f"{path}: cannot be written: {error.strerror or error}") from error
    finally:
        aside.unlink(missing_ok=True)


def check_output(path: Path, overwrite: bool) -> None:
    """Raise DataError unless features may be written to a path; call it before the long work."""
    if path.suffix != ".npz":
        raise DataError(f"{path}: features are written as .npz; give a name that ends so")
    if not path.parent.is_dir():
        raise DataError(f"{path}: no such folder as {path.parent}; make it first")
    if path.is_dir() or (path.exists() and not overwrite):
        raise DataError(f"{path}: is there already; name another file or add --overwrite")


@torch.inference_mode()
def _encode(model: Pretrained, volume: torch.Tensor, tokens: bool) -> tuple[np.ndarray, np.ndarray | None]:
    if not tokens:
        return model.features(volume).float().cpu().numpy(), None
    latent = model(volume).float()
    places = latent.mean(dim=-1).flatten(2).transpose(1, 2)
    return latent.flatten(2).mean(dim=-1).cpu().numpy(), places.cpu().numpy()


def _texts(items: Iterable[str]) -> np.ndarray:
    return np.array(list(items), dtype=np.str_)
