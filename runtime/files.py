"""Files that are whole or absent after a kill, and JSONL logs that survive one.

Whatever is written aside carries TEMPORARY in its name and lies beside its target, so that a rename puts it in place.
"""

import contextlib
import functools
import hashlib
import itertools
import json
import os
import shutil
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from runtime.text import json_printable

TEMPORARY = ".tmp-"
PIECE_BYTES = 2**25
_counter = itertools.count()


def _beside(path: Path) -> Path:
    return path.with_name(f".{path.name}{TEMPORARY}{os.getpid()}-{next(_counter)}")


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def naming(path: Path) -> Iterator[None]:
    """An OSError of the block that names no file, as that of a full disk, names this one."""
    try:
        yield
    except OSError as error:
        if error.filename is not None or error.errno is None:
            raise
        raise OSError(error.errno, error.strerror, str(path)) from error


def file_digest(path: Path, size: int | None = None) -> str:
    """blake2b of the digests of a file's pieces of PIECE_BYTES, which threads hash side by side. size: of its first so
    many bytes. OSError where they cannot be read; a file that is shorter gives another digest."""
    whole = path.stat().st_size if size is None else size
    with path.open("rb") as file, ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:

        def hashed(start: int) -> bytes:
            content = os.pread(file.fileno(), min(PIECE_BYTES, whole - start), start)
            return hashlib.blake2b(content, digest_size=32).digest()

        pieces = pool.map(hashed, range(0, whole, PIECE_BYTES))
        return hashlib.blake2b(b"".join(pieces), digest_size=16).hexdigest()


def atomic_write_text(path: Path, text: str, mode: int = 0o666) -> None:
    """Writes `text` (UTF-8) so that `path` holds either its old content or all of the new one. mode: permissions of the
    file, less the umask. OSError as from open."""
    path = Path(path)
    temporary = _beside(path)
    try:
        opener = functools.partial(os.open, mode=mode)
        with naming(path), open(temporary, "w", encoding="utf-8", opener=opener) as file:
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
    if not os.path.lexists(path):
        folder.rename(path)
        return
    replaced = _beside(path)
    path.rename(replaced)
    try:
        folder.rename(path)
    except OSError:
        replaced.rename(path)
        raise
    delete(replaced)


def delete(path: Path) -> None:
    """Removes a file, a link (not what it points to) or a folder with all that is in it."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


@contextlib.contextmanager
def atomic_folder(path: Path) -> Iterator[Path]:
    """Yields an empty folder beside `path` to be filled; on leaving it is flushed to disk and renamed to `path`.

    On an error inside (a full disk, an interrupt) the folder is removed and `path` is as it was. A folder or link that
    is at `path` already is replaced: it is renamed away first, so a kill between the two renames leaves none of that
    name.
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


def remove_leftovers(folder: Path) -> list[Path]:
    """Deletes what killed writers left in `folder` and returns it. Only for the one process that writes there."""
    leftovers = sorted(folder.glob(f".*{TEMPORARY}*"))
    for leftover in leftovers:
        delete(leftover)
    return leftovers


def _number(value: Any) -> Any:
    """json's fallback: the Python number of a numpy or torch scalar."""
    if hasattr(value, "item"):
        return value.item()
    raise TypeError(f"{type(value).__name__} cannot be written as JSON")


def as_jsonl(rows: Iterable[Mapping[str, Any]]) -> bytes:
    """One line of JSON a row; control characters are written as JSON's escapes."""
    text = "".join(json.dumps(row, ensure_ascii=False, default=_number) + "\n" for row in rows)
    return json_printable(text).encode("utf-8")


def append_jsonl(path: Path, rows: Iterable[Mapping[str, Any]]) -> bytes:
    """Appends one line a row in a single write and flushes it to disk; an incomplete last line is closed off first.
    Returns the lines."""
    lines = as_jsonl(rows)
    with naming(path), Path(path).open("ab+") as file:
        if file.tell() > 0:
            file.seek(-1, os.SEEK_END)
            if file.read(1) != b"\n":
                file.write(b"\n")
        file.write(lines)
        file.flush()
        os.fsync(file.fileno())
    return lines


def parsed(line: bytes) -> dict[str, Any] | None:
    """The JSON object of a line; None where it is none."""
    try:
        row = json.loads(line)
    except (ValueError, RecursionError):
        return None
    return row if isinstance(row, dict) else None


def read_jsonl(path: Path) -> Iterator[dict[str, Any]]:
    """The whole objects of a JSONL file in order; other lines are left out with a warning that counts them."""
    damaged = 0
    with Path(path).open("rb") as file:
        for line in file:
            row = parsed(line)
            if row is None:
                damaged += 1
            else:
                yield row
    if damaged:
        warnings.warn(f"{path}: left out {damaged} line(s) that are no whole JSON object", stacklevel=2)


def truncate_jsonl(path: Path, keep: Callable[[dict[str, Any]], bool | None]) -> int:
    """Keeps the lines for whose object `keep` is true and drops the others; returns how many were dropped. keep: None
    for an object of another shape than such a file has. A warning counts those and the lines that are no whole JSON
    object, but for an incomplete last line: a kill leaves one.

    The file is rewritten aside and renamed, and not touched when nothing is dropped. A missing file has no lines.
    """
    path = Path(path)
    if not path.exists():
        return 0
    dropped = damaged = 0
    temporary = _beside(path)
    try:
        with naming(path), temporary.open("wb") as file, path.open("rb") as lines:
            for line in lines:
                row = parsed(line)
                kept = keep(row) if row is not None else None
                if kept:
                    file.write(line.rstrip(b"\n") + b"\n")
                    continue
                dropped += 1
                damaged += kept is None and (line.endswith(b"\n") or b"\0" in line)
            file.flush()
            os.fsync(file.fileno())
        if dropped:
            temporary.replace(path)
            _sync(path.parent)
    finally:
        temporary.unlink(missing_ok=True)
    if damaged:
        warnings.warn(f"{path}: {damaged} damaged line(s) were dropped", stacklevel=2)
    return dropped
