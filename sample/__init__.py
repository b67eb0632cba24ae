"""Rollouts: the record, the rules of unmasking, and the sampler."""

from sample.config import SamplingConfig
from sample.rollout import Rollout
from sample.sampler import Sampler
from sample.strategies import Strategy
from sample.targets import Target

__all__ = ["Rollout", "Sampler", "SamplingConfig", "Strategy", "Target"]
