"""The model card of a release, README.md in the Hugging Face format, made from the files beside it.

Every number in the text is read from `config.json`, `preprocessing.json` or `training.json`; nothing is typed. What
the files do not say, the card says is not known. In: the folder. Out: the text.
"""

from pathlib import Path
from typing import Any

import yaml

from fmri_scale.release import layout
from fmri_scale.release.hub import is_name

USE = """```python
import fmri_scale
from fmri_scale.evaluation.features import extract

model = fmri_scale.from_pretrained("{place}")
runs = extract(model, ["sub-01_task-rest_space-MNI152NLin6Asym_bold.nii.gz"])
print(runs[0].mean.shape, runs[0].clips.shape)  # one vector for the run, one for each clip
```

The same from a shell: `fmri-scale features {place} RUN.nii.gz --out features.npz`"""

LIMITS = """- Not a medical device: features and reconstructions are for research and must not guide care.
- It has seen the data listed above and no other; scanners, ages and tasks that are missing there are untested.
- Input must be in MNI152 space and preprocessed alike; motion and vessels mark features as they mark the signal.
- Beside every result of it belongs what a linear model on functional connectivity reaches on the same question."""


def model_card(folder: Path) -> str:
    """Return the text of a release's README.md."""
    config = layout.read_json(folder / layout.CONFIG)
    preprocessing = layout.read_json(folder / layout.PREPROCESSING)
    record = layout.read_json(folder / layout.TRAINING)
    title = config["name"] or "fMRI foundation model"
    parts = [
        f"---\n{_front_matter(config)}---",
        f"# {title}",
        _summary(config),
        "## Use\n\n" + USE.format(place=config["name"] if is_name(config["name"]) else "FOLDER"),
        "## Model\n\n" + _table(_model_facts(config, record)),
        "## Data\n\n" + "\n\n".join([_data(record.get("data", {})), *map(_data, record.get("more_data", []))]),
        "## Preprocessing\n\n" + _table(_preprocessing_facts(preprocessing)),
        "## Training\n\n" + _training(record),
        "## Evaluation\n\n" + _evaluation(record),
        "## Limits\n\n" + LIMITS,
        "## Integrity\n\n" + _integrity(),
    ]
    return "\n\n".join(parts) + "\n"


def _front_matter(config: dict[str, Any]) -> str:
    licence = (
        {"license": config["licence"]} if config["licence"] else {"license": "other", "license_name": "not-stated"}
    )
    facts = {
        **licence,
        "library_name": "fmri_scale",
        "pipeline_tag": "feature-extraction",
        "tags": ["fmri", "neuroimaging", "foundation-model", "masked-autoencoder", "mamba", "safetensors"],
    }
    return yaml.safe_dump(facts, sort_keys=False)


def _summary(config: dict[str, Any]) -> str:
    kind = "masked autoencoder" if config["contents"] == "autoencoder" else "encoder"
    return (
        f"A {kind} of shifted-window Mamba blocks for 4D fMRI with {config['parameters']:,} parameters, made with "
        f"fmri_scale {config['library_version']}."
    )


def _model_facts(config: dict[str, Any], record: dict[str, Any]) -> dict[str, Any]:
    model, mask = config["model"], config["mask"]
    known = "published" not in record or "mask_ratio" in record["published"]["hyper_parameters"]
    return {
        "Contents": config["contents"],
        "Parameters": f"{config['parameters']:,}",
        "Stored as": config["dtype"],
        "Input (voxels, frames)": f"{_times(model['image_size'])}, {model['num_frames']}",
        "Patch (voxels, frames)": _times(model["patch_size"]),
        "Width of the first stage": model["embed_dim"],
        "Patches that are computed": "those that hold a voxel of the mask" if model.get("brain_tokens") else "all",
        "Blocks by stage": ", ".join(map(str, model["depths"])),
        "Windows (first stage, others)": f"{_times(model['first_window_size'])}, {_times(model['window_size'])}",
        "Feature vector": model["embed_dim"] * model["channel_multiplier"] ** (len(model["depths"]) - 1),
        "Masking in training": f"{mask['strategy']}, ratio {mask['ratio']}, loss on {mask['loss_on']} voxels"
        if known
        else "not recorded",
    }


def _data(data: dict[str, Any]) -> str:
    if not data:
        return "Not recorded: the weights were imported (see import.json)."
    if "corpus_id" not in data:
        return f"A further corpus `{data['name']}`, which was no longer at hand at the export."
    totals = data["totals"]
    lines = [
        f"Corpus `{data['corpus_id']}`, split `{data['split']}`: " + ", ".join(f"{v:,} {k}" for k, v in totals.items())
    ]
    columns = sorted({key for entry in data["datasets"].values() for key in entry})
    lines += ["", f"| dataset | {' | '.join(columns)} |", f"|---|{'---|' * len(columns)}"]
    for name, entry in data["datasets"].items():
        lines.append(f"| {name} | {' | '.join(f'{entry[c]:,}' if c in entry else '' for c in columns)} |")
    lines += ["", f"Terms of the data: {data['licence_note'] or 'not stated in the corpus.'}"]
    if data["settings"].get("assume_mni"):
        lines.append("The images were taken as they lie, without a check that they are in MNI152 space.")
    return "\n".join(lines)


def _preprocessing_facts(content: dict[str, Any]) -> dict[str, Any]:
    settings, grid = content["settings"], content["grid"]
    return {
        "Grid": f"{grid['space']}, {grid['orientation']}, {_times(grid['shape'])} voxels, affine in preprocessing.json",
        "Mask": f"{content['mask']['voxels']:,} voxels, sha256 `{content['mask']['sha256'][:16]}`",
        "Spacing of frames": "each run's own" if settings["target_tr"] is None else f"{settings['target_tr']} s",
        "Negative values": settings["negatives"],
        "Quantisation": f"{content['quantisation']['dtype']} by voxel, reach {settings['range_sd']} sd",
        "Normalisation": content["normalisation"],
    }


def _training(record: dict[str, Any]) -> str:
    if "config" not in record:
        return "Not recorded: the weights were imported (see import.json)."
    optim, curve = record["config"]["optim"], record["loss_curve"]
    facts = {
        "Weights": _weights(record),
        "Weights before": _origin(record["started_from"]),
        "Optimizer steps": f"{record['steps']:,}",
        "Clips, frames seen": f"{record['clips']:,}, {record['frames']:,}",
        "Global batch": optim["global_batch"],
        "Learning rate (peak, warm-up steps)": f"{optim['lr']}, {optim['warmup_steps']}",
        "Ranks": record["world_size"],
        "Precision": record["config"]["engine"]["dtype"],
        "Loss (first, last recorded)": f"{curve[0][1]} at step {curve[0][0]}, {curve[-1][1]} at step {curve[-1][0]}"
        if curve
        else "not recorded",
        "Speed": ", ".join(f"{k} {v}" for k, v in record["throughput"].items()) or "not recorded",
        "Energy of the GPUs": f"{record['energy']['gpu_kwh']} kWh" if record["energy"] else "not measured",
        "Software": ", ".join(f"{k} {v}" for k, v in record["software"].items()),
    }
    return _table(facts) + "\n\nThe configuration, the loss curve and all figures are in `training.json`."


def _weights(record: dict[str, Any]) -> str:
    if record.get("weights") == "ema":
        return f"moving average, decay {record['config']['optim']['ema_decay']}"
    return "those of the last step"


def _origin(start: dict[str, Any]) -> str:
    return f"release `{start['release'][:12]}` ({start['source']})" if start else "random, from the seed"


def _evaluation(record: dict[str, Any]) -> str:
    rows = record.get("evaluation", [])
    if not rows:
        return "None is stored with this release."
    columns = list(rows[0])
    lines = [f"| {' | '.join(columns)} |", f"|{'---|' * len(columns)}"]
    return "\n".join([*lines, *(f"| {' | '.join(str(row.get(c, '')) for c in columns)} |" for row in rows)])


def _integrity() -> str:
    return (
        "Every file has its sha256 in `checksums.json`, which `from_pretrained` compares on loading. "
        "`fmri-scale verify-release FOLDER` also runs the model on a fixed clip and compares with `reference.json`."
    )


def _table(facts: dict[str, Any]) -> str:
    return "\n".join(["| | |", "|---|---|", *(f"| {key} | {value} |" for key, value in facts.items())])


def _times(values: list[int]) -> str:
    return " x ".join(map(str, values))
