"""Where the ranks of a job exchange what they need before they are connected, and what they count together.

One machine: two files in memory that the launcher makes and the ranks inherit. Nothing listens; another process can
reach them only if the kernel would let it read the ranks' memory too (the same user, or root).

Several machines: a TCPStore of torch's that rank 0 serves. It has no authentication, and neither have the connections
of gloo and NCCL: whoever reaches node 0's port can read and write it. The socket is bound to the address under which
the nodes know node 0, and its port is given only to launchers that hold the job's key (`Rendezvous`).
"""

import os
import socket
from collections.abc import Mapping
from dataclasses import dataclass, field

from runtime.child import STORE_VARIABLE


@dataclass
class RankStore:
    """What a launcher hands to its ranks: variables of the environment, and descriptors that stay open in them."""

    environment: Mapping[str, str]
    descriptors: tuple[int, ...] = ()
    _closed: bool = field(default=False, repr=False)

    @staticmethod
    def of_one_machine() -> "RankStore":
        """STORE_VARIABLE is "memory:A:B": descriptors of a FileStore's file and of the counts' file."""
        files = tuple(os.memfd_create(name) for name in ("dllm-rl store", "dllm-rl counts"))
        return RankStore(_variables("127.0.0.1", 0, "memory:{}:{}".format(*files)), files)

    @staticmethod
    def served_by_rank_0(host: str, listener: socket.socket) -> "RankStore":
        """STORE_VARIABLE is "tcp:HOST:PORT" and, in rank 0 alone, ":D": the descriptor of a socket that listens. Takes
        the socket."""
        port, descriptor = listener.getsockname()[1], listener.detach()
        return RankStore(_variables(host, port, f"tcp:{host}:{port}:{descriptor}"), (descriptor,))

    @staticmethod
    def at(host: str, port: int) -> "RankStore":
        """A store that a rank of node 0 serves."""
        return RankStore(_variables(host, port, f"tcp:{host}:{port}"))

    def of_rank(self, rank: int) -> "RankStore":
        """What this rank gets: only rank 0 gets a socket that listens."""
        value = self.environment[STORE_VARIABLE]
        if rank == 0 or not value.startswith("tcp:") or not self.descriptors:
            return self
        return RankStore({**self.environment, STORE_VARIABLE: value.rpartition(":")[0]})

    def close(self) -> None:
        """Closes the launcher's copies; the ranks have theirs."""
        if not self._closed:
            for descriptor in self.descriptors:
                os.close(descriptor)
        self._closed = True


def _variables(host: str, port: int, store: str) -> dict[str, str]:
    return {"MASTER_ADDR": host, "MASTER_PORT": str(port), STORE_VARIABLE: store}
