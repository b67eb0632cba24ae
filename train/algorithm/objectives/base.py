"""The record of tokens that an objective reads, and what an objective states about itself.

Shapes: N trained tokens of one micro-batch.
"""

import difflib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from math import inf
from types import MappingProxyType
from typing import Any, TypeVar

import torch
from torch import Tensor

from configs.fields import bounds_of, check_entry
from configs.schema import TrainingConfig
from runtime.doors import check_params

Metrics = dict[str, Tensor]


@dataclass(frozen=True)
class TokenBatch:
    """The trained tokens of one micro-batch, every field [N] on the device.

    logp: under the policy now, the one field with a gradient (and entropy). logp_old: under the policy before this
    step's updates. logp_rollout: what the sampler saw. logp_reference: under the frozen first model, or
    model.reference_model, None without training.kl_to=reference. advantage. weight, kl_weight: of the token in the
    policy's and in the KL term. All fp32.

    response: number of the token's response in this batch, from 0; group: of its group (responses of one prompt);
    round: the denoising step's rank inside its block, or of the masked copy; place: the token's in its response, or of
    its choice among the response's events. int64.

    share: how often the token's log-probability counts in its response's log-likelihood, sum_j share_j logp_j: 1 where
    each token is trained once (TraceRL), its copy's weight under random masks and drawn rows. reward: of the response.

    entropy (nats, whole vocabulary) and sums are there where the objective needs them.
    """

    logp: Tensor
    logp_old: Tensor
    logp_rollout: Tensor
    logp_reference: Tensor | None
    advantage: Tensor
    weight: Tensor
    kl_weight: Tensor
    response: Tensor
    round: Tensor
    place: Tensor
    share: Tensor
    reward: Tensor
    group: Tensor | None = None
    entropy: Tensor | None = None
    sums: Mapping[str, Tensor] | None = None

    @staticmethod
    def of(logp: Tensor, logp_old: Tensor, advantage: Tensor, weight: Tensor, **more: Any) -> "TokenBatch":
        """A batch of one response without reference and reward, each token trained once, whose sampler had the
        trainer's numerics; more: other fields."""
        zeros = torch.zeros(len(logp), dtype=torch.int64, device=logp.device)
        rest = {
            "logp_rollout": logp_old,
            "logp_reference": None,
            "kl_weight": weight,
            "response": zeros,
            "round": zeros,
            "place": torch.arange(len(logp), device=logp.device),
            "share": torch.ones_like(logp_old),
            "reward": torch.zeros_like(logp_old),
        }
        return TokenBatch(logp=logp, logp_old=logp_old, advantage=advantage, weight=weight, **(rest | more))


ObjectiveParams = Mapping[str, Any]
Objective = Callable[[TokenBatch, ObjectiveParams], tuple[Tensor, Metrics]]
Sums = Callable[[TokenBatch, ObjectiveParams], Mapping[str, Tensor]]


@dataclass(frozen=True)
class Needs:
    """What an objective needs of the trainer.

    whole_responses: all trained tokens of a response in one micro-batch. Under full attention that may take much
    memory: each denoising step of a response is a sequence of its own.
    whole_copies: all trained tokens of a response with one `round`, a masked copy of it, in one micro-batch. Those of
    built-in methods always are; for a user's method responses stay whole.
    sums: a function that is called before the update's first backward pass, without gradient, with all tokens of the
    update at once (all micro-batches, all ranks), and gives named numbers [N] of them, sums over responses, groups or
    the whole update give; the objective finds each token's under `batch.sums[name]`. It costs a forward pass more, and
    updates are made of whole groups.
    entropy: `batch.entropy`, with gradient.
    one_advantage: the same advantage at every token of a response, which a value model and process rewards do not give.
    training: keys of the config's training section that are parameters too, as "eps".
    teacher: `batch.logp_reference`, of model.reference_model, in place of an advantage, which is 0: every response is
    trained, whatever its reward.
    """

    whole_responses: bool = False
    sums: Sums | None = None
    entropy: bool = False
    training: tuple[str, ...] = ()
    one_advantage: bool = False
    teacher: bool = False
    whole_copies: bool = False


NOTHING = Needs()
F = TypeVar("F", bound=Callable[..., Any])


def objective(
    *bare: Any,
    whole_responses: bool = False,
    sums: Sums | None = None,
    entropy: bool = False,
    training: Sequence[str] = (),
    one_advantage: bool = False,
    teacher: bool = False,
    whole_copies: bool = False,
    defaults: Mapping[str, Any] = MappingProxyType({}),
    ranges: Mapping[str, tuple[float, float]] = MappingProxyType({}),
) -> Callable[[F], F]:
    """Decorator: writes on an objective what it needs (`Needs`), its parameters with their defaults, and the least and
    the largest value of some of them. TypeError without parentheses."""
    if bare:
        raise TypeError("@objective stands without parentheses: write @objective()")

    def mark(function: F) -> F:
        needs = Needs(whole_responses, sums, entropy, tuple(training), one_advantage, teacher, whole_copies)
        function.needs = needs  # type: ignore[attr-defined]
        function.defaults = dict(defaults)  # type: ignore[attr-defined]
        function.ranges = dict(ranges)  # type: ignore[attr-defined]
        return function

    return mark


def needs_of(function: Objective) -> Needs:
    """What `@objective` wrote; nothing for a bare function. ValueError where something else did."""
    needs = getattr(function, "needs", NOTHING)
    if not isinstance(needs, Needs):
        raise ValueError(f"training.objective: its attribute `needs` is {needs!r}; write it with @objective(...).")
    return needs


_ANY = (-inf, inf)


def params_of(
    function: Objective, given: Mapping[str, Any] = MappingProxyType({}), training: TrainingConfig | None = None
) -> ObjectiveParams:
    """An objective's parameters: its defaults and the keys of the training section that it names, then `given`.
    ValueError for a name that it has not, for a value of another kind than the default's, and outside the range of the
    key or of the parameter."""
    training, known = training or TrainingConfig(), {field.name: field for field in fields(TrainingConfig)}
    named = needs_of(function).training
    for name in named:
        if name not in known:
            near = difflib.get_close_matches(name, known, n=1)
            hint = f" Did you mean {near[0]!r}?" if near else ""
            raise ValueError(f"training.objective: @objective(training=...) names {name!r}, no key of training.{hint}")
    params = getattr(function, "defaults", {}) | {name: getattr(training, name) for name in named}
    found = check_params("training.objective_params", params, given)
    for name, value in found.items():
        key, (least, most) = f"training.objective_params.{name}", getattr(function, "ranges", {}).get(name, _ANY)
        if name in named and value is not None:
            check_entry(key, value, known[name])
        if name not in named and isinstance(value, int | float) and not least <= value <= most:
            raise ValueError(f"{key} is {value!r}; it must be {bounds_of(least, most)}.")
    return MappingProxyType(params | found)


def sum_by(number_N: Tensor, value_N: Tensor) -> Tensor:
    """For each token the sum [N] of the values of all tokens with its number (`batch.response`, `batch.group`)."""
    if not len(number_N):
        return value_N
    totals = value_N.new_zeros(int(number_N.max()) + 1).index_add(0, number_N, value_N)
    return totals[number_N]


MAX_LOG_RATIO = 10.0


def log_ratio_of(logp_N: Tensor, other_N: Tensor) -> Tensor:
    """logp - other, within +-10 so that its exp stays finite."""
    return (logp_N - other_N).clamp(-MAX_LOG_RATIO, MAX_LOG_RATIO)


def of_response(batch: TokenBatch, value_N: Tensor) -> Tensor:
    """For each token its response's sum_j share_j value_j: of log-probabilities the response's log-likelihood, of ones
    its length."""
    return sum_by(batch.response, batch.share * value_N)
