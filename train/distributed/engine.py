"""What a model is trained by: weights, gradients and optimizer whole on every rank, or shared out by DeepSpeed's ZeRO
or by torch's FSDP2.

All take one step for the summed gradients of all ranks, and keep the optimizer's state in one form: AdamW's own,
whole, so that a checkpoint goes on under either, on any number of ranks.
"""

import copy
import logging
import math
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from accelerate.utils import DeepSpeedPlugin, DistributedType, InitProcessGroupKwargs
from torch import Tensor
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor
from transformers.integrations.deepspeed import unset_hf_deepspeed_config
from transformers.modeling_layers import GradientCheckpointingLayer

from configs.engine import STAGES, TITLES, Kind, engine_file
from configs.schema import Config
from models import lora
from models.head import OutputHead
from runtime import ranks
from train.distributed.sharding import buckets, sum_gradients

REDUCE_BUCKET_ELEMENTS = 2**26


def engine_kind(config: Config) -> Kind:
    """From experiment.deepspeed_file or from the config of the `accelerate launch` that started us. ValueError where
    the two disagree, or where that one asks for what is not here."""
    file, launched = engine_file(config.experiment.deepspeed_file), _launched_kind()
    if file is None:
        return launched or "ddp"
    if launched not in (None, file.kind):
        raise ValueError(
            f"experiment.deepspeed_file={file.name} is {file.engine}, but accelerate launch was given "
            f"{TITLES[launched]}: give both one file, or leave experiment.deepspeed_file out."
        )
    return file.kind


def zero_stage(config: Config) -> int:
    """What is shared out, as ZeRO counts: nothing (0), gradients and optimizer (2), or weights too (3, and FSDP2).
    ValueError as `engine_kind`."""
    return STAGES[engine_kind(config)]


def _launched_kind() -> Kind | None:
    """The ZeRO that accelerate launch was given; None without."""
    stage = os.environ.get("ACCELERATE_DEEPSPEED_ZERO_STAGE")
    if stage is None:
        return None
    for name in ("OFFLOAD_OPTIMIZER_DEVICE", "OFFLOAD_PARAM_DEVICE", "CONFIG_FILE"):
        value = os.environ.get(f"ACCELERATE_DEEPSPEED_{name}", "none")
        if value != "none":
            raise ValueError(
                f"accelerate's config sets deepspeed_{name.lower()}={value}, which is not here: take a config of "
                "accelerate_configs/."
            )
    if stage not in ("2", "3"):
        raise ValueError(f"accelerate's config asks for ZeRO stage {stage}; there are 2 and 3.")
    return "zero2" if stage == "2" else "zero3"


def world_size(config: Config) -> int:
    """Processes of the run: those of this job, or those that a command typed here would start."""
    if ranks.world_size() > 1:
        return ranks.world_size()
    file = engine_file(config.experiment.deepspeed_file)
    here = max(1, torch.cuda.device_count() if config.model.device != "cpu" else 0)
    if file is not None:
        here = file.processes_per_node if file.cpu else min(here, file.processes_per_node)
    return (config.experiment.processes or here) * (config.experiment.num_node or 1)


def check_engine(config: Config, folder: Path | None) -> None:
    """ValueError where the engine that the config asks for cannot train what it asks for. folder: the model's; None
    where it is yet to be made."""
    kind: Kind = engine_kind(config) if world_size(config) > 1 else "ddp"
    if kind.startswith("zero") and find_spec("deepspeed") is None:
        raise ValueError(
            f"{TITLES[kind]} needs the package deepspeed, which is not installed: DS_BUILD_OPS=0 pip install -c "
            "requirements-extras.txt deepspeed ninja setuptools. Or leave experiment.deepspeed_file out: every process "
            "then holds the whole model."
        )
    adapters = f"lora.rank={config.lora.rank}" if config.lora.rank else ""
    if folder is not None and (folder / lora.CONFIG).is_file():
        adapters = f"model.pretrained_model={config.model.pretrained_model} (a folder of adapters)"
    if kind != "ddp" and adapters:
        raise ValueError(
            f"{adapters} under {TITLES[kind]}: adapters are trained with the whole base on every rank; leave "
            "experiment.deepspeed_file out, or take a _ddp file."
        )


def shares_weights(config: Config) -> bool:
    """Whether no rank holds the whole trained model: ZeRO-3 or FSDP2 on several ranks."""
    return zero_stage(config) == 3 and ranks.world_size() > 1


def engine_line(config: Config) -> str:
    """The engine, for people."""
    kind, world = engine_kind(config), ranks.world_size()
    if world == 1:
        return "one process" + (f" ({TITLES[kind]} has nothing to share out)" if kind != "ddp" else "")
    return f"{TITLES[kind]} over {world} processes" if kind != "ddp" else f"DDP, {world} processes"


def elements(parameter: torch.nn.Parameter) -> int:
    """Numbers in a parameter, in all shares of it where ranks share it."""
    return int(getattr(parameter, "ds_numel", parameter.numel()))


class FsdpAccelerator(Accelerator):
    """accelerate as without FSDP (which it leaves out on CPU, silently): its models are for `Fsdp`."""


class _ZeroAccelerator(Accelerator):
    """accelerate leaves autocast to DeepSpeed's engines; a frozen reference model is run by none."""

    bf16 = False

    def autocast(self, autocast_handler: Any = None) -> AbstractContextManager[Any]:
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self.bf16)


def zero_accelerator(stage: int, precision: str, device: torch.device) -> Accelerator:
    """accelerate's Accelerator under DeepSpeed, on the process group that this job has. Weights stay fp32; precision
    "bf16" is autocast, as without DeepSpeed."""
    os.environ["DS_ACCELERATOR"] = device.type
    if device.type == "cpu":
        os.environ["ACCELERATE_TORCH_DEVICE"] = "cpu"
    import deepspeed

    # DeepSpeed would compile this (25 s, needs g++) for inference on CPU alone; a kill meanwhile leaves
    # torch_extensions/*/deepspeed_shm_comm/lock, on which every later run waits for ever.
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    logging.getLogger("DeepSpeed").setLevel(logging.WARNING)
    plugin = None
    if AcceleratorState._shared_state == {} or AcceleratorState().distributed_type != DistributedType.DEEPSPEED:
        plugin = DeepSpeedPlugin(zero_stage=stage, gradient_accumulation_steps=1, zero3_init_flag=False)
        plugin.deepspeed_config |= {
            "train_batch_size": ranks.world_size(),
            "train_micro_batch_size_per_gpu": 1,
            "bf16": {"enabled": False},
        }
        plugin.deepspeed_config["zero_optimization"]["reduce_bucket_size"] = REDUCE_BUCKET_ELEMENTS
    backend = InitProcessGroupKwargs(backend="gloo" if device.type == "cpu" else "nccl")
    accelerator = _ZeroAccelerator(deepspeed_plugin=plugin, mixed_precision="no", kwargs_handlers=[backend])
    unset_hf_deepspeed_config()  # or from_pretrained (a judge's, on rank 0) would share out what it loads
    accelerator.bf16 = precision == "bf16"
    found = accelerator.deepspeed_plugin.zero_stage
    if accelerator.distributed_type != DistributedType.DEEPSPEED or found != stage:
        raise RuntimeError(
            f"accelerate runs {accelerator.distributed_type}, stage {found}; ZeRO-{stage} was asked for."
        )
    return accelerator


@dataclass(frozen=True)
class StepResult:
    """An optimizer step. norm: of the gradients of all ranks before clipping; taken: whether weights and optimizer
    moved, False where the loss or the norm was not finite."""

    norm: float
    taken: bool


class Replicated:
    """Every rank holds all of the model, its gradients and its optimizer; gradients are summed over ranks."""

    lockstep = False
    """Whether every rank must run as many forwards and backwards as the others."""

    def __init__(
        self, model: torch.nn.Module, optimizer: torch.optim.Optimizer, accelerator: Accelerator, max_grad_norm: float
    ):
        self.module, self.accelerator = model, accelerator
        self.max_grad_norm = max_grad_norm if max_grad_norm > 0 else math.inf
        # evaluation_mode: without accelerate's wrapper for many ranks, whose hooks want every rank and parameter to
        # take part in each backward pass; `sum_gradients` does without.
        self.model: torch.nn.Module = accelerator.prepare_model(model, evaluation_mode=True)
        self.optimizer: Any = accelerator.prepare_optimizer(optimizer)

    def backward(self, loss: Tensor, last: bool) -> None:
        """Adds a micro-batch's gradients to the update's; `last`: it ends the update."""
        self.accelerator.backward(loss)

    def step(self, loss: float) -> StepResult:
        """The optimizer's step for the gradients of all ranks, clipped, unless `loss` (of all ranks) or their norm is
        not finite; the gradients are gone either way."""
        norm = self._clip()
        taken = math.isfinite(loss) and math.isfinite(norm)
        if taken:
            self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        return StepResult(norm, taken)

    def _clip(self) -> float:
        """Sums the gradients of all ranks and clips them. Returns their norm before."""
        sum_gradients(self.model.parameters())
        clipped = self.accelerator.clip_grad_norm_(self.model.parameters(), self.max_grad_norm)
        return float(clipped) if clipped is not None else 0.0

    def weights(self) -> Iterator[tuple[str, Tensor]]:
        """The model's named parameters, each whole while it is at hand. Every rank must go through all of them."""
        yield from self.module.named_parameters()

    def whole_on_main(self) -> AbstractContextManager[None]:
        """While the block runs, rank 0's model has all its weights (to be read and saved, not run)."""
        return nullcontext()

    def state_dict(self) -> dict[str, Any]:
        """AdamW's state dict, whole, on rank 0; elsewhere it may be empty. Every rank calls it."""
        return self.optimizer.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Goes on with a state that rank 0 saved; every rank has all of it."""
        self.optimizer.load_state_dict(copy.deepcopy(state))


def _share_out(model: torch.nn.Module, settings: dict[str, Any], device: torch.device) -> None:
    """Leaves each rank its share of a model that may be on the host, one parameter at a time: `prepare` would move all
    of it to the device first."""
    import deepspeed

    deepspeed.zero.Init(module=model, config_dict_or_path=settings, dtype=torch.float32)
    for module in model.modules():
        for name, buffer in list(module.named_buffers(recurse=False)):
            setattr(module, name, buffer.to(device))


class Zero:
    """DeepSpeed's ZeRO: each rank holds its part of the optimizer and of the summed gradients (stage 2), and of the
    weights, which are gathered module by module as they are used (stage 3). https://arxiv.org/abs/1910.02054"""

    lockstep = True

    def __init__(
        self, model: torch.nn.Module, optimizer: torch.optim.Optimizer, accelerator: Accelerator, max_grad_norm: float
    ):
        self.module, self.accelerator, self.world = model, accelerator, ranks.world_size()
        self.stage = accelerator.deepspeed_plugin.zero_stage
        self.saved_groups = optimizer.state_dict()["param_groups"]
        self.trained = [parameter for group in optimizer.param_groups for parameter in group["params"]]
        settings = accelerator.deepspeed_plugin.deepspeed_config
        settings["gradient_clipping"] = max_grad_norm
        settings["torch_autocast"] = {
            "enabled": accelerator.bf16,
            "dtype": "bfloat16",
            "lower_precision_safe_modules": [],
        }
        vectors = (parameter.numel() for parameter in model.parameters() if parameter.ndim < 2)
        settings["zero_optimization"]["stage3_param_persistence_threshold"] = max(vectors, default=0)
        if self.stage == 3:
            _share_out(model, settings, accelerator.device)
        self.model, self.optimizer = accelerator.prepare(model, optimizer)
        accelerator.deepspeed_engine_wrapped = None  # accelerate's own backward, which serves one model, is not used
        found = self.model.zero_optimization_stage(), self.model.dp_world_size
        if found != (self.stage, self.world):
            raise RuntimeError(
                f"DeepSpeed runs stage {found[0]} on {found[1]} ranks, not {self.stage} on {self.world}."
            )

    def backward(self, loss: Tensor, last: bool) -> None:
        """As `Replicated.backward`. DeepSpeed takes means over ranks where sums are meant. A loss that is not finite
        spoils the gradients, so that DeepSpeed takes no step for them."""
        factor = torch.where(loss.detach().isfinite(), float(self.world), math.nan)
        self.model.set_gradient_accumulation_boundary(last)
        self.model.backward(loss * factor, scale_wrt_gas=False)

    def step(self, loss: float) -> StepResult:
        """As `Replicated.step`."""
        self.model.step()
        norm = float(self.model.get_global_grad_norm()) if self.model.was_step_applied() else math.inf
        assert math.isfinite(loss) or not math.isfinite(norm)
        return StepResult(norm, math.isfinite(norm))

    def weights(self) -> Iterator[tuple[str, Tensor]]:
        """As `Replicated.weights`; under stage 3 a few layers' are gathered at a time."""
        if self.stage < 3:
            yield from self.module.named_parameters()
            return
        import deepspeed

        named = list(self.module.named_parameters())
        for bucket in buckets(named, lambda item: elements(item[1])):
            with deepspeed.zero.GatheredParameters([parameter for _, parameter in bucket]):
                for name, parameter in bucket:
                    yield name, parameter.data

    @contextmanager
    def whole_on_main(self) -> Iterator[None]:
        """As `Replicated.whole_on_main`; under stage 3 the weights are gathered into rank 0's host memory."""
        whole = {}
        for name, weight in self.weights() if self.stage == 3 else ():
            if ranks.is_main():
                whole[name] = weight.to("cpu", copy=True)
        parameters = {name: p for name, p in self.module.named_parameters() if name in whole}
        shares = {name: parameter.data for name, parameter in parameters.items()}
        try:
            for name, parameter in parameters.items():
                parameter.data = whole[name]
            yield
        finally:
            for name, parameter in parameters.items():
                parameter.data = shares[name]

    def state_dict(self) -> dict[str, Any]:
        """As `Replicated.state_dict`."""
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
        """As `Replicated.load_state_dict`; a rank keeps its part."""
        for group, saved in zip(self.optimizer.param_groups, state["param_groups"], strict=True):
            group.update({name: value for name, value in saved.items() if name != "params"})
        if state["state"]:
            self._fill_moments(state["state"])

    def _link_moments(self) -> None:
        """Stage 2: lets each parameter find its moments. DeepSpeed does so when its first group of parameters alone has
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
                size, first = parameter.ds_tensor.numel(), ranks.rank() * parameter.ds_tensor.numel()
                mine = torch.zeros(size, dtype=whole.dtype)
                held = whole.flatten()[first : first + size]
                mine[: len(held)] = held
                safe_set_local_optimizer_state(parameter, mine, name)


class Fsdp(Replicated):
    """torch's FSDP2: each rank holds its part of weights, gradients and optimizer; the weights are gathered layer by
    layer as they are used. https://arxiv.org/abs/2304.11277"""

    lockstep = True

    def __init__(
        self, model: torch.nn.Module, optimizer: torch.optim.Optimizer, accelerator: Accelerator, max_grad_norm: float
    ):
        self.module, self.accelerator, self.optimizer = model, accelerator, optimizer
        self.max_grad_norm = max_grad_norm if max_grad_norm > 0 else math.inf
        names = {parameter: name for name, parameter in model.named_parameters()}
        trained = [[names[parameter] for parameter in group["params"]] for group in optimizer.param_groups]
        names.clear()
        for group in optimizer.param_groups:
            group["params"] = []  # lets go of the whole weights, which are shared out one layer at a time
        self._share_out()
        parameters = dict(model.named_parameters())
        for group, own in zip(optimizer.param_groups, trained, strict=True):
            group["params"] = [parameters[name] for name in own]
        self.model: torch.nn.Module = accelerator.prepare_model(model, evaluation_mode=True)

    def _share_out(self) -> None:
        mesh = init_device_mesh(self.accelerator.device.type, (ranks.world_size(),))
        embedding = {id(p) for m in self.module.modules() if isinstance(m, torch.nn.Embedding) for p in m.parameters()}
        for part in reversed([*self.module.modules()]):
            tied = any(id(parameter) in embedding for parameter in part.parameters())  # such a head goes with the root
            if isinstance(part, GradientCheckpointingLayer) or (isinstance(part, OutputHead) and not tied):
                fully_shard(part, mesh=mesh, reshard_after_forward=True)
        # The root too: it would else keep the weights of a forward without a backward, and use them after a step.
        fully_shard(self.module, mesh=mesh, reshard_after_forward=True)
        for part in self.module.modules():
            if isinstance(part, FSDPModule):
                part.set_gradient_divide_factor(1.0)
                part.set_force_sum_reduction_for_comms(True)
                part.set_reduce_scatter_unused_params(True, recurse=False)

    def _clip(self) -> float:
        """As `Replicated._clip`; each micro-batch's backward pass has summed its gradients, of which a rank keeps its
        part."""
        norm = torch.nn.utils.clip_grad_norm_(self.module.parameters(), self.max_grad_norm)
        return float(_gathered(norm))

    def weights(self) -> Iterator[tuple[str, Tensor]]:
        """As `Replicated.weights`; one is gathered at a time."""
        for name, parameter in self.module.named_parameters():
            yield name, _gathered(parameter.detach())

    @contextmanager
    def whole_on_main(self) -> Iterator[None]:
        """As `Replicated.whole_on_main`; the weights are gathered into rank 0's host memory."""
        whole = {}
        for name, weight in self.weights():
            if ranks.is_main():
                whole[name] = torch.nn.Parameter(weight.to("cpu", copy=True), requires_grad=False)
        shares = {parameter: whole[name] for name, parameter in self.module.named_parameters() if name in whole}
        held = [
            (module, name, parameter)
            for module in self.module.modules()
            for name, parameter in module._parameters.items()
            if parameter is not None and parameter in shares
        ]
        try:
            for module, name, parameter in held:
                module._parameters[name] = shares[parameter]
            yield
        finally:
            for module, name, parameter in held:
                module._parameters[name] = parameter

    def state_dict(self) -> dict[str, Any]:
        """As `Replicated.state_dict`."""
        state: dict[str, Any] = self.optimizer.state_dict()
        whole: dict[int, dict[str, Tensor]] = {}
        for i, values in state["state"].items():
            gathered = {name: _gathered(value) for name, value in values.items()}
            if ranks.is_main():
                whole[i] = {name: value.to("cpu", copy=True) for name, value in gathered.items()}
        return state | {"state": whole}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """As `Replicated.load_state_dict`; a rank keeps its part."""
        trained = [parameter for group in self.optimizer.param_groups for parameter in group["params"]]
        shares = {
            i: {name: _share_of(value, trained[i]) if value.dim() else value.clone() for name, value in values.items()}
            for i, values in state["state"].items()
        }
        self.optimizer.load_state_dict(state | {"state": shares})


def _gathered(tensor: Tensor) -> Tensor:
    """All of a tensor that ranks may share; all of them call it."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def _share_of(whole: Tensor, parameter: DTensor) -> Tensor:
    """This rank's part of a whole tensor, shared as the parameter is, in memory of its own."""
    share = torch.zeros_like(parameter, requires_grad=False)
    whole = whole.to(parameter.device)
    return share.copy_(distribute_tensor(whole, parameter.device_mesh, parameter.placements, src_data_rank=None))


Engine = Replicated | Zero


def make_engine(
    model: torch.nn.Module, optimizer: torch.optim.Optimizer, accelerator: Accelerator, max_grad_norm: float
) -> Engine:
    kind: type[Engine] = Zero if accelerator.distributed_type == DistributedType.DEEPSPEED else Replicated
    if isinstance(accelerator, FsdpAccelerator):
        kind = Fsdp
    return kind(model, optimizer, accelerator, max_grad_norm)
