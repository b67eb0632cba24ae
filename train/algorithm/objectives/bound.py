"""An objective as a run has it: with its parameters, after the rollout correction, its returns checked."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from configs.schema import TrainingConfig
from runtime.doors import call_target, is_file_target
from train.algorithm.objectives.base import Metrics, Needs, Objective, ObjectiveParams, TokenBatch, needs_of, params_of
from train.algorithm.objectives.correction import Correction

COMPARED = {
    "mismatch_kl": "mismatch_tokens",
    "mismatch_abs": "mismatch_tokens",
    "rollout_weight": "rollout_tokens",
    "rollout_rejected": "rollout_tokens",
}
"""Sums of sampler against trainer, and what each is divided by: no objective may return them."""
_ASKED = {
    "logp_reference": "training.kl_to=reference or @objective(teacher=True)",
    "entropy": "@objective(entropy=True)",
    "sums": "@objective(sums=...)",
}
"""Fields of a batch that are there where they are asked for, and how."""


@dataclass(frozen=True)
class BoundObjective:
    """An objective with its parameters, as training.objective names it (`given`). What it raises, and what it returns
    where that is no (loss, metrics), is a ValueError that names key, function and line."""

    given: str
    function: Objective
    params: ObjectiveParams
    correction: Correction = Correction()

    @property
    def needs(self) -> Needs:
        """What the objective and the rollout correction before it need."""
        needs = needs_of(self.function)
        return replace(needs, whole_responses=needs.whole_responses or self.correction.whole_responses)

    @property
    def key(self) -> str:
        return f"training.objective={self.given}"

    def __call__(self, batch: TokenBatch) -> tuple[Tensor, Metrics]:
        """Loss and metrics of the batch after its rollout correction; `tokens` is counted where the objective does
        not."""
        batch, corrected = self.correction(batch)
        returned = self._call(self.key, self.function, batch)
        if not isinstance(returned, tuple) or len(returned) != 2:
            raise ValueError(f"{self.key} returned {_kind(returned)}; it must return (loss, metrics).")
        loss, metrics = returned
        if not isinstance(loss, Tensor) or loss.dim() or not loss.is_floating_point():
            raise ValueError(
                f"{self.key} returned {_kind(loss)} as its loss; it must be a tensor of one number, in floating point."
            )
        if not isinstance(metrics, dict) or not all(isinstance(name, str) for name in metrics):
            raise ValueError(f"{self.key} returned {_kind(metrics)} as its metrics; it must be a dict of names.")
        for name, value in metrics.items():
            if not isinstance(value, int | float) and not (isinstance(value, Tensor) and not value.dim()):
                raise ValueError(f"{self.key} returned {_kind(value)} as metric {name!r}; it must be one number.")
            if name in {*COMPARED, *COMPARED.values()}:
                raise ValueError(f"{self.key} returned a metric {name!r}, which is the trainer's own: rename it.")
        sums = {name: torch.as_tensor(value, device=loss.device) for name, value in metrics.items()}
        return loss, {"tokens": (batch.weight > 0).sum()} | sums | corrected

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
        try:
            return call_target(key, function, batch, self.params)
        except ValueError as error:
            absent = [f"batch.{name} is None without {need}" for name, need in _ASKED.items() if not _has(batch, name)]
            if "NoneType" not in str(error) or not absent:
                raise
            raise ValueError(f"{error}; {', '.join(absent)}") from error


def _has(batch: TokenBatch, name: str) -> bool:
    return getattr(batch, name) is not None


def _kind(value: object) -> str:
    if not isinstance(value, Tensor):
        return f"a {type(value).__name__}"
    numbers = "" if value.is_floating_point() else f" of {str(value.dtype).removeprefix('torch.')} numbers"
    return f"a tensor{numbers} of shape {tuple(value.shape)}"


def bind(given: str, function: Objective, training: TrainingConfig) -> BoundObjective:
    """The objective that `training` names, with training.objective_params."""
    params = params_of(function, training.objective_params, training)
    return BoundObjective(given, function, params, Correction.of(training))
