"""Keys that name several sets of tasks: a name, or a list of names and of mappings with one."""

from collections.abc import Mapping
from typing import Any


def set_names(given: Any) -> list[str]:
    """The names, or paths, of the sets that the value of such a key names."""
    entries = given if isinstance(given, list) else [given] if given else []
    return [entry["name"] if isinstance(entry, Mapping) else entry for entry in entries]


def described(given: Any) -> str:
    """For people: the names of the sets."""
    return ", ".join(set_names(given))
