"""Bring a public NeuroSTORM checkpoint (Lightning .ckpt) into a release, running nothing that the file holds.

In: a file written by torch.save: a Lightning checkpoint (hyper-parameters, weights under `model.`, heads under
`output_head.`) or a bare state dict; the masked autoencoder or the encoder alone; today's or the older mask tokens.
Out: a release folder with `import.json`, which says of every key where it went, and `heads.safetensors` for heads.
"""

import dataclasses
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from torch import Tensor

from fmri_scale.checkpoint.files import sha256
from fmri_scale.config import MaskConfig, ModelConfig
from fmri_scale.config.check import check_model
from fmri_scale.errors import CheckpointError, ConfigError
from fmri_scale.models.neurostorm_state import from_published, published_name
from fmri_scale.release import layout
from fmri_scale.release.detect import HYPER_READ, Detected, detect
from fmri_scale.release.export import ExportSettings, write_release
from fmri_scale.release.pickle_values import TensorRef, UnsafePickleError
from fmri_scale.release.preprocessing import Preprocessing
from fmri_scale.release.torch_file import TorchFile
from fmri_scale.release.weights import save_weights
from sharding.mask import brain_mask
from sharding.mask_image import mask_bytes
from sharding.preprocessing import PreprocessingSettings

HEAD = "output_head."
PREFIX = "model."
NORMALISATION = "run_z"
"What the published pipeline does: z over all voxels of the mask and all frames of a run, background the minimum."
MOST_ITEMS = 10_000
"Items of lists taken over from the hyper-parameters, in total: shared lists can stand for any number of them."


@dataclass(frozen=True)
class Published:
    """A public checkpoint, read and understood.

    Attributes
    ----------
    weights : under our names.
    heads : under the published names.
    detected : the architecture and where each part of it is known from.
    masking : how it was trained, as far as the hyper-parameters say.
    keys : of every key of the file: shape, dtype, and where it went.
    facts : epoch, step, versions and hyper-parameters, as plain values.
    """

    weights: dict[str, Tensor]
    heads: dict[str, Tensor]
    detected: Detected
    masking: MaskConfig
    keys: list[dict[str, Any]]
    facts: dict[str, Any]

    @property
    def contents(self) -> str:
        """Whether the decoder is there."""
        return "autoencoder" if "decoder.head.weight" in self.weights else "encoder"


def read_published(path: str | Path, overrides: Sequence[str] = (), allow: Collection[str] = ()) -> Published:
    """Read a public checkpoint.

    Parameters
    ----------
    path : the file.
    overrides : `model.key=value` that go before what was detected, for windows that no shape tells.
    allow : names (`module.Name`) that may stand in the pickle beside the usual ones; they stay labels.

    Raises
    ------
    UnsafePickleError : the file asks for more than weights need.
    CheckpointError : it holds no NeuroSTORM, or keys that are missing, unknown or of another shape.
    """
    file = TorchFile(path, allow)
    refs = _state(file)
    hyper = _hyper_parameters(file.content)
    bare = {name.removeprefix(PREFIX): name for name in refs if not name.startswith(HEAD)}
    if len(bare) + sum(name.startswith(HEAD) for name in refs) != len(refs):
        raise CheckpointError(f"{path}: holds the same key with and without the prefix {PREFIX!r}")
    try:
        detected = detect({name: refs[full].shape for name, full in bare.items()}, hyper, _given(overrides))
        check_model(detected.config)
        tensors = {name: file.tensor(refs[full]) for name, full in bare.items()}
        weights = from_published(tensors, detected.config)
    except UnsafePickleError:
        raise  # it names the file already
    except (CheckpointError, ConfigError) as error:
        raise CheckpointError(f"{path}: {error}") from error
    heads = {name: file.tensor(ref) for name, ref in refs.items() if name.startswith(HEAD)}
    return Published(
        weights={name: value.float() for name, value in weights.items()},
        heads={name: value.float() for name, value in heads.items()},
        detected=detected,
        masking=_masking(hyper),
        keys=_key_report(refs, weights, tensors),
        facts=_facts(file.content, hyper),
    )


def import_neurostorm(
    path: str | Path,
    out: str | Path,
    overrides: Sequence[str] = (),
    allow: Collection[str] = (),
    settings: ExportSettings | None = None,
    overwrite: bool = False,
) -> Published:
    """Write a release from a public checkpoint; return what was read. Parameters as for `read_published`."""
    path, out = Path(path), Path(out)
    layout.check_vacant(out, overwrite)
    found = read_published(path, overrides, allow)
    config = found.detected.config
    mask = brain_mask()
    settings_then = PreprocessingSettings(time_interpolation="linear")  # what the weights were trained on
    preprocessing = Preprocessing.of(settings_then, NORMALISATION, config.num_frames, mask)
    named = dataclasses.replace(
        settings or ExportSettings(), contents=found.contents, name=(settings and settings.name) or path.stem
    )
    source = {"file": path.name, "bytes": path.stat().st_size, "sha256": sha256(path)}
    with layout.staged_folder(out, overwrite) as folder:
        (folder / layout.MASK).write_bytes(mask_bytes(mask))
        layout.write_json(folder / layout.IMPORTED, {"source": source, **_report(found)})
        if found.heads:
            save_weights(found.heads, folder / layout.HEADS, torch.float32)
        record = {"imported": source, "published": found.facts}
        write_release(folder, found.weights, config, found.masking, preprocessing, record, named)
    return found


def _state(file: TorchFile) -> dict[str, TensorRef]:
    """Return the tensors of a checkpoint's state dict by name."""
    content = file.content
    state = content.get("state_dict", content) if isinstance(content, dict) else None
    if not isinstance(state, dict) or not state:
        raise CheckpointError(f"{file.path}: holds no state dict; expected a Lightning checkpoint or a state dict")
    odd = [str(name) for name, value in state.items() if not (isinstance(name, str) and isinstance(value, TensorRef))]
    if odd:
        raise CheckpointError(f"{file.path}: its state dict holds something other than tensors: {', '.join(odd[:8])}")
    return state


def _hyper_parameters(content: dict[str, Any]) -> dict[str, Any]:
    """Return the hyper-parameters of a checkpoint as plain values, with at most MOST_ITEMS items in all lists."""
    hyper = content.get("hyper_parameters", content.get("hparams", {}))
    if not isinstance(hyper, dict) or "state_dict" not in content:
        return {}
    names = [name for name in hyper if isinstance(name, str)]
    budget = _Budget(MOST_ITEMS)
    # what decides the architecture comes first, so that other lists cannot use up its share
    return {name: _plain(hyper[name], budget) for name in sorted(names, key=lambda name: name not in HYPER_READ)}


def _given(overrides: Sequence[str]) -> dict[str, Any]:
    """Return the fields of ModelConfig that texts `model.KEY=VALUE` set, typed."""
    given: dict[str, Any] = {}
    known = {f.name for f in dataclasses.fields(ModelConfig)}
    for item in overrides:
        key, sep, text = item.partition("=")
        name = key.removeprefix("model.")
        if not sep or not key.startswith("model.") or name not in known:
            raise CheckpointError(f"{item!r}: expected model.KEY=VALUE with a key of `fmri-scale config`")
        try:
            typed = OmegaConf.merge(OmegaConf.structured(ModelConfig), OmegaConf.from_dotlist([f"{name}={text}"]))
            given[name] = getattr(OmegaConf.to_object(typed), name)
        except OmegaConfBaseException as error:
            raise CheckpointError(f"{item!r}: {str(error).splitlines()[0]}") from error
    return given


def _masking(hyper: dict[str, Any]) -> MaskConfig:
    units = {"random": "token", "window": "window", "atlas": "region"}
    ratio, spatial = hyper.get("mask_ratio"), hyper.get("spatial_mask")
    masking = MaskConfig(strategy=units.get(spatial, "token") if isinstance(spatial, str) else "token", loss_on="all")
    if isinstance(ratio, float) and 0 < ratio < 1:
        masking.ratio = ratio
    return masking


def _key_report(
    refs: dict[str, TensorRef], weights: dict[str, Tensor], read: dict[str, Tensor]
) -> list[dict[str, Any]]:
    ours = {published_name(name): name for name in weights}
    report: list[dict[str, Any]] = []
    for full, ref in refs.items():
        name = full.removeprefix(PREFIX)
        if full.startswith(HEAD):
            went = f"{layout.HEADS}: {full}"
        elif name == "mask_token" and read[name].ndim == 2:
            went = ours["window_mask_token"]
        else:
            went = ours.get(name, "left out: data of the atlas, not a weight")
        report.append({"key": full, "shape": list(ref.shape), "dtype": ref.storage.dtype, "to": went})
    known = {name.removeprefix(PREFIX) for name in refs}
    if read.get("mask_token", torch.empty(0)).ndim == 2:
        known -= {"mask_token"}
    report += [
        {"key": None, "shape": list(weights[name].shape), "dtype": "float32", "to": f"{name} (set to zero)"}
        for published, name in ours.items()
        if published not in known and published != "window_mask_token"
    ]
    return report


def _report(found: Published) -> dict[str, Any]:
    detected = found.detected
    architecture = {name: {"value": detected.values[name], "from": detected.origin[name]} for name in detected.values}
    return {"architecture": architecture, "remarks": detected.remarks, "keys": found.keys, "facts": found.facts}


def _facts(content: dict[str, Any], hyper: dict[str, Any]) -> dict[str, Any]:
    names = ("epoch", "global_step", "pytorch-lightning_version")
    known = {name: content[name] for name in names if isinstance(content.get(name), int | str)}
    return {**{name: _plain(value, _Budget(0)) for name, value in known.items()}, "hyper_parameters": hyper}


@dataclass
class _Budget:
    """How many more items of lists may be taken over."""

    left: int

    def take(self, items: int) -> bool:
        """Take that many, if so many are left."""
        taken = items <= self.left
        self.left -= items if taken else 0
        return taken


def _plain(value: Any, budget: _Budget, depth: int = 0) -> Any:
    """Return a value as JSON may hold it; of what is neither number, text nor a short list, its kind."""
    if value is None or isinstance(value, bool | str):
        return value[:1000] if isinstance(value, str) else value
    if isinstance(value, int):
        return value if abs(value) < 2**53 else str(value)
    if isinstance(value, float):
        return value if abs(value) < float("inf") else str(value)
    if isinstance(value, list | tuple) and depth < 3 and len(value) <= 1000 and budget.take(len(value)):
        return [_plain(item, budget, depth + 1) for item in value]
    return f"<{type(value).__name__}>"
