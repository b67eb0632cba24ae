"""What another value of a key changes in a run that is resumed with it: the marks of `configs.schema`."""

import functools
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

from configs.commands import Command, effect_in
from configs.load import flat_fields
from configs.schema import Effect

MEANINGS: Mapping[Effect, str] = MappingProxyType(
    {
        "result": "tokens, weights, rewards or figures: a run is not resumed with another value",
        "speed": "where and how fast it runs, or how long it waits: the same results up to rounding",
        "output": "what is saved, shown or evaluated, and where: the same weights",
        "length": "how many steps it has",
    }
)
OF_ONE_START = ("config", "dry_run", "experiment.overwrite", "experiment.resume")
"""Keys of one start of a run alone: a run does not keep them."""

_TURNS_ON = ("judge.api",)
"""Keys that say where something is; it is turned on or off where one of two values is empty."""


@functools.cache
def _marks() -> dict[str, Effect]:
    return {name: item.metadata["changes"] for name, item in flat_fields()}


def effect_of(key: str, command: Command | None = None) -> Effect:
    """The mark of a key; result for one that the schema does not have."""
    return effect_in(command, key, _marks().get(key, "result"))


def effect_between(key: str, command: Command | None, then: Any, now: Any) -> Effect:
    """What a change between two values of a key changes."""
    return "result" if key in _TURNS_ON and not (then and now) else effect_of(key, command)


def note(effect: Effect, settings: Mapping[str, Any]) -> str:
    """What a change with this effect means, for people. settings: those of now, by dotted key."""
    if effect == "speed":
        return "speed: the same results up to rounding"
    if effect != "length":
        return str(effect)
    shape, least = settings.get("lr_scheduler.scheduler"), settings.get("lr_scheduler.params.min_lr_scale", 1.0)
    if shape == "constant" or least == 1.0:
        return "length: the learning rate is constant, and that of a run of this length from its start"
    return f"length: from here on the learning rate is that of a run of this length, {shape} to {least:g} of its peak"
