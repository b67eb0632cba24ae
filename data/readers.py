"""Rows out of files, one at a time: JSON lists, JSON lines, CSV and parquet, of any size, each row with its place."""

import csv
import json
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO

SUFFIXES = (".json", ".jsonl", ".csv", ".parquet")
_LONGEST_CELL = 1 << 30
_CHUNK_CHARS = 1 << 20
_LOOKAHEAD_CHARS = 16
_PARQUET_BATCH_ROWS = 1024


@dataclass(frozen=True)
class Record:
    """One object of a file. `number` counts from 1; `place` says where it is in the file, for messages;
    `renamed_from` has the file's own names of the fields where columns were mapped."""

    number: int
    place: str
    values: dict[str, Any]
    renamed_from: tuple[str, ...] | None = None


def iter_rows(path: Path, columns: Mapping[str, str] | None = None) -> Iterator[Record]:
    """The rows of a .json (a list of objects, or one object a line), .jsonl, .csv (its first line names the columns,
    values are text) or .parquet file, without holding the file.

    `columns` maps the wanted name to the name in the file, {"question": "problem"}, or to a field inside a column,
    {"ground_truth_answer": "reward_model.ground_truth"}. One that no row has is named in a warning.
    ValueError that names the file and the line (or row) for anything that cannot be read.
    """
    if not path.is_file():
        raise ValueError(f"{path}: {'is a folder, not a file' if path.is_dir() else 'no such file'}")
    if path.suffix not in SUFFIXES:
        raise ValueError(f"{path}: cannot read {path.suffix or 'a file without a suffix'}; use {', '.join(SUFFIXES)}")
    rows = {".parquet": _parquet_rows, ".csv": _csv_rows}.get(path.suffix, _json_rows)(path)
    if not columns:
        yield from rows
        return
    unseen = dict(columns)
    for row in rows:
        for wanted in [wanted for wanted, name in unseen.items() if _holds(row.values, name)]:
            del unseen[wanted]
        yield Record(row.number, row.place, rename(row.values, columns), tuple(row.values))
    for wanted, name in unseen.items():
        warnings.warn(f"{path}: no row has the column {name!r} that dataset.columns maps {wanted} to", stacklevel=2)


def _holds(values: Mapping[str, Any], name: str) -> bool:
    """Whether a row has a column, or a field inside one (`reward_model.ground_truth`)."""
    column, dot, inside = name.partition(".")
    return name in values or (dot != "" and isinstance(values.get(column), dict) and _holds(values[column], inside))


def _value(values: Mapping[str, Any], name: str) -> Any:
    column, _, inside = name.partition(".")
    return values[name] if name in values else _value(values[column], inside)


def rename(values: dict[str, Any], columns: Mapping[str, str]) -> dict[str, Any]:
    """`values` under their wanted names, and under their own unless another column is wanted by that name. Where the
    column named for one is not there, a field that has the wanted name is kept as it is; without either the check of
    the fields names it."""
    moved = {name for name in columns.values() if name in columns}
    kept = {name: value for name, value in values.items() if name not in moved}
    return kept | {wanted: _value(values, name) for wanted, name in columns.items() if _holds(values, name)}


def _json_rows(path: Path) -> Iterator[Record]:
    try:
        with path.open(encoding="utf-8-sig") as file:
            first = _first_character(file)
            if not first:
                raise ValueError(f"{path}: the file is empty")
            file.seek(0)
            yield from _JsonList(path, file).rows() if first == "[" else _json_lines(path, file)
    except UnicodeDecodeError:
        raise ValueError(f"{path}: {_undecodable_line(path)} is not UTF-8: save the file as UTF-8") from None
    except OSError as error:
        raise ValueError(f"{path}: cannot be read: {error.strerror or error}") from error


def _first_character(file: TextIO) -> str:
    while chunk := file.read(4096):
        if text := chunk.lstrip():
            return text[0]
    return ""


def _undecodable_line(path: Path) -> str:
    with path.open("rb") as file:
        for number, line in enumerate(file, 1):
            try:
                line.decode("utf-8")
            except UnicodeDecodeError:
                return f"line {number}"
    return "the file"


def _json_lines(path: Path, file: TextIO) -> Iterator[Record]:
    number = 0
    for line_number, line in enumerate(file, 1):
        if not line.strip():
            continue
        number += 1
        place = f"line {line_number}"
        try:
            value = json.loads(line)
        except (ValueError, RecursionError) as error:
            hint = ""
            if number == 1 and path.suffix == ".json":
                hint = "; a .json file holds a list of objects, or one object a line"
            raise ValueError(f"{path}, {place}: malformed JSON: {_reason(error)}{hint}") from None
        yield Record(number, place, _object(value, path, place))


def _reason(error: Exception) -> str:
    if isinstance(error, json.JSONDecodeError):
        return f"{error.msg} (column {error.colno})"
    return "nested too deeply" if isinstance(error, RecursionError) else str(error)


def _object(value: Any, path: Path, place: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise ValueError(f"{path}, {place}: expected an object with named fields, found {type(value).__name__}")
    return value


class _JsonList:
    """Reads one long JSON list object by object: `text` is a window, `start` where the unread part of it begins."""

    def __init__(self, path: Path, file: TextIO) -> None:
        self.path = path
        self.file = file
        self.text = ""
        self.start = 0
        self.line = 1
        self.number = 0
        self.decoder = json.JSONDecoder()

    def rows(self) -> Iterator[Record]:
        self._take("[")
        while self._next() != "]" or self.number:
            self.number += 1
            self._next()
            place = f"row {self.number} (line {self.line})"
            yield Record(self.number, place, _object(self._value(), self.path, place))
            if self._next() != ",":
                break
            self._take(",")
        self._take("]")
        if self._next():
            raise self._error("text after the end of the list")

    def _value(self) -> Any:
        while True:
            try:
                value, end = self.decoder.raw_decode(self.text, self.start)
            except json.JSONDecodeError as error:
                cut = error.msg.startswith("Unterminated string") or error.pos > len(self.text) - _LOOKAHEAD_CHARS
                if cut and self._more():
                    continue
                ended = cut and not self.text[error.pos :].strip() or error.msg.startswith("Unterminated string")
                raise self._error(error.msg + ("; the file ends here" if ended else ""), error.pos) from None
            except (ValueError, RecursionError) as error:
                raise self._error(_reason(error)) from None
            self._advance(end)
            return value

    def _next(self) -> str:
        """The next character that is not white space, or "" at the end of the file."""
        while True:
            position = self.start
            while position < len(self.text) and self.text[position] in " \t\n\r":
                position += 1
            self._advance(position)
            if position < len(self.text):
                return self.text[position]
            if not self._more():
                return ""

    def _take(self, character: str) -> None:
        found = self._next()
        if found != character:
            expected = "',' or ']'" if character == "]" else repr(character)
            what = repr(found) if found else "the end of the file: it was cut off"
            raise self._error(f"expected {expected}, found {what}")
        self._advance(self.start + 1)

    def _advance(self, position: int) -> None:
        self.line += self.text.count("\n", self.start, position)
        self.start = position

    def _more(self) -> bool:
        """Widens the window, by doubling when one row is longer than it. False at the end of the file."""
        added = self.file.read(max(_CHUNK_CHARS, len(self.text) - self.start))
        if added:
            self.text, self.start = self.text[self.start :] + added, 0
        return bool(added)

    def _error(self, reason: str, position: int | None = None) -> ValueError:
        line = self.line + self.text.count("\n", self.start, position) if position is not None else self.line
        return ValueError(f"{self.path}, row {max(self.number, 1)} (line {line}): malformed JSON: {reason}")


def _csv_rows(path: Path) -> Iterator[Record]:
    csv.field_size_limit(_LONGEST_CELL)
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            rows = csv.reader(file, strict=True)
            names = _csv_header(path, next(rows, []))
            for number, cells in enumerate((cells for cells in rows if cells), 1):
                if len(cells) != len(names):
                    raise ValueError(
                        f"{path}, line {rows.line_num}: {len(cells)} cells, and the first line names {len(names)}: put "
                        'a text with commas or line breaks in quotes (")'
                    )
                yield Record(number, f"line {rows.line_num}", dict(zip(names, cells, strict=True)))
    except csv.Error as error:
        raise ValueError(f"{path}, line {rows.line_num}: malformed CSV: {error}") from None
    except UnicodeDecodeError:
        raise ValueError(f"{path}: {_undecodable_line(path)} is not UTF-8: save the file as UTF-8") from None
    except OSError as error:
        raise ValueError(f"{path}: cannot be read: {error.strerror or error}") from error


def _csv_header(path: Path, names: list[str]) -> list[str]:
    """The names of the columns. ValueError where they cannot be such."""
    if not any(names):
        raise ValueError(f"{path}: the file is empty, or its first line names no column")
    if len(names) == 1 and (other := next((mark for mark in ";\t|" if mark in names[0]), None)):
        raise ValueError(f"{path}: its columns are separated by {other!r}: save it with commas")
    twice = [name for name in names if names.count(name) > 1]
    if twice:
        raise ValueError(f"{path}: the first line names {twice[0]!r} twice")
    return names


def _parquet_rows(path: Path) -> Iterator[Record]:
    try:
        from pyarrow import ArrowException
        from pyarrow.parquet import ParquetFile
    except ImportError:
        raise ValueError(f"{path}: reading parquet needs pyarrow: pip install pyarrow") from None
    number = 0
    try:
        with ParquetFile(path) as file:
            for batch in file.iter_batches(batch_size=_PARQUET_BATCH_ROWS):
                for values in batch.to_pylist():
                    number += 1
                    yield Record(number, f"row {number}", values)
    except (ArrowException, OSError) as error:
        raise ValueError(f"{path}, after row {number}: not a readable parquet file: {error}") from None
