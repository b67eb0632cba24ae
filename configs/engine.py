"""What a file of accelerate_configs/ says: how many nodes and processes, and which engine trains."""

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
    """kind: "ddp" = every process holds the whole model; "zero2", "zero3" = DeepSpeed's ZeRO shares out optimizer and
    gradients, or weights too; "fsdp2" = torch's fully_shard shares out all. cpu: its processes need no GPU."""

    name: str
    nodes: int
    processes: int
    kind: Kind
    cpu: bool

    @property
    def processes_per_node(self) -> int:
        return self.processes // self.nodes

    @property
    def zero_stage(self) -> int:
        """What is shared out, as ZeRO counts: FSDP2 shares what stage 3 does."""
        return STAGES[self.kind]

    @property
    def engine(self) -> str:
        return TITLES[self.kind]


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
    deepspeed = told.get("deepspeed_config") or {}
    told_by = f"accelerate_configs/{stem}.yaml"
    kind = _kind(told, told_by)
    for key in ("offload_optimizer_device", "offload_param_device"):
        if deepspeed.get(key, "none") != "none":
            raise ValueError(f"{told_by}: {key}={deepspeed[key]}: offloading is not here; use none.")
    return EngineFile(stem, int(told["num_machines"]), int(told["num_processes"]), kind, "_cpus_" in stem)


def _kind(told: Mapping[str, Any], told_by: str) -> Kind:
    asked, said = str(told["distributed_type"]), ""
    if asked == "DEEPSPEED":
        said = f"zero_stage {(told.get('deepspeed_config') or {}).get('zero_stage')}"
    elif asked == "FSDP":
        said = f"fsdp_version {(told.get('fsdp_config') or {}).get('fsdp_version')}"
    kinds: dict[tuple[str, str], Kind] = {
        ("DEEPSPEED", "zero_stage 2"): "zero2",
        ("DEEPSPEED", "zero_stage 3"): "zero3",
        ("FSDP", "fsdp_version 2"): "fsdp2",
        **{(name, ""): "ddp" for name in ("MULTI_GPU", "MULTI_CPU", "NO")},
    }
    if (asked, said) not in kinds:
        raise ValueError(
            f"{told_by}: {' with '.join(filter(None, (asked, said)))}: there are {', '.join(TITLES.values())}."
        )
    return kinds[asked, said]
