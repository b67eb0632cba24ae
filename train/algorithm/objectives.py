"""What is minimised: pure functions of the trained tokens' log-probabilities.

An objective maps a `TokenBatch` and its parameters to (loss, metrics). The loss is a sum over tokens whose `weight`
carries the normalisation (0 = untrained), so that any split into micro-batches or ranks adds up to the same update; the
metrics are sums over tokens too. What an objective needs beyond single tokens it states with `@objective`.

Shapes: N trained tokens of one micro-batch.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from configs.schema import TrainingConfig
from runtime.doors import call_target, check_params, choose, is_file_target
from train.algorithm.packing import TrainedTokens
from train.algorithm.replay import TrainingSample

Metrics = dict[str, Tensor]
_MAX_LOG_RATIO = 10.0


@dataclass(frozen=True)
class TokenBatch:
    """The trained tokens of one micro-batch, every field [N] on the device.

    logp: under the policy now, the one field with a gradient (and entropy). logp_old: under the policy before this
    step's updates. logp_rollout: what the sampler saw. logp_reference: under the frozen first model, None without
    training.kl_to=reference. advantage. weight, kl_weight: of the token in the policy's and in the KL term. All fp32.

    response: number of the token's response in this batch, from 0; group: of its group (responses of one prompt);
    round: the denoising step's rank inside its block, or of the masked copy. int64.

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
    group: Tensor | None = None
    entropy: Tensor | None = None
    sums: Mapping[str, Tensor] | None = None

    @staticmethod
    def of(logp: Tensor, logp_old: Tensor, advantage: Tensor, weight: Tensor, **more: Any) -> "TokenBatch":
        """A batch of one response without a reference, whose sampler had the trainer's numerics; more: other fields."""
        zeros = torch.zeros(len(logp), dtype=torch.int64, device=logp.device)
        rest = {
            "logp_rollout": logp_old,
            "logp_reference": None,
            "kl_weight": weight,
            "response": zeros,
            "round": zeros,
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
    sums: a function that is called before the update's first backward pass, without gradient, with all tokens of the
    update at once (all micro-batches, all ranks), and gives named numbers [N] of them, sums over responses, groups or
    the whole update give; the objective finds each token's under `batch.sums[name]`. It costs a forward pass more, and
    updates are made of whole groups.
    entropy: `batch.entropy`, with gradient.
    training: keys of the config's training section that are parameters too, as "eps".
    """

    whole_responses: bool = False
    sums: Sums | None = None
    entropy: bool = False
    training: tuple[str, ...] = ()


NOTHING = Needs()
F = TypeVar("F", bound=Callable[..., Any])


def objective(
    *,
    whole_responses: bool = False,
    sums: Sums | None = None,
    entropy: bool = False,
    training: Sequence[str] = (),
    defaults: Mapping[str, Any] = MappingProxyType({}),
) -> Callable[[F], F]:
    """Decorator: writes on an objective what it needs (`Needs`) and its parameters with their defaults."""

    def mark(function: F) -> F:
        function.needs = Needs(whole_responses, sums, entropy, tuple(training))  # type: ignore[attr-defined]
        function.defaults = dict(defaults)  # type: ignore[attr-defined]
        return function

    return mark


def needs_of(function: Objective) -> Needs:
    """What `@objective` wrote; nothing for a bare function. ValueError where something else did."""
    needs = getattr(function, "needs", NOTHING)
    if not isinstance(needs, Needs):
        raise ValueError(f"training.objective: its attribute `needs` is {needs!r}; write it with @objective(...).")
    return needs


def params_of(
    function: Objective, given: Mapping[str, Any] = MappingProxyType({}), training: TrainingConfig | None = None
) -> ObjectiveParams:
    """An objective's parameters: its defaults and the keys of the training section that it names, then `given`.
    ValueError for a name that it has not, or a value of another kind than the default's."""
    training = training or TrainingConfig()
    params = dict(getattr(function, "defaults", {}))
    params |= {name: getattr(training, name) for name in needs_of(function).training}
    return MappingProxyType(params | check_params("training.objective_params", params, given))


def sum_by(number_N: Tensor, value_N: Tensor) -> Tensor:
    """For each token the sum [N] of the values of all tokens with its number (`batch.response`, `batch.group`)."""
    if not len(number_N):
        return value_N
    totals = value_N.new_zeros(int(number_N.max()) + 1).index_add(0, number_N, value_N)
    return totals[number_N]


def k1(log_ratio: Tensor) -> Tensor:
    """k1 = d, with d = logp - logp_ref (Schulman 2020, "Approximating KL divergence")."""
    return log_ratio


def k2(log_ratio: Tensor) -> Tensor:
    """k2 = d^2 / 2, with d = logp - logp_ref (ibid.)."""
    return 0.5 * log_ratio**2


def k3(log_ratio: Tensor) -> Tensor:
    """k3 = exp(-d) - 1 + d, with d = logp - logp_ref (ibid.): unbiased and never negative."""
    return torch.exp(-log_ratio) - 1.0 + log_ratio


KL_ESTIMATORS: dict[str, Callable[[Tensor], Tensor]] = {"k1": k1, "k2": k2, "k3": k3}


@objective(training=("eps", "beta", "kl_estimator", "rollout_correction", "rollout_correction_limit"))
def clipped_surrogate(batch: TokenBatch, params: ObjectiveParams) -> tuple[Tensor, Metrics]:
    """TraceRL's objective over tokens replayed at their own denoising step (arXiv:2509.06949), PPO's clip
    (arXiv:1707.06347):

        loss = - sum_j w_j c_j min(r_j A_j, clip(r_j, 1 - eps, 1 + eps) A_j) + beta sum_j v_j KL_j
        r = exp(logp - logp_old)

    Log-ratios are clamped to +-10 so that exp stays finite. The KL (kl_estimator) is to logp_reference, None = to
    logp_old. w, v: weight and kl_weight; c: see `rollout_correction`. Metrics: sums of tokens, clipped, ratio, kl,
    kl_loss, policy_loss.
    """
    eps, estimator = params["eps"], choose("training.kl_estimator", params["kl_estimator"], KL_ESTIMATORS)
    log_ratio = _log_ratio(batch.logp, batch.logp_old)
    ratio = log_ratio.exp()
    surrogate = torch.minimum(ratio * batch.advantage, ratio.clamp(1.0 - eps, 1.0 + eps) * batch.advantage)
    correction = rollout_correction(batch, params["rollout_correction"], params["rollout_correction_limit"])
    policy_loss = -(batch.weight * surrogate * (1.0 if correction is None else correction)).sum()
    other = batch.logp_reference
    kl_N = estimator(log_ratio if other is None else _log_ratio(batch.logp, other))
    kl_loss = (batch.kl_weight * kl_N).sum()
    trained = batch.weight > 0
    with torch.no_grad():
        bounded = ratio.clamp(1.0 - eps, 1.0 + eps) * batch.advantage
        metrics = {
            "tokens": trained.sum(),
            "clipped": (trained & (ratio * batch.advantage > bounded)).sum(),
            "ratio": (ratio * trained).sum(),
            "kl": (kl_N * trained).sum(),
            "policy_loss": policy_loss.detach(),
            "kl_loss": kl_loss.detach(),
        }
    return policy_loss + params["beta"] * kl_loss, metrics


OBJECTIVES: dict[str, Objective] = {"clip": clipped_surrogate}


def _log_ratio(logp_N: Tensor, other_N: Tensor) -> Tensor:
    return (logp_N - other_N).clamp(-_MAX_LOG_RATIO, _MAX_LOG_RATIO)


def truncated(ratio_N: Tensor, limit: float) -> Tensor:
    """c = min(r, limit): truncated importance sampling (Ionides 2008)."""
    return ratio_N.clamp(max=limit)


def masked(ratio_N: Tensor, limit: float) -> Tensor:
    """c = r where 1 / limit <= r <= limit, else 0: tokens on which sampler and trainer disagree are left out."""
    return torch.where((ratio_N >= 1.0 / limit) & (ratio_N <= limit), ratio_N, 0.0)


CORRECTIONS: dict[str, Callable[[Tensor, float], Tensor]] = {"truncated": truncated, "masked": masked}


def rollout_correction(batch: TokenBatch, kind: str, limit: float) -> Tensor | None:
    """Importance weights c [N] of tokens that the sampler drew from other numerics (an approximate cache, another
    precision) than the trainer's old policy, from r = exp(logp_old - logp_rollout); None for "none"."""
    if kind == "none":
        return None
    correction = choose("training.rollout_correction", kind, CORRECTIONS, "none")
    return correction(_log_ratio(batch.logp_old, batch.logp_rollout).exp(), limit)


@dataclass(frozen=True)
class BoundObjective:
    """An objective with its parameters, as training.objective names it (`given`). What it raises, and what it returns
    where that is no (loss, metrics), is a ValueError that names key, function and line."""

    given: str
    function: Objective
    params: ObjectiveParams

    @property
    def needs(self) -> Needs:
        return needs_of(self.function)

    @property
    def key(self) -> str:
        return f"training.objective={self.given}"

    def __call__(self, batch: TokenBatch) -> tuple[Tensor, Metrics]:
        """Loss and metrics; `tokens` is counted where the objective does not."""
        returned = self._call(self.key, self.function, batch)
        if not isinstance(returned, tuple) or len(returned) != 2:
            raise ValueError(f"{self.key} returned {_kind(returned)}; it must return (loss, metrics).")
        loss, metrics = returned
        if not isinstance(loss, Tensor) or loss.dim() or not loss.is_floating_point():
            raise ValueError(f"{self.key} returned {_kind(loss)} as its loss; it must be a tensor of one number.")
        if not isinstance(metrics, dict) or not all(isinstance(name, str) for name in metrics):
            raise ValueError(f"{self.key} returned {_kind(metrics)} as its metrics; it must be a dict of names.")
        for name, value in metrics.items():
            if not isinstance(value, int | float) and not (isinstance(value, Tensor) and not value.dim()):
                raise ValueError(f"{self.key} returned {_kind(value)} as metric {name!r}; it must be one number.")
        sums = {name: torch.as_tensor(value, device=loss.device) for name, value in metrics.items()}
        return loss, {"tokens": (batch.weight > 0).sum()} | sums

    def sums(self, update: TokenBatch) -> dict[str, Tensor]:
        """`Needs.sums` of all tokens of an update: named numbers [N]."""
        assert self.needs.sums is not None
        found = self._call(f"{self.key}, sums", self.needs.sums, update)
        if not isinstance(found, Mapping):
            raise ValueError(f"{self.key}, sums: returned {_kind(found)}; it must return a dict of tensors.")
        for name, value in found.items():
            if not isinstance(value, Tensor) or value.shape != update.logp.shape:
                raise ValueError(
                    f"{self.key}, sums: returned {_kind(value)} as {name!r}; it must be a tensor of "
                    f"{len(update.logp)} numbers, one a token (see sum_by)."
                )
        return {str(name): value.detach().float() for name, value in found.items()}

    def _call(self, key: str, function: Callable[..., Any], batch: TokenBatch) -> Any:
        if not is_file_target(self.given):
            return function(batch, self.params)
        return call_target(key, function, batch, self.params)


def _kind(value: object) -> str:
    return f"a tensor of shape {tuple(value.shape)}" if isinstance(value, Tensor) else f"a {type(value).__name__}"


def bind(given: str, function: Objective, training: TrainingConfig) -> BoundObjective:
    """The objective that `training` names, with training.objective_params."""
    return BoundObjective(given, function, params_of(function, training.objective_params, training))


def clipped_value_loss(
    value_N: Tensor, value_old_N: Tensor, return_N: Tensor, weight_N: Tensor, *, eps: float
) -> tuple[Tensor, Metrics]:
    """The squared error of a value model that moves at most eps from its old values (arXiv:2005.12729, TraceRL
    arXiv:2509.06949):

        loss = sum_j w_j 1/2 max((v_j - R_j)^2, (clip(v_j, v_old_j - eps, v_old_j + eps) - R_j)^2)

    Returns the loss and sums over the N tokens: tokens, clipped (the clip decides the maximum).
    """
    error = (value_N - return_N) ** 2
    held = (torch.clamp(value_N, value_old_N - eps, value_old_N + eps) - return_N) ** 2
    trained = weight_N > 0
    metrics = {"tokens": trained.sum(), "clipped": (trained & (held > error)).sum()}
    return 0.5 * (weight_N * torch.maximum(error, held)).sum(), metrics


def negative_log_likelihood(logp_N: Tensor, weight_N: Tensor) -> tuple[Tensor, Metrics]:
    """SFT: loss = - sum_j w_j logp_j over masked tokens. Returns the loss and sums: tokens, nll."""
    trained = weight_N > 0
    metrics = {"tokens": trained.sum(), "nll": -(logp_N.detach() * trained).sum()}
    return -(weight_N * logp_N).sum(), metrics


@dataclass(frozen=True)
class Weights:
    """Weights [N] of each sample's trained tokens in the policy's (or SFT's) loss, and in the KL term."""

    policy: list[NDArray[np.float64]]
    kl: list[NDArray[np.float64]]


def per_token(
    values: Sequence[float | NDArray[np.floating]] | Mapping[int, float | NDArray[np.floating]],
    tokens: TrainedTokens,
    device: torch.device,
) -> Tensor:
    """values[i] of each sample i, one number or one a trained token, as [N] in fp32."""
    counts = np.bincount(tokens.sample_of_N, minlength=len(tokens.samples))
    spread = [
        np.broadcast_to(np.asarray(values[i], np.float32), count)
        for i, count in zip(tokens.samples, counts, strict=True)
    ]
    return torch.from_numpy(np.concatenate(spread)).to(device)


def token_weights(
    samples: Sequence[TrainingSample], kind: str, *, max_gen_length: int, longest_response: int | None = None
) -> Weights:
    """Weights in an update made of `samples`, which are whole responses.

    constant: mean over responses of (sum over tokens / max_gen_length). token_mean: sum / trained tokens of the update.
    reference: dLLM-RL's, which depends on batch mates. With longest_response (block families): mean over rows (one a
    round) of (sum / longest response of the step). Without (full attention): mean over rows of the row's mean, and
    for the KL of its sum.
    """
    rounds = sum(sample.num_rounds for sample in samples)
    if kind == "constant":
        scale = 1.0 / (len({sample.key for sample in samples}) * max_gen_length)
    elif kind == "token_mean":
        scale = 1.0 / max(1.0, sum(float(sample.weight.sum()) for sample in samples))
    elif kind == "reference":
        scale = 1.0 / rounds if longest_response is None else 1.0 / (rounds * longest_response)
    else:
        raise ValueError(f"training.normalization is {kind!r}; choose from constant, token_mean, reference.")
    plain = [scale * sample.weight for sample in samples]
    if kind == "reference" and longest_response is None:
        return Weights([weight / len(weight) for weight in plain], plain)
    return Weights(plain, plain)
