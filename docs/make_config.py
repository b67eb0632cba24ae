"""Writes docs/config.md from the schema: python docs/make_config.py"""

import dataclasses
import sys
from collections.abc import Iterator
from itertools import groupby
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from configs.commands import NOT_READ, TITLES, reads
from configs.effects import MEANINGS
from configs.fields import flat_fields, kind_of

PAGE = Path(__file__).with_name("config.md")
HEADER = """# Config reference

Every key of a YAML and of the command line (`section.key=value`), made from `configs/schema.py` by
`python docs/make_config.py`; a test checks that it is up to date. `--help` of a command lists the same. dLLM-RL's names
are read too ([their table](from_dllm_rl.md#keys)).

**Read by** names the commands that read a key, *all* of them where nothing else stands; in the YAML of another command
it is named in a warning, typed it is an error. **Changes** says what another value changes, and so whether a run may be
resumed with it:

"""
TOP = "At the top"


def document() -> str:
    """The page."""
    parts = [HEADER + "".join(f"- *{effect}*: {meaning}\n" for effect, meaning in MEANINGS.items())]
    for section, fields in groupby(sorted(flat_fields(), key=_section_order()), key=lambda field: section_of(field[0])):
        parts.append(f"\n## {section}\n\n| key | default | meaning | changes | read by |\n|---|---|---|---|---|\n")
        parts += [_row(key, item) for key, item in fields]
    return "".join(parts)


def section_of(key: str) -> str:
    return key.rpartition(".")[0] or TOP


def _section_order() -> Any:
    """Sections in the schema's order, the keys of the top level first."""
    order = [TOP, *dict.fromkeys(section_of(key) for key, _ in flat_fields())]
    return lambda field: order.index(section_of(field[0]))


def _row(key: str, item: dataclasses.Field) -> str:
    name = f"`{key.rpartition('.')[2]}`"
    cells = [name, _default(item), _meaning(item), item.metadata["changes"], _readers(key)]
    return f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |\n"


def _default(item: dataclasses.Field) -> str:
    factory: Any = item.default_factory
    value = factory() if item.default is dataclasses.MISSING else item.default
    shown = {None: "null", True: "true", False: "false"}.get(value, value) if isinstance(value, bool | None) else value
    return f"`{shown}`" if shown != "" else '`""`'


def _meaning(item: dataclasses.Field) -> str:
    text = item.metadata["help"].replace("<", "&lt;").replace("*", r"\*")
    return "; ".join([text, *_bounds(item)]) + f" ({kind_of(item)})"


def _bounds(item: dataclasses.Field) -> Iterator[str]:
    """What a value must be."""
    low, high, choices = (item.metadata[name] for name in ("low", "high", "choices"))
    if choices:
        yield "one of " + ", ".join(f"`{choice}`" for choice in choices)
    if low is not None:
        yield f"at least {low:g}" if high is None else f"{low:g} to {high:g}"


def _readers(key: str) -> str:
    found = [TITLES[command] for command in NOT_READ if reads(command, key)]
    return "all" if len(found) == len(NOT_READ) else ", ".join(f"`{title}`" for title in found)


if __name__ == "__main__":
    PAGE.write_text(document(), encoding="utf-8")
