"""The contract of training engines. Three keep it: `Replicated`, `Zero` (DeepSpeed's ZeRO-2 and ZeRO-3) and `Fsdp`
(torch's FSDP2); `accelerator.make_engine` picks one."""

from collections.abc import Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from accelerate import Accelerator
from torch import Tensor


class RunAccelerator(Accelerator):
    """accelerate's, with the precision of a run. half: models work in bf16 over fp32 masters, else in fp32. accelerate
    is not told of it: its own bf16 is autocast over fp32 weights, in which the trainer is another model than the
    sampler. offload: where an engine shards, masters, gradients and optimizer lie in host memory."""

    half = False
    offload = False


@dataclass(frozen=True)
class StepResult:
    """An optimizer step. norm: of the gradients of all ranks before clipping; taken: whether weights and optimizer
    changed, False where the loss or the norm was not finite."""

    norm: float
    taken: bool


class Engine(Protocol):
    """A model and its optimizer on all ranks of the job. An update is some calls of `model` and `backward`, then one
    `step`; gradients are summed over ranks, never averaged, in fp32. Every rank makes the same calls in the same order.

    Under `RunAccelerator.half` forward and backward passes compute in bf16; the weights that the optimizer steps on and
    that are saved are fp32.

    The optimizer's state leaves and enters in one form, that of AdamW over the whole model, so that a checkpoint
    resumes under any engine and on any number of ranks.
    """

    lockstep: bool
    """Whether every rank must run as many forward and backward passes as the others."""
    model: torch.nn.Module
    """What the forward pass of an update calls."""
    optimizer: Any
    """Has AdamW's `param_groups`, whose "lr" may be set."""

    def backward(self, loss: Tensor, last: bool) -> None:
        """Adds a micro-batch's gradients to the update's; `last`: it ends the update."""

    def step(self, loss: float) -> StepResult:
        """The optimizer's step for the gradients of all ranks, clipped to max_grad_norm. Not taken where `loss` (of
        all ranks) or the norm is not finite. The gradients are cleared either way."""

    def weights(self) -> Iterator[tuple[str, Tensor]]:
        """The model's named parameters as forward passes take them, each complete until the next one is drawn. Every
        rank must go through all of them."""

    def whole_on_main(self) -> AbstractContextManager[None]:
        """While the block runs, rank 0's model has all its weights in fp32, to be read and saved, not run."""

    def state_dict(self) -> dict[str, Any]:
        """AdamW's state dict of the whole model on rank 0; on other ranks its state may be empty."""

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Resumes with a state that rank 0 saved. Every rank passes all of it, and keeps its shard."""
