"""Writes this folder's configs for `accelerate launch` and experiment.deepspeed_file from one template:
python accelerate_configs/generate.py"""

from pathlib import Path

FOLDER = Path(__file__).resolve().parent
NODES_AND_GPUS = ((1, 1), (1, 2), (1, 4), (1, 8), (2, 8), (4, 4), (4, 8), (8, 8), (16, 8))
NODES_AND_CPUS = ((1, 2), (2, 2))
ENGINES = ("ddp", "deepspeed_zero2", "deepspeed_zero3", "deepspeed_zero3_offload", "fsdp2", "fsdp2_offload")
TEMPLATE = """\
# Made by generate.py.
# {start}
compute_environment: LOCAL_MACHINE
{deepspeed}distributed_type: {kind}
{fsdp}machine_rank: 0
main_training_function: main
mixed_precision: 'no'
num_machines: {nodes}
num_processes: {processes}
rdzv_backend: static
same_network: true
use_cpu: {cpu}
"""
DEEPSPEED = """\
deepspeed_config:
  deepspeed_multinode_launcher: standard
  gradient_accumulation_steps: 1
  offload_optimizer_device: {device}
  offload_param_device: none
  zero3_init_flag: false
  zero_stage: {stage}
"""
FSDP = """\
fsdp_config:
  fsdp_offload_params: {offload}
  fsdp_version: 2
"""
LAUNCH = "accelerate launch --config_file accelerate_configs/{name}.yaml train/sft.py config=..."
OUR_OWN = "python train/sft.py config=... experiment.deepspeed_file={name} (not for `accelerate launch`)"
ON_EVERY_NODE = "\n# On every node, with --machine_rank, --main_process_ip and --main_process_port."


def configs() -> dict[str, str]:
    """File name -> text. mixed_precision and clipping are training's business, not accelerate's."""
    found = {}
    for device, places in (("gpus", NODES_AND_GPUS), ("cpus", NODES_AND_CPUS)):
        for nodes, processes in places:
            for engine in ENGINES:
                name = f"{nodes}_node_{processes}_{device}_{engine}"
                found[f"{name}.yaml"] = _config(name, nodes, nodes * processes, engine, device)
    return found


def _config(name: str, nodes: int, processes: int, engine: str, device: str) -> str:
    kind, offload = "MULTI_GPU" if processes > 1 else "'NO'", engine.endswith("_offload")
    kind = {"deepspeed": "DEEPSPEED", "fsdp2": "FSDP"}.get(engine.split("_")[0], kind)
    start = LAUNCH.format(name=name) + (ON_EVERY_NODE if nodes > 1 else "")
    if kind == "FSDP":
        start = OUR_OWN.format(name=name).replace("train/sft.py", "multinode_rl.py" if nodes > 1 else "train/sft.py")
    elif device == "cpus" and kind != "DEEPSPEED":
        start = f"ACCELERATE_USE_CPU=true {start}"
    return TEMPLATE.format(
        name=name,
        nodes=nodes,
        processes=processes,
        kind=kind,
        deepspeed=DEEPSPEED.format(stage=engine[14], device="cpu" if offload else "none")
        if kind == "DEEPSPEED"
        else "",
        fsdp=FSDP.format(offload=str(offload).lower()) if kind == "FSDP" else "",
        start=start,
        cpu=str(device == "cpus").lower(),
    )


if __name__ == "__main__":
    for name, text in configs().items():
        (FOLDER / name).write_text(text)
