"""serve.py: reads what is typed, then starts the server."""

import sys

from runtime.pipes import quiet_pipes
from runtime.text import print_error
from serve.settings import ServeSettings, read_settings


def main(usage: str = "python serve.py model=PATH [port=8000 key=value ...]") -> None:
    """The command. Users' mistakes are messages, exit status 2; a server that was asked to stop ends with 0."""
    quiet_pipes()
    try:
        settings = read_settings(ServeSettings, sys.argv[1:], usage)
        from serve.server import serve  # torch and the models: a wrong key is named before they are loaded

        sys.exit(serve(settings))
    except (ValueError, OSError) as error:
        print_error(str(error))
        sys.exit(2)
