"""The sets of tasks that an evaluation samples: of eval.py, and of RL in between."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from configs.schema import DATA_TYPES, Config, DatasetConfig, DecodeConfig, EvaluationConfig
from reward.base import Reward
from train.setup.prompts import PromptSource
from train.setup.rewards import evaluates_as_it_trains, reward_of

KEYS: Mapping[Literal["rl", "eval"], str] = {"rl": "evaluation.eval_dataset", "eval": "dataset.eval_dataset"}


@dataclass(frozen=True)
class EvalSet:
    """label: before the names of its decodings, "" where it is the only set. weight: in the mean over sets. reward: its
    own function (path/to/file.py:name), None for that of the config."""

    label: str
    source: PromptSource
    weight: float = 1.0
    reward: str | None = None

    def reward_of(self, config: Config) -> Reward:
        """The reward that grades it."""
        if self.reward:
            own = replace(config.reward, function=self.reward, beside_verifier=False, weights={})
            config = replace(config, reward=own)
        return reward_of(config, self.source.data_type, evaluating=True)

    def graded_as_training(self, config: Config) -> bool:
        """Whether the reward of an RL run's training is its own too."""
        return self.reward is None and evaluates_as_it_trains(config, self.source.data_type)


def eval_sets(config: Config, command: Literal["rl", "eval"]) -> list[EvalSet]:
    """In the order of the config; none where RL has no evaluations. ValueError, with the key, for two of one name, or
    another data_type or weight than there can be."""
    dataset, evaluation = config.dataset, config.evaluation
    section: DatasetConfig | EvaluationConfig = evaluation if command == "rl" else dataset
    decode: DecodeConfig = evaluation if command == "rl" else config.rollout
    given, kind, most = section.eval_dataset, section.data_type, section.max_tasks
    if not given:
        return []
    entries = given if isinstance(given, list) else [given]
    sets = []
    for entry in entries:
        values: Mapping[str, Any] = entry if isinstance(entry, Mapping) else {"name": entry}
        own_kind, weight = _checked(KEYS[command], values, kind)
        label = Path(values["name"]).stem.rpartition(":")[2] if len(entries) > 1 else ""
        sets.append(EvalSet(label, PromptSource(values["name"], own_kind, most, decode), weight, values.get("reward")))
        if label in ("all", "compared"):  # the mean over sets and a second model's figures have these names
            sets[-1] = replace(sets[-1], label=f"{label}-set")
    labels = [each.label for each in sets]
    for i, each in enumerate(sets):
        if labels.count(each.label) > 1:
            sets[i] = replace(each, label=f"{each.label}-{labels[:i].count(each.label) + 1}")
    return sets


def _checked(key: str, values: Mapping[str, Any], kind: str) -> tuple[str, float]:
    """data_type and weight of an entry."""
    own_kind, weight = values.get("data_type") or kind, values.get("weight", 1.0)
    if own_kind not in DATA_TYPES:
        raise ValueError(f"{key}: data_type {own_kind!r} of {values['name']}; choose from {', '.join(DATA_TYPES)}.")
    if isinstance(weight, bool) or not isinstance(weight, int | float) or not weight > 0:
        raise ValueError(f"{key}: weight {weight!r} of {values['name']}; it must be a number above 0.")
    return own_kind, float(weight)
