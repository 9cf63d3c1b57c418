"""Fit the weights of one model to another that differs in clip length, patch grid or windows, and in nothing else.

Positions are interpolated on their grid (by patch centres), frames as the model itself does for clips of another
length, patch kernels by the pseudo-inverse of the resize (Beyer et al. 2023, FlexiViT, section 3.4) so that a smooth
image gives the tokens it gave, predicted patches by resizing them. In and out: state dicts under our names. A tensor
that differs in any other way is an error that names it.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor
from torch.nn import functional as F

from fmri_scale.config import ModelConfig
from fmri_scale.errors import CheckpointError

NEW_PARTS = ("decoder.", "mask_tokens.", "projector.")
"What a release of the encoder alone lacks, and the projector of a contrastive objective, which none has."


@dataclass
class Fitted:
    """Weights for a model, and where each comes from.

    Attributes
    ----------
    state : everything the release gives, under the model's names and in its shapes.
    taken, fitted, new : names of tensors taken as they are, interpolated, and left to the seed.
    """

    state: dict[str, Tensor] = field(default_factory=dict)
    taken: list[str] = field(default_factory=list)
    fitted: list[str] = field(default_factory=list)
    new: list[str] = field(default_factory=list)


def fit(
    source: Mapping[str, Tensor], old: ModelConfig, wanted: Mapping[str, tuple[int, ...]], new: ModelConfig
) -> Fitted:
    """Return the weights of `source`, a model of shape `old`, for a model of shape `new`.

    Parameters
    ----------
    source : the release's weights.
    wanted : shape of every parameter of the new model.

    Raises
    ------
    CheckpointError : a tensor that is missing, left over or differs in more than clip, patch grid and windows.
    """
    found = Fitted()
    absent = [name for name in wanted if name not in source]
    found.new = [
        name for name in absent if name.startswith(NEW_PARTS) or (name.endswith(".prompt") and not old.prompt_len)
    ]
    missing, left = sorted(set(absent) - set(found.new)), sorted(set(source) - set(wanted))
    if missing or left:
        raise CheckpointError(f"the model is another one: {_list('without', missing)}{_list('with the further', left)}")
    for name, shape in wanted.items():
        if name in found.new:
            continue
        if tuple(source[name].shape) == shape and not _reinterpreted(name, old, new):
            found.state[name] = source[name].clone()
            found.taken.append(name)
            continue
        value = _fitted(name, source[name], old, new)
        if value is None or tuple(value.shape) != shape:
            raise CheckpointError(
                f"the model is another one: {name} is {list(source[name].shape)} in the release and {list(shape)} in "
                "the run; only model.num_frames, patch_size, image_size and the windows may differ"
            )
        found.state[name] = value
        found.fitted.append(name)
    return found


def resize(values: Tensor, sizes: Mapping[int, int]) -> Tensor:
    """Resize axes of a tensor by linear interpolation between cell centres; `sizes` maps an axis to its new length."""
    for axis, size in sizes.items():
        if values.shape[axis] != size:
            matrix = resize_matrix(values.shape[axis], size).to(values.dtype)
            values = torch.movedim(torch.tensordot(matrix, values, dims=([1], [axis])), 0, axis)
    return values


def resize_matrix(old: int, new: int) -> Tensor:
    """Return the linear map `[new, old]`, float64, that resizes a line of cells by interpolating between centres."""
    lines = torch.eye(old, dtype=torch.float64).unsqueeze(1)
    return F.interpolate(lines, size=new, mode="linear", align_corners=False).squeeze(1).T.contiguous()


def _fitted(name: str, value: Tensor, old: ModelConfig, new: ModelConfig) -> Tensor | None:
    """Return a tensor in the new shape, or None where no rule is for it."""
    exact = value.double()
    if name.endswith(".position.space"):
        stage = int(name.split(".")[2])
        grid = [n // p >> stage for n, p in zip(new.image_size, new.patch_size, strict=False)]
        result = resize(exact, dict(enumerate(grid)))
    elif name.endswith(".position.time"):
        result = _frames(exact, new.num_frames)
    elif name == "backbone.patch_embed.weight":
        result = _patch_kernel(exact, old, new)
    elif name in ("decoder.head.weight", "decoder.head.bias"):
        result = _patch_values(exact, old, new)
    elif name == "mask_tokens.window":
        slots = exact.view(*old.window_size, -1)
        result = resize(slots, dict(enumerate(new.window_size))).flatten(0, 3)
    else:
        return None
    return result.to(value.dtype)


def _reinterpreted(name: str, old: ModelConfig, new: ModelConfig) -> bool:
    """Whether a tensor of the same shape means something else now: as many values, arranged otherwise."""
    if name in ("backbone.patch_embed.weight", "decoder.head.weight", "decoder.head.bias"):
        return old.patch_size != new.patch_size
    return name == "mask_tokens.window" and old.window_size != new.window_size


def _frames(series_TE: Tensor, num_frames: int) -> Tensor:
    """As the model does for clips of another length: the first vectors, or the whole series stretched."""
    if num_frames <= len(series_TE):
        return series_TE[:num_frames].clone()
    return F.interpolate(series_TE.T.unsqueeze(0), size=num_frames, mode="linear", align_corners=True)[0].T.contiguous()


def _patch_axes(values: Tensor, old: ModelConfig) -> Tensor:
    """Split the first axis of values, a patch in the order (x, y, z, channel), into four."""
    if values.shape[0] != math.prod(old.patch_size[:3]) * old.in_channels:
        raise CheckpointError(
            f"a patch of {values.shape[0]} values is not {old.patch_size[:3]} of {old.in_channels} channels"
        )
    return values.unflatten(0, (*old.patch_size[:3], old.in_channels))


def _patch_kernel(weight_EP: Tensor, old: ModelConfig, new: ModelConfig) -> Tensor:
    """Solve for the kernel that answers a resized patch as the old one answered the patch."""
    kernel = _patch_axes(weight_EP.T, old)
    for axis, (before, after) in enumerate(zip(old.patch_size[:3], new.patch_size[:3], strict=True)):
        if before != after:
            solve = torch.linalg.pinv(resize_matrix(before, after).T)
            kernel = torch.movedim(torch.tensordot(solve, kernel, dims=([1], [axis])), 0, axis)
    return kernel.flatten(0, 3).T.contiguous()


def _patch_values(head_P: Tensor, old: ModelConfig, new: ModelConfig) -> Tensor:
    """Resize the patches that a head predicts; `head_P` has one row (or number) for each value of a patch."""
    resized = resize(_patch_axes(head_P, old), dict(enumerate(new.patch_size[:3])))
    return resized.flatten(0, 3).contiguous()


def _list(word: str, names: list[str]) -> str:
    more = f" and {len(names) - 8} more" if len(names) > 8 else ""
    return f"{word} {', '.join(names[:8])}{more}; " if names else ""
