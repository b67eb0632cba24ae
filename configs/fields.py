"""The leaves of the schema, and what their values must fit."""

import dataclasses
import difflib
import math
import typing
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from configs.schema import Config


def flat_fields(kind: type = Config, prefix: str = "") -> Iterator[tuple[str, dataclasses.Field]]:
    """(dotted key, field) of every leaf of the schema."""
    for item in dataclasses.fields(kind):
        if dataclasses.is_dataclass(item.type):
            yield from flat_fields(typing.cast(type, item.type), f"{prefix}{item.name}.")
        elif item.name not in ("typed", "hidden"):
            yield prefix + item.name, item


def kind_of(item: dataclasses.Field) -> str:
    """The type of a key's value, for people."""
    each = item.metadata["each"]
    if each:
        return f"{each.__name__} or list of {each.__name__}"
    return str(item.type).replace("<class '", "").replace("'>", "").replace("typing.", "")


def no_list(key: str, item: dataclasses.Field) -> str:
    """Of a key that was given a list and takes one value: what it takes, and which keys beside it take lists."""
    words = {"float": "a number", "int": "a whole number", "bool": "true or false", "str": "a text", "None": "null"}
    section = key.rpartition(".")[0]
    lists = [name for name, other in flat_fields() if name.rpartition(".")[0] == section and other.metadata["each"]]
    names = " and ".join(name.rpartition(".")[2] for name in lists)
    kinds = " or ".join(words.get(kind, kind) for kind in kind_of(item).split(" | "))
    return f"it must be {kinds}" + (f" ({names} take lists)" if lists else "")


def check_entry(name: str, entry: Any, item: dataclasses.Field) -> None:
    """ValueError unless a value, or an entry of a list, fits the schema's field. name: of the key, as it was typed."""
    low, high, choices, each = (item.metadata[what] for what in ("low", "high", "choices", "each"))
    if choices and entry not in choices:
        raise ValueError(_choose(name, entry, choices))
    if item.metadata["names"]:
        require_built_in(name, entry, item.metadata["names"])
    if item.metadata["fields"] and isinstance(entry, Mapping):
        _check_fields(name, entry, item.metadata["fields"])
        return
    if each is str and not isinstance(entry, str):
        raise ValueError(f"{name} is {entry!r}; it must be a name.")
    if low is None:
        return
    kind = int if each is int else (int, float)
    if isinstance(entry, bool) or not isinstance(entry, kind) or not math.isfinite(entry):
        raise ValueError(f"{name} is {entry!r}; it must be a {'whole' if each is int else 'finite'} number.")
    if entry < low or (high is not None and entry > high):
        raise ValueError(f"{name} is {entry!r}; it must be {bounds_of(low, math.inf if high is None else high)}.")


def bounds_of(low: float, high: float) -> str:
    """A range, for people."""
    return f"at least {low:g}" if high == math.inf else f"between {low:g} and {high:g}"


def require_built_in(name: str, entry: Any, names: Sequence[str]) -> None:
    """ValueError where a text is neither one of the names of built-ins nor path/to/file.py:name. name: of the key."""
    if isinstance(entry, str) and not (":" in entry or entry.endswith(".py")) and entry not in names:
        raise ValueError(_choose(name, entry, names, ", or name your own: path/to/file.py:name"))


def _choose(name: str, entry: Any, choices: Sequence[str], otherwise: str = "") -> str:
    by_lower = {choice.lower(): choice for choice in choices}
    near = difflib.get_close_matches(str(entry).lower(), by_lower, n=1)
    hint = f" Did you mean {by_lower[near[0]]!r}?" if near else ""
    return f"{name} is {entry!r}; choose from {', '.join(choices)}{otherwise}.{hint}"


def _check_fields(name: str, entry: Mapping[str, Any], fields: Sequence[str]) -> None:
    """ValueError unless a mapping in a list has these names alone, the first of them at least."""
    if unknown := [field for field in entry if field not in fields]:
        raise ValueError(f"{name} has an entry with {unknown[0]!r}; it may have {', '.join(fields)}.")
    if not isinstance(entry.get(fields[0]), str):
        raise ValueError(f"{name} has an entry without {fields[0]}: {dict(entry)}.")
