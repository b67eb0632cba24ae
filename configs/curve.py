"""Thresholds of decoding: eval.py's `--curve`, accuracy over tokens per forward by thresholds, and those without
effect."""

import itertools
import logging
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from configs.schema import STRATEGIES_BY_THRESHOLD, STRATEGY_NAMES, DecodeConfig, RolloutConfig

FLAG = "--curve"
THRESHOLDS = (0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 1.0)
logger = logging.getLogger(__name__)


def curve_arguments(arguments: Sequence[str], command: str | None) -> tuple[list[str], bool]:
    """The arguments without eval.py's `--curve`, and whether it is among them."""
    asked = command == "eval" and FLAG in arguments
    return [argument for argument in arguments if not (asked and argument == FLAG)], asked


def reads_threshold(strategy: str) -> bool:
    """Whether a strategy compares with `threshold`. A user's own may; so may a name that is not known, which is refused
    elsewhere."""
    return strategy in STRATEGIES_BY_THRESHOLD or strategy not in STRATEGY_NAMES


def with_curve(rollout: RolloutConfig, typed: bool) -> RolloutConfig:
    """The section with THRESHOLDS, or its own where they are typed, for each entry of its lists whose strategy reads
    one; a warning names the other strategies. ValueError where none reads one, or one threshold alone is typed."""
    thresholds = rollout.threshold if typed else list(THRESHOLDS)
    if not isinstance(thresholds, list) or len(thresholds) < 2:
        raise ValueError(
            f"{rollout.key('threshold')}={thresholds}: {FLAG} goes over several thresholds: give a list of them, or "
            f"leave it out, which is {list(THRESHOLDS)}."
        )
    lists = replace(rollout, threshold=None).parallel_lists()
    entries = range(len(next(iter(lists.values()), [None])))
    strategies = lists.get("strategy", [rollout.strategy for _ in entries])
    idle = ", ".join(dict.fromkeys(name for name in strategies if not reads_threshold(name)))
    reading = [i for i in entries if reads_threshold(strategies[i])]
    key, fix = rollout.key("strategy"), " or ".join(STRATEGIES_BY_THRESHOLD)
    if not reading:
        raise ValueError(f"{key}={idle} reads no threshold, which {FLAG} goes over: set {key}={fix}.")
    if idle:
        logger.warning("%s leaves %s=%s out, which reads no threshold", FLAG, key, idle)
    pairs = list(itertools.product(reading, thresholds))
    chosen = {name: [values[i] for i, _ in pairs] for name, values in lists.items()}
    one_each: dict[str, Any] = {
        name: values[0] if values.count(values[0]) == len(values) else values for name, values in chosen.items()
    }
    return replace(rollout, threshold=[threshold for _, threshold in pairs], **one_each)


def warn_of_idle_threshold(decode: DecodeConfig, typed: bool) -> None:
    """Of a section of decoding where no strategy reads a threshold, of which one is typed, or a list is given. One of a
    recipe is there for whoever types another strategy."""
    strategies = decode.strategy if isinstance(decode.strategy, list) else [decode.strategy]
    if (typed or isinstance(decode.threshold, list)) and not any(map(reads_threshold, strategies)):
        key, strategy = decode.key("threshold"), decode.key("strategy")
        logger.warning("%s=%s has no effect: set %s=%s", key, decode.threshold, strategy, STRATEGIES_BY_THRESHOLD[0])
