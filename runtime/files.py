"""Files that are whole or absent after a kill, and JSONL logs that survive one.

Whatever is written aside carries TEMPORARY in its name and lies beside its target, so that a rename puts it in place.
"""

import contextlib
import itertools
import json
import os
import re
import shutil
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from runtime.text import json_printable

TEMPORARY = ".tmp-"
_counter = itertools.count()


def _beside(path: Path) -> Path:
    return path.with_name(f".{path.name}{TEMPORARY}{os.getpid()}-{next(_counter)}")


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def atomic_write_text(path: Path, text: str, mode: int = 0o666) -> None:
    """Writes `text` (UTF-8) so that `path` holds either its old content or all of the new one. mode: permissions of the
    file, less the umask. OSError as from open."""
    path = Path(path)
    temporary = _beside(path)
    try:
        with open(temporary, "w", encoding="utf-8", opener=lambda name, flags: os.open(name, flags, mode)) as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    _sync(path.parent)


def _put(folder: Path, path: Path) -> None:
    """Renames `folder` to `path`, moving away and then deleting a folder that is there."""
    if not path.exists():
        folder.rename(path)
        return
    replaced = _beside(path)
    path.rename(replaced)
    try:
        folder.rename(path)
    except OSError:
        replaced.rename(path)
        raise
    shutil.rmtree(replaced)


@contextlib.contextmanager
def atomic_folder(path: Path) -> Iterator[Path]:
    """Yields an empty folder beside `path` to be filled; on leaving it is flushed to disk and renamed to `path`.

    On an error inside (a full disk, an interrupt) the folder is removed and `path` is as it was. A folder that is at
    `path` already is replaced: it is renamed away first, so a kill between the two renames leaves none of that name.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = _beside(path)
    temporary.mkdir()
    try:
        yield temporary
        for folder, _, names in os.walk(temporary):
            for name in names:
                _sync(Path(folder, name))
            _sync(Path(folder))
        _put(temporary, path)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
    _sync(path.parent)


def numbered(folder: Path, prefix: str) -> list[Path]:
    """What is called `prefix` and a number in `folder`, in order of the numbers; other names, links among them, are
    left out."""
    names = re.compile(re.escape(prefix) + "([0-9]+)")
    found = [(match, path) for path in Path(folder).glob(f"{prefix}*") if (match := names.fullmatch(path.name))]
    return [path for _, path in sorted((int(match[1]), path) for match, path in found if not path.is_symlink())]


def remove_leftovers(folder: Path) -> list[Path]:
    """Deletes what killed writers left in `folder` and returns it. Only for the one process that writes there."""
    leftovers = sorted(folder.glob(f".*{TEMPORARY}*"))
    for leftover in leftovers:
        if leftover.is_dir() and not leftover.is_symlink():
            shutil.rmtree(leftover)
        else:
            leftover.unlink()
    return leftovers


def _number(value: Any) -> Any:
    """json's fallback: the Python number of a numpy or torch scalar."""
    if hasattr(value, "item"):
        return value.item()
    raise TypeError(f"{type(value).__name__} cannot be written as JSON")


def append_jsonl(path: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    """Appends one line a row in a single write and flushes it to disk; an incomplete last line is ended first. Control
    characters are written as JSON's escapes."""
    text = json_printable("".join(json.dumps(row, ensure_ascii=False, default=_number) + "\n" for row in rows))
    with Path(path).open("ab+") as file:
        if file.tell() > 0:
            file.seek(-1, os.SEEK_END)
            if file.read(1) != b"\n":
                text = "\n" + text
        file.write(text.encode("utf-8"))
        file.flush()
        os.fsync(file.fileno())


def _parsed_lines(path: Path) -> Iterator[tuple[bytes, dict[str, Any] | None]]:
    """Each line and its object; None for one that is no whole JSON object."""
    with path.open("rb") as file:
        for line in file:
            try:
                row = json.loads(line)
            except ValueError:
                row = None
            yield line, row if isinstance(row, dict) else None


def read_jsonl(path: Path) -> Iterator[dict[str, Any]]:
    """The whole objects of a JSONL file in order; incomplete lines are left out with a warning that counts them."""
    incomplete = 0
    for _, row in _parsed_lines(Path(path)):
        if row is None:
            incomplete += 1
        else:
            yield row
    if incomplete:
        warnings.warn(f"{path}: left out {incomplete} line(s) that are no whole JSON object", stacklevel=2)


def truncate_jsonl(path: Path, keep: Callable[[dict[str, Any]], bool]) -> int:
    """Keeps the lines for whose object `keep` is true, drops the rest and incomplete ones; returns how many.

    The file is rewritten aside and renamed, and not touched when nothing is dropped. A missing file has no lines.
    """
    path = Path(path)
    if not path.exists():
        return 0
    dropped = 0
    temporary = _beside(path)
    try:
        with temporary.open("wb") as file:
            for line, row in _parsed_lines(path):
                if row is not None and keep(row):
                    file.write(line.rstrip(b"\n") + b"\n")
                else:
                    dropped += 1
            file.flush()
            os.fsync(file.fileno())
        if dropped:
            temporary.replace(path)
            _sync(path.parent)
    finally:
        temporary.unlink(missing_ok=True)
    return dropped
