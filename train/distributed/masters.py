"""fp32 masters of a model that works in bf16: what the optimizer steps on and checkpoints hold."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

HALF = torch.bfloat16


class Masters:
    """Of every parameter that an optimizer trains an fp32 master, which takes its place in the optimizer; the parameter
    itself becomes the master rounded to bf16, with which forward and backward passes compute and a sampler samples.
    Its gradients are summed in fp32. Frozen parameters are bf16 alone.

    The parameters stay the same objects, and their storage stays where it is from here on.
    """

    def __init__(self, model: torch.nn.Module, optimizer: torch.optim.Optimizer):
        self.masters: dict[torch.nn.Parameter, torch.nn.Parameter] = {}
        for group in optimizer.param_groups:
            group["params"] = [self._master_of(parameter) for parameter in group["params"]]
        for parameter in model.parameters():
            parameter.data = parameter.data.to(HALF)
            if parameter in self.masters:
                parameter.grad_dtype = torch.float32

    def _master_of(self, parameter: torch.nn.Parameter) -> torch.nn.Parameter:
        assert parameter.dtype == torch.float32, "a master is not made of rounded weights"
        self.masters[parameter] = torch.nn.Parameter(parameter.data)
        return self.masters[parameter]

    @torch.no_grad()
    def step(self, optimizer: torch.optim.Optimizer) -> None:
        """The optimizer's step by the parameters' gradients; the parameters are the rounded masters again."""
        for parameter, master in self.masters.items():
            master.grad = parameter.grad
        optimizer.step()
        for parameter, master in self.masters.items():
            master.grad = None
            parameter.copy_(master)

    @contextmanager
    def in_place(self) -> Iterator[None]:
        """While the block runs, the model's parameters are the masters."""
        working: dict[torch.nn.Parameter, Tensor] = {parameter: parameter.data for parameter in self.masters}
        try:
            for parameter, master in self.masters.items():
                parameter.data = master.data
            yield
        finally:
            for parameter, weight in working.items():
                parameter.data = weight
