"""Features of the runs of a corpus: the clips that a model was, or could have been, trained on, as vectors.

In: a released model and a corpus made with its mask and TR. Out: `RunFeatures`, as from NIfTI files, bit for bit the
same where the corpus was built with the release's settings.
"""

from collections.abc import Sequence

from fmri_scale.errors import DataError
from fmri_scale.evaluation.features import Progress, RunFeatures, clip_starts, encode_clips
from fmri_scale.evaluation.stored import StoredRun, stored_runs
from fmri_scale.release import Pretrained
from sharding.corpus import Corpus
from sharding.mask import mask_sha256


def corpus_runs(model: Pretrained, corpus: Corpus, splits: Sequence[str] = ()) -> list[StoredRun]:
    """List the runs of a corpus that a model can read.

    Raises
    ------
    DataError
        The corpus was built with another mask or TR than the model's.
    """
    if mask_sha256(corpus.mask) != model.preprocessing.mask_sha256:
        raise DataError(f"{corpus.path}: its mask is not the model's; build it with the model's mask.nii.gz")
    wanted = model.preprocessing.settings.target_tr
    if wanted is not None and corpus.tr != wanted:
        raise DataError(f"{corpus.path}: frames of {corpus.tr} s, the model takes {wanted:g} s; build it with that TR")
    return stored_runs(corpus, splits)


def extract_stored_run(
    model: Pretrained,
    run: StoredRun,
    batch_size: int = 1,
    stride: int | None = None,
    tokens: bool = False,
    progress: Progress = lambda done, total: None,
) -> RunFeatures:
    """Embed one run of a corpus.

    Parameters
    ----------
    batch_size, stride, tokens
        As for `features.extract_run`.

    Raises
    ------
    DataError
        The run is shorter than a clip.
    """
    starts = clip_starts(run.num_frames, model.preprocessing.num_frames, stride)
    if not len(starts):
        length = model.preprocessing.num_frames
        raise DataError(f"{run.name}: {run.num_frames} frames are fewer than the {length} of a clip")
    clips, places = encode_clips(model, run, starts, batch_size, tokens, progress)
    return RunFeatures(run.corpus.path, run.name, clips, starts, run.tr, run.num_frames, "corpus", places)
