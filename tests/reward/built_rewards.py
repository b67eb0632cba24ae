"""Rewards as a config would name them, from keys of its sections `reward` and `execute`."""

from dataclasses import fields

from configs.schema import ExecuteConfig, RewardConfig
from reward import build_reward

_EXECUTE = {field.name for field in fields(ExecuteConfig)}


def built(data_type="math", judge=None, **keys):
    execute = {name: value for name, value in keys.items() if name in _EXECUTE}
    reward = {name: value for name, value in keys.items() if name not in _EXECUTE}
    return build_reward(RewardConfig(**reward), ExecuteConfig(**execute), data_type, judge)
