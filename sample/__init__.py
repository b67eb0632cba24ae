"""Rollouts: the record, the rules of unmasking, and the sampler.

What is named here is loaded when it is first used, so that the trace viewer runs without torch.
"""

from typing import TYPE_CHECKING

from runtime.lazy import loader

if TYPE_CHECKING:
    from sample.canvas_sampler import sampler_of
    from sample.config import SamplingConfig
    from sample.events import Events
    from sample.rollout import Rollout
    from sample.sampler import Sampler
    from sample.strategies import Strategy
    from sample.targets import Target

__all__ = ["Events", "Rollout", "Sampler", "SamplingConfig", "Strategy", "Target", "sampler_of"]

_MODULES = {
    "Events": "sample.events",
    "Rollout": "sample.rollout",
    "Sampler": "sample.sampler",
    "SamplingConfig": "sample.config",
    "Strategy": "sample.strategies",
    "Target": "sample.targets",
    "sampler_of": "sample.canvas_sampler",
}

__getattr__ = loader(__name__, _MODULES)
