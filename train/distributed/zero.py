"""DeepSpeed's ZeRO-2 and ZeRO-3."""

import logging
import math
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from accelerate.state import AcceleratorState
from accelerate.utils import DeepSpeedPlugin, DistributedType, InitProcessGroupKwargs
from torch import Tensor
from transformers.integrations.deepspeed import unset_hf_deepspeed_config

from models.unread import read_in_place
from runtime import ranks
from train.distributed.engine import Engine, RunAccelerator, StepResult
from train.distributed.masters import HALF
from train.distributed.sharding import buckets, elements, saved_parameters

REDUCE_BUCKET_ELEMENTS = 2**26


def zero_accelerator(stage: int, device: torch.device, offload: bool = False) -> RunAccelerator:
    """accelerate's Accelerator under DeepSpeed, on the process group that this job has. offload: the optimizer works in
    host memory."""
    os.environ["DS_ACCELERATOR"] = device.type
    if device.type == "cpu":
        os.environ["ACCELERATE_TORCH_DEVICE"] = "cpu"
    import deepspeed

    # DeepSpeed would compile this (25 s, needs g++), which only inference on CPU uses; a kill during the build leaves
    # torch_extensions/*/deepspeed_shm_comm/lock, on which every later run waits forever.
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    logging.getLogger("DeepSpeed").setLevel(logging.WARNING)
    plugin = None
    if AcceleratorState._shared_state == {} or AcceleratorState().distributed_type != DistributedType.DEEPSPEED:
        plugin = DeepSpeedPlugin(
            zero_stage=stage,
            gradient_accumulation_steps=1,
            zero3_init_flag=False,
            offload_optimizer_device="cpu" if offload else "none",
        )
        plugin.deepspeed_config |= {
            "zero_force_ds_cpu_optimizer": False,  # its own would be compiled, and step otherwise than torch's
            "train_batch_size": ranks.world_size(),
            "train_micro_batch_size_per_gpu": 1,
            "communication_data_type": "fp32",
            "data_types": {"grad_accum_dtype": "fp32"},
        }
        plugin.deepspeed_config["zero_optimization"]["reduce_bucket_size"] = REDUCE_BUCKET_ELEMENTS
    backend = InitProcessGroupKwargs(backend="gloo" if device.type == "cpu" else "nccl")
    accelerator = RunAccelerator(deepspeed_plugin=plugin, mixed_precision="no", kwargs_handlers=[backend])
    unset_hf_deepspeed_config()  # or from_pretrained (a judge's, on rank 0) would shard what it loads
    found = accelerator.deepspeed_plugin.zero_stage
    if accelerator.distributed_type != DistributedType.DEEPSPEED or found != stage:
        raise RuntimeError(
            f"accelerate runs {accelerator.distributed_type}, stage {found}; the config has ZeRO-{stage}."
        )
    return accelerator


class _OneByOne(torch.nn.Module):
    """Shows DeepSpeed a model whose parameters get their weights, `ready`, as it asks for one after another."""

    def __init__(self, model: torch.nn.Module, ready: Callable[[torch.nn.Parameter], None]):
        super().__init__()
        self.whole, self.ready = [model], ready  # in a list: not a submodule

    def parameters(self, recurse: bool = True) -> Iterator[torch.nn.Parameter]:
        for parameter in self.whole[0].parameters(recurse):
            self.ready(parameter)
            yield parameter


def _shard(
    model: torch.nn.Module,
    settings: dict[str, Any],
    device: torch.device,
    ready: Callable[[torch.nn.Parameter], None],
) -> None:
    """Leaves each rank its shard of a model that may be on the host or unread, one parameter at a time: `prepare` would
    move the whole model to the device first. ready: puts a parameter's weight in place."""
    import deepspeed

    dtype = HALF if settings["bf16"]["enabled"] else torch.float32
    deepspeed.zero.Init(module=_OneByOne(model, ready), config_dict_or_path=settings, dtype=dtype)
    for module in model.modules():
        for name, buffer in list(module.named_buffers(recurse=False)):
            setattr(module, name, buffer.to(device))


class Zero(Engine):
    """DeepSpeed's ZeRO: each rank holds a shard of the optimizer and of the summed gradients (stage 2), and of the
    weights, which are gathered module by module as they are used (stage 3). https://arxiv.org/abs/1910.02054"""

    lockstep = True

    def __init__(
        self,
        model: torch.nn.Module,
        optimizer: torch.optim.Optimizer,
        accelerator: RunAccelerator,
        max_grad_norm: float,
    ):
        self.module, self.accelerator, self.world = model, accelerator, ranks.world_size()
        self.stage = accelerator.deepspeed_plugin.zero_stage
        self.saved_groups = optimizer.state_dict()["param_groups"]
        self.trained = [parameter for group in optimizer.param_groups for parameter in group["params"]]
        settings = accelerator.deepspeed_plugin.deepspeed_config
        settings["gradient_clipping"] = max_grad_norm
        settings["bf16"] = {"enabled": accelerator.half, "check_grad_overflow": True}
        vectors = (parameter.numel() for parameter in model.parameters() if parameter.ndim < 2)
        settings["zero_optimization"]["stage3_param_persistence_threshold"] = max(vectors, default=0)
        masters: dict[torch.nn.Parameter, Tensor] = {}
        if self.stage == 3:
            _shard(model, settings, accelerator.device, lambda parameter: self._ready(parameter, masters))
        for parameter in model.parameters() if self.stage < 3 else ():
            self._ready(parameter, masters)
        self.model, self.optimizer = accelerator.prepare(model, optimizer)
        self._fill_masters(masters)
        accelerator.deepspeed_engine_wrapped = None  # accelerate's own backward, which serves one model, is not used
        found = self.model.zero_optimization_stage(), self.model.dp_world_size
        if found != (self.stage, self.world):
            raise RuntimeError(
                f"DeepSpeed runs stage {found[0]} on {found[1]} ranks, not {self.stage} on {self.world}."
            )

    def backward(self, loss: Tensor, last: bool) -> None:
        # DeepSpeed averages over ranks, hence the factor. A loss that is not finite makes the gradients nan, so that
        # DeepSpeed takes no step for them.
        factor = torch.where(loss.detach().isfinite(), float(self.world), math.nan)
        self.model.set_gradient_accumulation_boundary(last)
        self.model.backward(loss * factor, scale_wrt_gas=False)

    def step(self, loss: float) -> StepResult:
        self.model.step()
        taken = bool(self.model.was_step_applied())
        norm = float(self.model.get_global_grad_norm()) if taken else math.inf
        assert math.isfinite(loss) or not taken
        return StepResult(norm, taken)

    def weights(self) -> Iterator[tuple[str, Tensor]]:
        if self.stage < 3:
            yield from self.module.named_parameters()
            return
        import deepspeed

        named = list(self.module.named_parameters())  # stage 3 gathers a few layers at a time
        for bucket in buckets(named, lambda item: elements(item[1])):
            with deepspeed.zero.GatheredParameters([parameter for _, parameter in bucket]):
                for name, parameter in bucket:
                    yield name, parameter.data

    @contextmanager
    def whole_on_main(self) -> Iterator[None]:
        whole = {}  # in rank 0's host memory
        for name, weight in self._whole_weights():
            if ranks.is_main():
                whole[name] = weight.to("cpu", copy=True)
        parameters = {name: p for name, p in self.module.named_parameters() if name in whole}
        shards = {name: parameter.data for name, parameter in parameters.items()}
        try:
            for name, parameter in parameters.items():
                parameter.data = whole[name]
            yield
        finally:
            for name, parameter in parameters.items():
                parameter.data = shards[name]

    def _whole_weights(self) -> Iterator[tuple[str, Tensor]]:
        """What `whole_on_main` puts in place of what the ranks have: under bf16 the masters, else sharded weights."""
        if not self.accelerator.half and self.stage < 3:
            return
        import deepspeed
        from deepspeed.utils import safe_get_full_fp32_param

        trained = set(self.trained)
        for name, parameter in saved_parameters(self.module):
            if self.accelerator.half and parameter in trained:
                yield name, safe_get_full_fp32_param(parameter)
            elif self.stage == 3:
                with deepspeed.zero.GatheredParameters([parameter]):
                    yield name, parameter.data

    def _ready(self, parameter: torch.nn.Parameter, masters: dict[torch.nn.Parameter, Tensor]) -> None:
        """Reads the parameter's weight where it is unread. Under bf16 rounds it, and keeps of a trained one the fp32
        master in `masters`: whole (stage 2), or this rank's shard."""
        read_in_place(parameter)
        if not self.accelerator.half:
            return
        if parameter.requires_grad:
            whole = parameter.data
            masters[parameter] = whole if self.stage < 3 else self._shard_of(whole, -(-whole.numel() // self.world))
        parameter.data = parameter.data.to(HALF)

    def _fill_masters(self, masters: Mapping[torch.nn.Parameter, Tensor]) -> None:
        """DeepSpeed has made its masters of rounded weights; puts the weights of before there."""
        from deepspeed.utils import safe_set_full_fp32_param, safe_set_local_fp32_param

        fill = safe_set_full_fp32_param if self.stage < 3 else safe_set_local_fp32_param
        for parameter, master in masters.items():
            fill(parameter, master)

    def _shard_of(self, whole: Tensor, size: int) -> Tensor:
        """This rank's shard under stage 3, in memory of its own: `size` numbers of the flat tensor, zeros after its
        end."""
        shard = torch.zeros(size, dtype=whole.dtype)
        held = whole.flatten()[ranks.rank() * size :][:size]
        shard[: len(held)] = held
        return shard

    def state_dict(self) -> dict[str, Any]:
        from deepspeed.utils import safe_get_full_optimizer_state

        if self.stage < 3:
            self._link_moments()
        steps = [float(state["step"]) for state in self.optimizer.optimizer.optimizer.state.values()]
        state: dict[int, dict[str, Tensor]] = {}
        for i, parameter in enumerate(self.trained) if steps else ():
            moments = {name: safe_get_full_optimizer_state(parameter, name) for name in ("exp_avg", "exp_avg_sq")}
            if ranks.is_main():
                state[i] = {name: moment.to("cpu", copy=True) for name, moment in moments.items()}
                state[i]["step"] = torch.tensor(steps[0])
        groups = zip(self.saved_groups, self.optimizer.param_groups, strict=True)
        return {"state": state, "param_groups": [saved | {"lr": group["lr"]} for saved, group in groups]}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        for group, saved in zip(self.optimizer.param_groups, state["param_groups"], strict=True):
            group.update({name: value for name, value in saved.items() if name != "params"})
        if state["state"]:
            self._fill_moments(state["state"])

    def _link_moments(self) -> None:
        """Stage 2: links each parameter to its moments. DeepSpeed does so only if its first group of parameters has
        any."""
        zero = self.optimizer.optimizer
        zero._hp_optimizer_states_linked = False
        zero._lazy_init_hp_params_optimizer_state()

    def _fill_moments(self, state: Mapping[int, Mapping[str, Tensor]]) -> None:
        from deepspeed.utils import safe_set_full_optimizer_state, safe_set_local_optimizer_state

        zero = self.optimizer.optimizer
        parts: Sequence[Tensor] = (
            zero.fp32_partitioned_groups_flat if self.stage == 3 else zero.single_partition_of_fp32_groups
        )
        for part in parts:
            zero.optimizer.state[part] = {
                "step": state[0]["step"].clone(),
                "exp_avg": torch.zeros_like(part),
                "exp_avg_sq": torch.zeros_like(part),
            }
        if self.stage < 3:
            self._link_moments()
        for i, parameter in enumerate(self.trained):
            for name in ("exp_avg", "exp_avg_sq"):
                whole = state[i][name]
                if self.stage < 3:
                    safe_set_full_optimizer_state(parameter, whole, name)
                    continue
                safe_set_local_optimizer_state(parameter, self._shard_of(whole, parameter.ds_tensor.numel()), name)
