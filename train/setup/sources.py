"""The models and data that a config names: where they are when a run starts, and digests of what they hold."""

from collections.abc import Iterator
from dataclasses import replace

from configs import find, resolved
from configs.commands import Command
from configs.schema import Config
from configs.tree import get
from data.tasks import resolve_dataset
from models.fingerprint import digest_of, fingerprint, require_base
from models.folder import resolve_folder
from models.spec import CheckpointSpec
from runtime.run_config import Settings, Source
from train.learner.checkpoint import problem_of_model

_MODELS: dict[Command, tuple[str, ...]] = {
    "rl": ("model.pretrained_model", "model.value_base_model", "judge.local"),
    "sft": ("model.pretrained_model",),
    "eval": ("model.pretrained_model", "judge.local"),
}
_DATA: dict[Command, tuple[str, ...]] = {
    "rl": ("dataset.train_dataset", "evaluation.eval_dataset"),
    "sft": ("dataset.optimization_data",),
    "eval": ("dataset.eval_dataset",),
}


def pinned(config: Config) -> Config:
    """The config with the folders of its models where links and relative paths lead now: they may lead elsewhere during
    the run. What comes from an environment variable stays as it is."""
    for section, name in (key.split(".") for key in _MODELS["rl"]):
        value = getattr(getattr(config, section), name)
        if not value or f"{section}.{name}" in config.hidden:
            continue
        folder = find(value)
        if folder.is_dir():
            changed = replace(getattr(config, section), **{name: str(folder.resolve())})
            config = replace(config, **{section: changed})
    return config


def settings_of(config: Config, command: Command, *, digests: bool = True) -> Settings:
    """What the run's folder keeps of a config and compares when the run is resumed. A model that is not there yet
    (model.prepare_with) has no digest. digests: false leaves all of them out, and no file is read."""
    config = pinned(config)
    return Settings(resolved(config), command, dict(_sources(config, command)) if digests else {}, config.typed)


def _sources(config: Config, command: Command) -> Iterator[tuple[str, Source]]:
    for key in _MODELS[command]:
        if (name := get(config, key)) and (find(name) / "config.json").is_file():
            folder = resolve_folder(find(name)).resolve()
            yield key, Source(str(folder), fingerprint(folder))
    for key in _DATA[command]:
        if name := get(config, key):
            path = resolve_dataset(name, folder=find(config.dataset.folder), seed=config.dataset.seed).resolve()
            yield key, Source(str(path), digest_of(path))


def require_as_written(spec: CheckpointSpec) -> None:
    """ValueError where a checkpoint that a run wrote, or the base of its adapters, is not what was written."""
    for folder in dict.fromkeys([spec.folder, (spec.base or spec).folder]):
        if problem := problem_of_model(folder):
            raise ValueError(
                f"checkpoint {folder} is not as it was written ({problem}): copy it again, or take another."
            )
    require_base(spec)
