"""One RL step's learning: rollouts and advantages -> rows -> updates of the policy."""

import logging
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray
from torch import Tensor, nn

from configs.schema import Config, TrainingConfig
from models import DiffusionLM
from sample import Rollout, SamplingConfig
from sample.request import hash_key
from train.algorithm.advantages import Floats
from train.algorithm.masking import RL_METHODS
from train.algorithm.objectives import (
    Metrics,
    Weights,
    clipped_surrogate,
    k3,
    per_token,
    rollout_correction,
    token_weights,
)
from train.algorithm.replay import MicroBatch, Replayer, TrainingSample, by_response, replay
from train.distributed.sharding import rows_per_update
from train.learner.updater import Loss, Updater, UpdateStats, outputs, scheduled

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class StepBatch:
    """A step's rows with, for each, its advantage (one number, or [N] of its trained tokens) and the sampler's
    log-probabilities [N]."""

    rows: list[TrainingSample]
    advantages: list[float | Floats]
    logp_rollout: list[NDArray[np.float32]]
    longest_response: int
    skipped: int


def plan_updates(rows: Sequence[TrainingSample], rows_per_update: int, seed: Sequence[int]) -> list[list[int]]:
    """Order and cut of a step's rows: whole responses shuffled by seed, until an update has `rows_per_update` rows as
    dLLM-RL counts them (one a round); the last update may be smaller."""
    responses = by_response(rows)
    updates: list[list[int]] = [[]]
    count = 0
    for response in np.random.default_rng(seed).permutation(len(responses)):
        if count >= rows_per_update:
            updates.append([])
            count = 0
        updates[-1] += responses[response]
        count += sum(rows[i].num_rounds for i in responses[response])
    return [update for update in updates if update]


def step_updates(rows: Sequence[TrainingSample], training: TrainingConfig, step: int) -> Iterator[list[int]]:
    """The updates of RL step `step`, epoch after epoch."""
    for epoch in range(training.num_train_epochs):
        yield from plan_updates(rows, rows_per_update(training), [training.seed, step, epoch])


def at_trained_tokens(given: float | Sequence[float] | Floats, rollout: Rollout, row: TrainingSample) -> float | Floats:
    """A response's number as it is; one number a response token as [N] of the row's trained tokens, 0 at pads after
    the answer. ValueError for another length."""
    if np.ndim(given) == 0:
        return given  # type: ignore[return-value]
    if len(given) != rollout.num_response_tokens:  # type: ignore[arg-type]
        raise ValueError(
            f"rollout {rollout.key} has {rollout.num_response_tokens} tokens and {len(given)} rewards or "  # type: ignore[arg-type]
            "advantages; give one number, or one a token."
        )
    canvas = np.zeros(len(rollout.canvas_ids))
    canvas[: rollout.num_response_tokens] = given
    return canvas[row.canvas_index]


class Policy:
    """The policy under training: turns rollouts into rows, and rows into updates whose optimizer lives across steps.

    reference: the frozen model that the KL is to under training.kl_to=reference.
    """

    def __init__(
        self,
        model: DiffusionLM,
        updater: Updater,
        config: Config,
        sampling: SamplingConfig,
        reference: nn.Module | None = None,
    ):
        self.model, self.updater, self.sampling, self.reference = model, updater, sampling, reference
        self.training, self.schedule, self.total_steps = (
            config.training,
            config.lr_scheduler,
            config.experiment.total_step,
        )
        self.max_gen_length = config.training.max_gen_length or sampling.max_new_tokens
        assert sampling.block_size is not None
        self.replayer = Replayer(model.attention, model.logit_shift, model.mask_id, sampling.block_size)
        self.as_sampled = config.training.method == "TraceRL" and config.training.shrink == 1
        exact = self.as_sampled and sampling.cache in ("exact", "none")
        choice = config.training.logp_old
        self.recompute = choice == "recompute" or (choice == "auto" and not exact)

    def batch(
        self, rollouts: Sequence[Rollout], advantages: Sequence[float | Sequence[float] | Floats | None]
    ) -> StepBatch:
        """Replays every rollout that has an advantage, one number or one a response token. A rollout with a non-finite
        log-probability is left out, counted and named."""
        training = self.training
        batch = StepBatch([], [], [], max((r.num_response_tokens for r in rollouts), default=0), 0)
        skipped = 0
        for rollout, advantage in zip(rollouts, advantages, strict=True):
            if advantage is None:
                continue
            logprobs = np.asarray(rollout.canvas_logprobs, dtype=np.float32)
            if not np.isfinite(logprobs).all():
                skipped += 1
                logger.warning("rollout %s left out: non-finite log-probability", rollout.key)
                continue
            rng = np.random.default_rng([training.seed, hash_key(rollout.key) % 2**63])
            for row in replay(
                rollout,
                self.replayer,
                training,
                method=RL_METHODS[training.method],
                pad_id=self.model.pad_id,
                rng=rng,
            ):
                batch.rows.append(row)
                batch.advantages.append(at_trained_tokens(advantage, rollout, row))
                batch.logp_rollout.append(logprobs[row.canvas_index])
        return replace(batch, skipped=skipped)

    def rows_to_train(self, batch: StepBatch) -> int:
        """Rows of all updates of a step."""
        return len(batch.rows) * self.training.num_train_epochs

    def train(self, batch: StepBatch, step: int, progress: Callable[[int], None] | None = None) -> dict[str, float]:
        """All updates of RL step `step` (from 1); `progress` hears of rows as they are done. Returns the metrics of the
        step; of one without rows only how many rollouts were left out. One whose rows are all left out for a computed
        log-probability counts as a skipped update."""
        if not batch.rows:
            return {"rollouts_skipped": float(batch.skipped)}
        training, stats = self.training, UpdateStats()
        self.updater.set_rate(scheduled(self.schedule, step - 1, self.total_steps))
        rows = batch.rows
        batch, old, reference = self._with_log_probs(batch)
        if not batch.rows:
            self.updater.skip(rows, range(len(rows)), math.nan, math.nan, stats)
            return {"rollouts_skipped": float(batch.skipped), "updates_skipped": float(stats.skipped)}
        for which in step_updates(batch.rows, training, step):
            loss_of = self._loss(batch, old, reference, which, measure_mismatch=stats.updates == 0)
            self.updater.update(batch.rows, which, loss_of, stats, progress)
        return self._metrics(stats, batch)

    def weights(self, batch: StepBatch, which: Sequence[int]) -> Weights:
        """Weights of the rows `which` in the update that they make."""
        return token_weights(
            [batch.rows[i] for i in which],
            self.training.normalization,
            max_gen_length=self.max_gen_length,
            longest_response=batch.longest_response if self.model.attention == "block" else None,
        )

    def _with_log_probs(
        self, batch: StepBatch
    ) -> tuple[StepBatch, Sequence[NDArray[np.float32]], Sequence[NDArray[np.float32]] | None]:
        """The batch with the old and the reference's log-probabilities of its rows. A response with a non-finite one is
        left out, counted and named; every rank has all numbers and leaves out the same."""
        every = range(len(batch.rows))
        old = self.updater.outputs(batch.rows, every) if self.recompute else batch.logp_rollout
        reference = None
        if self.reference is not None:
            limit = self.training.max_tokens_per_microbatch
            reference = outputs(self.reference, batch.rows, every, limit, self.updater.accelerator)
        spoiled = dict.fromkeys(
            batch.rows[i].key for logp in (old, reference or old) for i in every if not np.isfinite(logp[i]).all()
        )
        for key in spoiled:
            logger.warning("rollout %s left out: non-finite log-probability in training", key)
        kept = [i for i in every if batch.rows[i].key not in spoiled]
        finite = StepBatch(
            [batch.rows[i] for i in kept],
            [batch.advantages[i] for i in kept],
            [batch.logp_rollout[i] for i in kept],
            batch.longest_response,
            batch.skipped + len(spoiled),
        )
        return finite, [old[i] for i in kept], None if reference is None else [reference[i] for i in kept]

    def _loss(
        self,
        batch: StepBatch,
        old: Sequence[NDArray[np.float32]],
        reference: Sequence[NDArray[np.float32]] | None,
        which: Sequence[int],
        measure_mismatch: bool,
    ) -> Loss:
        training, device = self.training, self.updater.accelerator.device
        weights = self.weights(batch, which)
        policy_weight, kl_weight = (dict(zip(which, w, strict=True)) for w in (weights.policy, weights.kl))

        def loss_of(logp_N: Tensor, micro: MicroBatch) -> tuple[Tensor, Metrics]:
            logp_old_N = per_token(old, micro, device)
            logp_rollout_N = per_token(batch.logp_rollout, micro, device)
            loss, metrics = clipped_surrogate(
                logp_N,
                logp_old_N,
                per_token(batch.advantages, micro, device),
                per_token(policy_weight, micro, device),
                eps=training.eps,
                beta=training.beta,
                kl=training.kl_estimator,
                logp_reference_N=None if reference is None else per_token(reference, micro, device),
                kl_weight_N=per_token(kl_weight, micro, device),
                correction_N=rollout_correction(
                    training.rollout_correction, logp_old_N, logp_rollout_N, training.rollout_correction_limit
                ),
            )
            if measure_mismatch and self.as_sampled:
                gap = logp_rollout_N - logp_N.detach()
                metrics |= {
                    "mismatch_kl": k3(gap).sum(),
                    "mismatch_abs": gap.abs().sum(),
                    "mismatch_tokens": gap.new_tensor(len(gap)),
                }
            return loss, metrics

        return loss_of

    def _metrics(self, stats: UpdateStats, batch: StepBatch) -> dict[str, float]:
        updates = max(1, stats.updates)
        compared = stats.sums.get("mismatch_tokens", 0.0)
        mismatch = {name: stats.sums[name] / compared for name in ("mismatch_kl", "mismatch_abs") if compared}
        return mismatch | {
            "loss": stats.sums.get("loss", 0.0) / updates,
            "policy_loss": stats.sums.get("policy_loss", 0.0) / updates,
            "kl": stats.per_token("kl"),
            "clip_ratio": stats.per_token("clipped"),
            "ratio": stats.per_token("ratio"),
            "grad_norm": stats.mean_grad_norm,
            "learning_rate": self.updater.rate,
            "updates": float(stats.updates),
            "updates_skipped": float(stats.skipped),
            "micro_batches": float(stats.micro_batches),
            "trained_tokens": stats.sums.get("tokens", 0.0),
            "packed_tokens": float(stats.packed_tokens),
            "rows": float(sum(row.num_rounds for row in batch.rows)),
            "rollouts_skipped": float(batch.skipped),
        }
