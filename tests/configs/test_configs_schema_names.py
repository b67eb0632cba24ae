"""Names of built-ins that the schema knows without importing what has them."""

from configs.schema import ADVANTAGE_NAMES, OBJECTIVE_NAMES, STRATEGY_NAMES, TARGET_NAMES
from sample.strategies import STRATEGIES
from sample.targets import DREAM_TARGETS, TARGETS
from train.algorithm.advantages import ADVANTAGES
from train.algorithm.objectives import OBJECTIVES


def test_the_schema_names_the_built_ins_that_there_are():
    assert tuple(STRATEGIES) == STRATEGY_NAMES and (*TARGETS, *DREAM_TARGETS) == TARGET_NAMES
    assert tuple(ADVANTAGES) == ADVANTAGE_NAMES and tuple(OBJECTIVES) == OBJECTIVE_NAMES
