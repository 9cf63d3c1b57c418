"""Spatiotemporal redundancy dropout; training only, encoder of the MAE only, in two forms.

A token is dropped (its mixer output set to zero, the residual stays) with a probability computed from the similarity
of the tokens of its window. No gradient flows through the probability.

`published` is the released code's formula. Measured on it: the rate is 0.5 % for identical tokens, 3.8 % for
independent ones, so it hardly acts, and acts on the wrong tokens. `paper` is what the method's text says: dropping
grows with redundancy in space and time, up to `rate` for tokens equal to their neighbours. Off by default.
"""

import torch
from torch import Tensor, nn

from fmri_scale.kernels.strd import redundancy, scores
from fmri_scale.kernels.windows import Windows
from fmri_scale.models.draws import uniform

LEVELS = 5
"Equal parts of redundancy, 0 to 1, by which drop rates are told."
RATES = ("strd_drop_rate", *(f"strd_drop_rate_redundancy_{level / LEVELS:.1f}" for level in range(LEVELS)))
"Names of the rates: of all tokens, and of those whose redundancy is in the part that begins there."


class RedundancyDropout(nn.Module):
    """Drop redundant tokens of a block.

    Parameters
    ----------
    salt : which draw of a clip this block takes.
    form : published or paper.
    rate : of form paper, for tokens equal to their neighbours.
    backend : of the kernel that computes the published scores.

    Attributes
    ----------
    counts : of the last forward pass in training, int64 `[2, LEVELS]`: tokens that were dropped, and all, by
        redundancy; of the first clip of the batch alone, which is enough to tell rates by.
    """

    def __init__(self, salt: int, form: str = "published", rate: float = 0.5, backend: str = "auto") -> None:
        super().__init__()
        self.salt = salt
        self.form = form
        self.rate = rate
        self.backend = backend
        self.counts: Tensor | None = None

    def forward(self, h_BNC: Tensor, windows: Windows, keys_B: Tensor | None) -> Tensor:
        """Return `h_BNC` with the dropped tokens at zero; the identity outside training."""
        if not self.training:
            return h_BNC
        if keys_B is None:
            raise ValueError("redundancy dropout in training needs the clips' keys: pass keys_B (TokenMask.keys)")
        return h_BNC * self.keep(h_BNC.detach(), windows, keys_B).unsqueeze(-1)

    def keep(self, h_BNC: Tensor, windows: Windows, keys_B: Tensor) -> Tensor:
        """Return 1 for kept and 0 for dropped tokens, `[B, N]`."""
        b, n, c = h_BNC.shape
        order, real = windows.places(h_BNC.device)
        h_WLC = h_BNC[:, order.flatten()].reshape(-1, windows.length, c)
        target, real_WL = order.flatten(), None
        if real is not None:  # windows keep their places, as a token's neighbours are those beside it
            target, real_WL = torch.where(real, order, n).flatten(), real.repeat(b, 1)  # what is missing goes aside
            h_WLC = h_WLC * real_WL.unsqueeze(2)
        if self.form == "paper":
            redundant_WL = redundancy(h_WLC, windows.window, real_WL=real_WL)
            score_WL = self.rate * redundant_WL
        else:
            score_WL = scores(h_WLC, windows.window, backend=self.backend, real_WL=real_WL).to(h_BNC.dtype)
        score_BN = torch.empty(b, n if real is None else n + 1, dtype=score_WL.dtype, device=h_BNC.device)
        score_BN[:, target] = score_WL.view(b, -1)
        keep_BN = uniform(keys_B, self.salt, n) >= score_BN[:, :n]
        if not torch.compiler.is_compiling():  # a compiled block keeps nothing beside its outputs
            first = slice(windows.num_windows)
            if self.form == "paper":
                seen_WL = redundant_WL[first]
            else:
                seen_WL = redundancy(h_WLC[first], windows.window, real_WL=None if real_WL is None else real_WL[first])
            there = slice(None) if real is None else real
            self.counts = _counts(seen_WL[there].flatten(), ~keep_BN[0, order[there].flatten()])
        return keep_BN.to(h_BNC.dtype)


def drop_counts(model: nn.Module) -> Tensor | None:
    """Return the counts of all blocks of a model's last forward pass in training, or None where nothing is dropped."""
    found = [part.counts for part in model.modules() if isinstance(part, RedundancyDropout) and part.counts is not None]
    return torch.stack(found).sum(0) if found and model.training else None


def drop_rates(counts: list[float]) -> dict[str, float]:
    """Return drop rates by name from the flat `[2, LEVELS]` counts of a step: of all tokens, and by redundancy."""
    dropped, seen = counts[:LEVELS], counts[LEVELS:]
    by_level = {name: part / whole for name, part, whole in zip(RATES[1:], dropped, seen, strict=True) if whole}
    return {RATES[0]: sum(dropped) / max(sum(seen), 1.0)} | by_level


def _counts(redundancy_N: Tensor, dropped_N: Tensor) -> Tensor:
    level_N = (redundancy_N * LEVELS).long().clamp_(0, LEVELS - 1)
    counts = torch.zeros(2, LEVELS, dtype=torch.int64, device=level_N.device)
    counts[0].index_add_(0, level_N, dropped_N.long())
    counts[1].index_add_(0, level_N, torch.ones_like(level_N))
    return counts
