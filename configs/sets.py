"""Keys that name several data sets: a name, or a list of names and of mappings with one."""

import itertools
import os
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from configs.schema import DATA_TYPES

SET_KEYS = (
    *("dataset.train_dataset", "dataset.optimization_data", "dataset.validation_dataset"),
    *("dataset.eval_dataset", "evaluation.eval_dataset", "dataset.few_shot"),
)
"""Keys that may name several data files."""


@dataclass(frozen=True)
class NamedSet:
    """A data set as a key names it. label: its short name among several, "" where it is the only one. weight: None
    where none is given. reward: its own function, path/to/file.py:name. columns: its own dataset.columns."""

    label: str
    name: str
    data_type: str
    weight: float | None = None
    reward: str | None = None
    columns: dict[str, str] = field(default_factory=dict)


def set_names(given: Any) -> list[str]:
    """The names, or paths, of the data sets that the value of such a key names."""
    entries = given if isinstance(given, list) else [given] if given else []
    names = [entry.get("name") if isinstance(entry, Mapping) else entry for entry in entries]
    return [name for name in names if name]


def described(given: Any) -> str:
    """For people: the names of the sets."""
    return ", ".join(set_names(given))


def besides_places(given: Any) -> Any:
    """What the value of such a key says besides where its sets are: labels and other fields; None of a single name."""
    if not isinstance(given, list):
        return None
    entries = [entry if isinstance(entry, Mapping) else {"name": entry} for entry in given]
    return [{**entry, "name": _label(entry.get("name", ""))} for entry in entries]


def key_of_set(key: str, label: str) -> str:
    """What a message about a set of `key` begins with: the key, and the set's label where there are several."""
    return f"{key}: set {label}" if label else key


def _label(name: str) -> str:
    return Path(name).stem.rpartition(":")[2]


def named_sets(key: str, given: Any, data_type: str, taken: Collection[str] = ()) -> list[NamedSet]:
    """The sets that the value `given` of `key` names, in its order; labels differ, and are none of `taken`. data_type:
    of those that name none. ValueError, with the key, for what an entry cannot have."""
    entries = given if isinstance(given, list) else [given] if given else []
    sets = [_named(key, entry, data_type) for entry in entries]
    _require_different(key, sets)
    if len(sets) == 1:
        return [replace(sets[0], label="")]
    sets = [replace(each, label=f"{each.label}-set") if each.label in taken else each for each in sets]
    return [
        replace(each, label=label) for each, label in zip(sets, _apart([s.label for s in sets], taken), strict=True)
    ]


def _require_different(key: str, sets: Sequence[NamedSet]) -> None:
    """ValueError where two entries are the same rows, read and graded alike; a weight makes no other set of them."""
    seen: set[tuple[Any, ...]] = set()
    for each in sets:
        place = os.path.abspath(Path(each.name).expanduser())
        said = place, each.data_type, each.reward, *sorted(each.columns.items())
        if said in seen:
            raise ValueError(f"{key}: {each.name} stands twice in the list: name it once, perhaps with a weight.")
        seen.add(said)


def _apart(labels: Sequence[str], taken: Collection[str]) -> list[str]:
    """The labels, those that several sets have with the next number that none has."""
    used = {*labels, *taken}
    found: list[str] = []
    for label in labels:
        if labels.count(label) > 1:
            label = next(each for n in itertools.count(1) if (each := f"{label}-{n}") not in used)
            used.add(label)
        found.append(label)
    return found


def _named(key: str, entry: Any, data_type: str) -> NamedSet:
    values: Mapping[str, Any] = entry if isinstance(entry, Mapping) else {"name": entry}
    name, kind, weight = values["name"], values.get("data_type") or data_type, values.get("weight")
    columns = values.get("columns") or {}
    reward = values.get("reward")
    if reward is not None and not isinstance(reward, str):
        raise ValueError(f"{key}: reward {reward!r} of {name}; it must be one function, path/to/file.py:name.")
    if kind not in DATA_TYPES:
        raise ValueError(f"{key}: data_type {kind!r} of {name}; choose from {', '.join(DATA_TYPES)}.")
    if weight is not None and (isinstance(weight, bool) or not isinstance(weight, int | float) or not weight > 0):
        raise ValueError(f"{key}: weight {weight!r} of {name}; it must be a number above 0.")
    if not (isinstance(columns, Mapping) and all(isinstance(text, str) for text in (*columns, *columns.values()))):
        raise ValueError(f"{key}: columns {columns!r} of {name}; it must be a mapping, {{question: problem}}.")
    return NamedSet(_label(name), name, kind, None if weight is None else float(weight), reward, dict(columns))


def shares(key: str, sets: Collection[NamedSet], sizes: Collection[int]) -> list[float]:
    """The weight of each set in what is drawn: as given, or, where none is, its size: then they are one set. ValueError
    where some have a weight and others none."""
    given = [each.weight for each in sets if each.weight is not None]
    if not given:
        return [float(size) for size in sizes]
    if bare := [each.name for each in sets if each.weight is None]:
        raise ValueError(f"{key}: {bare[0]} has no weight and others have one: give each a weight, or none of them.")
    return given
