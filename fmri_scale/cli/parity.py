"""Compare the model with golden values of the published NeuroSTORM.

Each CASE.safetensors (beside its CASE.json) holds an input, the weights under published names, and what the
published code made of them. The weights come in through the converter; the largest relative error
|ours - theirs| / |theirs| of loss, latent, prediction and every gradient is printed. Exit code 1 above --tol, and
where anything is not finite.

fmri-scale parity tests/golden/*.safetensors
"""

import argparse
import json
import math
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from fmri_scale.config import MaskConfig, ModelConfig
from fmri_scale.errors import DataError
from fmri_scale.kernels.clips import CodedClips
from fmri_scale.kernels.strd import scores
from fmri_scale.models import Backbone, MaskedAutoencoder, TokenMask
from fmri_scale.models.masking import unit_of_token
from fmri_scale.models.neurostorm_state import config_from_published, from_published, to_published
from fmri_scale.models.shapes import token_grid
from fmri_scale.release.load import usable_device

DTYPES = {"fp32": torch.float32, "fp64": torch.float64}
PREDICTION_STRIDE = 31
"Every how many values of the flattened prediction a case keeps one."
STRATEGIES = {"random": "token", "window": "window", "atlas": "region"}
"Published names of spatial masks in ours."

IN_FILE = {"loss": "loss", "latent": "latent", "prediction": "pred_every_31st"}
"Our quantities and their keys in a case."

Case = dict[str, Tensor]
Errors = dict[str, float]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    parser.add_argument("cases", nargs="+", type=Path, metavar="CASE.safetensors", help="golden cases")
    parser.add_argument("--tol", type=float, default=1e-4, help="largest relative error allowed (default %(default)s)")
    parser.add_argument("--dtype", choices=DTYPES, default="fp32", help="precision of the computation")
    parser.add_argument("--backend", default="auto", help="kernels: auto, torch, triton or mamba_ssm")
    parser.add_argument("--device", default="cpu", help="cpu or cuda")
    parser.add_argument("--codes", action="store_true", help="autoencoders read int8 codes, as in training")


def run(args: argparse.Namespace) -> int:
    """Print one line a case; return 1 if any error exceeds the tolerance."""
    print(f"{'case':<24}{'loss':>10}{'latent':>10}{'prediction':>12}{'gradient':>10}  worst gradient")
    worst, device = 0.0, usable_device(args.device)
    for path in args.cases:
        case, arguments = read_case(path)
        try:
            errors = compare(case, arguments, DTYPES[args.dtype], args.backend, device, args.codes)
        except KeyError as error:
            raise DataError(f"{path}: no golden case, it lacks {error}") from error
        worst = max(worst, *errors.values())
        print(format_row(path.stem, errors), flush=True)
    passed = math.isfinite(worst) and worst <= args.tol
    print(f"largest relative error {worst:.2e}: {'within' if passed else 'above'} the tolerance of {args.tol:.0e}")
    return 0 if passed else 1


def read_case(path: Path) -> tuple[Case, dict[str, Any]]:
    """Return the tensors of a case and the constructor arguments beside it; DataError if either cannot be read."""
    try:
        return load_file(path), json.loads(path.with_suffix(".json").read_text())
    except FileNotFoundError as error:
        raise DataError(f"{error.filename or path}: no such file; a case is CASE.safetensors and CASE.json") from error
    except (OSError, SafetensorError, json.JSONDecodeError) as error:
        raise DataError(f"{path}: cannot be read as a golden case: {error}") from error


def compare(
    case: Case,
    arguments: dict[str, Any],
    dtype: torch.dtype,
    backend: str,
    device: torch.device,
    codes: bool = False,
) -> Errors:
    """Return the relative error of every quantity of a case, gradients as `grad.NAME`.

    Parameters
    ----------
    codes : give an autoencoder the int8 input itself, which it embeds and scores without a volume.
    """
    if "score" in case:
        return {"score": _score_error(case, arguments, dtype, backend, device)}
    config = config_from_published(arguments)
    config.backend = backend
    config.num_frames = arguments["frames"]
    weights = from_published({k[6:]: v.to(dtype) for k, v in case.items() if k.startswith("param.")}, config)
    volume = (case["x_int8"].to(dtype) * case["scale"].to(dtype)).to(device)
    if arguments["model"] == "NeuroSTORMMAE":
        clips = coded_clips(case, config, device) if codes else volume
        ours, gradients = _run_autoencoder(config, weights, clips, case, arguments)
    else:
        ours, gradients = _run_encoder(config, weights, volume)
    errors = {name: relative_error(value, case[IN_FILE[name]]) for name, value in ours.items()}
    for name, gradient in to_published(gradients).items():
        theirs = case.get(f"grad.{name}", torch.zeros_like(gradient))
        errors[f"grad.{name}"] = relative_error(gradient, theirs)
    return errors


def coded_clips(case: Case, config: ModelConfig, device: torch.device) -> CodedClips:
    """Return the input of a case as clips of which every voxel lies in the brain."""
    codes_BTV = case["x_int8"][:, 0].flatten(1, 3).transpose(1, 2).contiguous().to(device)
    batch, _, voxels = codes_BTV.shape
    step_B2V = torch.stack([torch.zeros(voxels), case["scale"].expand(voxels)]).expand(batch, 2, voxels).to(device)
    one, zero = torch.ones(batch, device=device), torch.zeros(batch, device=device)
    everywhere = torch.arange(voxels, dtype=torch.int32, device=device)
    (x, y, z), (px, py, pz) = config.image_size, config.patch_size[:3]
    return CodedClips(codes_BTV, step_B2V, one, zero, zero, everywhere, (x, y, z), (px, py, pz))


def relative_error(ours: Tensor, theirs: Tensor) -> float:
    """Return |ours - theirs| / |theirs| in float64; where theirs is zero, 0 if ours is too, else infinity.

    Infinity, too, where a value of either is not finite: never NaN, which passes every comparison by `max`.
    """
    ours, theirs = ours.detach().cpu().double().flatten(), theirs.double().flatten()
    difference, size = float((ours - theirs).norm()), float(theirs.norm())
    error = difference / size if size else (math.inf if difference else 0.0)
    return error if math.isfinite(error) else math.inf


def format_row(name: str, errors: Errors) -> str:
    """Return the printed line of a case."""
    if "score" in errors:
        return f"{name:<24}{errors['score']:>10.1e}  (drop probability of redundancy dropout)"
    gradients = {k: v for k, v in errors.items() if k.startswith("grad.")}
    worst = max(gradients, key=lambda k: gradients[k])
    prediction = f"{errors['prediction']:.1e}" if "prediction" in errors else "-"
    row = f"{name:<24}{errors['loss']:>10.1e}{errors['latent']:>10.1e}{prediction:>12}{gradients[worst]:>10.1e}"
    return f"{row}  {worst.removeprefix('grad.')}"


def _run_autoencoder(
    config: ModelConfig, weights: Case, clips: Tensor | CodedClips, case: Case, arguments: dict[str, Any]
) -> tuple[Case, Case]:
    inputs = clips.codes if isinstance(clips, CodedClips) else clips
    model = MaskedAutoencoder(config).to(inputs.device, weights["decoder.head.weight"].dtype)
    model.load_state_dict(weights)
    strategy = STRATEGIES[arguments["spatial_mask"]]
    hidden = case["mask"].bool().to(inputs.device)
    if strategy == "window":
        window_N, _ = unit_of_token(MaskConfig(strategy="window"), config, config.num_frames, inputs.device)
        hidden = hidden[:, window_N]
    grid = (*token_grid(config), config.num_frames)
    mask = TokenMask.given(hidden, grid, strategy, torch.arange(len(inputs), device=inputs.device))
    output = model(clips, mask, predict=True)
    output.loss.backward()
    prediction = model.unpatchify(output.prediction).flatten()[::PREDICTION_STRIDE]
    latent = output.latent.permute(0, 5, 1, 2, 3, 4)
    return {"loss": output.loss, "latent": latent, "prediction": prediction}, _gradients(model)


def _run_encoder(config: ModelConfig, weights: Case, volume: Tensor) -> tuple[Case, Case]:
    model = torch.nn.ModuleDict({"backbone": Backbone(config)}).to(volume)
    model.load_state_dict(weights)
    latent = model["backbone"](volume)
    loss = latent.square().mean()
    loss.backward()
    return {"loss": loss, "latent": latent}, _gradients(model)


def _gradients(model: torch.nn.Module) -> Case:
    return {k: torch.zeros_like(p) if p.grad is None else p.grad for k, p in model.named_parameters()}


def _score_error(
    case: Case, arguments: dict[str, Any], dtype: torch.dtype, backend: str, device: torch.device
) -> float:
    score = scores(case["h"].to(device, dtype), tuple(arguments["window_size"]), backend=backend)
    return relative_error(score, case["score"])
