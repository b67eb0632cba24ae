"""serve.py and the chat: read what is typed, then start."""

import sys
from collections.abc import Callable

from runtime.pipes import quiet_pipes
from runtime.text import print_error
from serve.settings import ChatSettings, S, ServeSettings, read_settings


def main(usage: str = "python serve.py model=PATH [port=8000 key=value ...]") -> None:
    """The server's command. Users' mistakes are messages, exit status 2; a server that was asked to stop ends with
    0."""
    _start(ServeSettings, usage, _serve)


def chat(usage: str = "dllm-chat model=PATH [key=value ...]") -> None:
    """The chat's command, likewise."""
    _start(ChatSettings, usage, _chat)


def _start(kind: type[S], usage: str, run: Callable[[S], None]) -> None:
    quiet_pipes()
    try:
        run(read_settings(kind, sys.argv[1:], usage))
    except (ValueError, OSError) as error:
        print_error(str(error))
        sys.exit(2)


# Torch and the models are imported here: a wrong key is named before they are loaded.


def _serve(settings: ServeSettings) -> None:
    from serve.server import serve

    sys.exit(serve(settings))


def _chat(settings: ChatSettings) -> None:
    from serve.chat import run

    run(settings)
