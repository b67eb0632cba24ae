"""The fine-tuning that makes an RL run's first model (model.prepare_with)."""

from operator import attrgetter

from configs import find, load_config
from configs.schema import Config
from runtime.run_folder import run_path
from train import sft

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
"""Keys that the fine-tuning takes from the run: seeds, folders, precision and engine (a process has one of each)."""


def preparation(config: Config) -> Config:
    """The SFT config named by model.prepare_with, with what the run passes on to it."""
    given = {key: attrgetter(key)(config) for key in PASSED_ON}
    words = [f"{key}={'null' if value is None else value}" for key, value in given.items()]
    return load_config([f"config={config.model.prepare_with}", *words])


def to_be_prepared(config: Config) -> bool:
    """Whether model.prepare_with must make the model first."""
    if not config.model.prepare_with:
        return False
    if not find(config.model.prepare_with).is_file():
        raise ValueError(f"model.prepare_with: {config.model.prepare_with} does not exist.")
    folder = find(config.model.pretrained_model)
    return not folder.is_file() and not (folder / "config.json").is_file()


def checked_preparation(config: Config) -> Config | None:
    """The SFT config of a model that is to be made first, after everything about it that can be known to fail; None
    where the model is there."""
    if not to_be_prepared(config):
        return None
    first = preparation(config)
    made = run_path(first) / "ckpt" / first.model.optimized_name
    if find(config.model.pretrained_model).resolve() != made.resolve():
        raise ValueError(
            f"model.pretrained_model={config.model.pretrained_model} is absent, and model.prepare_with="
            f"{config.model.prepare_with} would write {made}: name that folder, or one that is there."
        )
    sft.check(first)
    return first


def prepare_model(config: Config) -> None:
    """Runs the SFT named by model.prepare_with."""
    sft.run(preparation(config))
    if to_be_prepared(config):
        raise ValueError(
            f"{config.model.prepare_with} ran, but model.pretrained_model={config.model.pretrained_model} is still "
            "absent: that config must write its model there (experiment.output_dir, experiment.project)."
        )
