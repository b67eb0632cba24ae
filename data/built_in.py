"""The built-in tasks, which are written on demand. Each is a small file with a generator and a verifier; to add one,
write such a file and its line here."""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from data import tiny, tiny_addition, tiny_brackets, tiny_vision

Rows = dict[str, list[dict[str, str]]]


@dataclass(frozen=True)
class BuiltIn:
    """sizes: the rows of each data set by its name; write: writes the files of a seed into a folder, name -> file.
    version: of what `write` writes; another one is in another folder, so that files of an older checkout are left."""

    sizes: Mapping[str, int]
    write: Callable[[Path, int], dict[str, Path]]
    version: int = 1


def from_rows(rows: Callable[[int], Rows]) -> Callable[[Path, int], dict[str, Path]]:
    """How a task of text alone is written: the rows of each file by its name."""

    def write(folder: Path, seed: int) -> dict[str, Path]:
        folder.mkdir(parents=True, exist_ok=True)
        paths = {}
        for name, part in rows(seed).items():
            paths[name] = folder / f"{name}.json"
            tiny.write_text(paths[name], json.dumps(part, indent=1) + "\n")
        return paths

    return write


BUILT_IN: Mapping[str, BuiltIn] = {
    "tiny": BuiltIn(tiny.SIZES, from_rows(tiny.tiny_rows)),
    "tiny-addition": BuiltIn(tiny_addition.SIZES, from_rows(tiny_addition.addition_rows), version=3),
    "tiny-brackets": BuiltIn(tiny_brackets.SIZES, from_rows(tiny_brackets.brackets_rows)),
    "tiny-vision": BuiltIn(tiny_vision.SIZES, tiny_vision.write_tiny_vision, version=2),
}
"""By the first part of the name of their folder."""


def folder_name(task: str, seed: int) -> str:
    """Of a task's files: TASK-<seed>, TASK-v<version>-<seed> from its second version on."""
    version = BUILT_IN[task].version
    return f"{task}-{seed}" if version == 1 else f"{task}-v{version}-{seed}"


def built_in_names() -> list[str]:
    """Every data set that is built in."""
    return [name for task in BUILT_IN.values() for name in task.sizes]


def built_in_file(name: str, folder: Path, seed: int) -> Path | None:
    """The file of a built-in data set, in `folder` under `folder_name`, written with its task's others where it is not
    there; None for another name. The same seed always gives the same files."""
    for task, built_in in BUILT_IN.items():
        if name in built_in.sizes:
            path = folder / folder_name(task, seed) / f"{name}.json"
            return path if path.is_file() else built_in.write(path.parent, seed)[name]
    return None
