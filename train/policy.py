"""One RL step's learning: rollouts and advantages -> rows -> updates of the policy."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from configs.schema import Config
from models import DiffusionLM
from sample import Rollout, SamplingConfig
from train.objectives import Metrics, clipped_surrogate, k3, token_weights
from train.replay import MicroBatch, Row, replay_blocks
from train.updater import Updater, UpdateStats, learning_rate_scale

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Batch:
    """A step's rows with, for each, its advantage and the sampler's log-probabilities [N] of its trained tokens."""

    rows: list[Row]
    advantages: list[float]
    logp_rollout: list[NDArray[np.float32]]
    longest_response: int
    skipped: int


def plan_updates(rows: Sequence[Row], rows_per_update: int, seed: Sequence[int]) -> list[list[int]]:
    """Order and cut of a step's responses: shuffled by seed, whole responses until an update has `rows_per_update`
    rows as dLLM-RL counts them (one a round); the last update may be smaller."""
    updates: list[list[int]] = [[]]
    count = 0
    for i in np.random.default_rng(seed).permutation(len(rows)):
        if count >= rows_per_update:
            updates.append([])
            count = 0
        updates[-1].append(int(i))
        count += rows[i].num_rounds
    return [update for update in updates if update]


class Policy:
    """The policy under training: turns rollouts into rows, and rows into updates whose optimizer lives across steps."""

    def __init__(self, model: DiffusionLM, updater: Updater, config: Config, sampling: SamplingConfig):
        self.model, self.updater, self.sampling = model, updater, sampling
        self.training, self.schedule, self.total_steps = (
            config.training,
            config.lr_scheduler,
            config.experiment.total_step,
        )
        self.max_gen_length = config.training.max_gen_length or sampling.max_new_tokens
        choice = config.training.logp_old
        self.recompute = choice == "recompute" or (choice == "auto" and sampling.cache != "exact")

    def batch(self, rollouts: Sequence[Rollout], advantages: Sequence[float | None]) -> Batch:
        """Replays every rollout that has an advantage. One with a non-finite log-probability is left out, counted
        and named."""
        assert self.sampling.block_size is not None
        rows, kept, logps, skipped = [], [], [], 0
        for rollout, advantage in zip(rollouts, advantages, strict=True):
            if advantage is None:
                continue
            row = replay_blocks(
                rollout,
                block_size=self.sampling.block_size,
                mask_id=self.model.mask_id,
                shrink=self.training.shrink,
                pad_id=self.model.pad_id,
                post_num=self.training.post_num,
                post_num_per_round=self.training.normalization == "reference",
            )
            if row is None:
                continue
            logp = np.asarray(rollout.canvas_logprobs, dtype=np.float32)[row.canvas_index]
            if not np.isfinite(logp).all():
                skipped += 1
                logger.warning("rollout %s left out: non-finite log-probability", rollout.key)
                continue
            rows.append(row)
            kept.append(advantage)
            logps.append(logp)
        longest = max((r.num_response_tokens for r in rollouts), default=0)
        return Batch(rows, kept, logps, longest, skipped)

    def train(self, batch: Batch, step: int) -> dict[str, float]:
        """All updates of RL step `step` (from 1). Returns the metrics of the step."""
        training, stats = self.training, UpdateStats()
        self.updater.set_rate(
            learning_rate_scale(
                step - 1, self.total_steps, shape=self.schedule.scheduler,
                warmup=self.schedule.params.warmup_steps, min_scale=self.schedule.params.min_lr_scale,
            )
        )  # fmt: skip
        old = self.updater.log_probs(batch.rows, range(len(batch.rows))) if self.recompute else batch.logp_rollout
        rows_per_update = training.gradient_accumulation_steps * training.batch_size_lm
        for epoch in range(training.num_train_epochs):
            for which in plan_updates(batch.rows, rows_per_update, [training.seed, step, epoch]):
                loss_of = self._loss(batch, old, which, measure_mismatch=stats.updates == 0)
                self.updater.update(batch.rows, which, loss_of, stats)
        return self._metrics(stats, batch)

    def _loss(self, batch: Batch, old: Sequence[NDArray[np.float32]], which: Sequence[int], measure_mismatch: bool):  # type: ignore[no-untyped-def]
        training, device = self.training, self.updater.accelerator.device
        weights = token_weights(
            [batch.rows[i] for i in which],
            training.normalization,
            max_gen_length=self.max_gen_length,
            longest_response=batch.longest_response,
        )
        weight_of = dict(zip(which, weights, strict=True))

        def loss_of(logp_N: Tensor, micro: MicroBatch) -> tuple[Tensor, Metrics]:
            def per_token(values: Sequence[float]) -> Tensor:
                return torch.tensor(np.asarray(values)[micro.row_of_N], dtype=torch.float32, device=device)

            logp_old = torch.from_numpy(np.concatenate([old[i] for i in micro.rows])).to(device)
            loss, metrics = clipped_surrogate(
                logp_N,
                logp_old,
                per_token([batch.advantages[i] for i in micro.rows]),
                per_token([float(weight_of[i]) for i in micro.rows]),
                eps=training.eps,
                beta=training.beta,
                kl=training.kl_estimator or ("k3" if training.use_kl_estimator_k3 else "k1"),
            )
            if measure_mismatch:
                sampled = torch.from_numpy(np.concatenate([batch.logp_rollout[i] for i in micro.rows])).to(device)
                gap = sampled - logp_N.detach()
                metrics |= {
                    "mismatch_kl": k3(gap).sum(),
                    "mismatch_abs": gap.abs().sum(),
                    "mismatch_tokens": gap.new_tensor(len(gap)),
                }
            return loss, metrics

        return loss_of

    def _metrics(self, stats: UpdateStats, batch: Batch) -> dict[str, float]:
        compared = max(1.0, stats.sums.get("mismatch_tokens", 0.0))
        updates = max(1, stats.updates)
        return {
            "loss": stats.sums.get("loss", 0.0) / updates,
            "policy_loss": stats.sums.get("policy_loss", 0.0) / updates,
            "kl": stats.per_token("kl"),
            "clip_ratio": stats.per_token("clipped"),
            "ratio": stats.per_token("ratio"),
            "mismatch_kl": stats.sums.get("mismatch_kl", 0.0) / compared,
            "mismatch_abs": stats.sums.get("mismatch_abs", 0.0) / compared,
            "grad_norm": float(np.mean(stats.grad_norms)) if stats.grad_norms else 0.0,
            "learning_rate": self.updater.rate,
            "updates": float(stats.updates),
            "updates_skipped": float(stats.skipped),
            "micro_batches": float(stats.micro_batches),
            "trained_tokens": stats.sums.get("tokens", 0.0),
            "packed_tokens": float(stats.packed_tokens),
            "rows": float(sum(row.num_rounds for row in batch.rows)),
            "rollouts_skipped": float(batch.skipped),
        }
