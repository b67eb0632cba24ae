"""How a run's settings differ from the YAML that was typed."""

from pathlib import Path
from typing import Any

from configs import find, load_config, resolved
from configs.commands import Command, reads
from configs.load import REPOSITORY
from configs.schema import Config
from configs.tree import flat
from runtime.report.run_data import About
from runtime.run_config import public

CONFIG_OF_A_RUN = "config.yaml"
_OF_A_START = ("experiment.overwrite", "experiment.resume", "experiment.project", "experiment.output_dir")


def about(config: Config, command: Command) -> About:
    """What the report and the card tell of a run besides its files: the recipe, and the keys that `command` reads and
    that differ from it; those of one start, and the run's name and place, aside."""
    typed = _typed(config.config)
    path = find(typed).resolve()
    if not typed or not path.is_file():
        return About(command, typed)
    name = str(path.relative_to(REPOSITORY)) if path.is_relative_to(REPOSITORY) else typed
    try:
        there = flat(public(resolved(load_config([f"config={typed}"], command=command))))
    except ValueError:  # it is complete only with what was typed besides
        return About(command, name)
    here = flat(public(resolved(config)))
    keys = (key for key in here if reads(command, key) and key not in _OF_A_START)
    return About(
        command, name, {key: (there.get(key), here[key]) for key in keys if not _same(there.get(key), here[key])}
    )


def _typed(name: str) -> str:
    """The YAML that was typed when a run was begun, where `name` is that run's config.yaml; else `name`."""
    path = find(name)
    begun = About.read(path.parent) if path.name == CONFIG_OF_A_RUN else None
    return begun.recipe if begun and begun.recipe else name


def _same(then: Any, now: Any) -> bool:
    """Equal, or two ways to name one place: a run keeps where links and relative paths led."""
    if then == now:
        return True
    places = isinstance(then, str) and isinstance(now, str) and "/" in now and "/" in then
    return places and find(Path(then)).resolve() == Path(now)
