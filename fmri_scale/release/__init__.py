"""Released checkpoints: export, strict loading, model card, the hub, import of published weights.

Loading needs torch, numpy, nibabel, nilearn, safetensors and omegaconf, and none of the training libraries.
"""

from fmri_scale.release.load import from_pretrained
from fmri_scale.release.pretrained import Pretrained, Reconstruction

__all__ = ["Pretrained", "Reconstruction", "from_pretrained"]
