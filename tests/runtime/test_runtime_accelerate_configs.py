"""The shipped configs for `accelerate launch` are those of the template, and accelerate and we read them alike."""

import pytest
from accelerate.commands.config.config_args import load_config_from_file

from accelerate_configs.generate import FOLDER, configs
from configs.engine import engine_file


def test_the_files_are_the_templates():
    assert {path.name: path.read_text() for path in FOLDER.glob("*.yaml")} == configs()


@pytest.mark.parametrize("name", sorted(configs()))
def test_accelerate_reads_them(name):
    config, file = load_config_from_file(str(FOLDER / name)), engine_file(name)
    places, engine = name.removesuffix(".yaml").split("_node_")[0], name.removesuffix(".yaml").split("pus_")[1]
    offload, engine = engine.endswith("_offload"), engine.removesuffix("_offload")
    nodes, each = int(places), int(name.split("_")[2])
    assert (config.num_machines, config.num_processes, config.use_cpu) == (nodes, nodes * each, "_cpus_" in name)
    assert (file.nodes, file.processes, file.cpu) == (nodes, nodes * each, "_cpus_" in name)
    kind = str(config.distributed_type).rpartition(".")[2]
    assert kind == (
        "DEEPSPEED" if "zero" in engine else "FSDP" if engine == "fsdp2" else "MULTI_GPU" if nodes * each > 1 else "NO"
    )
    stage = (getattr(config, "deepspeed_config", None) or {}).get("zero_stage", 0)
    assert stage == {"deepspeed_zero2": 2, "deepspeed_zero3": 3}.get(engine, 0)
    assert file.kind == engine.removeprefix("deepspeed_")
    assert (getattr(config, "fsdp_config", None) or {}).get("fsdp_version") == (2 if engine == "fsdp2" else None)
    assert file.offload == offload
    device = (getattr(config, "deepspeed_config", None) or {}).get("offload_optimizer_device", "none")
    in_fsdp = (getattr(config, "fsdp_config", None) or {}).get("fsdp_offload_params", False)
    assert offload == (device == "cpu" or in_fsdp)
