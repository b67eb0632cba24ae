"""The leaves of the schema."""

import dataclasses
import typing
from collections.abc import Iterator

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
