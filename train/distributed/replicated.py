"""Data parallel without shards: every rank holds the model, its gradients and its optimizer."""

import copy
import math
from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor

from train.distributed.engine import Engine, RunAccelerator, StepResult
from train.distributed.masters import Masters
from train.distributed.sharding import sum_gradients


class Replicated(Engine):
    """Every rank holds everything; gradients are summed over ranks before a step. One process is the same."""

    lockstep = False

    def __init__(
        self,
        model: torch.nn.Module,
        optimizer: torch.optim.Optimizer,
        accelerator: RunAccelerator,
        max_grad_norm: float,
    ):
        self.module, self.accelerator = model, accelerator
        self.masters = Masters(model, optimizer) if accelerator.half else None
        self.max_grad_norm = max_grad_norm if max_grad_norm > 0 else math.inf
        # evaluation_mode: without accelerate's wrapper for many ranks, whose hooks want every rank and parameter to
        # take part in each backward pass; `sum_gradients` does without.
        self.model: torch.nn.Module = accelerator.prepare_model(model, evaluation_mode=True)
        self.optimizer: Any = accelerator.prepare_optimizer(optimizer)

    def backward(self, loss: Tensor, last: bool) -> None:
        self.accelerator.backward(loss)

    def step(self, loss: float) -> StepResult:
        norm = self._clip()
        taken = math.isfinite(loss) and math.isfinite(norm)
        if taken and self.masters is not None:
            self.masters.step(self.optimizer)
        elif taken:
            self.optimizer.step()
        self.module.zero_grad(set_to_none=True)
        return StepResult(norm, taken)

    def _clip(self) -> float:
        """Sums the gradients of all ranks and clips them. Returns their norm before clipping."""
        sum_gradients(self.model.parameters())
        clipped = self.accelerator.clip_grad_norm_(self.model.parameters(), self.max_grad_norm)
        return float(clipped) if clipped is not None else 0.0

    def weights(self) -> Iterator[tuple[str, Tensor]]:
        yield from self.module.named_parameters()

    def whole_on_main(self) -> AbstractContextManager[None]:
        return nullcontext() if self.masters is None else self.masters.in_place()

    def state_dict(self) -> dict[str, Any]:
        return self.optimizer.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.optimizer.load_state_dict(copy.deepcopy(state))
