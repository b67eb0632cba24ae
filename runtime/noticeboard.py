"""Short notes that the launchers of a job's nodes leave for each other: kept by node 0, served over TCP to whoever
proves to hold the job's key.

The proof is the challenge and response of multiprocessing.connection (an HMAC, in both directions). It keeps out
processes that can reach the port. What is sent afterwards is neither encrypted nor signed: it does not keep out one
that can change packets on their way. Notes are JSON text; nothing is unpickled.
"""

import contextlib
import errno
import json
import socket
import struct
import threading
import time
from collections.abc import Callable
from multiprocessing import AuthenticationError
from multiprocessing.connection import Connection, answer_challenge, deliver_challenge
from typing import Protocol

MAX_BYTES = 1 << 16
FAILURES = (OSError, EOFError, AuthenticationError, AssertionError)
"""What a connection ends with where the other side fails, leaves, holds another key, or is something else."""


class Noticeboard(Protocol):
    """Names and their text. OSError or EOFError where node 0 does not answer; BlockingIOError when it is late."""

    def get(self, name: str) -> str | None:
        """The text; None where there is none."""

    def put(self, name: str, text: str) -> None:
        """Replaces the text."""

    def claim(self, name: str, text: str) -> str:
        """Puts the text where there is none; what is there after that."""


class LocalNoticeboard:
    """Node 0's own."""

    def __init__(self) -> None:
        self._notes: dict[str, str] = {}
        self._lock = threading.Lock()

    def get(self, name: str) -> str | None:
        return self._notes.get(name)

    def put(self, name: str, text: str) -> None:
        with self._lock:
            self._notes[name] = text

    def claim(self, name: str, text: str) -> str:
        with self._lock:
            return self._notes.setdefault(name, text)

    def serve(self, listener: socket.socket, key: bytes) -> None:
        """Answers those that connect and hold the key, in threads of their own, until this process ends."""
        threading.Thread(target=self._accept, args=(listener, key), name="noticeboard", daemon=True).start()

    def _accept(self, listener: socket.socket, key: bytes) -> None:
        while listener.fileno() >= 0:
            try:
                connected, _ = listener.accept()
            except OSError:  # the caller left, or there are too many open files
                time.sleep(0.1)
                continue
            threading.Thread(target=self._talk, args=(connected, key), daemon=True).start()

    def _talk(self, connected: socket.socket, key: bytes) -> None:
        operations: dict[str, Callable[..., str | None]] = {"get": self.get, "put": self.put, "claim": self.claim}
        with contextlib.suppress(*FAILURES, ValueError, TypeError, KeyError), _connection(connected, 120.0) as other:
            deliver_challenge(other, key)
            answer_challenge(other, key)
            while True:
                operation, *given = json.loads(other.recv_bytes(MAX_BYTES))
                other.send_bytes(json.dumps(operations[operation](*given)).encode())


class RemoteNoticeboard:
    """Node 0's, from another node. Threads may share it."""

    def __init__(self, address: tuple[str, int], key: bytes, seconds: float):
        """Connects. OSError where nobody listens there; AuthenticationError where node 0 holds another key. seconds:
        how long any answer may take; a later one is BlockingIOError."""
        self._lock = threading.Lock()
        self._connection = _connection(socket.create_connection(address, seconds), seconds)
        try:
            answer_challenge(self._connection, key)
            deliver_challenge(self._connection, key)
        except AssertionError:  # not a noticeboard
            self._connection.close()
            raise ConnectionRefusedError(f"{address[0]}:{address[1]} is not a launcher of this job") from None
        except BaseException:
            self._connection.close()
            raise

    def get(self, name: str) -> str | None:
        return self._ask("get", name)

    def put(self, name: str, text: str) -> None:
        self._ask("put", name, text)

    def claim(self, name: str, text: str) -> str:
        return str(self._ask("claim", name, text))

    def _ask(self, *request: str) -> str | None:
        with self._lock:
            try:
                self._connection.send_bytes(json.dumps(request).encode())
                answer: str | None = json.loads(self._connection.recv_bytes(MAX_BYTES))
            except BaseException:  # a late answer must not be taken for that to the next request
                self._connection.close()
                raise
        return answer


def _connection(connected: socket.socket, seconds: float) -> Connection:
    """Takes the socket. Each read and write fails with OSError after `seconds`."""
    connected.settimeout(None)
    limit = struct.pack("ll", int(seconds), int(seconds % 1 * 1e6))
    for option in (socket.SO_RCVTIMEO, socket.SO_SNDTIMEO):
        connected.setsockopt(socket.SOL_SOCKET, option, limit)
    connected.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return Connection(connected.detach())


def listen(host: str, port: int) -> socket.socket:
    """A socket that listens at `host`, or, where that is a name for this machine that it does not have itself (behind
    a load balancer or a NAT), at all of its addresses. OSError as from bind."""
    for family, _, _, _, address in socket.getaddrinfo(host, port, type=socket.SOCK_STREAM):
        try:
            return socket.create_server(address[:2], family=family, backlog=1024)
        except OSError as error:
            if error.errno != errno.EADDRNOTAVAIL:
                raise
    return socket.create_server(("", port), backlog=1024)
