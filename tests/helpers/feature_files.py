"""Feature files as `fmri-scale features` writes them, with made-up vectors."""

from pathlib import Path

import numpy as np


def write_features(
    path: Path,
    labels: list[str],
    vectors: np.ndarray,
    clips_per_run: int,
    clip_frames: int = 10,
    tr: float = 1.0,
    stride: int | None = None,
    tokens: np.ndarray | None = None,
) -> Path:
    """Write features of runs named `DATASET__sub-..`, `clips_per_run` rows of `vectors` each."""
    starts = np.arange(clips_per_run) * (stride or clip_frames)
    run = np.repeat(np.arange(len(labels)), clips_per_run)
    more = {} if tokens is None else {"clip_tokens": tokens.astype(np.float32)}
    np.savez(
        path,
        clip_features=vectors.astype(np.float32),
        clip_run=run,
        clip_start_frame=np.tile(starts, len(labels)),
        clip_start_s=np.tile(starts * tr, len(labels)),
        run_features=np.stack([vectors[run == r].mean(axis=0) for r in range(len(labels))]),
        run_key=np.array(labels),
        run_file=np.array(labels),
        run_tr=np.full(len(labels), tr),
        run_frames=np.full(len(labels), starts[-1] + clip_frames),
        clip_frames=np.array(clip_frames),
        normalisation=np.array("run_z"),
        release=np.array("0" * 64),
        **more,
    )
    return path
