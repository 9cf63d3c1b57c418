"""Attentive probe on token features: a few learnt queries pool the tokens, a linear map reads the pool.

In: tokens float32 (R, L, C), L tokens of C channels a clip. Each of H queries weighs the tokens by a softmax of
its products with them and takes their mean; the H means go through one linear map (the attentive probe of V-JEPA and
of CortexMAE without their MLP). Trained with AdamW on full batches; the weight decay is chosen on validation.
"""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from fmri_scale.evaluation.probes.choice import Fitted, Problem
from fmri_scale.evaluation.probes.target import TrainingTarget
from fmri_scale.evaluation.sealed import Part


class AttentivePool(nn.Module):
    """Queries over tokens, then a linear map. Shape suffixes: R rows, L tokens, C channels, H queries."""

    def __init__(self, channels: int, outputs: int, queries: int) -> None:
        super().__init__()
        self.query = nn.Parameter(torch.zeros(queries, channels))
        self.out = nn.Linear(queries * channels, outputs)

    def forward(self, tokens_RLC: Tensor) -> Tensor:
        """Return `[R, outputs]`."""
        weight_RHL = (tokens_RLC @ self.query.T / tokens_RLC.shape[-1] ** 0.5).softmax(1).transpose(1, 2)
        return self.out((weight_RHL @ tokens_RLC).flatten(1))


class AttentiveProbe:
    """Attentive pooling with a linear read-out.

    Parameters
    ----------
    steps, lr
        Full-batch AdamW steps, and the peak of their cosine schedule.
    queries
        H.
    """

    name = "attentive"
    settings: tuple[Any, ...] = (10.0, 1.0, 0.1, 0.01)

    def __init__(self, steps: int = 200, lr: float = 1e-2, queries: int = 4) -> None:
        self._steps, self._lr, self._queries = steps, lr, queries

    def fit(self, part: Part, problem: Problem, settings: Sequence[Any], seed: int) -> list[Fitted]:
        """Fit one model a weight decay; tokens are standardised by channel over the rows fitted on."""
        tokens = torch.as_tensor(np.asarray(part.inputs), dtype=torch.float32)
        mean, scale = tokens.mean((0, 1)), tokens.std((0, 1)).clamp(min=1e-6)
        weight = torch.as_tensor(part.weight, dtype=torch.float32)
        target = TrainingTarget.of(part, problem)
        truth = target.truth(part)
        models: list[Fitted] = []
        for decay in settings:
            random = torch.Generator().manual_seed(seed)
            pool = AttentivePool(tokens.shape[-1], target.outputs, self._queries)
            nn.init.normal_(pool.query, std=0.02, generator=random)
            nn.init.normal_(pool.out.weight, std=0.02, generator=random)
            nn.init.zeros_(pool.out.bias)
            self._train(pool, (tokens - mean) / scale, lambda output: target.losses(output, truth) * weight, decay)
            models.append(_Attentive(pool.eval(), mean, scale, target))
        return models

    def _train(self, pool: AttentivePool, tokens: Tensor, losses: Callable[[Tensor], Tensor], decay: float) -> None:
        groups = [
            {"params": [pool.query, pool.out.weight], "weight_decay": decay},
            {"params": [pool.out.bias], "weight_decay": 0.0},
        ]
        optimizer = torch.optim.AdamW(groups, lr=self._lr)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, self._steps)
        for _ in range(self._steps):
            optimizer.zero_grad()
            losses(pool(tokens)).mean().backward()
            optimizer.step()
            schedule.step()


class _Attentive:
    def __init__(self, pool: AttentivePool, mean: Tensor, scale: Tensor, target: TrainingTarget) -> None:
        self._pool, self._mean, self._scale, self._target = pool, mean, scale, target

    @torch.no_grad()
    def scores(self, inputs: Any) -> np.ndarray:
        tokens = (torch.as_tensor(np.asarray(inputs), dtype=torch.float32) - self._mean) / self._scale
        return self._target.scores(self._pool(tokens))
