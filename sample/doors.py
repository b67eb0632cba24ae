"""A user's own strategy or target: opened, checked and tried before any model is loaded, and held to its contract in
every step.

What a step cannot check without reading the device is made right there instead: positions that are not masked are left
out of a strategy's choice, and where it commits none the best one by score is committed, so that decoding always ends.
"""

import functools
import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, TypeVar

import torch
from torch import Tensor

from runtime.doors import call_target, keyword_params, open_door
from sample.choices import Choices
from sample.strategies import STRATEGIES, Choose, Proposal, Strategy, best
from sample.targets import DREAM_TARGETS, TARGETS, Candidates, Coordinates, Target

logger = logging.getLogger(__name__)

Record = TypeVar("Record", Strategy, Target)
LOWEST_SCORE = -1e30


@dataclass(frozen=True)
class Given:
    """What a config names: `value`, with the keyword arguments `params`. key, params_key: what messages call them."""

    key: str
    value: Any
    params: Mapping[str, Any]
    params_key: str

    @property
    def title(self) -> str:
        """What messages call the function itself."""
        return f"{self.key}={self.value}" if isinstance(self.value, str) else self.key


def open_strategy(given: Given, choices: Choices) -> Strategy:
    """The strategy that is given: a built-in's name, path/to/file.py:name, a Strategy, or its `choose`. ValueError
    where it is none, or its choice for two made-up slots is not bool [n, b]."""
    found = open_door(given.key, given.value, STRATEGIES) if isinstance(given.value, str) else given.value
    strategy = found if isinstance(found, Strategy) else Strategy(found)
    if strategy in STRATEGIES.values():
        return _without_params(given, strategy)
    called = _called(given, strategy.choose)
    strategy = replace(
        strategy,
        choose=_held(called),
        or_equal=strategy.or_equal and _held(_called(given, strategy.or_equal)),
    )
    masked_nb, k_n = torch.tensor([[True, True, False, True], [False] * 4]), torch.tensor([2, 1])
    score_nb = torch.tensor([[0.5, 0.25, 0.0, 0.75], [0.0] * 4])
    proposal = Proposal(score_nb.long(), score_nb.log(), score_nb, score_nb if strategy.needs_entropy else None)
    strategy(proposal, masked_nb, k_n, choices)
    one_nb = torch.ones_like(score_nb)
    sure = Proposal(proposal.token, one_nb.log(), one_nb, one_nb.log() if strategy.needs_entropy else None)
    if not (called(sure, masked_nb, k_n, choices) & masked_nb).any():
        _warn_once(f"{given.title} commits nothing even where all tokens are sure: each step will take the best score")
    return strategy


def open_target(given: Given) -> Target:
    """The target that is given: a built-in's name, Dream's name of one, path/to/file.py:name, a Target, or its `score`.
    ValueError where it is none, or its scores of three made-up candidates are not numbers [N]."""
    builtins = TARGETS | {name: TARGETS[same] for name, same in DREAM_TARGETS.items()}
    found = open_door(given.key, given.value, builtins) if isinstance(given.value, str) else given.value
    target = found if isinstance(found, Target) else Target(found)
    if target in TARGETS.values():
        return _without_params(given, target)
    target = replace(target, score=_ranked(given, target.score))
    confidence, name = torch.tensor([0.5, 0.25, 0.75]), torch.arange(3)
    entropy, margin = confidence if target.needs_entropy else None, confidence if target.needs_margin else None
    score_N = target.score(
        Candidates(name, confidence.log(), confidence, entropy, margin, Coordinates(name, name, name))
    )
    if score_N.isnan().any():
        _warn_once(f"{given.title} is not a number for ordinary candidates: their order is then an arbitrary one")
    return target


@functools.cache
def _warn_once(text: str) -> None:
    """A config is made several times in a run."""
    logger.warning(text)


def _called(given: Given, choose: Choose) -> Choose:
    """A user's choice with its parameters. Shape and type are known without a look at the device."""
    title, params = given.title, _keywords(given, choose, 4)

    def called(proposal: Proposal, masked_nb: Tensor, k_n: Tensor, choices: Choices) -> Tensor:
        chosen = call_target(title, choose, proposal, masked_nb.clone(), k_n.clone(), choices, **params)
        if not isinstance(chosen, Tensor) or chosen.dtype != torch.bool or chosen.shape != masked_nb.shape:
            raise ValueError(f"{title} returned {_shown(chosen)}; it must be {_shown(masked_nb)}, as masked_nb.")
        return chosen

    return called


def _held(called: Choose) -> Choose:
    """A user's choice held to the contract of `Strategy.choose`."""

    def held(proposal: Proposal, masked_nb: Tensor, k_n: Tensor, choices: Choices) -> Tensor:
        chosen = called(proposal, masked_nb, k_n, choices) & masked_nb
        return chosen | (best(proposal.score, masked_nb, torch.ones_like(k_n)) & ~chosen.any(-1, keepdim=True))

    return held


def _ranked(given: Given, score: Callable[..., Tensor]) -> Callable[[Candidates], Tensor]:
    """A user's score as float32 above that of positions without a candidate, which is -inf."""
    title, params = given.title, _keywords(given, score, 1)

    def ranked(candidates: Candidates) -> Tensor:
        scores = call_target(title, score, candidates, **params)
        shape = candidates.confidence.shape
        if not isinstance(scores, Tensor) or scores.is_complex() or scores.shape != shape:
            raise ValueError(f"{title} returned {_shown(scores)}; it must be a number a candidate, {list(shape)}.")
        return scores.float().clamp_min(LOWEST_SCORE)

    return ranked


def _keywords(given: Given, function: Any, positional: int) -> dict[str, Any]:
    if not callable(function):
        raise ValueError(f"{given.key} is {function!r}, which cannot be called.")
    return keyword_params(given.key, function, positional, given.params, given.params_key)


def _without_params(given: Given, builtin: Record) -> Record:
    if given.params:
        raise ValueError(
            f"{given.params_key}={dict(given.params)}: {given.value} is built in and takes none; it reads its own keys."
        )
    return builtin


def _shown(value: Any) -> str:
    if not isinstance(value, Tensor):
        return repr(value)
    return f"{str(value.dtype).removeprefix('torch.')} {list(value.shape)}"
