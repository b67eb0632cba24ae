"""The sets of tasks that an evaluation samples: of eval.py, and of RL in between."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from configs.schema import Config, DatasetConfig, DecodeConfig, EvaluationConfig
from configs.sets import key_of_set, named_sets
from data.traces import COMPARED
from reward.base import Reward
from train.setup.prompts import PromptSource
from train.setup.rewards import evaluates_as_it_trains, own_reward, reward_of, with_own_function

KEYS: Mapping[Literal["rl", "eval"], str] = {"rl": "evaluation.eval_dataset", "eval": "dataset.eval_dataset"}


@dataclass(frozen=True)
class EvalSet:
    """label: before the names of its decodings, "" where it is the only set. weight: in the mean over sets. reward: its
    own function (path/to/file.py:name), None for that of the config. key: that names it."""

    label: str
    source: PromptSource
    weight: float = 1.0
    reward: str | None = None
    key: str = KEYS["eval"]

    def reward_of(self, config: Config) -> Reward:
        """The reward that grades it."""
        if not self.reward:
            return reward_of(config, self.source.data_type, evaluating=True)
        with own_reward(key_of_set(self.key, self.label or self.source.name)):
            return reward_of(with_own_function(config, self.reward), self.source.data_type, evaluating=True)

    def graded_as_training(self, config: Config) -> bool:
        """Whether the reward of an RL run's training is its own too."""
        return self.reward is None and evaluates_as_it_trains(config, self.source.data_type)


def eval_sets(config: Config, command: Literal["rl", "eval"]) -> list[EvalSet]:
    """In the order of the config; none where RL has no evaluations. ValueError, with the key, for two of one name, or
    another data_type or weight than there can be."""
    dataset, evaluation = config.dataset, config.evaluation
    section: DatasetConfig | EvaluationConfig = evaluation if command == "rl" else dataset
    decode: DecodeConfig = evaluation if command == "rl" else config.rollout
    taken = ("all", COMPARED)  # the mean over sets and a second model's figures have these names
    return [
        EvalSet(
            each.label,
            PromptSource(each.name, each.data_type, section.max_tasks, decode, each.columns),
            1.0 if each.weight is None else each.weight,
            each.reward,
            KEYS[command],
        )
        for each in named_sets(KEYS[command], section.eval_dataset, section.data_type, taken)
    ]
