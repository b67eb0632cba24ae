"""Pictures of rows: the fields that name them, where their files lie, and their places in a text."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from data.faults import Fault, short
from data.readers import Record
from models.vision.images import PLACEHOLDER

FIELDS = ("image", "images", "image_path", "image_abs_path")
CODES = "image_token_ids"
PictureSource = str | bytes | tuple[int, ...]
"""A picture of a row: its file, the bytes of such a file, or its ids, where it was encoded before (MMaDA)."""


def pictures_of(row: Record, root: Path) -> tuple[PictureSource, ...] | Fault:
    """The row's pictures: in the first of FIELDS that holds any a path (relative to `root`), bytes, an object of both,
    as parquet files have it, or a list of these; else the ids of one picture in CODES."""
    for field in FIELDS:
        value = row.values.get(field)
        if value in (None, "", b"", []):
            continue
        found = [_source(each, root) for each in (value if isinstance(value, list) else [value])]
        if None in found:
            wrong = value[found.index(None)] if isinstance(value, list) else value
            return Fault(
                row.place, field, f"is {short(wrong)}, expected a path, the bytes of a picture, or a list of them"
            )
        return tuple(source for source in found if source is not None)
    codes = row.values.get(CODES)
    if codes in (None, []):
        return ()
    if not (isinstance(codes, list) and all(type(code) is int and code >= 0 for code in codes)):
        return Fault(row.place, CODES, f"is {short(codes)}, expected a list of token ids")
    return (tuple(codes),)


def _source(value: Any, root: Path) -> PictureSource | None:
    """None for what is no picture."""
    if isinstance(value, dict):
        value = value.get("bytes") or value.get("path")
    if isinstance(value, str) and value:
        return str(root / value)
    return value if isinstance(value, bytes) and value else None


def with_places(texts: Sequence[str], pictures: int) -> list[str] | str:
    """Texts with a placeholder for each picture, all before the first text where there is none; what is wrong where
    placeholders and pictures differ in number."""
    places = sum(text.count(PLACEHOLDER) for text in texts)
    if places == pictures:
        return list(texts)
    if places:
        return f"has {places} {PLACEHOLDER} for {pictures} pictures"
    return [f"{PLACEHOLDER}\n" * pictures + texts[0], *texts[1:]]
