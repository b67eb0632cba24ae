"""Writes this folder's configs for `accelerate launch` and experiment.deepspeed_file from one template:
python accelerate_configs/generate.py"""

from pathlib import Path

FOLDER = Path(__file__).resolve().parent
NODES_AND_GPUS = ((1, 1), (1, 2), (1, 4), (1, 8), (2, 8), (4, 4), (4, 8), (8, 8), (16, 8))
NODES_AND_CPUS = ((1, 2), (2, 2))
ENGINES = {"ddp": 0, "deepspeed_zero2": 2, "deepspeed_zero3": 3}
TEMPLATE = """\
# Made by generate.py.
# {before}accelerate launch --config_file accelerate_configs/{name}.yaml train/sft.py config=...{more}
compute_environment: LOCAL_MACHINE
{deepspeed}distributed_type: {kind}
machine_rank: 0
main_training_function: main
mixed_precision: 'no'
num_machines: {nodes}
num_processes: {processes}
rdzv_backend: static
same_network: true
use_cpu: false
"""
DEEPSPEED = """\
deepspeed_config:
  deepspeed_multinode_launcher: standard
  gradient_accumulation_steps: 1
  offload_optimizer_device: none
  offload_param_device: none
  zero3_init_flag: false
  zero_stage: {stage}
"""


def configs() -> dict[str, str]:
    """File name -> text. mixed_precision and clipping are training's business, not accelerate's."""
    found = {}
    for device, places in (("gpus", NODES_AND_GPUS), ("cpus", NODES_AND_CPUS)):
        for nodes, processes in places:
            for engine, stage in ENGINES.items():
                name = f"{nodes}_node_{processes}_{device}_{engine}"
                found[f"{name}.yaml"] = _config(name, nodes, nodes * processes, stage, device)
    return found


def _config(name: str, nodes: int, processes: int, stage: int, device: str) -> str:
    kind = "DEEPSPEED" if stage else ("MULTI_GPU" if processes > 1 else "'NO'")
    return TEMPLATE.format(
        name=name,
        nodes=nodes,
        processes=processes,
        kind=kind,
        deepspeed=DEEPSPEED.format(stage=stage) if stage else "",
        before="ACCELERATE_USE_CPU=true " if device == "cpus" and not stage else "",
        more="\n# On every node, with --machine_rank, --main_process_ip and --main_process_port." if nodes > 1 else "",
    )


if __name__ == "__main__":
    for name, text in configs().items():
        (FOLDER / name).write_text(text)
