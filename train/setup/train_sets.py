"""The sets of tasks that RL trains on, and the rewards that grade them."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from configs.schema import Config
from configs.sets import NamedSet, named_sets, shares
from models import DiffusionLM
from reward.base import Reward
from train.setup.prompts import Prompt, PromptSource, load_prompts
from train.setup.rewards import reward_of, with_own_function

KEY = "dataset.train_dataset"


@dataclass(frozen=True)
class TrainSet:
    """named: as the config has it. source: of its prompts."""

    named: NamedSet
    source: PromptSource

    def reward_of(self, config: Config) -> Reward:
        """The reward that grades it."""
        if self.named.reward:
            config = with_own_function(config, self.named.reward)
        return reward_of(config, self.named.data_type)


def train_sets(config: Config) -> list[TrainSet]:
    """In the order of the config. ValueError, with the key, for what a set cannot have."""
    dataset = config.dataset
    sets = named_sets(KEY, dataset.train_dataset, dataset.data_type)
    shares(KEY, sets, [1] * len(sets))
    return [
        TrainSet(each, PromptSource(each.name, each.data_type, dataset.max_tasks, config.rollout, each.columns))
        for each in sets
    ]


@dataclass(frozen=True)
class TrainTasks:
    """The prompts of an RL run, set after set; of several sets, ids of tasks begin with the set's label. sets: (number
    of prompts, weight) of each."""

    prompts: Sequence[Prompt]
    sets: Sequence[tuple[int, float]]

    @staticmethod
    def load(config: Config, model: DiffusionLM) -> "TrainTasks":
        sets = train_sets(config)
        loaded = [_labelled(load_prompts(config, each.source, model), each.named.label) for each in sets]
        sizes = [len(prompts) for prompts in loaded]
        weights = shares(KEY, [each.named for each in sets], sizes)
        return TrainTasks([prompt for prompts in loaded for prompt in prompts], list(zip(sizes, weights, strict=True)))


def _labelled(prompts: Sequence[Prompt], label: str) -> list[Prompt]:
    if not label:
        return list(prompts)
    return [replace(prompt, of=label, task=replace(prompt.task, id=f"{label}/{prompt.task.id}")) for prompt in prompts]


class TrainRewards:
    """A reward for each set of an RL run, one for those that are graded alike."""

    def __init__(self, config: Config):
        self._opened: dict[tuple[str, str | None], Reward] = {}
        self._of_set: dict[str, Reward] = {}
        try:
            for each in train_sets(config):
                kind = each.named.data_type, each.named.reward
                if kind not in self._opened:
                    self._opened[kind] = each.reward_of(config)
                self._of_set[each.named.label] = self._opened[kind]
        except ValueError:
            self.close()
            raise
        self.of_config = self._opened.get((config.dataset.data_type, None))
        """Of sets that name neither data_type nor reward; None where all do."""

    def split(self, prompts: Sequence[Prompt]) -> list[tuple[Reward, list[int]]]:
        """Each reward with the places of the prompts that it grades; none without prompts."""
        found: dict[int, tuple[Reward, list[int]]] = {}
        for place, prompt in enumerate(prompts):
            reward = self.of(prompt.of)
            found.setdefault(id(reward), (reward, []))[1].append(place)
        return list(found.values())

    def of(self, label: str) -> Reward:
        """The reward of the set with this label."""
        return self._of_set[label]

    def close(self) -> None:
        for reward in self._opened.values():
            reward.close()
