"""torch's FSDP2."""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import CPUOffloadPolicy, FSDPModule, MixedPrecisionPolicy, OffloadPolicy, fully_shard
from torch.distributed.tensor import DTensor
from transformers.modeling_layers import GradientCheckpointingLayer

from models.head import OutputHead
from models.unread import read_in_place
from runtime import ranks
from train.distributed.engine import RunAccelerator
from train.distributed.masters import HALF
from train.distributed.replicated import Replicated
from train.distributed.sharding import saved_parameters


class FsdpAccelerator(RunAccelerator):
    """Marks that `Fsdp` shards the models. accelerate itself runs as without FSDP, which it silently drops on CPU."""


class Fsdp(Replicated):
    """torch's FSDP2: each rank holds a shard of weights, gradients and optimizer, all fp32; the weights are gathered
    layer by layer as they are used, in the type that passes compute in. https://arxiv.org/abs/2304.11277"""

    lockstep = True

    def __init__(
        self,
        model: torch.nn.Module,
        optimizer: torch.optim.Optimizer,
        accelerator: RunAccelerator,
        max_grad_norm: float,
    ):
        self.masters = None  # the shards are fp32 themselves
        self.module, self.accelerator, self.optimizer = model, accelerator, optimizer
        self.max_grad_norm = max_grad_norm if max_grad_norm > 0 else math.inf
        names = {parameter: name for name, parameter in model.named_parameters()}
        trained = [[names[parameter] for parameter in group["params"]] for group in optimizer.param_groups]
        names.clear()
        for group in optimizer.param_groups:
            group["params"] = []  # frees the whole weights while they are sharded layer by layer
        self._shard()
        parameters = dict(model.named_parameters())
        for group, own in zip(optimizer.param_groups, trained, strict=True):
            group["params"] = [parameters[name] for name in own]
        placed = not accelerator.offload  # else the shards would leave host memory
        self.model: torch.nn.Module = accelerator.prepare_model(model, placed, evaluation_mode=True)

    def _shard(self) -> None:
        half = HALF if self.accelerator.half else None
        policy = MixedPrecisionPolicy(half, torch.float32, cast_forward_inputs=False)
        device = self.accelerator.device.type
        mesh = init_device_mesh(device, (ranks.world_size(),))
        where = CPUOffloadPolicy(pin_memory=device == "cuda") if self.accelerator.offload else OffloadPolicy()
        shard = partial(fully_shard, mesh=mesh, reshard_after_forward=True, mp_policy=policy, offload_policy=where)
        embedding = {id(p) for m in self.module.modules() if isinstance(m, torch.nn.Embedding) for p in m.parameters()}
        for part in reversed([*self.module.modules()]):
            tied = any(id(parameter) in embedding for parameter in part.parameters())  # such a head goes with the root
            if isinstance(part, GradientCheckpointingLayer) or (isinstance(part, OutputHead) and not tied):
                _read(part)
                shard(part)
        _read(self.module)
        # The root too: else it keeps the gathered weights of a forward without a backward, and uses them after a step.
        shard(self.module)
        for part in self.module.modules():
            if isinstance(part, FSDPModule):
                part.set_gradient_divide_factor(1.0)
                part.set_force_sum_reduction_for_comms(True)
                part.set_reduce_scatter_unused_params(True, recurse=False)

    def _clip(self) -> float:
        # Each micro-batch's backward pass has summed its gradients over the ranks already.
        norm = torch.nn.utils.clip_grad_norm_(self.module.parameters(), self.max_grad_norm)
        return float(_gathered(norm))

    def weights(self) -> Iterator[tuple[str, Tensor]]:
        for prefix, module in self.module.named_modules():
            part: Any = module
            if isinstance(module, FSDPModule):
                part.unshard()
                for name, parameter in part.named_parameters(prefix):
                    if not isinstance(parameter, DTensor):  # else of another part, which is not gathered now
                        yield name, parameter.detach()
                part.reshard()

    @contextmanager
    def whole_on_main(self) -> Iterator[None]:
        whole = {}  # in rank 0's host memory
        for name, parameter in saved_parameters(self.module):
            weight = _gathered(parameter.detach())
            if ranks.is_main():
                whole[name] = torch.nn.Parameter(weight.to("cpu", copy=True), requires_grad=False)
        complete = {parameter: whole[name] for name, parameter in self.module.named_parameters() if name in whole}
        held = [
            (module, name, parameter)
            for module in self.module.modules()
            for name, parameter in module._parameters.items()
            if parameter is not None and parameter in complete
        ]
        try:
            for module, name, parameter in held:
                module._parameters[name] = complete[parameter]
            yield
        finally:
            for module, name, parameter in held:
                module._parameters[name] = parameter

    def state_dict(self) -> dict[str, Any]:
        state: dict[str, Any] = self.optimizer.state_dict()
        whole: dict[int, dict[str, Tensor]] = {}
        for i, values in state["state"].items():
            gathered = {name: _gathered(value) for name, value in values.items()}
            if ranks.is_main():
                whole[i] = {name: value.to("cpu", copy=True) for name, value in gathered.items()}
        return state | {"state": whole}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        trained = [parameter for group in self.optimizer.param_groups for parameter in group["params"]]
        shards = {
            i: {name: _shard_of(value, trained[i]) if value.dim() else value.clone() for name, value in values.items()}
            for i, values in state["state"].items()
        }
        self.optimizer.load_state_dict(state | {"state": shards})


def _read(part: torch.nn.Module) -> None:
    """Puts weights that are still in their files in memory."""
    for parameter in part.parameters():
        read_in_place(parameter)


def _gathered(tensor: Tensor) -> Tensor:
    """The whole of a tensor that may be sharded; every rank calls it."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def _shard_of(whole: Tensor, parameter: DTensor) -> Tensor:
    """This rank's shard of a whole tensor, placed as the parameter is, in memory of its own."""
    shard: DTensor = torch.zeros_like(parameter, requires_grad=False)  # type: ignore[assignment]
    parts, mine = whole.chunk(parameter.device_mesh.size()), parameter.device_mesh.get_local_rank()
    if mine < len(parts):
        shard.to_local().copy_(parts[mine])
    return shard
