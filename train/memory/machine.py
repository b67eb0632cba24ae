"""The device and the host that a plan is for."""

import math
import os
from dataclasses import dataclass
from pathlib import Path

import torch

from configs.schema import Config
from runtime import ranks
from train.setup.process import pick_device, precision


@dataclass(frozen=True)
class Machine:
    """What a process computes on: "cuda" or "cpu", the bytes that it may take of its memory, and whether training is
    in bf16 there."""

    kind: str
    memory_bytes: float
    half: bool

    @staticmethod
    def of(config: Config) -> "Machine":
        """GPUs of experiment.gpu_memory_gib where that is set, else the device that is here; of a CPU's memory, shared
        by the processes of the machine, what is free now."""
        if config.experiment.gpu_memory_gib:
            half = config.training.mixed_precision != "no"
            return Machine("cuda", config.experiment.gpu_memory_gib * 2**30, half)
        device = pick_device(config.model.device)
        half = precision(config, device) == "bf16"
        if device.type == "cuda":
            return Machine("cuda", torch.cuda.get_device_properties(device).total_memory, half)
        local = max(config.experiment.processes, ranks.local_world_size())
        return Machine("cpu", host_memory_bytes() / local, half)


def used_memory() -> dict[str, float]:
    """Metrics: the most that this process had of its GPU since the last call, or what it holds of the host, in GiB."""
    if torch.cuda.is_available():
        peak = torch.cuda.max_memory_allocated() / 2**30
        torch.cuda.reset_peak_memory_stats()
        return {"memory/gpu_peak_gib": peak}
    statm = Path("/proc/self/statm")
    if not statm.is_file():
        return {}
    return {"memory/process_gib": int(statm.read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 2**30}


def host_memory_bytes() -> float:
    """Free memory of this machine, or of its container where that is less; infinite where neither is known."""
    free = math.inf
    meminfo = Path("/proc/meminfo")
    for line in meminfo.read_text().splitlines() if meminfo.is_file() else ():
        if line.startswith("MemAvailable:"):
            free = 1024.0 * int(line.split()[1])
    limit, used = (Path(f"/sys/fs/cgroup/memory.{name}") for name in ("max", "current"))
    if limit.is_file() and used.is_file() and limit.read_text().strip().isdigit():
        free = min(free, float(limit.read_text()) - float(used.read_text()))
    return free
