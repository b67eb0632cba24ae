"""Values that a config has and that are written nowhere: those of environment variables.

What is written, compared and sent to trackers in place of such a value is its text in the YAML, `${oc.env:NAME}`.
"""

import re
from collections.abc import Callable, Mapping
from typing import Any

import yaml

MASK = "***"
"""In place of a password."""
_REFERENCE = re.compile(r"\$\{([^${}:]+)\}")


class Hidden(str):
    """Text that stands for `value`."""

    value: Any

    def __new__(cls, text: str, value: Any) -> "Hidden":
        hidden = super().__new__(cls, text)
        hidden.value = value
        return hidden

    def __getnewargs__(self) -> tuple[str, Any]:  # type: ignore[override]
        return str(self), self.value


yaml.representer.Representer.add_multi_representer(Hidden, lambda dumper, hidden: dumper.represent_str(str(hidden)))


def from_environment(raw: Mapping[str, Any], value_of: Callable[[str], Any]) -> dict[str, Any]:
    """Dotted key -> value with `Hidden` texts, of the keys that take theirs from the environment, by themselves or by
    way of another key. raw: dotted key -> value before interpolation."""
    texts = {key: text for key, value in raw.items() if "${" in (text := " ".join(strings(value)))}
    found = {key for key, text in texts.items() if "${oc.env:" in text}
    while more := {key for key, text in texts.items() if key not in found and _refers(text, found)}:
        found |= more
    return {key: _hide(raw[key], value_of(key)) for key in found}


def shown(value: Any) -> Any:
    """A value as it is written: `Hidden` ones as plain text."""
    return _each(value, str)


def actual(value: Any) -> Any:
    """A value as it is used."""
    return _each(value, lambda hidden: hidden.value)


def without(text: str, hidden: Mapping[str, Any]) -> str:
    """`text`, a message about values, with those that are `Hidden` as they are written."""
    for entry in strings(dict(hidden)):
        if isinstance(entry, Hidden) and isinstance(entry.value, str):
            text = text.replace(repr(entry.value), repr(str(entry)))
    return text


def holds_hidden(value: Any) -> bool:
    return any(isinstance(text, Hidden) for text in strings(value))


def strings(value: Any) -> list[str]:
    """All text in nested mappings and lists."""
    if isinstance(value, Mapping):
        value = list(value.values())
    if isinstance(value, list | tuple):
        return [text for entry in value for text in strings(entry)]
    return [value] if isinstance(value, str) else []


def _refers(text: str, keys: set[str]) -> bool:
    """Whether the text refers to one of the keys. A relative reference counts by its last name."""
    names = _REFERENCE.findall(text)
    last = {key.rpartition(".")[2] for key in keys}
    return any(name in keys or (name.startswith(".") and name.rpartition(".")[2] in last) for name in names)


def _hide(raw: Any, value: Any) -> Any:
    if isinstance(raw, list) and isinstance(value, list) and len(raw) == len(value):
        return [_hide(*pair) for pair in zip(raw, value, strict=True)]
    return Hidden(raw, value) if isinstance(raw, str) and "${" in raw else value


def _each(value: Any, change: Callable[[Hidden], Any]) -> Any:
    if isinstance(value, Hidden):
        return change(value)
    if isinstance(value, Mapping):
        return {key: _each(entry, change) for key, entry in value.items()}
    return [_each(entry, change) for entry in value] if isinstance(value, list | tuple) else value
