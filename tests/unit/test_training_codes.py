"""The model trained on int8 codes: as on volumes, for every normalisation, mask and loss, and never making a volume."""

from dataclasses import replace

import nibabel as nib
import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from fmri_scale.config import Config, load_config
from fmri_scale.data import ClipBatch, ClipStream, open_corpora
from fmri_scale.kernels.clips import CodedClips, brain_values
from fmri_scale.kernels.loss import hidden_values
from fmri_scale.models import MaskedAutoencoder, TokenMask
from fmri_scale.models.masking import draw_mask
from fmri_scale.training.build import tell_brain
from fmri_scale.training.objective import ClipInput, Objective
from sharding.format import GRID_AFFINE, GRID_SHAPE
from tests.helpers.corpora import Segment, write_corpus

FRAMES = 6
SHAPE = {
    "model.image_size": [96, 96, 96],
    "model.patch_size": [24, 16, 24, 1],
    "model.num_frames": FRAMES,
    "model.embed_dim": 8,
    "model.depths": [2, 1],
    "model.window_size": [2, 4, 2, 4],
    "model.first_window_size": [2, 4, 2, 4],
    "model.state_dim": 4,
    "optim.global_batch": 2,
    "optim.micro_batch": 2,
}
"4 x 6 x 4 tokens in windows of 2 x 4 x 2, 6 frames in windows of 4: y and time are padded, all axes shifted."


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    """A corpus of 30,000 voxels, which fill some patches, cut others and leave most empty."""
    return write_corpus(tmp_path_factory.mktemp("codes") / "corpus", [Segment(40)] * 2, num_voxels=30_000)


def configured(corpus, **changes) -> Config:
    values = SHAPE | {"data.corpus": str(corpus)} | {key.replace("__", "."): v for key, v in changes.items()}
    return load_config([], [f"{key}={value}" for key, value in values.items()])


def first_batch(config: Config) -> tuple[ClipInput, ClipBatch]:
    corpora = open_corpora(config.data)
    optim = config.optim
    stream = ClipStream(corpora, config.data, FRAMES, optim.global_batch, optim.micro_batch, 0, 1, config.seed)
    batch = next(stream)
    stream.close()
    return ClipInput(config, corpora, torch.device("cpu")), batch


def loss_and_gradients(config: Config, arguments: tuple, bf16: bool = False):
    """Of the first weights, but for mask tokens that are not zero."""
    model = MaskedAutoencoder(config.model, seed=3)
    tell_brain(model, open_corpora(config.data))
    with torch.no_grad():
        for number, parameter in enumerate(model.mask_tokens.parameters()):
            parameter.normal_(0.0, 0.3, generator=torch.Generator().manual_seed(number))
    output = Objective(model, bf16)(*arguments)
    output.loss.backward()
    return output, {name: parameter.grad for name, parameter in model.named_parameters()}


@pytest.mark.parametrize("loss_on", ["brain", "all"])
@pytest.mark.parametrize("strategy", ["token", "window", "tube"])
@pytest.mark.parametrize("normalisation", ["run_z", "voxel_z", "none"])
def test_codes_and_volumes_have_equal_loss_and_gradients(corpus, normalisation, strategy, loss_on):
    changes = {"data__normalisation": normalisation, "mask__strategy": strategy, "mask__loss_on": loss_on}
    config = configured(corpus, **changes, model__checkpoint_blocks=strategy == "tube")
    prepare, batch = first_batch(config)
    if normalisation == "none":  # thousands would drown the small gradients of what follows the first norm
        batch = replace(batch, unit=batch.unit / 100)
    coded, exact = (loss_and_gradients(config, make(batch)) for make in (prepare, prepare.volumes))
    assert isinstance(prepare(batch)[0], CodedClips)
    assert coded[0].loss.item() == pytest.approx(exact[0].loss.item(), rel=1e-6)
    assert coded[0].prediction is None
    for name, fraction in exact[0].metrics.items():
        torch.testing.assert_close(coded[0].metrics[name], fraction)
    assert distance(coded[0].latent, exact[0].latent) < 1e-6
    for name, gradient in exact[1].items():
        assert distance(coded[1][name], gradient) < 1e-5, name


@pytest.mark.parametrize("loss_on", ["brain", "all"])
def test_codes_of_the_brains_patches_are_scored_like_their_volumes(corpus, loss_on):
    changes = {"model__brain_tokens": True, "mask__ratio_of": "brain", "mask__loss_on": loss_on}
    config = configured(corpus, **changes)
    prepare, batch = first_batch(config)
    coded, exact = (loss_and_gradients(config, make(batch)) for make in (prepare, prepare.volumes))
    assert coded[0].latent.shape[2:4] == (1, 1)
    assert coded[0].latent.shape[1] < 2 * 3 * 2
    assert coded[0].loss.item() == pytest.approx(exact[0].loss.item(), rel=1e-6)
    assert coded[0].metrics["masked_fraction"].item() == pytest.approx(0.5, abs=0.01)
    torch.testing.assert_close(coded[0].metrics, exact[0].metrics)
    for name, gradient in exact[1].items():
        assert distance(coded[1][name], gradient) < 1e-5, name


def test_regions_are_given_token_by_token(corpus):
    """Masks that no key draws go the same way: here half of the tokens, others in each clip."""
    config = configured(corpus)
    prepare, batch = first_batch(config)
    coded, exact = prepare(batch), prepare.volumes(batch)
    random = torch.rand(2, 4 * 6 * 4 * FRAMES, generator=torch.Generator().manual_seed(0))
    given = TokenMask.given(random < torch.tensor([[0.3], [0.7]]), coded[1].grid, "region", coded[1].keys)
    (found, grads), (wanted, exact_grads) = (
        loss_and_gradients(config, (clips, given, brain)) for clips, _, brain in (coded, exact)
    )
    assert found.loss.item() == pytest.approx(wanted.loss.item(), rel=1e-6)
    assert all(distance(grads[name], gradient) < 1e-5 for name, gradient in exact_grads.items())
    assert grads["mask_tokens.region"].any()


@pytest.mark.parametrize("changes", [{}, {"model__brain_tokens": True, "mask__ratio_of": "brain"}], ids=str)
def test_prediction_is_made_of_codes_only_where_it_is_asked_for(corpus, changes):
    config = configured(corpus, **changes)
    prepare, batch = first_batch(config)
    model = MaskedAutoencoder(config.model)
    tell_brain(model, open_corpora(config.data))
    with torch.no_grad():
        assert model(*prepare(batch)).prediction is None
        asked = model(*prepare(batch), predict=True).prediction
        torch.testing.assert_close(asked, model(*prepare.volumes(batch)).prediction, rtol=1e-4, atol=1e-5)


def test_bf16_of_codes_is_near_fp32(corpus):
    config = configured(corpus)
    prepare, batch = first_batch(config)
    (exact, grads), (rounded, rounded_grads) = (
        loss_and_gradients(config, prepare(batch), bf16=bf16) for bf16 in (False, True)
    )
    assert rounded.latent.dtype == torch.bfloat16
    assert rounded.loss.dtype == torch.float32
    assert rounded.loss.item() == pytest.approx(exact.loss.item(), rel=5e-3)
    assert all(gradient.dtype == torch.float32 for gradient in rounded_grads.values())
    assert all(distance(rounded_grads[name], gradient) < 0.1 for name, gradient in grads.items() if gradient.any())


@pytest.mark.parametrize(
    "changes",
    [
        {"data__normalisation": "frame_z"},
        {"augment__noise_sd": 0.1},
        {"augment__rotation_deg": 5.0},
        {"model__image_size": [48, 48, 48], "model__patch_size": [12, 8, 12, 1]},
    ],
)
def test_what_needs_volumes_gets_volumes(corpus, changes):
    prepare, batch = first_batch(configured(corpus, **changes))
    volume, _, brain = prepare(batch)
    assert volume.shape == (2, 1, *prepare.config.model.image_size, FRAMES)
    assert brain.shape == tuple(prepare.config.model.image_size)


def test_validation_sees_clips_as_they_were_recorded(corpus, tmp_path):
    x, y, z = np.indices(GRID_SHAPE) // 12
    nib.save(nib.Nifti1Image((1 + x + 8 * (y + 8 * z)).astype(np.int16), GRID_AFFINE), tmp_path / "cubes.nii.gz")
    regions = {"mask__strategy": "region", "mask__atlas": tmp_path / "cubes.nii.gz"}
    changed = {"augment__rotation_deg": 30.0, "augment__translation_mm": 20.0, "augment__noise_sd": 0.5}
    prepare, batch = first_batch(configured(corpus, **changed, **regions))
    still, _ = first_batch(configured(corpus, data__normalisation="run_z", **regions))
    plain = still.volumes(batch)
    measured, trained = prepare(batch), prepare(batch, step=0)
    assert torch.equal(measured[0], plain[0])
    assert torch.equal(measured[1].hidden, plain[1].hidden)
    assert not torch.equal(trained[0], plain[0])
    assert not torch.equal(trained[1].hidden, plain[1].hidden)  # the regions move with the clip


def test_codes_of_another_image_are_refused(corpus):
    prepare, batch = first_batch(configured(corpus))
    model = MaskedAutoencoder(configured(corpus, model__patch_size=[24, 24, 24, 1]).model)
    with pytest.raises(ValueError, match=r"patches \(24, 16, 24\): expected 1, \(96, 96, 96\) and \(24, 24, 24\)"):
        model(*prepare(batch))


def test_what_is_scored_is_named_by_what_is_given(corpus):
    prepare, batch = first_batch(configured(corpus))
    model = MaskedAutoencoder(prepare.config.model)
    (codes, mask, _), (volume, _, brain) = prepare(batch), prepare.volumes(batch)
    with pytest.raises(ValueError, match="a brain is given with codes: expected True"):
        model(codes, mask, brain)
    with pytest.raises(ValueError, match="brain=True is given with volumes"):
        model(volume, mask, True)


class Watch(TorchDispatchMode):
    """Names every operation, and the largest floating tensor that any of them gave."""

    def __init__(self):
        super().__init__()
        self.names, self.largest = set(), 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        self.names.add(function.name())
        for made in result if isinstance(result, tuple | list) else [result]:
            if isinstance(made, torch.Tensor) and made.is_floating_point():
                self.largest = max(self.largest, made.numel())
        return result


ROLLS = {"aten::roll", "aten::flip", "aten::index.Tensor", "aten::gather", "aten::index_select", "aten::nonzero"}
"What rolls, partitions into windows, reverses or picks."


@pytest.mark.parametrize("strategy", ["token", "window", "tube"])
def test_a_step_makes_no_volume_no_mask_and_no_window(corpus, strategy):
    """From the batch to the gradients, seen from outside the kernels; volumes set this off, so it can see."""
    config = configured(corpus, mask__strategy=strategy, model__patch_size=[24, 24, 24, 1], model__embed_dim=4)
    prepare, batch = first_batch(config)
    model = Objective(MaskedAutoencoder(config.model), bf16=False)
    values = {}
    for name, make in (("codes", prepare), ("volumes", prepare.volumes)):
        with Watch() as watch:
            model(*make(batch)).loss.backward()
        values[name] = watch
    voxels = batch.codes.numel()
    assert values["volumes"].largest >= 96**3 * FRAMES
    assert values["codes"].largest < voxels
    assert not values["codes"].names & (ROLLS | {"fmri_scale::unit_mask"})
    assert {"fmri_scale::embed", "fmri_scale::masked_loss"} <= values["codes"].names


def test_hidden_values_are_counted_without_a_mask():
    config = configured("nowhere")
    places = torch.arange(96, dtype=torch.int32)
    for strategy in ("token", "window", "tube"):
        mask = draw_mask(replace(config.mask, strategy=strategy), config.model, 5, 0, torch.arange(3), "cpu")
        wanted = (mask.hidden.view(3, 96, FRAMES) * places[:, None]).sum((1, 2))
        assert torch.equal(hidden_values(places, mask.tokens, 3, mask.grid), wanted)
    with pytest.raises(ValueError, match=r"values is torch.int64 \(96,\): expected torch.int32 \(96,\)"):
        hidden_values(places.long(), mask.tokens, 3, mask.grid)


def test_brain_values_count_voxels_by_patch(corpus):
    prepare, batch = first_batch(configured(corpus))
    clips = prepare(batch)[0]
    model = MaskedAutoencoder(prepare.config.model)
    assert torch.equal(brain_values(clips), model.patchify_brain(prepare.brain).sum(1).int())


def distance(a, b):
    """Relative L2 distance, absolute where nothing is expected."""
    return ((a - b).norm() / b.norm().clamp(min=1e-12)).item()
