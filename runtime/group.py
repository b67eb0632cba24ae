"""The process group of a rank: the only file of this folder that imports torch."""

import fcntl
import os
import re
import secrets
import socket
import time
from datetime import timedelta
from typing import TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from runtime.child import STORE_VARIABLE, FailedElsewhere

T = TypeVar("T")
COUNT_BYTES = 8


class Group:
    """torch's default process group, and gloo for objects beside what the gradients use.

    RANK and WORLD_SIZE give this rank's place; STORE_VARIABLE the store (`RankStore`), or MASTER_ADDR and MASTER_PORT,
    as torchrun and accelerate set them.
    """

    def __init__(self, device_type: str, timeout_seconds: float):
        self.rank, self.size = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
        self.timeout = timedelta(seconds=timeout_seconds)
        self._counts: int | None = None
        self._store = self._open_store()
        dist.init_process_group(
            "cpu:gloo,cuda:nccl" if device_type == "cuda" else "gloo",  # shards in host memory travel by gloo
            store=dist.PrefixStore("group", self._store),
            rank=self.rank,
            world_size=self.size,
            timeout=self.timeout,
        )
        self._control = dist.new_group(backend="gloo", timeout=self.timeout)

    def team(self, size: int) -> "Team":
        """The ranks that this one computes with: each `size` neighbours are a team. Every rank calls it."""
        found = None
        for first in range(0, self.size, size):
            members = list(range(first, first + size))
            groups = dist.new_group(members, self.timeout), dist.new_group(members, self.timeout, backend="gloo")
            if self.rank in members:
                found = Team(size, self.rank - first, *groups)
        assert found is not None
        return found

    def _open_store(self) -> dist.Store:
        kind, *place = os.environ.get(STORE_VARIABLE, "").split(":")
        if kind == "memory":
            file, self._counts = map(int, place)
            _keep_from_children(file, self._counts)
            if any(name == "lo" for _, name in socket.if_nameindex()):
                os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")  # or gloo listens where the host's name points
            return dist.FileStore(f"/proc/self/fd/{file}", -1)
        if kind == "tcp":
            *host, port = place[:-1] if self.rank == 0 else place
            listener = int(place[-1]) if self.rank == 0 else None
            if listener is not None:
                _keep_from_children(listener)
            return dist.TCPStore(
                ":".join(host),
                int(port),
                is_master=listener is not None,
                wait_for_workers=False,
                timeout=self.timeout,
                master_listen_fd=listener,
            )
        return next(dist.rendezvous("env://", timeout=self.timeout))[0]

    def gather(self, value: T) -> list[T]:
        """The values of all ranks, in order of rank, on every rank. FailedElsewhere when a rank is lost or late."""
        values: list[T] = [value] * self.size
        started = time.monotonic()
        try:
            dist.monitored_barrier(self._control, timeout=self.timeout, wait_all_ranks=True)
            dist.all_gather_object(values, value, group=self._control)
        except RuntimeError as error:
            waited = time.monotonic() - started
            why = f"after {waited:.0f} s of waiting for the other ranks: {error}"
            raise FailedElsewhere(why, _missing(str(error))) from error
        return values

    def new_counts(self, number: int) -> list[str]:
        """Names for `add` of numbers that are 0. Every rank calls it, and none uses names that it gave before."""
        token = self.gather(secrets.token_hex(8))[0]
        if self._counts is None:
            return [f"count/{token}/{i}" for i in range(number)]
        if self.rank == 0:
            os.ftruncate(self._counts, 0)
        self.gather(None)
        return [str(i) for i in range(number)]

    def add(self, name: str, number: int) -> int:
        """Adds to a number of `new_counts`; its value after that. FailedElsewhere where rank 0, its server, is gone."""
        if self._counts is None:
            try:
                return self._store.add(name, number)
            except RuntimeError as error:
                raise FailedElsewhere(f"rank 0's store does not answer: {error}", [0]) from error
        place = COUNT_BYTES * int(name)
        fcntl.lockf(self._counts, fcntl.LOCK_EX, COUNT_BYTES, place)
        try:
            total = int.from_bytes(os.pread(self._counts, COUNT_BYTES, place), "little") + number
            os.pwrite(self._counts, total.to_bytes(COUNT_BYTES, "little"), place)
        finally:
            fcntl.lockf(self._counts, fcntl.LOCK_UN, COUNT_BYTES, place)
        return total

    def leave(self) -> None:
        dist.destroy_process_group()


def _keep_from_children(*descriptors: int) -> None:
    """Programs that this rank starts (graders, sandboxes) do not inherit these."""
    for descriptor in descriptors:
        os.set_inheritable(descriptor, False)


def _missing(error: str) -> list[int]:
    """The ranks that gloo names as missing from a barrier."""
    named = re.search(r"[Rr]anks? ([\d, ]+) failed to pass|send/recv from rank (\d+)", error)
    return [int(number) for number in re.findall(r"\d+", named.group())] if named else []


class Team:
    """Neighbouring ranks that compute one model together (`models.parallel.Team`) and agree on every decision.

    size: how many; place: of this rank among them.
    """

    def __init__(self, size: int, place: int, tensors: dist.ProcessGroup, objects: dist.ProcessGroup):
        self.size, self.place = size, place
        self._tensors, self._objects = tensors, objects

    def sum(self, tensor: Tensor) -> Tensor:
        """The sum of the ranks' tensors, in the tensor's own memory."""
        dist.all_reduce(tensor, group=self._tensors)
        return tensor

    def side_by_side(self, tensor: Tensor) -> Tensor:
        """The ranks' tensors joined along the last axis, in order of place."""
        found = tensor.new_empty(self.size, *tensor.shape)
        dist.all_gather_into_tensor(found.flatten(0, 1), tensor.contiguous(), group=self._tensors)
        return torch.cat(found.unbind(), dim=-1)

    def gather(self, value: T) -> list[T]:
        """The values of the ranks, in order of place, on every one."""
        values: list[T] = [value] * self.size
        dist.all_gather_object(values, value, group=self._objects)
        return values
