"""What keys are called elsewhere (`configs.elsewhere`), for messages about unknown keys."""

from collections import Counter
from collections.abc import Collection, Iterator

from configs.elsewhere import TABLE, Named
from configs.fields import flat_fields


def _index() -> dict[str, Named]:
    """Name, in small letters -> what it names. A dotted name counts by its last two parts too, where these are neither
    a key here nor another name; one that only lacks the section of its key is left out: two sections may have it."""
    known = [key for key, _ in flat_fields()]
    entries = [entry for section in TABLE.values() for entry in section]
    found = {name.lower(): entry for entry in entries for name in entry.names if not _lacks_section(name, entry)}
    short = [(short, entry) for entry in entries for name in entry.names for short in _last_two(name)]
    times = Counter(name for name, _ in short)
    return {name: entry for name, entry in short if times[name] == 1 and name not in known} | found


def _lacks_section(name: str, entry: Named) -> bool:
    return entry.keys.endswith(f".{name}") and len(entry.keys.split()) == 1


def _last_two(name: str) -> Iterator[str]:
    parts = name.lower().split(".")
    if len(parts) > 2:
        yield ".".join(parts[-2:])


_NAMES = _index()
ELSEWHERE: dict[str, tuple[str, ...]] = {
    name: tuple(entry.keys.split()) for name, entry in _NAMES.items() if entry.keys
}
"""Name -> keys, most likely first."""
NOTES: dict[str, str] = {name: entry.note for name, entry in _NAMES.items() if not entry.keys}
"""Name -> what takes the place of a key that has none here."""


def keys_for(name: str, known: Collection[str]) -> list[str]:
    """The keys here of what is called `name` elsewhere, most likely first; in the section that was typed where it has
    such a key."""
    found = next((ELSEWHERE[given] for given in _readings(name) if given in ELSEWHERE), ())
    section = name.lower().replace("-", "_").rpartition(".")[0]
    there = [f"{section}.{key.rpartition('.')[2]}" for key in found]
    return [key for key in there if key in known] or list(found)


def note_for(name: str) -> str:
    """What there is in place of a key of that name, "" where nothing is known."""
    return next((NOTES[given] for given in _readings(name) if given in NOTES), "")


def _readings(name: str) -> list[str]:
    """The name as typed, its last two parts, its last one."""
    parts = name.lower().replace("-", "_").split(".")
    return [".".join(parts), ".".join(parts[-2:]), parts[-1]]
