"""The model: a backbone of shifted-window Mamba blocks, its masked autoencoder, masks, heads, published weights."""

from fmri_scale.models.anatomy import Anatomy
from fmri_scale.models.backbone import Backbone
from fmri_scale.models.cost import Cost, cost
from fmri_scale.models.draws import clip_keys
from fmri_scale.models.groups import parameter_groups
from fmri_scale.models.heads import Head, Predictor
from fmri_scale.models.init import init_weights
from fmri_scale.models.mae import MAEOutput, MaskedAutoencoder
from fmri_scale.models.masking import TokenMask, draw_mask

__all__ = [
    "Anatomy",
    "Backbone",
    "Cost",
    "Head",
    "MAEOutput",
    "MaskedAutoencoder",
    "Predictor",
    "TokenMask",
    "clip_keys",
    "cost",
    "draw_mask",
    "init_weights",
    "parameter_groups",
]
