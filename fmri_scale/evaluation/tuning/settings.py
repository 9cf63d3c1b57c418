"""What a task file may say about tuning (section `tuning`). The string under a field is its documentation."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

from fmri_scale.errors import ConfigError

METHODS = ("prompt", "lora", "full", "scratch")
FROM_RANDOM = "scratch"
"The method that starts from random weights: a baseline for full fine-tuning."


@dataclass
class TuningConfig:
    """Training of the backbone, or of a small part of it, with a head, on the clips of the task's units."""

    releases: dict[str, str] = field(default_factory=dict)
    "Name to the folder of a released model to tune; {seed} in the path is replaced by each seed."
    corpus: str = ""
    "Corpus (fmri-shards build) with the runs of the task's units."
    methods: list[str] = field(default_factory=lambda: ["prompt", "lora", "full"])
    "prompt (tokens before every window of each block), lora (updates of the projections), full (all weights), scratch."
    prompt_len: int = 50
    "Prompts a block."
    lora_rank: int = 8
    "Rank of the updates."
    lora_alpha: float = 16.0
    "Scale of the updates is lora_alpha / rank."
    prompt_lr: list[float] = field(default_factory=lambda: [1e-3])
    "Peak learning rates of prompts to try; validation chooses."
    lora_lr: list[float] = field(default_factory=lambda: [1e-3])
    "Peak learning rates of low-rank updates to try."
    full_lr: list[float] = field(default_factory=lambda: [5e-5])
    "Peak learning rates of all weights to try (full and scratch); 5e-5 is the published one."
    head_lr: float = 1e-3
    "Peak learning rate of the head, whatever else is trained."
    weight_decay: float = 0.01
    "Of linear maps and convolutions; prompts, updates, norms, biases and embeddings have none."
    epochs: int = 20
    "Most passes over the training clips."
    patience: int = 5
    "Epochs without a better validation after which training stops."
    batch_size: int = 8
    "Clips an optimizer step."
    micro_batch: int = 1
    "Clips in memory at a time; gradients are summed up to batch_size."
    stride: int = 0
    "Frames from clip to clip; 0: a clip's length, so that clips do not overlap."
    clips: int = 0
    "Most clips of a run, evenly spread; 0 takes all."
    bf16: bool = False
    "Matrix products in bf16."
    recompute: bool = False
    "Keep only each block's input for the backward pass: less memory, a third more work."
    device: str = "cpu"
    "cpu, cuda, cuda:1."

    def rates(self, method: str) -> list[float]:
        """Learning rates to try with a method."""
        return {"prompt": self.prompt_lr, "lora": self.lora_lr}.get(method, self.full_lr)


def check_tuning(config: TuningConfig, predicts: bool) -> None:
    """Raise ConfigError for the first value that cannot be used; `predicts`: the task has classes or values."""
    if not config.releases:
        return
    if not predicts:
        raise ConfigError("tuning needs a task with classes or values (kind=classification or regression)")
    if not config.corpus:
        raise ConfigError("tuning.corpus: give the corpus with the runs to train on (made by fmri-shards build)")
    for method in config.methods:
        if method not in METHODS:
            raise ConfigError(f"tuning.methods={method!r}: expected some of {', '.join(METHODS)}")
    if not config.methods or len(set(config.methods)) < len(config.methods):
        raise ConfigError(f"tuning.methods={config.methods}: expected one or more different methods")
    least = {"prompt_len": 1, "lora_rank": 1, "epochs": 1, "patience": 1, "batch_size": 1, "micro_batch": 1}
    for name, low in {**least, "stride": 0, "clips": 0}.items():
        if getattr(config, name) < low:
            raise ConfigError(f"tuning.{name}={getattr(config, name)}: expected {low} or more")
    for name in ("prompt_lr", "lora_lr", "full_lr"):
        _check_rates(name, getattr(config, name))
    _check_rates("head_lr", [config.head_lr])
    if not config.weight_decay >= 0 or not config.lora_alpha > 0:
        raise ConfigError(
            f"tuning: weight_decay={config.weight_decay}, lora_alpha={config.lora_alpha}: expected 0 or more, above 0"
        )


def _check_rates(name: str, rates: Sequence[float]) -> None:
    if not rates or not all(math.isfinite(rate) and rate > 0 for rate in rates) or len(set(rates)) < len(rates):
        raise ConfigError(f"tuning.{name}={rates}: expected different rates above 0")
