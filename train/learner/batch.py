"""A step's rollouts as training samples: what policy and critic train on, and how it is cut into updates."""

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from configs.schema import TrainingConfig
from models import DiffusionLM, Prompt
from sample import Rollout, SamplingConfig
from sample.request import hash_key
from sample.rollout import Key
from train.algorithm.advantages import CreditKind, Floats
from train.algorithm.masking import TRACE, Method
from train.algorithm.objectives import Correction, Weights, token_weights
from train.algorithm.replay import Replayer, TrainingSample, by_response, recorded_logprobs, replay
from train.distributed.sharding import rows_per_update

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class StepBatch:
    """A step's training samples with, for each, its credit (one number, or [N] of its trained tokens), the sampler's
    log-probabilities [N] and the reward of its response (0 where none was given).

    kind: what the credit is, an advantage, or a reward that a critic turns into one. longest_response: tokens of the
    step's longest. skipped: rollouts left out for a log-probability that is not finite.
    """

    samples: list[TrainingSample]
    credit: list[float | Floats]
    logp_rollout: list[NDArray[np.float32]]
    kind: CreditKind
    longest_response: int
    skipped: int
    rewards: list[float]

    def only(self, which: Sequence[int], skipped: int) -> "StepBatch":
        """The samples `which` alone, with so many more rollouts left out."""
        return replace(
            self,
            samples=[self.samples[i] for i in which],
            credit=[self.credit[i] for i in which],
            logp_rollout=[self.logp_rollout[i] for i in which],
            rewards=[self.rewards[i] for i in which],
            skipped=self.skipped + skipped,
        )


def plan_updates(
    samples: Sequence[TrainingSample],
    rows: int,
    seed: Sequence[int],
    group_of: Callable[[Key], Key] | None = None,
) -> list[list[int]]:
    """Order and cut of a step's samples: whole responses shuffled by seed, until an update has `rows` rows as dLLM-RL
    counts them (one a response and round); the last update may be smaller. group_of: names the group of a response's
    key, where whole groups are to be shuffled."""
    units: dict[Key, list[int]] = {}
    for places in by_response(samples):
        key = samples[places[0]].key
        units.setdefault(group_of(key) if group_of else key, []).extend(places)
    whole = list(units.values())
    updates: list[list[int]] = [[]]
    count = 0
    for place in np.random.default_rng(seed).permutation(len(whole)):
        if count >= rows:
            updates.append([])
            count = 0
        updates[-1] += whole[place]
        count += sum(samples[i].num_rounds for i in whole[place])
    return [update for update in updates if update]


def at_trained_tokens(
    given: float | Sequence[float] | Floats, rollout: Rollout, sample: TrainingSample
) -> float | Floats:
    """A response's number as it is; one number a response token, or an event where the rollout has events, as [N] of
    the sample's trained tokens, 0 at pads after the response. ValueError for another length."""
    if np.ndim(given) == 0:
        return given  # type: ignore[return-value]
    events = rollout.events
    count, kind = (rollout.num_response_tokens, "token") if events is None else (len(events), "event")
    if len(given) != count:  # type: ignore[arg-type]
        raise ValueError(
            f"rollout {rollout.key} has {count} {kind}s and {len(given)} rewards or "  # type: ignore[arg-type]
            f"advantages; give one number, or one {'a' if events is None else 'an'} {kind}."
        )
    recorded = np.zeros(len(recorded_logprobs(rollout)))
    recorded[:count] = given
    return recorded[sample.event_index]


@dataclass(frozen=True)
class Replay:
    """How a model's rollouts become training samples, and these updates; policy and critic share one.

    method: draws the masks. max_gen_length: what normalization `constant` divides by. as_trained: the sampler's
    log-probabilities are what the trainer computes. group_size: responses of a group; None = all with one prompt.
    """

    replayer: Replayer
    training: TrainingConfig
    method: Method
    max_gen_length: int
    as_trained: bool
    pad_id: int | None = None
    group_size: int | None = None

    @staticmethod
    def of(
        model: DiffusionLM,
        sampling: SamplingConfig,
        training: TrainingConfig | None = None,
        method: Method = TRACE,
        group_size: int | None = None,
        one_numerics: bool = True,
    ) -> "Replay":
        """Of the rollouts that `model` samples under `sampling`. one_numerics: sampler and trainer compute in one
        type."""
        training, sampling = training or TrainingConfig(), sampling.for_model(model)
        assert sampling.block_size is not None
        return Replay(
            replayer=Replayer(model.attention, model.logit_shift, model.mask_id, sampling.block_size),
            training=training,
            method=method,
            max_gen_length=training.max_gen_length or sampling.max_new_tokens,
            as_trained=one_numerics and sampling.cache in ("exact", "none"),
            pad_id=model.pad_id,
            group_size=group_size,
        )

    @property
    def as_sampled(self) -> bool:
        """Whether every token is trained in the state that the sampler chose it from."""
        return self.method.as_sampled and self.training.shrink == 1

    @property
    def recomputes(self) -> bool:
        """Whether the old log-probabilities are recomputed, because the sampler's are of other masks or numerics, or
        because a rollout correction compares the two."""
        choice, same = self.training.logp_old, self.as_sampled and self.as_trained
        return choice == "recompute" or (choice == "auto" and (not same or Correction.of(self.training).compares))

    def group_of(self, key: Key) -> Key:
        """Names the group of a response: its key (step, task, index in the group) without the index; a task that was
        drawn twice in a step has two groups."""
        index = key[-1]
        number = index // self.group_size if self.group_size is not None and isinstance(index, int) else 0
        return (*key[:-1], number)

    def batch(
        self,
        rollouts: Sequence[Rollout],
        credit: Sequence[float | Sequence[float] | Floats | None],
        kind: CreditKind = "advantage",
        rewards: Sequence[float | None] | None = None,
        shown: Mapping[Key, Prompt] | None = None,
    ) -> StepBatch:
        """Replays every rollout that has a credit, one number or one a response token (an event, where the rollout has
        events: `sample.Events`). A rollout with a non-finite
        log-probability is left out, counted and named. rewards: of the rollouts, for objectives that read them. shown:
        the prompts of rollouts with pictures, by key."""
        found: list[tuple[TrainingSample, float | Floats, NDArray[np.float32], float]] = []
        skipped = 0
        for rollout, given, reward in zip(rollouts, credit, rewards or [None] * len(rollouts), strict=True):
            if given is None:
                continue
            logprobs = recorded_logprobs(rollout).astype(np.float32)
            if not np.isfinite(logprobs).all():
                skipped += 1
                logger.warning("rollout %s left out: non-finite log-probability", rollout.key)
                continue
            found += [
                (sample, at_trained_tokens(given, rollout, sample), logprobs[sample.event_index], reward or 0.0)
                for sample in self._samples(rollout, (shown or {}).get(rollout.key))
            ]
        longest = max((rollout.num_response_tokens for rollout in rollouts), default=0)
        return StepBatch(
            [sample for sample, *_ in found],
            [given for _, given, _, _ in found],
            [logp for _, _, logp, _ in found],
            kind,
            longest,
            skipped,
            [reward for *_, reward in found],
        )

    def _samples(self, rollout: Rollout, prompt: Prompt | None) -> list[TrainingSample]:
        rng = np.random.default_rng([self.training.seed, hash_key(rollout.key) % 2**63])
        given = rollout, self.replayer, self.training
        return replay(*given, method=self.method, pad_id=self.pad_id, rng=rng, prompt=prompt)

    def updates(self, batch: StepBatch, step: int, whole_groups: bool = False) -> Iterator[list[int]]:
        """The updates of RL step `step`, epoch after epoch, made of whole responses, or of whole groups."""
        for epoch in range(self.training.num_train_epochs):
            yield from plan_updates(
                batch.samples,
                rows_per_update(self.training),
                [self.training.seed, step, epoch],
                self.group_of if whole_groups else None,
            )

    def weights(self, batch: StepBatch, which: Sequence[int]) -> Weights:
        """Weights of the samples `which` in the update that they make."""
        return token_weights(
            [batch.samples[i] for i in which],
            self.training.normalization,
            max_gen_length=self.max_gen_length,
            longest_response=batch.longest_response if self.replayer.attention == "block" else None,
        )
