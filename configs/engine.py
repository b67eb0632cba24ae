"""Files of accelerate_configs/: how many nodes and processes, and which engine trains."""

import difflib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import yaml

FOLDER = Path(__file__).resolve().parent.parent / "accelerate_configs"
Kind = Literal["ddp", "zero2", "zero3", "fsdp2"]
TITLES: dict[Kind, str] = {"ddp": "DDP", "zero2": "ZeRO-2", "zero3": "ZeRO-3", "fsdp2": "FSDP2"}
STAGES: dict[Kind, int] = {"ddp": 0, "zero2": 2, "zero3": 3, "fsdp2": 3}


@dataclass(frozen=True)
class EngineFile:
    """kind: "ddp" = every process holds the whole model; "zero2", "zero3" = DeepSpeed's ZeRO shards optimizer and
    gradients, or weights too; "fsdp2" = torch's fully_shard shards all of them. cpu: its processes use no GPU. offload:
    masters, gradients and optimizer state lie in host memory, where the optimizer's step runs (under FSDP2 the shards
    of the weights are these masters)."""

    name: str
    nodes: int
    processes: int
    kind: Kind
    cpu: bool
    offload: bool = False

    @property
    def processes_per_node(self) -> int:
        return self.processes // self.nodes


def engine_file(name: str | None) -> EngineFile | None:
    """The file of that name (with or without .yaml); None for no name. ValueError where there is none, or where it
    needs what is not supported."""
    if name is None:
        return None
    stem, choices = name.removesuffix(".yaml"), sorted(path.stem for path in FOLDER.glob("*.yaml"))
    if stem not in choices:
        near = difflib.get_close_matches(stem, choices, n=1)
        raise ValueError(
            f"experiment.deepspeed_file={name} is none of accelerate_configs/: choose from {', '.join(choices)}."
            + (f" Did you mean {near[0]}?" if near else "")
        )
    raw: dict[str, Any] = yaml.safe_load((FOLDER / f"{stem}.yaml").read_text(encoding="utf-8"))
    source = f"accelerate_configs/{stem}.yaml"
    deepspeed = raw.get("deepspeed_config") or {}
    device = check_offload(
        deepspeed.get("offload_optimizer_device", "none"), deepspeed.get("offload_param_device", "none"), source
    )
    offload = device == "cpu" or bool((raw.get("fsdp_config") or {}).get("fsdp_offload_params"))
    nodes, processes = int(raw["num_machines"]), int(raw["num_processes"])
    return EngineFile(stem, nodes, processes, _kind(raw, source), bool(raw["use_cpu"]), offload)


def check_offload(optimizer_device: str, param_device: str, source: str) -> str:
    """Where DeepSpeed keeps the optimizer: "none" (with the weights) or "cpu". ValueError for a disk, and for weights
    that are offloaded too."""
    if optimizer_device not in ("none", "cpu"):
        raise ValueError(f"{source}: offload_optimizer_device={optimizer_device}: use cpu (host memory) or none.")
    if param_device != "none":
        raise ValueError(
            f"{source}: offload_param_device={param_device}: weights stay on their device, only the optimizer is "
            "offloaded; use none."
        )
    return optimizer_device


def names_like(file: EngineFile, nodes: int) -> list[str]:
    """Files of the same engine and device for another number of nodes."""
    found = [engine_file(path.stem) for path in sorted(FOLDER.glob("*.yaml"))]
    wanted = file.kind, file.cpu, file.offload, nodes
    return [f.name for f in found if f is not None and (f.kind, f.cpu, f.offload, f.nodes) == wanted]


def _kind(raw: Mapping[str, Any], source: str) -> Kind:
    launcher, version = str(raw["distributed_type"]), ""
    if launcher == "DEEPSPEED":
        version = f"zero_stage {(raw.get('deepspeed_config') or {}).get('zero_stage')}"
    elif launcher == "FSDP":
        version = f"fsdp_version {(raw.get('fsdp_config') or {}).get('fsdp_version')}"
    kinds: dict[tuple[str, str], Kind] = {
        ("DEEPSPEED", "zero_stage 2"): "zero2",
        ("DEEPSPEED", "zero_stage 3"): "zero3",
        ("FSDP", "fsdp_version 2"): "fsdp2",
        **{(name, ""): "ddp" for name in ("MULTI_GPU", "MULTI_CPU", "NO")},
    }
    if (launcher, version) not in kinds:
        found = " with ".join(filter(None, (launcher, version)))
        raise ValueError(f"{source}: {found}: choose among {', '.join(TITLES.values())}.")
    return kinds[launcher, version]
