"""The optimizer and what it is set to: AdamW, the learning rate's course, clipping."""

import math
from dataclasses import dataclass

import torch

from configs.schema import OptimizerParams, SchedulerConfig, TrainingConfig


@dataclass(frozen=True)
class OptimizerSettings:
    """AdamW's; learning_rate is the peak."""

    learning_rate: float = 1e-6
    beta1: float = 0.9
    beta2: float = 0.999
    weight_decay: float = 0.0
    epsilon: float = 1e-8

    @staticmethod
    def of(params: OptimizerParams, learning_rate: float | None = None) -> "OptimizerSettings":
        """The optimizer section of a config, with another learning rate where one is given."""
        rate = params.learning_rate if learning_rate is None else learning_rate
        return OptimizerSettings(rate, params.beta1, params.beta2, params.weight_decay, params.epsilon)


@dataclass(frozen=True)
class UpdateSettings:
    """max_tokens: packed tokens of one forward; max_grad_norm: gradients are clipped to it, 0 = off; max_skipped: stop
    after so many non-finite updates in a row; seed: of the adapters' dropout; ema_decay: of a running mean of the
    weights, 0 = none."""

    max_tokens: int = 16384
    max_grad_norm: float = 1.0
    max_skipped: int = 10
    seed: int = 10086
    ema_decay: float = 0.0

    @staticmethod
    def of(training: TrainingConfig) -> "UpdateSettings":
        """What the training section of a config sets."""
        tokens = training.max_tokens_per_microbatch or UpdateSettings.max_tokens
        return UpdateSettings(
            tokens, training.max_grad_norm, training.max_skipped_updates, training.seed, training.ema_decay
        )


def make_optimizer(model: torch.nn.Module, settings: OptimizerSettings) -> torch.optim.AdamW:
    """AdamW over the trainable parameters; decay on matrices only (norms and biases are left alone)."""
    trainable = [p for p in model.parameters() if p.requires_grad]
    groups = [
        {"params": [p for p in trainable if p.ndim >= 2], "weight_decay": settings.weight_decay},
        {"params": [p for p in trainable if p.ndim < 2], "weight_decay": 0.0},
    ]
    groups = [group for group in groups if group["params"]]
    betas = (settings.beta1, settings.beta2)
    return torch.optim.AdamW(groups, lr=settings.learning_rate, betas=betas, eps=settings.epsilon)


def learning_rate_scale(step: float, total: float, *, shape: str, warmup: float, min_scale: float) -> float:
    """Share of the peak rate at `step` (counted from 0) of `total`: linear warm-up, then the decay down to
    min_scale, clamped there."""
    if step < warmup:
        return (step + 1) / (warmup + 1)
    if shape == "constant":
        return 1.0
    progress = min(1.0, (step - warmup) / max(1.0, total - warmup))
    decay = 0.5 * (1.0 + math.cos(math.pi * progress)) if shape == "cosine" else 1.0 - progress
    return min_scale + (1.0 - min_scale) * decay


@dataclass(frozen=True)
class Schedule:
    """The learning rate's course over `total` steps (RL steps, SFT updates), as `learning_rate_scale` has it; constant
    by default."""

    total: float = 1.0
    shape: str = "constant"
    warmup: float = 0.0
    min_scale: float = 1.0

    @staticmethod
    def of(section: SchedulerConfig, total: float) -> "Schedule":
        return Schedule(total, section.scheduler, section.params.warmup_steps, section.params.min_lr_scale)

    def scale(self, step: float) -> float:
        """Share of the peak rate at `step`, counted from 0."""
        return learning_rate_scale(step, self.total, shape=self.shape, warmup=self.warmup, min_scale=self.min_scale)
