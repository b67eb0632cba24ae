"""A user's own strategy or target: opened, checked and tried before any model is loaded, and held to its contract in
every step.

What a step cannot check without reading the device is made right there instead: positions that are not masked are left
out of a strategy's choice, and where it commits none the best one by score is committed, so that decoding always ends.
"""

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any, TypeVar

import torch
from torch import Tensor

from runtime.doors import call_target, keyword_params, open_door
from sample.choices import Choices
from sample.strategies import STRATEGIES, Choose, Proposal, Strategy, best
from sample.targets import DREAM_TARGETS, TARGETS, Candidates, Coordinates, Target

Named = TypeVar("Named", Strategy, Target)
LOWEST_SCORE = -1e30


def open_strategy(key: str, given: Any, params: Mapping[str, Any], choices: Choices) -> Strategy:
    """The strategy `given`: a built-in's name, path/to/file.py:name, a Strategy, or its `choose`. params: keyword
    arguments of a user's own. ValueError, naming `key`, where it is none, or its choice for two made-up slots is not
    bool [n, b]."""
    found = open_door(key, given, STRATEGIES) if isinstance(given, str) else given
    strategy = found if isinstance(found, Strategy) else Strategy(found)
    if strategy in STRATEGIES.values():
        return _without_params(key, given, params, strategy)
    title = f"{key}={given}" if isinstance(given, str) else key
    choose = _held(title, strategy.choose, _keywords(key, strategy.choose, 4, params))
    or_equal = strategy.or_equal and _held(title, strategy.or_equal, _keywords(key, strategy.or_equal, 4, params))
    strategy = replace(strategy, choose=choose, or_equal=or_equal)
    masked_nb, k_n = torch.tensor([[True, True, False, True], [False] * 4]), torch.tensor([2, 1])
    score_nb = torch.tensor([[0.5, 0.25, 0.0, 0.75], [0.0] * 4])
    proposal = Proposal(score_nb.long(), score_nb.log(), score_nb, score_nb if strategy.needs_entropy else None)
    strategy(proposal, masked_nb, k_n, choices)
    return strategy


def open_target(key: str, given: Any, params: Mapping[str, Any]) -> Target:
    """The target `given`: a built-in's name, Dream's name of one, path/to/file.py:name, a Target, or its `score`.
    params: keyword arguments of a user's own. ValueError, naming `key`, where it is none, or its scores of three
    made-up candidates are not numbers [N]."""
    builtins = TARGETS | {name: TARGETS[same] for name, same in DREAM_TARGETS.items()}
    found = open_door(key, given, builtins) if isinstance(given, str) else given
    target = found if isinstance(found, Target) else Target(found)
    if target in TARGETS.values():
        return _without_params(key, given, params, target)
    title = f"{key}={given}" if isinstance(given, str) else key
    target = replace(target, score=_ranked(title, target.score, _keywords(key, target.score, 1, params)))
    confidence, name = torch.tensor([0.5, 0.25, 0.75]), torch.arange(3)
    entropy, margin = confidence if target.needs_entropy else None, confidence if target.needs_margin else None
    target.score(Candidates(name, confidence.log(), confidence, entropy, margin, Coordinates(name, name, name)))
    return target


def _held(title: str, choose: Choose, params: Mapping[str, Any]) -> Choose:
    """A user's choice held to the contract of `Strategy.choose`. Shape and type are known without a look at the
    device."""

    def held(proposal: Proposal, masked_nb: Tensor, k_n: Tensor, choices: Choices) -> Tensor:
        chosen = call_target(title, choose, proposal, masked_nb, k_n, choices, **params)
        if not isinstance(chosen, Tensor) or chosen.dtype != torch.bool or chosen.shape != masked_nb.shape:
            raise ValueError(f"{title} returned {_shown(chosen)}; it must be {_shown(masked_nb)}, as masked_nb.")
        chosen = chosen & masked_nb
        return chosen | (best(proposal.score, masked_nb, torch.ones_like(k_n)) & ~chosen.any(-1, keepdim=True))

    return held


def _ranked(title: str, score: Callable[..., Tensor], params: Mapping[str, Any]) -> Callable[[Candidates], Tensor]:
    """A user's score as float32 above that of positions without a candidate, which is -inf."""

    def ranked(candidates: Candidates) -> Tensor:
        scores = call_target(title, score, candidates, **params)
        shape = candidates.confidence.shape
        if not isinstance(scores, Tensor) or scores.is_complex() or scores.shape != shape:
            raise ValueError(f"{title} returned {_shown(scores)}; it must be a number a candidate, {list(shape)}.")
        return scores.float().clamp_min(LOWEST_SCORE)

    return ranked


def _keywords(key: str, function: Any, positional: int, params: Mapping[str, Any]) -> dict[str, Any]:
    if not callable(function):
        raise ValueError(f"{key} is {function!r}, which cannot be called.")
    return keyword_params(key, function, positional, params)


def _without_params(key: str, given: Any, params: Mapping[str, Any], builtin: Named) -> Named:
    if params:
        raise ValueError(f"{key}_params={dict(params)}: {given} is built in and takes none; it reads its own keys.")
    return builtin


def _shown(value: Any) -> str:
    if not isinstance(value, Tensor):
        return repr(value)
    return f"{str(value.dtype).removeprefix('torch.')} {list(value.shape)}"
