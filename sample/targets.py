"""Targets: by which score the positions of a block are ranked.

Shapes: N positions that have a candidate, n slots, b positions of a block.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

from torch import Tensor

from models.randomness import hash_uniform

ORDER_STREAM = 1


class Coordinates(NamedTuple):
    """What names the random numbers of N positions: their sequence's key, their place in it, and its step."""

    key: Tensor
    position: Tensor
    step: Tensor

    def uniform(self, stream: int) -> Tensor:
        """[N] float64 in [0, 1), the same for the same coordinates and stream."""
        return hash_uniform(*self, stream)


class Candidates(NamedTuple):
    """The tokens proposed for N positions, and what a target may rank them by.

    token; logp: its log-probability at temperature 1 over the whole vocabulary; confidence: its probability, as
    `Choices.confidence` reads it. entropy (nats) and margin (between the two likeliest tokens): of the distribution at
    temperature 1, where the target needs them.
    """

    token: Tensor
    logp: Tensor
    confidence: Tensor
    entropy: Tensor | None
    margin: Tensor | None
    coordinates: Coordinates


@dataclass(frozen=True)
class Target:
    """A score [N] of the candidates, the highest first, and what it needs."""

    score: Callable[[Candidates], Tensor]
    bounded: bool = False
    """The score is a probability: a strategy that compares with a threshold compares it. Of other targets it compares
    the confidence."""
    needs_entropy: bool = False
    needs_margin: bool = False


def confidence(candidates: Candidates) -> Tensor:
    """The probability of the token."""
    return candidates.confidence


def margin_confidence(candidates: Candidates) -> Tensor:
    """Probability of the likeliest token less that of the second."""
    assert candidates.margin is not None
    return candidates.margin


def neg_entropy(candidates: Candidates) -> Tensor:
    """The least uncertain first."""
    assert candidates.entropy is not None
    return -candidates.entropy


def random(candidates: Candidates) -> Tensor:
    return candidates.coordinates.uniform(ORDER_STREAM).float()


TARGETS: dict[str, Target] = {
    "confidence": Target(confidence, bounded=True),
    "margin_confidence": Target(margin_confidence, bounded=True, needs_margin=True),
    "neg_entropy": Target(neg_entropy, needs_entropy=True),
    "random": Target(random),
}
DREAM_TARGETS = {
    "maskgit_plus": "confidence",
    "topk_margin": "margin_confidence",
    "entropy": "neg_entropy",
    "origin": "random",
}
"""Dream's names of targets."""
