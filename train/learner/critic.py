"""The value model under training: it turns a response's reward into advantages of its tokens, then learns the
returns.

Shapes: N trained tokens of one response.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from models import ValueModel
from sample import Rollout
from train.algorithm.advantages import Floats, last_step_reward, step_gae
from train.algorithm.objectives import Metrics, clipped_value_loss, per_token
from train.algorithm.packing import MicroBatch
from train.algorithm.replay import Replayer, TrainingSample, by_response
from train.algorithm.steps import Ints, shrink_steps, shrunk_choices
from train.learner.batch import Replay, StepBatch
from train.learner.optimizer import Schedule
from train.learner.updater import Loss, StepTotals, Updater


def denoising_steps(rollout: Rollout, sample: TrainingSample, replayer: Replayer, shrink: int) -> Ints:
    """The step [N] at which the sampler chose each trained token of the sample, `shrink` neighbours merged as TraceRL
    merges them."""
    step_C = np.asarray(rollout.canvas_step_map, dtype=np.int64)
    unit_C = replayer.canvas(rollout, step_C > 0).unit_C
    if rollout.events is not None:
        return shrunk_choices(rollout.events, unit_C, shrink)[sample.event_index]
    return shrink_steps(step_C, unit_C, shrink)[sample.event_index]


@dataclass(frozen=True)
class Estimates:
    """For each sample of a batch, [N] each: values before this step's updates, and the returns and advantages that
    follow from them."""

    values: list[NDArray[np.float32]]
    returns: list[Floats]
    advantages: list[Floats]


class NoCritic:
    """A run without a value model: the advantages of a step stay as they are."""

    def step(self, batch: StepBatch, rollouts: Sequence[Rollout], step: int) -> tuple[StepBatch, dict[str, float]]:
        return batch, {}


class Critic:
    """A value model whose optimizer lives across steps. It reads the policy's samples: under TraceRL a token's value is
    that of the state in which its denoising step began, under random masks that of the mask that trains it.

    every: the value model is trained every so many steps.
    """

    def __init__(
        self, model: ValueModel, updater: Updater, replay: Replay, schedule: Schedule | None = None, every: int = 1
    ):
        self.model, self.updater, self.replay, self.every = model, updater, replay, every
        self.schedule = schedule or Schedule()

    def step(self, batch: StepBatch, rollouts: Sequence[Rollout], step: int) -> tuple[StepBatch, dict[str, float]]:
        """The batch of RL step `step` (from 1), whose credit is taken as rewards, with the advantages of its tokens
        instead; then, where the step is one of `every`, all updates of the value model. Returns batch and metrics."""
        if not batch.samples:
            return replace(batch, kind="advantage"), {}
        estimates = self.estimate(batch, rollouts)
        totals = StepTotals()
        if step % self.every == 0:
            self.updater.set_rate(self.schedule.scale(step - 1))
            totals = StepTotals(
                [
                    self.updater.update(batch.samples, which, self._loss(batch, estimates, which))
                    for which in self.replay.updates(batch, step)
                ]
            )
        after = replace(batch, credit=[*estimates.advantages], kind="advantage")
        return after, self._metrics(estimates, totals)

    def estimate(self, batch: StepBatch, rollouts: Sequence[Rollout]) -> Estimates:
        """Values, returns and advantages under the weights as they are. A reward of one number comes at the response's
        last denoising step, one of a number a token where it stands."""
        by_key = {rollout.key: rollout for rollout in rollouts}
        samples, shrink = batch.samples, self.replay.training.shrink
        values = self.updater.outputs(samples, range(len(samples)))
        found: dict[int, tuple[Floats, Floats]] = {}
        for which in by_response(samples):
            rollout, reward = by_key[samples[which[0]].key], batch.credit[which[0]]
            step_N = np.concatenate([denoising_steps(rollout, samples[i], self.replay.replayer, shrink) for i in which])
            if isinstance(reward, np.ndarray):
                reward_N = np.concatenate([batch.credit[i] for i in which])
            else:
                reward_N = last_step_reward(reward, step_N)
            value_N = np.concatenate([values[i] for i in which])
            pair = step_gae(reward_N, value_N, step_N, gamma=self.replay.training.gam, lam=self.replay.training.lam)
            ends = np.cumsum([samples[i].num_trained for i in which])[:-1]
            for i, return_N, advantage_N in zip(which, *(np.split(x, ends) for x in pair), strict=True):
                found[i] = return_N, advantage_N
        ordered = [found[i] for i in range(len(samples))]
        return Estimates(values, [returns for returns, _ in ordered], [advantages for _, advantages in ordered])

    def _loss(self, batch: StepBatch, estimates: Estimates, which: Sequence[int]) -> Loss:
        device = self.updater.accelerator.device
        weights = dict(zip(which, self.replay.weights(batch, which).policy, strict=True))

        def loss_of(value_N: Tensor, micro: MicroBatch) -> tuple[Tensor, Metrics]:
            return clipped_value_loss(
                value_N,
                per_token(estimates.values, micro, device),
                per_token(estimates.returns, micro, device),
                per_token(weights, micro, device),
                eps=self.replay.training.eps,
            )

        return loss_of

    def _metrics(self, estimates: Estimates, totals: StepTotals) -> dict[str, float]:
        value, given = np.concatenate(estimates.values), np.concatenate(estimates.returns)
        spread = float(given.var())
        metrics = {
            "value/mean": float(value.mean()),
            "value/explained_variance": 1.0 - float((given - value).var()) / spread if spread else 0.0,
        }
        if totals.results:
            metrics |= {
                "value/loss": totals.mean_loss,
                "value/clip_ratio": totals.per_token("clipped"),
                "value/grad_norm": totals.mean_grad_norm,
                "value/learning_rate": self.updater.rate,
                "value/updates": float(totals.updates),
                "value/updates_skipped": float(totals.skipped),
            }
        return metrics
