"""What a sandbox tells of its tests: lines of text, so that whoever reads them spends no more time and memory than
their length, whatever is written there."""

from __future__ import annotations

import io
import posix

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

MAX_DETAIL = 500
MAX_LINE_BYTES = 8192
NO_SECRET = "-"


def tell(descriptor: int, test: int, status: str, detail: str = "", secret: str = NO_SECRET) -> None:
    """One test's status; test -1 means all of them. detail is cut to MAX_DETAIL characters."""
    text = detail[:MAX_DETAIL].encode("unicode_escape", "replace")
    line = memoryview(b"%s %d %s %s\n" % (secret.encode(), test, status.encode(), text))
    while line:
        line = line[posix.write(descriptor, line) :]


def told(output: bytes, total: int, secret: str = NO_SECRET) -> Iterator[tuple[int, str, str]]:
    """(test, status, detail) of the lines that hold the secret and a test below `total`; at most 4 lines a test are
    looked at."""
    stream = io.BytesIO(output)
    for _ in range(4 * (total + 1)):
        parts = stream.readline(MAX_LINE_BYTES).rstrip(b"\n").split(b" ", 3)
        if len(parts) < 4 or parts[0] != secret.encode() or len(parts[1]) > 9:
            continue
        if parts[1].removeprefix(b"-").isdigit() and -1 <= int(parts[1]) < total:
            yield int(parts[1]), parts[2].decode("ascii", "replace"), parts[3].decode("unicode_escape", "replace")
