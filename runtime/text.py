"""Text for terminals and logs: numbers of a fixed width, durations, and foreign text without control characters."""

import math
import re
import sys
import traceback
from collections.abc import Mapping
from types import TracebackType
from typing import Any

NUMBER_WIDTH = 8

_CONTROL = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f"  # C0 but tab and line feed, DEL, C1
    "\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069"  # these reorder what is shown (https://trojansource.codes)
    "\u2028\u2029\ufff9-\ufffb\U000e0000-\U000e007f"
    "\ud800-\udfff]"  # lone surrogates, which no stream can encode
)

_PASSWORD = re.compile(r"(\b[A-Za-z][A-Za-z0-9+.-]*://[^\s/?#:@]*:)[^\s/?#@]+@")


def printable(text: str) -> str:
    r"""`text` with control characters, but tab and line feed, as escapes like \x1b: what data or a model wrote cannot
    move the cursor, clear the screen, set the title, hide or reorder text. Passwords in URLs are masked. Other text
    comes back as it is."""
    return _CONTROL.sub(_escape, mask_passwords(text))


def mask_passwords(text: str) -> str:
    """`text` with *** in place of the password in each URL of the form scheme://user:password@host."""
    return _PASSWORD.sub(r"\1***@", text)


def _escape(match: re.Match[str]) -> str:
    number = ord(match.group())
    return f"\\x{number:02x}" if number < 0x100 else f"\\u{number:04x}" if number < 0x10000 else f"\\U{number:08x}"


def json_printable(text: str) -> str:
    r"""Like `printable` for text that is JSON already: escapes are JSON's, so that it is parsed to the same values."""
    return _CONTROL.sub(_json_escape, text)


def _json_escape(match: re.Match[str]) -> str:
    units = match.group().encode("utf-16-be", errors="surrogatepass")
    return "".join(f"\\u{units[i]:02x}{units[i + 1]:02x}" for i in range(0, len(units), 2))


def print_text(text: str) -> None:
    """The text, `printable`, on stdout."""
    print(printable(text), flush=True)


def print_error(text: str, title: str = "error: ") -> None:
    """`title` and the text, `printable`, on stderr."""
    print(f"{title}{printable(text)}", file=sys.stderr, flush=True)


def print_traceback(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    """sys.excepthook as ever, but `printable`: an exception's text may be a model's."""
    print_error("".join(traceback.format_exception(kind, error, trace)).rstrip("\n"), title="")


def rounded(value: Any) -> Any:
    """`value` with six significant digits in every number of it."""
    if isinstance(value, Mapping):
        return {key: rounded(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [rounded(inner) for inner in value]
    return float(f"{value:.6g}") if isinstance(value, float) else value


def format_number(value: float | None) -> str:
    """At most NUMBER_WIDTH characters: about four significant digits, an exponent when tiny or huge, "-" for None."""
    if value is None:
        return "-"
    size = abs(value)
    if not math.isfinite(value) or (isinstance(value, int) and size < 1e7):
        return str(value)
    if 0 < size < 1e-3 or size >= 1e7:
        return f"{value:.1e}"
    decimals = 4 if size < 1 else max(0, 3 - int(math.log10(size)))
    return f"{value:.{decimals}f}"


def format_seconds(seconds: float) -> str:
    """7.3s, 4m05s, 3h02m, 2d04h."""
    if seconds < 59.95:
        return f"{seconds:.1f}s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes}m{rest:02d}s"
    hours, minutes = divmod(minutes, 60)
    return f"{hours}h{minutes:02d}m" if hours < 48 else f"{hours // 24}d{hours % 24:02d}h"
