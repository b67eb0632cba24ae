"""Rollouts: the record, the rules of unmasking, and the sampler.

What is named here is loaded when it is first used, so that the trace viewer runs without torch.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sample.config import SamplingConfig
    from sample.rollout import Rollout
    from sample.sampler import Sampler
    from sample.strategies import Strategy
    from sample.targets import Target

__all__ = ["Rollout", "Sampler", "SamplingConfig", "Strategy", "Target"]

_FILES = {
    "Rollout": "sample.rollout",
    "Sampler": "sample.sampler",
    "SamplingConfig": "sample.config",
    "Strategy": "sample.strategies",
    "Target": "sample.targets",
}


def __getattr__(name: str) -> Any:
    if name not in _FILES:
        raise AttributeError(f"module 'sample' has no attribute {name!r}")
    return getattr(import_module(_FILES[name]), name)
