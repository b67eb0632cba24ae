"""Dotted keys in nested mappings."""

from collections.abc import Mapping
from typing import Any


def flat(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Dotted key -> value. Lists and empty mappings are values."""
    leaves: dict[str, Any] = {}
    for name, value in tree.items():
        key = f"{prefix}{name}"
        leaves |= flat(value, f"{key}.") if isinstance(value, Mapping) and value else {key: value}
    return leaves


def get(tree: Any, key: str) -> Any:
    """The value of a key; attributes serve as well as items. KeyError or AttributeError where it is absent."""
    for part in key.split("."):
        tree = tree[part] if isinstance(tree, Mapping) else getattr(tree, part)
    return tree


def put(tree: dict[str, Any], key: str, value: Any) -> None:
    """Sets a key; makes the mappings above it that are absent or None."""
    *above, last = key.split(".")
    for part in above:
        tree[part] = tree.get(part) or {}
        tree = tree[part]
    tree[last] = value


def pop(tree: dict[str, Any], key: str) -> Any:
    """Takes a key out, with the mappings that it leaves empty, and returns its value."""
    first, _, rest = key.partition(".")
    if not rest:
        return tree.pop(first)
    value = pop(tree[first], rest)
    if not tree[first]:
        del tree[first]
    return value
