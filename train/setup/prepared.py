"""Another command's config that makes what a run begins with, where that is absent."""

from operator import attrgetter

from configs import load_config
from configs.commands import Command
from configs.schema import Config

PASSED_ON = (
    "training.seed",
    "training.mixed_precision",
    "dataset.seed",
    "dataset.folder",
    "experiment.output_dir",
    "experiment.threads",
    "experiment.deterministic",
    "model.device",
    "experiment.deepspeed_file",
    "experiment.processes",
    "experiment.num_node",
    "experiment.gpu_memory_gib",
    "dry_run",
)
"""Keys that it takes from the run: seeds, folders, precision and engine (a process has one of each)."""


def prepared_by(file: str, command: Command, config: Config) -> Config:
    """The config of `file`, a config of `command`, with what the run passes on to it."""
    given = {key: attrgetter(key)(config) for key in PASSED_ON}
    arguments = [f"{key}={'null' if value is None else value}" for key, value in given.items()]
    return load_config([f"config={file}", *arguments], command=command)
