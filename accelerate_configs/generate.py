"""Writes this folder's configs for `accelerate launch` from one template: python accelerate_configs/generate.py"""

from pathlib import Path

FOLDER = Path(__file__).resolve().parent
NODES_AND_GPUS = ((1, 1), (1, 2), (1, 4), (1, 8), (2, 8), (4, 8), (8, 8), (16, 8))
TEMPLATE = """\
# Made by generate.py. accelerate launch --config_file accelerate_configs/{name} train/sft.py config=...{more}
compute_environment: LOCAL_MACHINE
distributed_type: {kind}
machine_rank: 0
main_training_function: main
mixed_precision: 'no'
num_machines: {nodes}
num_processes: {processes}
rdzv_backend: static
same_network: true
use_cpu: false
"""


def configs() -> dict[str, str]:
    """File name -> text. mixed_precision is training.mixed_precision's business, not accelerate's."""
    found = {}
    for nodes, gpus in NODES_AND_GPUS:
        name = f"{nodes}_node_{gpus}_gpus_ddp.yaml"
        more = "\n# On every node, with --machine_rank, --main_process_ip and --main_process_port." if nodes > 1 else ""
        kind = "MULTI_GPU" if nodes * gpus > 1 else "'NO'"
        found[name] = TEMPLATE.format(name=name, kind=kind, nodes=nodes, processes=nodes * gpus, more=more)
    return found


if __name__ == "__main__":
    for name, text in configs().items():
        (FOLDER / name).write_text(text)
