"""HTML pages that are one file: style, script and data inside, nothing fetched. What data holds stays text."""

import base64
import hashlib
import html
import json
from pathlib import Path
from typing import Any


def page(folder: Path, title: str, data: Any, script: str) -> str:
    """folder/page.html with each @@NAME@@ filled: TITLE, STYLE (style.css), DATA, SCRIPT and POLICY.

    script: its file in the folder. DATA is JSON in a block that no parser takes for markup; the page's policy lets no
    other script run and nothing be fetched.
    """
    style, code = ((folder / name).read_text(encoding="utf-8") for name in ("style.css", script))
    filled = {
        "POLICY": f"default-src 'none'; style-src {_hash(style)}; script-src {_hash(code)}; img-src data:",
        "TITLE": html.escape(title),
        "STYLE": style,
        "DATA": as_html_json(data),
        "SCRIPT": code,
    }
    pieces = (folder / "page.html").read_text(encoding="utf-8").split("@@")
    return "".join(filled[piece] if i % 2 else piece for i, piece in enumerate(pieces))


def as_html_json(value: Any) -> str:
    """JSON in ASCII without the characters that could end a script element or open a comment: it parses to the
    same."""
    text = json.dumps(value, separators=(",", ":"), allow_nan=False)
    return text.replace("&", "\\u0026").replace("<", "\\u003c").replace(">", "\\u003e")


def _hash(text: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"
