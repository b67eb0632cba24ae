"""The models, data and code that a config names: where they are when a run starts, and digests of what they hold."""

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from configs import find, resolved
from configs.commands import Command
from configs.effects import effect_of
from configs.schema import Config
from configs.sets import set_names
from configs.tree import get
from data.tasks import resolve_dataset
from models import lora
from models.fingerprint import digest_of, fingerprint, require_base
from models.folder import resolve_folder
from models.spec import CheckpointSpec
from runtime.doors import find_target, is_file_target
from runtime.run_config import CODE_KEYS, REWARD_KEY, Settings, Source
from runtime.run_folder import MADE_HERE
from train.learner.checkpoint import problem_of_model

_MODELS: dict[Command, tuple[str, ...]] = {
    "rl": ("model.pretrained_model", "model.value_base_model", "model.reference_model", "judge.local"),
    "sft": ("model.pretrained_model", "model.reference_model"),
    "eval": ("model.pretrained_model", "model.compared_with", "judge.local"),
}
_DATA: dict[Command, tuple[str, ...]] = {
    "rl": ("dataset.train_dataset", "evaluation.eval_dataset", "dataset.few_shot"),
    "sft": ("dataset.optimization_data", "dataset.validation_dataset"),
    "eval": ("dataset.eval_dataset", "dataset.few_shot"),
}
_CODE: dict[Command, tuple[str, ...]] = {
    "rl": (REWARD_KEY, *CODE_KEYS),
    "sft": ("training.method",),
    "eval": (REWARD_KEY, "rollout.strategy", "rollout.target"),
}


def pinned(config: Config) -> Config:
    """The config with the folders of its models where links and relative paths lead now: they may lead elsewhere during
    the run. What comes from an environment variable stays as it is."""
    for section, name in (key.split(".") for key in dict.fromkeys((*_MODELS["rl"], *_MODELS["eval"]))):
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
        if effect_of(key, command) != "result":  # other contents change what another name would
            continue
        if files := [path.resolve() for path in _data_files(config, key)]:
            digests = [digest_of(path) for path in files]
            yield key, Source(", ".join(map(str, files)), digests[0] if len(digests) == 1 else _together(digests))
    for key in _CODE[command]:
        yield from _code(key, get(config, key))


def _code(key: str, given: str | Sequence[str] | None) -> Iterator[tuple[str, Source]]:
    """Of the user's files (path/to/file.py:name) that a key names, a list of names together; nothing where all are
    built in."""
    entries = [given] if isinstance(given, str) else given or ()
    found = [find_target(key, entry) if is_file_target(entry) else (None, entry) for entry in entries]
    if any(path for path, _ in found):
        digests = [f"{digest_of(path) if path else ''}:{name}" for path, name in found]
        places = [f"{path.resolve()}:{name}" if path else name for path, name in found]
        yield key, Source(", ".join(places), _together(digests))


def _together(digests: Sequence[str]) -> str:
    """A digest of several."""
    return hashlib.blake2b(" ".join(digests).encode(), digest_size=16).hexdigest()


def require_kept(config: Config, command: Command, run: Path) -> None:
    """ValueError where emptying the folder `run` (experiment.overwrite) would delete what the new run begins with: a
    checkpoint, a model or its base, or data."""
    made = [(run / name).resolve() for name in MADE_HERE]
    for key, path in _begins_with(config, command):
        if any(path.resolve().is_relative_to(place) for place in made):
            name = config.typed.get(key, key)
            raise ValueError(
                f"experiment.overwrite=true would delete {path}, which {name}={get(config, key)} needs: leave "
                "experiment.overwrite out and choose another experiment.project."
            )


def _begins_with(config: Config, command: Command) -> Iterator[tuple[str, Path]]:
    """Key -> a path on this machine that it needs."""
    resume = config.experiment.resume
    names = {key: find(name) for key in _MODELS[command] if (name := get(config, key))}
    if resume not in ("auto", "never"):
        names["experiment.resume"] = Path(resume).expanduser()
    for key, folder in names.items():
        yield key, folder
        if (folder / lora.CONFIG).is_file() and (base := CheckpointSpec.read(folder, config.model.model_base).base):
            yield key, base.folder
    for key in _DATA[command]:
        for path in _data_files(config, key):
            yield key, path


def _data_files(config: Config, key: str) -> list[Path]:
    names, folder = set_names(get(config, key)), find(config.dataset.folder)
    if key == "dataset.optimization_data" and config.dataset.sample_with:
        names = [name for name in names if find(name).is_file()]  # the others are still to be sampled
    return [resolve_dataset(name, folder=folder, seed=config.dataset.seed) for name in names]


def require_as_written(spec: CheckpointSpec) -> None:
    """ValueError where a checkpoint that a run wrote, or the base of its adapters, is not what was written."""
    for folder in dict.fromkeys([spec.folder, (spec.base or spec).folder]):
        if problem := problem_of_model(folder):
            raise ValueError(
                f"checkpoint {folder} is not as it was written ({problem}): copy it again, or take another."
            )
    require_base(spec)
