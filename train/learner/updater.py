"""Gradient updates: exact accumulation over micro-batches, clipping, the learning rate, and the guard against
non-finite numbers."""

import logging
import math
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from numpy.typing import NDArray
from torch import Tensor

from configs.schema import Config, OptimizerParams, SchedulerConfig
from models import lora
from runtime import ranks
from train.algorithm.objectives import Metrics
from train.algorithm.replay import MicroBatch, TrainingSample, pack, within_budget
from train.distributed.accelerator import make_engine
from train.distributed.sharding import require_equal_weights, share
from train.learner.divergence import NotFinite

logger = logging.getLogger(__name__)

Loss = Callable[[Tensor, MicroBatch], tuple[Tensor, Metrics]]


def make_optimizer(model: torch.nn.Module, params: OptimizerParams) -> torch.optim.AdamW:
    """AdamW over the trainable parameters; decay on matrices only (norms and biases are left alone)."""
    trainable = [p for p in model.parameters() if p.requires_grad]
    groups = [
        {"params": [p for p in trainable if p.ndim >= 2], "weight_decay": params.weight_decay},
        {"params": [p for p in trainable if p.ndim < 2], "weight_decay": 0.0},
    ]
    groups = [group for group in groups if group["params"]]
    return torch.optim.AdamW(groups, lr=params.learning_rate, betas=(params.beta1, params.beta2), eps=params.epsilon)


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


def scheduled(schedule: SchedulerConfig, step: float, total: float) -> float:
    """`learning_rate_scale` of a config's schedule."""
    params = schedule.params
    return learning_rate_scale(
        step, total, shape=schedule.scheduler, warmup=params.warmup_steps, min_scale=params.min_lr_scale
    )


@dataclass
class UpdateStats:
    """Sums over the updates of one step; `mean` metrics come from dividing by tokens."""

    sums: dict[str, float] = field(default_factory=dict)
    updates: int = 0
    skipped: int = 0
    grad_norms: list[float] = field(default_factory=list)
    micro_batches: int = 0
    packed_tokens: int = 0

    def add(self, metrics: dict[str, float]) -> None:
        for name, value in metrics.items():
            self.sums[name] = self.sums.get(name, 0.0) + value

    @property
    def mean_grad_norm(self) -> float:
        return float(np.mean(self.grad_norms)) if self.grad_norms else 0.0

    def per_token(self, name: str) -> float:
        return self.sums.get(name, 0.0) / max(1.0, self.sums.get("tokens", 0.0))


@torch.no_grad()
def outputs(
    model: torch.nn.Module,
    rows: Sequence[TrainingSample],
    which: Sequence[int],
    max_tokens: int,
    accelerator: Accelerator,
    lockstep: bool = False,
) -> list[NDArray[np.float32]]:
    """A model's numbers [N] for each row's trained tokens under its weights as they are; empty for rows that are not in
    `which`. The ranks share the rows, and each gets all numbers. lockstep: all run as many forwards."""
    found: dict[int, NDArray[np.float32]] = {}
    for group, is_padding in _shared_groups(rows, which, max_tokens, lockstep):
        batch = pack(rows, group, accelerator.device)
        with accelerator.autocast():
            output_N = _outputs(model, batch).float().cpu().numpy()
        if is_padding:
            continue
        for place, i in enumerate(batch.rows):
            found[i] = output_N[batch.row_of_N == place]
    everywhere = {i: output_N for part in ranks.gather(found) for i, output_N in part.items()}
    return [everywhere.get(i, np.empty(0, np.float32)) for i in range(len(rows))]


def _shared_groups(
    rows: Sequence[TrainingSample], which: Sequence[int], max_tokens: int, lockstep: bool
) -> list[tuple[list[int], bool]]:
    """The rows of this rank's micro-batches of rows[which]; `lockstep`: as many on every rank, those that fill up
    marked True."""
    mine = within_budget(rows, share(rows, which), max_tokens)
    missing = max(ranks.gather(len(mine))) - len(mine) if lockstep else 0
    shortest = [min(which, key=lambda i: rows[i].num_tokens)] if missing else []
    return [(group, False) for group in mine] + [(shortest, True)] * missing


def _outputs(model: torch.nn.Module, batch: MicroBatch) -> Tensor:
    return model(batch.ids, batch.positions, batch.layout, batch.index, batch.targets)


class Updater:
    """Owns a model's optimizer state for a whole run. The model maps a micro-batch's ids, positions, layout, index
    and targets to one number a trained token [N]: a log-probability (DiffusionLM) or a value (ValueModel).

    A non-finite loss or gradient never reaches the weights: the update is skipped, counted and named; `max_skipped`
    in a row stop the run (NotFinite). Ranks share the rows of an update and sum their gradients, so that weights
    stay equal and the number of ranks does not enter; a rank may be left without rows.
    """

    def __init__(self, model: torch.nn.Module, accelerator: Accelerator, config: Config):
        self.accelerator = accelerator
        self.peak_rate = config.optimizer.params.learning_rate
        require_equal_weights(model, type(model).__name__)
        optimizer = make_optimizer(model, config.optimizer.params)
        self.engine = make_engine(model, optimizer, accelerator, config.training.max_grad_norm)
        self.model = self.engine.model
        self.max_tokens = config.training.max_tokens_per_microbatch
        self.max_skipped = config.training.max_skipped_updates
        self.seed, self.updates = config.training.seed, 0
        self.skipped_in_a_row = 0
        self.rate = 0.0

    def set_rate(self, scale: float) -> None:
        self.rate = self.peak_rate * scale
        for group in self.engine.optimizer.param_groups:
            group["lr"] = self.rate

    def update(
        self,
        rows: Sequence[TrainingSample],
        which: Sequence[int],
        loss_of: Loss,
        stats: UpdateStats,
        progress: Callable[[int], None] | None = None,
    ) -> None:
        """One optimizer step on rows[which]; loss_of maps (the model's numbers [N], micro-batch) to (its share of
        the loss, sums); progress hears of rows as they are done."""
        self.model.train()
        device, lockstep = self.accelerator.device, self.engine.lockstep
        groups = _shared_groups(rows, which, self.max_tokens, lockstep)
        done, packed_tokens = 0, 0
        totals: dict[str, Tensor] = {}
        loss_sum = torch.zeros((), device=device)
        for place, (group, is_padding) in enumerate(groups):
            batch, last = pack(rows, group, device), place == len(groups) - 1
            if is_padding:
                self.engine.backward(0.0 * _outputs(self.model, batch).sum(), last)
                continue
            with self._dropping(rows, batch):
                loss, metrics = loss_of(_outputs(self.model, batch), batch)
                self.engine.backward(loss, last)
            loss_sum += loss.detach()
            for name, value in metrics.items():
                totals[name] = totals.get(name, 0.0) + value.detach().double()
            done, packed_tokens = done + len(group), packed_tokens + batch.ids.numel()
            if progress is not None:
                progress(len(group))
        if progress is not None:
            progress(len(which) - done)
        parts = {f"metric/{name}": float(value) for name, value in totals.items()} | {
            "loss": float(loss_sum),
            "micro_batches": sum(not is_padding for _, is_padding in groups),
            "packed_tokens": packed_tokens,
        }
        sums = ranks.summed(parts)
        loss_of_update = sums.pop("loss")
        stats.micro_batches += int(sums.pop("micro_batches"))
        stats.packed_tokens += int(sums.pop("packed_tokens"))
        step = self.engine.step(loss_of_update)
        if step.taken:
            self.skipped_in_a_row = 0
            stats.updates += 1
            stats.grad_norms.append(step.norm)
            metrics_of_update = {name.removeprefix("metric/"): value for name, value in sums.items()}
            stats.add(metrics_of_update | {"loss": loss_of_update})
        else:
            self.skip(rows, which, loss_of_update, step.norm, stats)
        self.updates += 1

    def outputs(self, rows: Sequence[TrainingSample], which: Sequence[int]) -> list[NDArray[np.float32]]:
        """`outputs` of this updater's model, in the trainer's numerics."""
        self.model.eval()
        return outputs(self.model, rows, which, self.max_tokens, self.accelerator, self.engine.lockstep)

    def state_dict(self) -> dict[str, Any]:
        return {
            "optimizer": self.engine.state_dict(),
            "updates": self.updates,
            "skipped_in_a_row": self.skipped_in_a_row,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.engine.load_state_dict(state["optimizer"])
        self.updates = state["updates"]
        self.skipped_in_a_row = state["skipped_in_a_row"]

    def _dropping(self, rows: Sequence[TrainingSample], batch: MicroBatch) -> AbstractContextManager[None]:
        """The adapters' dropout, by seeds from (seed, update, place of the row, place of the token in it): how rows are
        packed and shared does not enter."""
        if not lora.dropouts(self.model):
            return nullcontext()
        seeds = [
            np.random.default_rng([self.seed, self.updates, i]).integers(2**63, size=rows[i].num_tokens)
            for i in batch.rows
        ]
        return lora.dropping(self.model, torch.from_numpy(np.concatenate(seeds))[None].to(self.accelerator.device))

    def skip(
        self, rows: Sequence[TrainingSample], which: Sequence[int], loss: float, norm: float, stats: UpdateStats
    ) -> None:
        """Counts and names an update on rows[which] that is not taken; NotFinite where it is one too many in a row."""
        stats.skipped += 1
        self.skipped_in_a_row += 1
        names = ", ".join(str(rows[i].key) for i in list(which)[:4]) + (", ..." if len(which) > 4 else "")
        logger.warning("update skipped: loss %g, gradient norm %g; samples %s", loss, norm, names)
        if self.skipped_in_a_row >= self.max_skipped:
            raise NotFinite(
                f"{self.skipped_in_a_row} updates in a row were not finite (last: loss {loss:g}, gradient norm "
                f"{norm:g}, samples {names}). The weights were not touched by them. "
                "Lower optimizer.params.learning_rate or set training.mixed_precision=no."
            )
