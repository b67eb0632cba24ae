"""The ranks of a job: processes that hold the same weights and share its work. With one process all of this is the
identity.

A rank leaves a collective call with the same outcome as every other: a value, or an error. A rank that does not come
within the time-out is named.
"""

import os
import re
import time
from collections.abc import Callable, Mapping, Sequence
from datetime import timedelta
from typing import ParamSpec, TypeVar

import torch
import torch.distributed as dist

T = TypeVar("T")
P = ParamSpec("P")

STORE_VARIABLE = "DLLM_RL_STORE"
STOPPED_ELSEWHERE = 75
"""Exit status of a rank that ends because another one did."""


class FailedElsewhere(Exception):
    """Another rank failed, or was lost; it says why itself. missing: ranks that did not come, where that is known."""

    def __init__(self, why: str, missing: Sequence[int] = ()):
        super().__init__(why)
        self.missing = missing


class _Job:
    """The process group of this process: the shared store, and gloo for objects beside what the gradients use."""

    def __init__(self, device_type: str, timeout: timedelta):
        self.rank, self.size = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
        self.timeout = timeout
        if address := os.environ.get(STORE_VARIABLE):
            host, port = address.rsplit(":", 1)
            self.store: dist.Store = dist.TCPStore(host, int(port), is_master=False, timeout=timeout)
        else:
            self.store = next(dist.rendezvous("env://", timeout=timeout))[0]
        dist.init_process_group(
            "nccl" if device_type == "cuda" else "gloo",
            store=dist.PrefixStore("group", self.store),
            rank=self.rank,
            world_size=self.size,
            timeout=timeout,
        )
        self.control = dist.new_group(backend="gloo", timeout=timeout)


_job: _Job | None = None


def join(device_type: str, timeout_seconds: float) -> None:
    """Joins the process group that the environment tells of (RANK, WORLD_SIZE, MASTER_ADDR, MASTER_PORT as torchrun
    and accelerate set them, or a launcher's store). Nothing for one process, or when already joined."""
    global _job
    if device_type == "cuda" and "LOCAL_RANK" in os.environ:
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    local = int(os.environ.get("LOCAL_WORLD_SIZE", 1))
    if not os.environ.get("OMP_NUM_THREADS"):
        os.environ["OMP_NUM_THREADS"] = str(max(1, len(os.sched_getaffinity(0)) // local))
    if _job is None and int(os.environ.get("WORLD_SIZE", 1)) > 1:
        _job = _Job(device_type, timedelta(seconds=timeout_seconds))


def leave() -> None:
    """Leaves the process group."""
    global _job
    if _job is not None:
        dist.destroy_process_group()
        _job = None


def rank() -> int:
    return _job.rank if _job else 0


def world_size() -> int:
    return _job.size if _job else 1


def local_world_size() -> int:
    """Ranks on this machine."""
    return int(os.environ.get("LOCAL_WORLD_SIZE", world_size())) if _job else 1


def is_main() -> bool:
    """Whether this rank writes files, talks and grades."""
    return rank() == 0


def gather(value: T) -> list[T]:
    """The values of all ranks, in order of rank, on every rank. FailedElsewhere when a rank is lost or late."""
    if _job is None:
        return [value]
    values: list[T] = [value] * _job.size
    started = time.monotonic()
    try:
        dist.monitored_barrier(_job.control, timeout=_job.timeout, wait_all_ranks=True)
        dist.all_gather_object(values, value, group=_job.control)
    except RuntimeError as error:
        waited = time.monotonic() - started
        why = f"after {waited:.0f} s of waiting for the other ranks: {error}"
        raise FailedElsewhere(why, _missing(str(error))) from error
    return values


def _missing(error: str) -> list[int]:
    """The ranks that gloo says did not come to a barrier."""
    named = re.search(r"[Rr]anks? ([\d, ]+) failed to pass|send/recv from rank (\d+)", error)
    return [int(number) for number in re.findall(r"\d+", named.group())] if named else []


def on_main(function: Callable[P, T], *args: P.args, **named: P.kwargs) -> T:
    """What `function` gives on rank 0, on every rank. What it raises is raised on rank 0, FailedElsewhere on others."""
    if _job is None:
        return function(*args, **named)
    outcome: list[T] | None = None
    failure: Exception | None = None
    if is_main():
        try:
            outcome = [function(*args, **named)]
        except Exception as error:
            failure = error
    found = gather(outcome)[0]
    if failure is not None:
        raise failure
    if found is None:
        raise FailedElsewhere("rank 0 failed")
    return found[0]


class SharedCount:
    """A number that all ranks add to, from 0. Ranks that give one name share one number for the whole job."""

    def __init__(self, name: str):
        self.name, self._alone = name, 0

    def add(self, number: int) -> int:
        """Adds; the sum after that, of all ranks."""
        if _job is not None:
            return _job.store.add(f"count/{self.name}", number)
        self._alone += number
        return self._alone


def summed(numbers: Mapping[str, float]) -> dict[str, float]:
    """Sums over ranks, name by name; a rank may lack a name."""
    total: dict[str, float] = {}
    for given in gather(dict(numbers)):
        for name, number in given.items():
            total[name] = total.get(name, 0.0) + number
    return total


def require_alike(what: str, value: object) -> None:
    """RuntimeError naming the ranks whose `value` is not rank 0's."""
    values = gather(value)
    others = [str(r) for r, other in enumerate(values) if other != values[0]]
    if others:
        raise RuntimeError(f"{what} of rank {', '.join(others)} differs from rank 0's: the ranks are not one job.")
