"""How commands speak and end: a warning or a user's mistake is one line, anything else a traceback."""

import logging
import os
import sys
import warnings
from collections.abc import Callable

from train.updater import NotFinite


class _Speaker(logging.Handler):
    """`warning: text` on stderr, each text once."""

    def __init__(self, level: int):
        super().__init__(level)
        self.said: set[str] = set()

    def emit(self, record: logging.LogRecord) -> None:
        text = record.getMessage()
        if text not in self.said:
            self.said.add(text)
            print(f"warning: {text}", file=sys.stderr, flush=True)


def main(command: Callable[[], object]) -> None:
    """Runs a command. ValueErrors, those of the operating system and of diverged training are messages for users:
    printed without a traceback, exit status 2 (DEBUG=1 shows all)."""
    logging.getLogger().addHandler(_Speaker(logging.WARNING))
    warnings.showwarning = lambda message, *place, **more: logging.getLogger(__name__).warning("%s", message)
    try:
        command()
    except (ValueError, OSError, NotFinite) as error:
        if os.environ.get("DEBUG"):
            raise
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        sys.exit(130)
