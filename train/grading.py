"""What an RL step's completions are worth: each graded by the reward of its set."""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from configs.schema import Config
from models import DiffusionLM
from reward.function import means_of
from sample import Rollout
from train.edits import draft, effects
from train.learner.rollout_log import RolloutLog
from train.setup.prompts import Prompt, completion_text, reward_columns
from train.setup.step_judge import StepJudge
from train.setup.train_sets import TrainRewards

logger = logging.getLogger(__name__)

Parts = dict[str, list[float | None]]


@dataclass(frozen=True)
class Scores:
    """Completions of a step's rollouts, their rewards, and counts of the reward's calls. parts: of a sum, what each of
    its rewards gave."""

    texts: list[str]
    rewards: list[float | None]
    stats: dict[str, float]
    parts: Parts

    def joined(self, more: "Scores") -> "Scores":
        """These, then those of further rollouts. A part that one of the two lacks (of another set) is None there."""
        names = dict.fromkeys((*self.parts, *more.parts))
        none: list[float | None] = [None] * len(self.texts)
        none_there: list[float | None] = [None] * len(more.texts)
        parts = {name: self.parts.get(name, none) + more.parts.get(name, none_there) for name in names}
        stats = _summed(self.stats, more.stats) | means_of(parts)
        return Scores(self.texts + more.texts, self.rewards + more.rewards, stats, parts)

    def of_each(self) -> list[dict[str, float]]:
        """The parts of each response's reward that its own set has; {"": the reward} of one without parts."""
        found: list[dict[str, float]] = []
        for i, reward in enumerate(self.rewards):
            own = {name: value for name, values in self.parts.items() if (value := values[i]) is not None}
            found.append(own or {"": reward or 0.0})
        return found

    def ordered(self, places: Sequence[int]) -> "Scores":
        """Number i at place places[i]."""
        order = sorted(range(len(places)), key=places.__getitem__)
        parts = {name: [values[i] for i in order] for name, values in self.parts.items()}
        return Scores([self.texts[i] for i in order], [self.rewards[i] for i in order], self.stats, parts)


def _summed(first: Mapping[str, float], second: Mapping[str, float]) -> dict[str, float]:
    return {name: first.get(name, 0.0) + second.get(name, 0.0) for name in sorted({*first, *second})}


@dataclass(frozen=True)
class Grading:
    """What grades and keeps rollouts: on rank 0 alone, other ranks have none. judge: the one of process rewards."""

    rewards: TrainRewards | None
    judge: StepJudge | None
    log: RolloutLog | None

    def scores(
        self, prompts: Sequence[Prompt], rollouts: Sequence[Rollout], model: DiffusionLM, config: Config
    ) -> Scores:
        """Of prompt-major rollouts that `model` sampled."""
        assert self.rewards is not None
        n = config.rollout.num_response_per_task
        found, places = Scores([], [], {}, {}), []
        for reward, which in self.rewards.split(prompts):
            chosen = [prompts[i] for i in which]
            members = [i * n + j for i in which for j in range(n)]
            sampled = [rollouts[i] for i in members]
            texts = [completion_text(rollout, model) for rollout in sampled]
            questions = [prompt.text for prompt in chosen for _ in range(n)]
            columns = reward_columns(chosen, sampled, model)
            rewards = reward(questions, texts, **columns)
            parts, stats = reward.given, reward.stats
            if reward.verifies and any(rollout.events is not None for rollout in sampled):
                drafts = [draft(rollout, model.eos_ids, config.rollout.max_new_tokens) for rollout in sampled]
                first = [completion_text(rollout, model) for rollout in drafts]
                stats = stats | effects(reward, questions, texts, first, rewards, columns)
            if config.training.truncated == "wrong":
                rewards = _cut_is_wrong(sampled, rewards, config.rollout.key("max_new_tokens"))
                if config.reward.combine == "normalise":
                    parts = {name: _without_cut(sampled, values) for name, values in parts.items()}
            found = found.joined(Scores(texts, rewards, stats, parts))
            places += members
        return found.ordered(places)


def _cut_is_wrong(rollouts: Sequence[Rollout], rewards: Sequence[float | None], longest_key: str) -> list[float | None]:
    """The rewards with 0 for responses without a stop (training.truncated=wrong). longest_key: of the longest one."""
    cut = [rollout.finish_reason == "length" for rollout in rollouts]
    if any(is_cut and reward for is_cut, reward in zip(cut, rewards, strict=True)):
        logger.warning(
            "responses without a stop had a reward and count as 0 (training.truncated=wrong): raise %s, or set "
            "training.truncated to keep or drop",
            longest_key,
        )
    return _without_cut(rollouts, rewards)


def _without_cut(rollouts: Sequence[Rollout], rewards: Sequence[float | None]) -> list[float | None]:
    cut = [rollout.finish_reason == "length" for rollout in rollouts]
    return [0.0 if is_cut and reward is not None else reward for is_cut, reward in zip(cut, rewards, strict=True)]
