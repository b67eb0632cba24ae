"""Names of checkpoints' folders: step-000010. Other names beside them are the user's own."""

import re
from pathlib import Path

_NAME = re.compile(r"step-(\d{6,})")


def step_folder(folder: Path, step: int) -> Path:
    """The checkpoint of a step in `folder`."""
    return folder / f"step-{step:06d}"


def step_of(path: Path) -> int | None:
    """The step in a folder's name; None for another name."""
    found = _NAME.fullmatch(path.name)
    step = int(found[1]) if found else None
    return step if step is not None and path.name == step_folder(path.parent, step).name else None


def step_folders(folder: Path) -> list[Path]:
    """The folders in `folder` that have a checkpoint's name, links to folders too, oldest first."""
    found = [path for path in folder.glob("step-*") if step_of(path) is not None and path.is_dir()]
    return sorted(found, key=lambda path: step_of(path) or 0)
