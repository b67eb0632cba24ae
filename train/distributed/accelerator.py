"""Makes accelerate's Accelerator for a config's engine, and the engine of a model on top of it."""

import os

import torch
from accelerate.utils import DistributedType

from configs.engine import STAGES, TITLES, Kind
from runtime import ranks
from train.distributed.engine import Engine, RunAccelerator
from train.distributed.fsdp import Fsdp, FsdpAccelerator
from train.distributed.replicated import Replicated
from train.distributed.zero import Zero, zero_accelerator


def make_accelerator(precision: str, device: torch.device, kind: Kind = "ddp", offload: bool = False) -> RunAccelerator:
    """accelerate's Accelerator of this run, one process included (where there is nothing to shard). precision: "bf16"
    (see `RunAccelerator.half`) or "no". offload: ZeRO and FSDP2 keep masters, gradients and optimizer in host memory.

    ValueError where accelerate's launcher configures an engine that is not supported; RuntimeError where accelerate
    sees other ranks than this job has.
    """
    for engine in ("FSDP", "MEGATRON_LM"):
        if os.environ.get(f"ACCELERATE_USE_{engine}", "false").lower() == "true":
            raise ValueError(
                f"accelerate's config has {engine}, which is not supported. Take a _ddp or _deepspeed config of "
                "accelerate_configs/, or start the command without accelerate, for FSDP2 with "
                "experiment.deepspeed_file=1_node_8_gpus_fsdp2 or its like."
            )
    if kind.startswith("zero") and ranks.world_size() > 1:
        accelerator = zero_accelerator(STAGES[kind], device, offload)
    else:
        os.environ.pop("ACCELERATE_USE_DEEPSPEED", None)
        made = FsdpAccelerator if kind == "fsdp2" and ranks.world_size() > 1 else RunAccelerator
        accelerator = made(mixed_precision="no", cpu=device.type == "cpu")
    accelerator.half, accelerator.offload = precision == "bf16", offload
    if (accelerator.num_processes, accelerator.process_index) != (ranks.world_size(), ranks.rank()):
        raise RuntimeError(
            f"accelerate is rank {accelerator.process_index} of {accelerator.num_processes}, this process "
            f"{ranks.rank()} of {ranks.world_size()}: the launcher's variables do not agree."
        )
    engine = (
        f"{accelerator.distributed_type}, {TITLES[kind]}, {precision}, {accelerator.device.type}, offload {offload}"
    )
    ranks.require_alike("the engine", engine)
    return accelerator


def make_engine(
    model: torch.nn.Module, optimizer: torch.optim.Optimizer, accelerator: RunAccelerator, max_grad_norm: float
) -> Engine:
    """The engine that `accelerator` was made for. max_grad_norm: 0 = gradients are not clipped."""
    if accelerator.distributed_type == DistributedType.DEEPSPEED:
        return Zero(model, optimizer, accelerator, max_grad_norm)
    kind = Fsdp if isinstance(accelerator, FsdpAccelerator) else Replicated
    return kind(model, optimizer, accelerator, max_grad_norm)
