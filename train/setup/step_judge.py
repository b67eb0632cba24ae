"""Process rewards of an RL step, by the run's judge."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from configs.schema import Config
from models import DiffusionLM
from reward.judge.judge import CachedJudge
from reward.judge.process import ProcessReward, Response
from sample import Rollout
from sample.events import NO_CHOICE
from train.algorithm.advantages import Credit, step_gae
from train.algorithm.steps import last_events
from train.setup.local_judge import prompt_tokens
from train.setup.prompts import Prompt, tokenizer_of


class StepJudge:
    """Process rewards of an RL step: the groups that the outcome's reward kept are judged chunk by chunk."""

    def __init__(self, config: Config, model: DiffusionLM, judge: CachedJudge):
        tokenizer = tokenizer_of(model)
        self.group_size = config.rollout.num_response_per_task
        self.gamma = config.training.gam
        self.process = ProcessReward(
            judge,
            lambda ids: tokenizer.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False),
            chunk_tokens=config.judge.chunk_tokens,
            samples=config.judge.samples,
            max_prompt_tokens=prompt_tokens(config.judge),
        )

    def __call__(
        self,
        prompts: Sequence[Prompt],
        rollouts: Sequence[Rollout],
        rewards: Sequence[float | None],
        credit: Credit,
    ) -> Credit:
        """`credit` with token rewards, and with values made of them: the rewards themselves where a value model turns
        them into advantages, else the return-to-go (process supervision of GRPO, arXiv:2402.03300, discounted by
        training.gam a denoising step).

        A response on which the judge gave no answer at all is left out; a group without any other is dropped.
        """
        kept = [value is not None for value in credit.values]
        groups = [first for first in range(0, len(kept), self.group_size) if any(kept[first : first + self.group_size])]
        members = [i for first in groups for i in range(first, first + self.group_size)]
        responses = []
        for i in members:
            task, rollout, reward = prompts[i // self.group_size].task, rollouts[i], rewards[i]
            correct = None if reward is None else reward >= 1.0
            ids, steps = (rollout.token_ids, rollout.step_map) if kept[i] else ([], [])
            responses.append(Response(task.question, ids, steps, correct, task.answer, task.pictures))
        scores = self.process(responses, group_size=self.group_size)
        token_rewards: list[list[float] | None] = [None] * len(rollouts)
        for i, given, votes in zip(members, scores.token_rewards, scores.chunk_scores, strict=True):
            token_rewards[i] = None if all(vote is None for vote in votes) else given
        silent = sum(not any(token_rewards[first : first + self.group_size]) for first in groups)
        by_event = [at_events(given, rollout) for given, rollout in zip(token_rewards, rollouts, strict=True)]
        values = [
            given if given is None or credit.kind == "reward" else self.returns_to_go(given, rollout)
            for given, rollout in zip(by_event, rollouts, strict=True)
        ]
        return replace(
            credit,
            values=values,
            dropped=credit.dropped + Counter({"judge": silent}),
            token_rewards=token_rewards,
            stats=scores.stats,
        )

    def returns_to_go(self, rewards: list[float], rollout: Rollout) -> list[float]:
        """Of rewards of the response's tokens; of its events where the rollout has any, 0 at those that no one chose or
        that lie right of the response."""
        if rollout.events is None:
            step, chosen = np.asarray(rollout.step_map), np.ones(len(rewards), dtype=bool)
        else:
            step, place, action = (np.array(getattr(rollout.events, name)) for name in ("step", "place", "action"))
            chosen = (action != NO_CHOICE) & (place < rollout.num_response_tokens)
        returns = np.zeros(len(rewards))
        nothing = np.zeros(int(chosen.sum()))
        returns[chosen], _ = step_gae(np.asarray(rewards)[chosen], nothing, step[chosen], gamma=self.gamma, lam=1.0)
        return returns.tolist()


def at_events(rewards: list[float] | None, rollout: Rollout) -> list[float] | None:
    """Rewards of a response's tokens as those of its events: each at the choice that stands, 0 at all others. As they
    are where the rollout has no events."""
    if rewards is None or rollout.events is None:
        return rewards
    given = [0.0] * len(rollout.events)
    for place, event in enumerate(last_events(rollout.events, len(rollout.canvas_ids))[: len(rewards)].tolist()):
        if event >= 0:
            given[event] = rewards[place]
    return given
