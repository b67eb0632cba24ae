"""Pictures as an OpenAI-compatible endpoint takes them."""

import base64
import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from runtime.pictures import open_undecoded

Source = str | bytes
_TAKEN = ("PNG", "JPEG", "WEBP", "GIF")
"""Formats that every such endpoint takes."""


def content_of(text: str, pictures: Sequence[Source]) -> str | list[dict[str, Any]]:
    """The content of a user's turn: the text alone, or pictures before it as image_url parts."""
    if not pictures:
        return text
    parts: list[dict[str, Any]] = [{"type": "image_url", "image_url": {"url": data_url(each)}} for each in pictures]
    return [*parts, {"type": "text", "text": text}]


def data_url(picture: Source) -> str:
    """A picture as a data URL, its bytes as they are where endpoints take the format, else as PNG. OSError or
    ValueError where it cannot be read."""
    content = picture if isinstance(picture, bytes) else Path(picture).read_bytes()
    with open_undecoded(content) as image:
        kind = str(image.format)
        if kind not in _TAKEN:
            file, kind = io.BytesIO(), "PNG"
            image.convert("RGB").save(file, kind)
            content = file.getvalue()
    return f"data:image/{kind.lower()};base64,{base64.b64encode(content).decode()}"


def pictures_of(columns: dict[str, list[Any]], completions: int) -> list[tuple[Source, ...]]:
    """The pictures of each completion's task that have a file or bytes (column `pictures`)."""
    given = columns.get("pictures") or [()] * completions
    return [tuple(each for each in pictures or () if isinstance(each, str | bytes)) for pictures in given]
