"""State dicts of the published NeuroSTORM in our names, and ours in theirs; a strict map of names and layouts.

Understood: the masked autoencoder, the encoder alone, the encoder with a linear head (`output_head.`); the prefix
`model.` of Lightning checkpoints; the older layout with one `mask_token` of a vector per window slot. A key that is
missing, unknown or of another shape is an error that names it. Our names: `backbone.*`, `mask_tokens.*`,
`decoder.*`, `head.*`. Values are never changed, only permuted, so both ways together are the identity.
"""

import re
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from fmri_scale.config import ModelConfig
from fmri_scale.errors import CheckpointError
from fmri_scale.models.backbone import Backbone
from fmri_scale.models.decoder import Decoder
from fmri_scale.models.heads import Head
from fmri_scale.models.mae import MaskTokens
from fmri_scale.models.shapes import stage_width

State = dict[str, Tensor]

_IN_MODEL = {
    r"backbone\.patch_embed\.(\w+)": r"patch_embed.fc.\1",
    r"backbone\.stages\.(\d+)\.position\.space": r"pos_embeds.\1.pos_embed",
    r"backbone\.stages\.(\d+)\.position\.time": r"pos_embeds.\1.time_embed",
    r"backbone\.stages\.(\d+)\.merge\.norm\.(\w+)": r"layers.\1.downsample.norm.\2",
    r"backbone\.stages\.(\d+)\.merge\.reduce\.(\w+)": r"layers.\1.downsample.reduction.\2",
    r"mask_tokens\.token": "mask_token",
    r"mask_tokens\.window": "window_mask_token",
    r"mask_tokens\.region": "atlas_mask_token",
    r"decoder\.norm\.(\w+)": r"norm_up.\1",
    r"decoder\.head\.(\w+)": r"decoder_pred.\1",
    r"head\.out\.(\w+)": r"output_head.head.head.\1",
    r"head\.hidden\.(\w+)": r"output_head.head.hidden.\1",
}
_IN_BLOCK = {
    r"mixer\.(in_proj|x_proj|dt_proj|out_proj)\.(\w+)": r"mamba.\1.\2",
    r"mixer\.conv_(weight|bias)": r"mamba.conv1d.\1",
    r"mixer\.(A_log|D)": r"mamba.\1",
    r"mixer\.prompt": "prompt",
    r"mlp\.up\.(\w+)": r"mlp.linear1.\1",
    r"mlp\.down\.(\w+)": r"mlp.linear2.\1",
    r"(norm[12])\.(\w+)": r"\1.\2",
}
_NAMED = 8
"Keys that an error names of each kind before it only counts."


def config_from_published(arguments: Mapping[str, Any]) -> ModelConfig:
    """Return our configuration for the arguments the published model is constructed with."""
    return ModelConfig(
        image_size=list(arguments["img_size"][:3]),
        num_frames=arguments["img_size"][3],
        in_channels=arguments["in_chans"],
        patch_size=list(arguments["patch_size"]),
        embed_dim=arguments["embed_dim"],
        depths=list(arguments["depths"]),
        window_size=list(arguments["window_size"]),
        first_window_size=list(arguments["first_window_size"]),
        last_stage_full=arguments["last_layer_full_MSA"],
        channel_multiplier=arguments["c_multiplier"],
        dropout=arguments.get("drop_rate", 0.0),
        drop_path=arguments.get("drop_path_rate", 0.0),
        prompt_len=arguments.get("prompt_len", 0),
        strd="published" if arguments.get("use_strd") else "off",
    )


def to_published(state: Mapping[str, Tensor], config: ModelConfig | None = None) -> State:
    """Return a state dict of ours under the published names and shapes.

    Raises
    ------
    CheckpointError : a key that no model of ours has, or a configuration that the published code cannot run.
    """
    _refuse_brain_tokens(config)
    return {published_name(name): _published_layout(name, value) for name, value in state.items()}


def from_published(state: Mapping[str, Tensor], config: ModelConfig) -> State:
    """Return a published state dict under our names and shapes.

    Parameters
    ----------
    state : published names, with or without Lightning's prefix; old or current mask tokens.
    config : the shape that the weights must have.

    Raises
    ------
    CheckpointError : names every missing, unknown or mis-shaped key; or the published model cannot be of this shape.
    """
    _refuse_brain_tokens(config)
    theirs = _current_layout(_without_prefix(state))
    ours = _expected(theirs, config)
    names = {published_name(name): name for name in ours}
    shapes = {key: _published_layout(name, ours[name]).shape for key, name in names.items()}
    faults = {
        "missing": [key for key in names if key not in theirs],
        "unknown": [key for key in theirs if key not in names],
        "of another shape": [
            f"{key} {list(theirs[key].shape)}, expected {list(shape)}"
            for key, shape in shapes.items()
            if key in theirs and theirs[key].shape != shape
        ],
    }
    if any(faults.values()):
        raise CheckpointError(f"published state dict does not fit the configuration: {_list_faults(faults)}")
    return {name: _our_layout(name, theirs[k]) for k, name in names.items()}


def published_name(name: str) -> str:
    """Return the published name of one of our parameters; CheckpointError for a name that is not ours."""
    if found := re.fullmatch(r"(backbone|decoder)\.stages\.(\d+)\.blocks\.(\d+)\.(.+)", name):
        layers = "layers" if found[1] == "backbone" else "layers_up"
        return f"{layers}.{found[2]}.blocks.{found[3]}.{_rename(found[4], _IN_BLOCK, name)}"
    if found := re.fullmatch(r"decoder\.stages\.(\d+)\.expand\.(proj|norm)\.(\w+)", name):
        stage = int(found[1])
        owner = f"layers_up.{stage - 1}.upsample" if stage else "first_patch_expanding"
        return f"{owner}.{'expand' if found[2] == 'proj' else 'norm'}.{found[3]}"
    return _rename(name, _IN_MODEL, name)


def _refuse_brain_tokens(config: ModelConfig | None) -> None:
    if config is not None and config.brain_tokens:
        raise CheckpointError("model.brain_tokens=true: the published model computes all patches; set it to false")


def _rename(part: str, rules: Mapping[str, str], name: str) -> str:
    for pattern, form in rules.items():
        if found := re.fullmatch(pattern, part):
            return found.expand(form)
    raise CheckpointError(f"{name}: no published NeuroSTORM has this parameter")


def _published_layout(name: str, value: Tensor) -> Tensor:
    if name.endswith(".position.space"):
        return value.permute(3, 0, 1, 2)[None, ..., None].contiguous()
    if name.endswith(".position.time"):
        return value.T[None, :, None, None, None].contiguous()
    if name.endswith(".conv_weight"):
        return value.unsqueeze(1)
    return value.unsqueeze(0) if name.endswith(".prompt") else value


def _our_layout(name: str, value: Tensor) -> Tensor:
    if name.endswith(".position.space"):
        return value[0, ..., 0].permute(1, 2, 3, 0).contiguous()
    if name.endswith(".position.time"):
        return value[0, :, 0, 0, 0].T.contiguous()
    if name.endswith(".conv_weight"):
        return value.squeeze(1)
    return value.squeeze(0) if name.endswith(".prompt") else value


def _without_prefix(state: Mapping[str, Tensor]) -> State:
    """Drop Lightning's `model.` and the atlas map, which is data that some autoencoders carry, not a weight."""
    bare = {key.removeprefix("model."): value for key, value in state.items()}
    if len(bare) != len(state):
        raise CheckpointError("the state dict holds the same key with and without the prefix 'model.'")
    bare.pop("atlas_map", None)
    return bare


def _current_layout(state: State) -> State:
    """Bring the single mask token of older autoencoders, a vector per window slot, to the three of today."""
    token = state.get("mask_token")
    if token is None or token.ndim != 2 or "window_mask_token" in state:
        return state
    zeros = torch.zeros_like(token[0])
    return state | {"mask_token": zeros, "window_mask_token": token, "atlas_mask_token": zeros.clone()}


def _expected(theirs: State, config: ModelConfig) -> State:
    """Return our parameters on the meta device, of the kind of model that `theirs` is."""
    with torch.device("meta"):
        parts: dict[str, nn.Module] = {"backbone": Backbone(config)}
        if any(key.startswith("decoder_pred.") for key in theirs):
            parts |= {"mask_tokens": MaskTokens(config.window_size, config.embed_dim), "decoder": Decoder(config)}
        out = theirs.get("output_head.head.head.weight")
        if out is not None:
            hidden = theirs.get("output_head.head.hidden.weight")
            width = stage_width(config, len(config.depths) - 1)
            parts["head"] = Head(width, len(out), 0 if hidden is None else len(hidden))
        return dict(nn.ModuleDict(parts).state_dict())


def _list_faults(faults: Mapping[str, list[str]]) -> str:
    parts = []
    for kind, keys in faults.items():
        if keys:
            more = f" and {len(keys) - _NAMED} more" if len(keys) > _NAMED else ""
            parts.append(f"{len(keys)} {kind}: {', '.join(keys[:_NAMED])}{more}")
    return "; ".join(parts)
