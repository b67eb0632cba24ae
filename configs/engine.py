"""What a file of accelerate_configs/ says: how many nodes and processes, and which engine trains."""

import difflib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

FOLDER = Path(__file__).resolve().parent.parent / "accelerate_configs"


@dataclass(frozen=True)
class EngineFile:
    """zero_stage: 0 = every process holds the whole model (DDP); 2, 3 = DeepSpeed's ZeRO shares out optimizer and
    gradients, or weights too. cpu: its processes need no GPU."""

    name: str
    nodes: int
    processes: int
    zero_stage: int
    cpu: bool

    @property
    def processes_per_node(self) -> int:
        return self.processes // self.nodes

    @property
    def engine(self) -> str:
        return f"ZeRO-{self.zero_stage}" if self.zero_stage else "DDP"


def engine_file(name: str | None) -> EngineFile | None:
    """The file of that name (with or without .yaml); None for no name. ValueError where there is none, or where it asks
    for what is not here."""
    if name is None:
        return None
    stem, choices = name.removesuffix(".yaml"), sorted(path.stem for path in FOLDER.glob("*.yaml"))
    if stem not in choices:
        near = difflib.get_close_matches(stem, choices, n=1)
        raise ValueError(
            f"experiment.deepspeed_file={name} is none of accelerate_configs/: choose from {', '.join(choices)}."
            + (f" Did you mean {near[0]}?" if near else "")
        )
    told: dict[str, Any] = yaml.safe_load((FOLDER / f"{stem}.yaml").read_text())
    kind, deepspeed = str(told["distributed_type"]), told.get("deepspeed_config") or {}
    stage = int(deepspeed.get("zero_stage", -1)) if kind == "DEEPSPEED" else 0
    told_by = f"accelerate_configs/{stem}.yaml"
    if kind not in ("DEEPSPEED", "MULTI_GPU", "MULTI_CPU", "NO") or stage not in (0, 2, 3):
        raise ValueError(f"{told_by}: {kind} with zero_stage {stage}: there are DDP, ZeRO-2 and ZeRO-3.")
    for key in ("offload_optimizer_device", "offload_param_device"):
        if deepspeed.get(key, "none") != "none":
            raise ValueError(f"{told_by}: {key}={deepspeed[key]}: offloading is not here; use none.")
    return EngineFile(stem, int(told["num_machines"]), int(told["num_processes"]), stage, "_cpus_" in stem)
