"""The server: binds, loads, serves, drains."""

import signal
import socket

import uvicorn
from transformers.utils import logging as transformers_logging

from models import DiffusionLM
from runtime.text import print_error, print_text
from serve.api import make_app
from serve.engine import Engine
from serve.loading import check, load_sampler, sized
from serve.settings import ServeSettings

LOOPBACK = ("127.0.0.1", "localhost", "::1")


def serve(settings: ServeSettings) -> int:
    """Serves until SIGTERM or SIGINT; the exit status. ValueError, OSError: what fails before the model is loaded."""
    transformers_logging.disable_progress_bar()
    transformers_logging.set_verbosity_error()
    if settings.api_key is not None and not settings.api_key.strip():
        raise ValueError("api_key is empty: set the variable that it comes from, or leave the key out.")
    spec = check(settings)
    name = settings.name or spec.folder.resolve().name
    settings = sized(settings, spec)
    sequence_tokens = settings.max_sequence_tokens
    assert sequence_tokens is not None
    if settings.host not in LOOPBACK and settings.api_key is None:
        print_error(
            f"host={settings.host}: whoever reaches this machine is answered; api_key asks for one", "warning: "
        )
    listener = bind(settings.host, settings.port)
    address = f"http://{settings.host}:{listener.getsockname()[1]}"

    def ready(model: DiffusionLM) -> None:
        numbers = f"{str(model.dtype).removeprefix('torch.')} on {model.device}"
        room = f"{settings.max_slots} answers at a time, of {sequence_tokens} tokens with their prompts"
        print_text(f"{name} ({model.family}, {numbers}) answers at {address}/v1: {room}")

    def failed() -> None:
        server.should_exit = True

    limit = settings.max_slots + settings.max_queue
    engine = Engine(lambda: load_sampler(settings, spec), sequence_tokens, limit, ready, failed)
    server = uvicorn.Server(
        uvicorn.Config(
            make_app(engine, settings, name),
            log_level="warning",
            access_log=False,
            server_header=False,
            timeout_graceful_shutdown=max(1, round(settings.drain_seconds)),
        )
    )
    print_text(f"loading {spec.folder}; {address}/health gives 200 once requests are answered")
    engine.start()
    for number in (signal.SIGTERM, signal.SIGINT):  # uvicorn raises them again when it has ended
        signal.signal(number, lambda *_: None)
    server.run(sockets=[listener])
    engine.stop()
    if engine.error is not None:
        print_error(f"{type(engine.error).__name__}: {engine.error}")
        return 1
    print_text("stopped")
    return 0


def bind(host: str, port: int) -> socket.socket:
    """A socket at the address, before a model is loaded. ValueError where it is taken, or not of this machine."""
    try:
        family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        listener = socket.socket(family, socket.SOCK_STREAM)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
    except OSError as error:
        raise ValueError(f"host={host} port={port}: {error.strerror or error}; choose others.") from None
    return listener
