"""How every command ends: a user's mistake as one line, anything else with its traceback."""

import os
import sys
from collections.abc import Callable


def main(command: Callable[[], object]) -> None:
    """Runs a command. ValueErrors are messages for users: printed without a traceback, exit status 2 (DEBUG=1 shows
    all)."""
    try:
        command()
    except ValueError as error:
        if os.environ.get("DEBUG"):
            raise
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        sys.exit(130)
