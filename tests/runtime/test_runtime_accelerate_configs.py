"""The shipped configs for `accelerate launch` are those of the template, and accelerate reads them as meant."""

import pytest
from accelerate.commands.config.config_args import load_config_from_file

from accelerate_configs.generate import FOLDER, NODES_AND_GPUS, configs


def test_the_files_are_the_templates():
    assert {path.name: path.read_text() for path in FOLDER.glob("*.yaml")} == configs()


@pytest.mark.parametrize(("nodes", "gpus"), NODES_AND_GPUS)
def test_accelerate_reads_them(nodes, gpus):
    config = load_config_from_file(str(FOLDER / f"{nodes}_node_{gpus}_gpus_ddp.yaml"))
    assert (config.num_machines, config.num_processes, config.use_cpu) == (nodes, nodes * gpus, False)
    assert str(config.distributed_type).rpartition(".")[2] == ("MULTI_GPU" if nodes * gpus > 1 else "NO")
