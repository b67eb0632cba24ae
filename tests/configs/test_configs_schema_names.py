"""Names of built-ins that the schema knows without importing what has them."""

import pytest

from configs import load_config
from configs.schema import (
    ADVANTAGE_NAMES,
    METHOD_NAMES,
    OBJECTIVE_NAMES,
    STRATEGIES_BY_THRESHOLD,
    STRATEGY_NAMES,
    TARGET_NAMES,
)
from sample.strategies import STRATEGIES
from sample.targets import DREAM_TARGETS, TARGETS
from train.algorithm.advantages import ADVANTAGES
from train.algorithm.masking import METHODS
from train.algorithm.objectives import OBJECTIVES


def test_the_schema_names_the_built_ins_that_there_are():
    by_threshold = tuple(name for name, strategy in STRATEGIES.items() if strategy.by_threshold)
    assert by_threshold == STRATEGIES_BY_THRESHOLD
    assert tuple(STRATEGIES) == STRATEGY_NAMES and (*TARGETS, *DREAM_TARGETS) == TARGET_NAMES
    assert tuple(ADVANTAGES) == ADVANTAGE_NAMES and tuple(OBJECTIVES) == OBJECTIVE_NAMES
    for command, names in METHOD_NAMES.items():
        assert tuple(name for name, method in METHODS.items() if getattr(method, command)) == names


@pytest.mark.parametrize(
    ("command", "method", "says"),
    [
        ("sft", "elbow", "training.method is 'elbow'; choose from .* Did you mean 'elbo'"),
        ("sft", "TraceRL", "training.method=TraceRL is for rl.py; SFT knows coupled"),
        ("rl", "semi-ar", "training.method=semi-ar is for train/sft.py; RL knows TraceRL"),
    ],
)
def test_a_command_refuses_a_method_that_it_does_not_know_while_it_reads_its_config(command, method, says):
    with pytest.raises(ValueError, match=says):
        load_config([f"config=configs/{command}_tiny.yaml", f"training.method={method}"], command=command)
    load_config([f"config=configs/{command}_tiny.yaml", "training.method=my.py:method"], command=command)
