"""Rollouts: the record, the rules of unmasking, and the sampler."""

from sample.config import SamplingConfig
from sample.rollout import Rollout
from sample.sampler import Sampler

__all__ = ["Rollout", "Sampler", "SamplingConfig"]
