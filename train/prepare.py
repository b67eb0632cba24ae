"""The fine-tuning that makes an RL run's first model (model.prepare_with)."""

from pathlib import Path

from configs import find
from configs.schema import Config
from runtime.run_folder import RunFolder, run_path
from train import sft
from train.setup.prepared import prepared_by


def preparation(config: Config) -> Config:
    """The SFT config named by model.prepare_with, with what the run passes on to it."""
    assert config.model.prepare_with
    return prepared_by(config.model.prepare_with, "sft", config)


def to_be_prepared(config: Config) -> bool:
    """Whether model.prepare_with must make the model first: it is absent, or of a fine-tuning that has not done its
    last step."""
    if not config.model.prepare_with:
        return False
    if not find(config.model.prepare_with).is_file():
        raise ValueError(f"model.prepare_with: {config.model.prepare_with} does not exist.")
    first = preparation(config)
    finished = RunFolder(run_path(first)).final.is_file()
    return _is_absent(config) or (_is_made_by(first, config) and not finished)


def checked_preparation(config: Config) -> Config | None:
    """The SFT config of a model that is to be made first, after everything about it that can be known to fail; None
    where the model is there."""
    if not to_be_prepared(config):
        return None
    first, absent = preparation(config), _is_absent(config)
    if not _is_made_by(first, config):
        raise ValueError(
            f"model.pretrained_model={config.model.pretrained_model} is absent, and model.prepare_with="
            f"{config.model.prepare_with} would write {_made(first)}: name that folder, or one that is there."
        )
    try:
        if sft.checked_sampling(first) is None:
            sft.check(first)
    except ValueError as error:
        if absent:
            raise
        raise ValueError(
            f"model.pretrained_model={config.model.pretrained_model} is of a run of model.prepare_with="
            f"{config.model.prepare_with} that is not known to have done its last step, and that cannot be resumed: "
            f"{error} To take the model as it is, set model.prepare_with=null."
        ) from error
    return first


def prepare_model(config: Config) -> None:
    """Runs the SFT named by model.prepare_with, or what is left of it."""
    sft.run(preparation(config))
    if to_be_prepared(config):
        raise ValueError(
            f"{config.model.prepare_with} ran, but model.pretrained_model={config.model.pretrained_model} is still "
            "absent: that config must write its model there (experiment.output_dir, experiment.project)."
        )


def _is_absent(config: Config) -> bool:
    folder = find(config.model.pretrained_model)
    return not folder.is_file() and not (folder / "config.json").is_file()


def _made(first: Config) -> Path:
    """The link to the newest model of a run."""
    return RunFolder(run_path(first)).checkpoints / first.model.optimized_name


def _is_made_by(first: Config, config: Config) -> bool:
    """Whether the run of `first` writes the model that `config` names (a link, which moves on)."""
    one, other = find(config.model.pretrained_model), _made(first)
    return one.name == other.name and one.parent.resolve() == other.parent.resolve()
