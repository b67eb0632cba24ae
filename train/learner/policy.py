"""One RL step's learning: training samples and their advantages -> updates of the policy."""

import logging
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from models import Prompt
from runtime.doors import is_file_target
from sample import Rollout
from sample.rollout import Key
from train.algorithm.advantages import CreditKind, Floats
from train.algorithm.objectives import (
    COMPARED,
    BoundObjective,
    Metrics,
    TokenBatch,
    Weights,
    bind,
    clipped_surrogate,
    k3,
    per_token,
)
from train.algorithm.packing import MicroBatch, TrainedTokens, trained_tokens
from train.learner.batch import Replay, StepBatch
from train.learner.optimizer import Schedule
from train.learner.updater import Loss, StepTotals, Updater, UpdateResult, count_rows, outputs

logger = logging.getLogger(__name__)

LogProbs = Sequence[NDArray[np.float32]]
REPORTED = {"kl": "kl", "clipped": "clip_ratio", "ratio": "ratio"}
"""Sums of an objective that are logged per token under a name of the trainer; others are under objective/NAME."""
_NOT_PER_TOKEN = ("tokens", "policy_loss", "kl_loss")


@dataclass(frozen=True)
class Numbers:
    """What an update's objective reads besides the policy: of each sample of the step, by place, [N] of its trained
    tokens (credit: or one number). weights: of the update's samples `which`; sums: those that the objective needs."""

    batch: StepBatch
    which: Sequence[int]
    logp_old: LogProbs
    logp_reference: LogProbs | None
    weights: Weights
    sums: Mapping[str, Mapping[int, NDArray[np.float32]]] = field(default_factory=dict)


@dataclass(frozen=True)
class TrainResult:
    """A step's metrics; skipped: why it trained nothing, as far as its rollouts show, None where it trained."""

    metrics: dict[str, float]
    skipped: str | None = None


def _nothing_left(batch: StepBatch) -> str:
    return f"{batch.skipped} rollouts have a non-finite log-probability" if batch.skipped else ""


class Policy:
    """The policy under training, whose optimizer lives across steps.

    replay: makes samples of rollouts. objective: default clip. reference: the frozen model that the KL is to under
    training.kl_to=reference.
    """

    def __init__(
        self,
        updater: Updater,
        replay: Replay,
        objective: BoundObjective | None = None,
        schedule: Schedule | None = None,
        reference: nn.Module | None = None,
    ):
        self.updater, self.replay, self.reference = updater, replay, reference
        self.objective = objective or bind("clip", clipped_surrogate, replay.training)
        self.schedule = schedule or Schedule()

    def batch(
        self,
        rollouts: Sequence[Rollout],
        credit: Sequence[float | Sequence[float] | Floats | None],
        kind: CreditKind = "advantage",
        rewards: Sequence[float | None] | None = None,
        shown: Mapping[Key, Prompt] | None = None,
    ) -> StepBatch:
        """As `Replay.batch`."""
        return self.replay.batch(rollouts, credit, kind, rewards, shown)

    def rows_to_train(self, batch: StepBatch) -> int:
        """Rows of all updates of a step."""
        return count_rows(batch.samples, range(len(batch.samples))) * self.replay.training.num_train_epochs

    def train(self, batch: StepBatch, step: int, progress: Callable[[int], None] | None = None) -> TrainResult:
        """All updates of RL step `step` (from 1); `progress` gets the number of rows as they are done. A step without
        samples is skipped, and so is one whose samples are all left out for a computed log-probability, which counts as
        a skipped update."""
        assert batch.kind == "advantage", "a critic turns rewards into advantages"
        if not batch.samples:
            return TrainResult({"rollouts_skipped": float(batch.skipped)}, _nothing_left(batch))
        self.updater.set_rate(self.schedule.scale(step - 1))
        given = batch.samples
        batch, old, reference = self._with_log_probs(batch)
        if not batch.samples:
            self.updater.count_skipped(given, range(len(given)), UpdateResult(False, math.nan, math.nan))
            metrics = {"rollouts_skipped": float(batch.skipped), "updates_skipped": 1.0}
            return TrainResult(metrics, _nothing_left(batch))
        results: list[UpdateResult] = []
        needs = self.objective.needs
        if needs.whole_copies and is_file_target(self.replay.training.method):
            needs = replace(needs, whole_responses=True)  # its copies may share a round
        for which in self.replay.updates(batch, step, whole_groups=needs.sums is not None):
            measure = self.replay.as_sampled and not any(result.taken for result in results)
            loss_of = self._loss(self._numbers(batch, which, old, reference), measure)
            results.append(self.updater.update(batch.samples, which, loss_of, progress, needs))
            if is_file_target(self.objective.given) and not math.isfinite(results[-1].loss):
                logger.warning("%s returned the loss %g", self.objective.key, results[-1].loss)
        return TrainResult(self._metrics(StepTotals(results), batch))

    def _with_log_probs(self, batch: StepBatch) -> tuple[StepBatch, LogProbs, LogProbs | None]:
        """The batch with the old and the reference's log-probabilities of its samples. A response with a non-finite one
        is left out, counted and named; every rank has all numbers and leaves out the same."""
        every = range(len(batch.samples))
        old = self.updater.outputs(batch.samples, every) if self.replay.recomputes else batch.logp_rollout
        reference = None
        if self.reference is not None:
            limit = self.updater.settings.max_tokens
            lockstep = self.updater.engine.lockstep  # it may run on the trained model's base
            reference = outputs(self.reference, batch.samples, every, limit, self.updater.accelerator.device, lockstep)
        non_finite = dict.fromkeys(
            batch.samples[i].key for logp in (old, reference or old) for i in every if not np.isfinite(logp[i]).all()
        )
        for key in non_finite:
            logger.warning("rollout %s left out: non-finite log-probability in training", key)
        kept = [i for i in every if batch.samples[i].key not in non_finite]
        finite = batch.only(kept, len(non_finite))
        return finite, [old[i] for i in kept], None if reference is None else [reference[i] for i in kept]

    def _numbers(self, batch: StepBatch, which: Sequence[int], old: LogProbs, reference: LogProbs | None) -> Numbers:
        """What the objective reads of the update samples[which]; where it needs sums, after a forward pass over it."""
        numbers = Numbers(batch, which, old, reference, self.replay.weights(batch, which))
        if self.objective.needs.sums is None:
            return numbers
        now = self.updater.outputs(batch.samples, which, self.objective.needs.entropy)
        tokens = trained_tokens(batch.samples, which)
        device = self.updater.accelerator.device
        with torch.no_grad():
            logp = torch.from_numpy(np.concatenate([now[i] for i in which], axis=-1)).to(device)
            sums = self.objective.sums(self._tokens(numbers, logp, tokens))
        ends = np.cumsum([batch.samples[i].num_trained for i in which])[:-1]
        by_sample = {
            name: dict(zip(which, np.split(value.cpu().numpy(), ends), strict=True)) for name, value in sums.items()
        }
        return Numbers(batch, which, old, reference, numbers.weights, by_sample)

    def _tokens(self, numbers: Numbers, output: Tensor, tokens: TrainedTokens) -> TokenBatch:
        """The record of these trained tokens. output: log-probabilities [N], or [2, N] with entropies under them."""
        batch, device = numbers.batch, self.updater.accelerator.device
        logp, entropy = output if output.dim() == 2 else (output, None)
        keys = [batch.samples[i].key for i in tokens.samples]

        def spread(values: Sequence | Mapping) -> Tensor:
            return per_token(values, tokens, device)

        def numbered(names: Sequence) -> Tensor:
            order = {name: number for number, name in enumerate(dict.fromkeys(names))}
            number_of_sample = np.array([order[name] for name in names], dtype=np.int64)
            return torch.from_numpy(number_of_sample[tokens.sample_of_N]).to(device)

        def taken(field: str) -> Tensor:
            parts = [getattr(batch.samples[i], field) for i in tokens.samples]
            return torch.from_numpy(np.concatenate(parts).astype(np.int64)).to(device)

        return TokenBatch(
            logp=logp,
            logp_old=spread(numbers.logp_old),
            logp_rollout=spread(batch.logp_rollout),
            logp_reference=None if numbers.logp_reference is None else spread(numbers.logp_reference),
            advantage=spread(batch.credit),
            weight=spread(dict(zip(numbers.which, numbers.weights.policy, strict=True))),
            kl_weight=spread(dict(zip(numbers.which, numbers.weights.kl, strict=True))),
            response=numbered(keys),
            round=taken("round_index"),
            place=taken("event_index"),
            share=spread({i: batch.samples[i].weight for i in tokens.samples}),
            reward=spread(batch.rewards),
            group=numbered([self.replay.group_of(key) for key in keys]),
            entropy=entropy,
            sums={name: spread(values) for name, values in numbers.sums.items()} or None,
        )

    def _loss(self, numbers: Numbers, measure_mismatch: bool) -> Loss:
        def loss_of(output: Tensor, micro: MicroBatch) -> tuple[Tensor, Metrics]:
            tokens = self._tokens(numbers, output, micro)
            loss, metrics = self.objective(tokens)
            if not loss.requires_grad:
                loss = loss + 0.0 * tokens.logp.sum()  # none of these tokens counts
            if measure_mismatch:
                gap = tokens.logp_rollout - tokens.logp.detach()
                metrics |= {
                    "mismatch_kl": k3(gap).sum(),
                    "mismatch_abs": gap.abs().sum(),
                    "mismatch_tokens": gap.new_tensor(len(gap)),
                }
            return loss, metrics

        return loss_of

    def _metrics(self, totals: StepTotals, batch: StepBatch) -> dict[str, float]:
        mismatch = {
            name: totals.total(name) / tokens for name, other in COMPARED.items() if (tokens := totals.total(other))
        }
        apart = {*_NOT_PER_TOKEN, *COMPARED, *COMPARED.values()}
        named = {REPORTED.get(name, f"objective/{name}"): name for name in totals.names if name not in apart}
        policy_loss = totals.mean("policy_loss")
        return mismatch | {
            "loss": totals.mean_loss,
            **({"policy_loss": policy_loss} if "policy_loss" in totals.names else {}),
            **{shown: totals.per_token(name) for shown, name in named.items()},
            "grad_norm": totals.mean_grad_norm,
            "learning_rate": self.updater.rate,
            "updates": float(totals.updates),
            "updates_skipped": float(totals.skipped),
            "micro_batches": float(totals.micro_batches),
            "trained_tokens": totals.total("tokens"),
            "packed_tokens": float(totals.packed_tokens),
            **totals.speed,
            "rows": float(count_rows(batch.samples, range(len(batch.samples)))),
            "rollouts_skipped": float(batch.skipped),
            **totals.expert_balance,
        }
