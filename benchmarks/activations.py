"""Bytes that a clip's forward pass keeps for its backward pass, by part of the model; counted, not measured.

python benchmarks/activations.py                                the base model, 20 frames, in bf16
python benchmarks/activations.py configs/model/large.yaml --fp32

Every tensor that autograd saves is seen and counted once by its storage, in a forward pass from codes that computes
nothing (tensors without contents). A clip's share is what a second clip adds, so copies of weights do not count; nor
do the codes themselves, about 5 MB a clip.
"""

import argparse
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor, nn
from torch._subclasses import FakeTensorMode

from fmri_scale.config import MaskConfig, ModelConfig, load_config
from fmri_scale.kernels.clips import CodedClips
from fmri_scale.models import MaskedAutoencoder, draw_mask

ROOT = Path(__file__).resolve().parents[1]
VOXELS = 250_000
"Voxels of a brain; what is kept does not depend on it."
OTHERS = "embedding, norm and head"


def main() -> None:
    """Print a table: with everything kept, and with each block recomputed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("config", nargs="?", type=Path, default=ROOT / "configs/model/base.yaml")
    parser.add_argument("--fp32", action="store_true", help="not under bf16 autocast")
    args = parser.parse_args()
    config = load_config([args.config]).model
    plain, lean = (clip_bytes(replace(config, checkpoint_blocks=c), bf16=not args.fp32) for c in (False, True))
    print(f"{args.config.stem}, {config.num_frames} frames, {'fp32' if args.fp32 else 'bf16'}; MB a clip")
    print(f"{'':<28}{'kept':>10}{'blocks recomputed':>20}")
    for part in plain:
        print(f"{part:<28}{plain[part] / 1e6:>10.1f}{lean[part] / 1e6:>20.1f}")
    print(f"{'together':<28}{sum(plain.values()) / 1e6:>10.1f}{sum(lean.values()) / 1e6:>20.1f}")


def clip_bytes(config: ModelConfig, bf16: bool) -> dict[str, int]:
    """Return what one clip's forward pass keeps, by part."""
    model = MaskedAutoencoder(config)
    one, two = (_forward(model, batch, bf16) for batch in (1, 2))
    return {part: two[part] - one[part] for part in two}


@contextmanager
def counted(model: MaskedAutoencoder) -> Iterator[dict[str, int]]:
    """Count the bytes that forward passes of the model keep, by part, each storage once and no parameter."""
    found, seen = dict.fromkeys([*_stages(model), OTHERS], 0), {p.untyped_storage()._cdata for p in model.parameters()}
    within = [OTHERS]
    alive = []  # a storage that is freed could lend its number to another

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage._cdata not in seen:
            seen.add(storage._cdata)
            alive.append(storage)
            found[within[-1]] += storage.nbytes()
        return tensor

    hooks = []
    for name, stage in _stages(model).items():
        hooks.append(stage.register_forward_pre_hook(lambda *_, name=name: within.append(name)))
        hooks.append(stage.register_forward_hook(lambda *_: within.pop() and None))
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        yield found
    for hook in hooks:
        hook.remove()


def _stages(model: MaskedAutoencoder) -> dict[str, nn.Module]:
    sides = {"encoder": model.backbone.stages, "decoder": model.decoder.stages}
    return {f"{side} stage {i + 1}": stage for side, stages in sides.items() for i, stage in enumerate(stages)}


def _forward(model: MaskedAutoencoder, batch: int, bf16: bool) -> dict[str, int]:
    config = model.config
    x, y, z = config.image_size
    with FakeTensorMode(allow_non_fake_inputs=True), counted(model) as found:
        codes = torch.empty(batch, config.num_frames, VOXELS, dtype=torch.int8)
        numbers = torch.empty(3, batch)
        lookup = torch.empty(x * y * z, dtype=torch.int32)
        scale = torch.empty(batch, 2, VOXELS, dtype=torch.float16)
        clips = CodedClips(codes, scale, *numbers.unbind(0), lookup, (x, y, z), tuple(config.patch_size[:3]))
        mask = draw_mask(MaskConfig(strategy="window"), config, 0, 0, torch.arange(batch), "cpu")
        with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            output = model(clips, mask, True)
    assert output.loss.requires_grad
    found[OTHERS] -= sum(v.nbytes for v in (codes, scale, numbers, lookup))  # the batch itself
    return found


if __name__ == "__main__":
    main()
