"""The value model under training: it turns a response's reward into advantages of its tokens, then learns the
returns.

Shapes: N trained tokens of one response.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from configs.schema import Config
from models import ValueModel
from sample import Rollout
from train.algorithm.advantages import Floats, last_step_reward, step_gae
from train.algorithm.masking import Ints, shrink_steps
from train.algorithm.objectives import Metrics, clipped_value_loss, per_token
from train.algorithm.replay import MicroBatch, Replayer, TrainingSample, by_response
from train.learner.policy import Policy, StepBatch, step_updates
from train.learner.updater import Loss, Updater, UpdateStats, scheduled


def value_updater_config(config: Config) -> Config:
    """The config that the value model's Updater reads: its own learning rate in place of the policy's."""
    params = replace(config.optimizer.params, learning_rate=config.optimizer.params.value_learning_rate)
    return replace(config, optimizer=replace(config.optimizer, params=params))


def denoising_steps(rollout: Rollout, row: TrainingSample, replayer: Replayer, shrink: int) -> Ints:
    """The step [N] at which the sampler decided each trained token of the row, `shrink` neighbours merged as TraceRL's
    rows merge them."""
    step_C = np.asarray(rollout.canvas_step_map, dtype=np.int64)
    canvas = replayer.canvas(len(rollout.prompt_ids), step_C, step_C > 0)
    return shrink_steps(step_C, canvas.unit_C, shrink)[row.canvas_index]


@dataclass(frozen=True)
class Estimates:
    """For each row of a batch, [N] each: values before this step's updates, and the returns and advantages that
    follow from them."""

    values: list[NDArray[np.float32]]
    returns: list[Floats]
    advantages: list[Floats]


class NoCritic:
    """A run without a value model: the advantages of a step stay as they are."""

    def step(self, batch: StepBatch, rollouts: Sequence[Rollout], step: int) -> tuple[StepBatch, dict[str, float]]:
        return batch, {}


class Critic:
    """A value model whose optimizer lives across steps. It reads the policy's rows: under TraceRL a token's value is
    that of the state in which its denoising step began, under random masks that of the mask that trains it."""

    def __init__(self, model: ValueModel, updater: Updater, config: Config, policy: Policy):
        self.model, self.updater, self.config, self.policy = model, updater, config, policy
        self.training = config.training

    def step(self, batch: StepBatch, rollouts: Sequence[Rollout], step: int) -> tuple[StepBatch, dict[str, float]]:
        """The batch of RL step `step` (from 1), whose `advantages` are taken as rewards, with the advantages of its
        tokens instead; then, every train_value_every steps, all updates of the value model. Returns batch and
        metrics."""
        if not batch.rows:
            return batch, {}
        estimates = self.estimate(batch, rollouts)
        stats = UpdateStats()
        if step % self.config.experiment.train_value_every == 0:
            self.updater.set_rate(scheduled(self.config.lr_scheduler, step - 1, self.config.experiment.total_step))
            for which in step_updates(batch.rows, self.training, step):
                self.updater.update(batch.rows, which, self._loss(batch, estimates, which), stats)
        return replace(batch, advantages=[*estimates.advantages]), self._metrics(estimates, stats)

    def estimate(self, batch: StepBatch, rollouts: Sequence[Rollout]) -> Estimates:
        """Values, returns and advantages under the weights as they are. A reward of one number comes at the response's
        last denoising step, one of a number a token where it stands."""
        by_key = {rollout.key: rollout for rollout in rollouts}
        every = range(len(batch.rows))
        empty = [np.empty(0)] * len(every)
        estimates = Estimates(self.updater.outputs(batch.rows, every), empty.copy(), empty.copy())
        for which in by_response(batch.rows):
            rows = [batch.rows[i] for i in which]
            rollout, reward = by_key[rows[0].key], batch.advantages[which[0]]
            step_N = np.concatenate(
                [denoising_steps(rollout, row, self.policy.replayer, self.training.shrink) for row in rows]
            )
            if isinstance(reward, np.ndarray):
                reward_N = np.concatenate([batch.advantages[i] for i in which])
            else:
                reward_N = last_step_reward(reward, step_N)
            value_N = np.concatenate([estimates.values[i] for i in which])
            found = step_gae(reward_N, value_N, step_N, gamma=self.training.gam, lam=self.training.lam)
            ends = np.cumsum([row.num_trained for row in rows])[:-1]
            for i, return_N, advantage_N in zip(which, *(np.split(x, ends) for x in found), strict=True):
                estimates.returns[i], estimates.advantages[i] = return_N, advantage_N
        return estimates

    def _loss(self, batch: StepBatch, estimates: Estimates, which: Sequence[int]) -> Loss:
        device = self.updater.accelerator.device
        weights = dict(zip(which, self.policy.weights(batch, which).policy, strict=True))

        def loss_of(value_N: Tensor, micro: MicroBatch) -> tuple[Tensor, Metrics]:
            return clipped_value_loss(
                value_N,
                per_token(estimates.values, micro, device),
                per_token(estimates.returns, micro, device),
                per_token(weights, micro, device),
                eps=self.training.eps,
            )

        return loss_of

    def _metrics(self, estimates: Estimates, stats: UpdateStats) -> dict[str, float]:
        value, given = np.concatenate(estimates.values), np.concatenate(estimates.returns)
        spread = float(given.var())
        metrics = {
            "value/mean": float(value.mean()),
            "value/explained_variance": 1.0 - float((given - value).var()) / spread if spread else 0.0,
        }
        if stats.updates or stats.skipped:
            metrics |= {
                "value/loss": stats.sums.get("loss", 0.0) / max(1, stats.updates),
                "value/clip_ratio": stats.per_token("clipped"),
                "value/grad_norm": stats.mean_grad_norm,
                "value/learning_rate": self.updater.rate,
                "value/updates": float(stats.updates),
                "value/updates_skipped": float(stats.skipped),
            }
        return metrics
