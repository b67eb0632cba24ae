"""Copies of a model for inference whose weights are still to come, whole, as `Sampler.update_weights` brings them."""

import torch
from torch import Tensor, nn

from models.model import DiffusionLM
from models.parallel import Parallel, Team, check_team, plan_of, shared_heads
from models.spec import network_class


def empty_copy(model: DiffusionLM, dtype: torch.dtype, device: torch.device) -> DiffusionLM:
    """All of the model."""
    return model.twin(lambda parameter: torch.empty(parameter.shape, dtype=dtype, device=device)).to(device=device)


def parallel_copy(model: DiffusionLM, team: Team, dtype: torch.dtype, device: torch.device) -> DiffusionLM:
    """This rank's part of the model (`models.parallel`). ValueError where the team cannot share it."""
    check_team(model.hf_config, team.size, "tensor_parallel_size")
    parallel = Parallel(team, plan_of(network_class(model.spec.family)._tp_plan or {}, model.hf_config))
    names = {id(parameter): name for name, parameter in model.named_parameters()}

    def part(parameter: nn.Parameter) -> Tensor:
        shape = parallel.share(names[id(parameter)], torch.empty(parameter.shape, device="meta")).shape
        return torch.empty(shape, dtype=dtype, device=device)

    twin = model.twin(part).to(device=device)
    twin.parallel, twin.hf_config = parallel, shared_heads(model.hf_config, team.size)
    parallel.connect(twin)
    return twin


def num_parameters(model: DiffusionLM) -> int:
    """Of the whole model, where this rank has a part of it too."""
    if model.parallel is None:
        return sum(parameter.numel() for parameter in model.parameters())
    return sum(model.parallel.elements(name, parameter) for name, parameter in model.named_parameters())
